"""The score mask: weights by hand, sums against numpy, shrinkage towards the library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import LibraryError, PlanError
from fedsprig.masks import ScoreSet
from fedsprig.tasks import Neighbour, TaskSketch, neighbour_weights, score_mask


def sketch(*counts: int) -> TaskSketch:
    size = len(counts)
    return TaskSketch(
        "a" * 64,
        np.zeros((size, 2), np.float32),
        np.array(counts, np.int64),
        ("",) * size,
        np.zeros(0, np.float32),
    )


TASK = sketch(10, 10)


def scores(rng: np.random.Generator) -> ScoreSet:
    values = {"a": rng.random(5), "b": 100 * rng.random(3)}
    return ScoreSet({name: value.astype(np.float32) for name, value in values.items()})


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.sqrt(np.mean(values**2))


def test_weights_by_hand() -> None:
    # z-scores of 1, 2, 3 are -sqrt(3/2), 0, +sqrt(3/2).
    z = math.sqrt(1.5)
    terms = [math.exp(-z / 0.5), 1.0, math.exp(z / 0.5)]
    expected = [term / sum(terms) for term in terms]
    np.testing.assert_allclose(neighbour_weights([1, 2, 3], 0.5), expected, rtol=1e-12)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=30),
    st.floats(0.01, 100),
    st.floats(0.1, 1e3),
    st.floats(-10, 10),
)
def test_weights_are_a_distribution_that_follows_the_ranks(
    similarities: list[float], temperature: float, scale: float, shift: float
) -> None:
    weights = neighbour_weights(similarities, temperature)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)
    order = np.argsort(similarities)
    assert (np.diff(weights[order]) >= -1e-12).all()
    if np.std(similarities) > 1e-6:
        moved = neighbour_weights(scale * np.array(similarities) + shift, temperature)
        np.testing.assert_allclose(moved, weights, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e9])
def test_equal_similarities_weigh_the_same(value: float) -> None:
    np.testing.assert_array_equal(neighbour_weights([value] * 7), np.full(7, 1 / 7))
    assert neighbour_weights([value]).tolist() == [1.0]


def test_a_high_temperature_is_the_plain_mean_and_a_low_one_the_nearest() -> None:
    np.testing.assert_allclose(neighbour_weights([1, 2, 3], 1e9), np.full(3, 1 / 3))
    np.testing.assert_allclose(neighbour_weights([1, 2, 3], 1e-6), [0, 0, 1], atol=1e-12)


@pytest.mark.parametrize(
    ("similarities", "temperature"),
    [
        ([], 0.5),
        ([1.0, float("nan")], 0.5),
        ([[1.0]], 0.5),
        ([1.0], 0.0),
        ([1.0], float("nan")),
        ([1.0, 2.0], 1e-320),
        ([1.0, 2.0], 9e-7),
    ],
)
def test_bad_weights_are_refused(similarities: Any, temperature: float) -> None:
    with pytest.raises(LibraryError):
        neighbour_weights(similarities, temperature)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_the_mask_is_the_weighted_sum_of_scores_at_equal_length(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    near = [Neighbour(f"n{j}", float(rng.normal()), scores(rng)) for j in range(count)]
    made = score_mask(TASK, near, temperature=0.7)
    weights = neighbour_weights([item.similarity for item in near], 0.7)
    for group in ("a", "b"):
        units = [unit(item.scores.groups[group]) for item in near]
        expected = sum(w * u for w, u in zip(weights, units, strict=True))
        np.testing.assert_allclose(made.groups[group], expected, atol=1e-6)


def test_a_group_of_zeros_says_nothing() -> None:
    zero = ScoreSet({"a": np.zeros(2, np.float32), "b": np.array([3, 4], np.float32)})
    made = score_mask(TASK, [Neighbour("n", 0.1, zero)])
    np.testing.assert_allclose(made.groups["a"], [0, 0])
    np.testing.assert_allclose(made.groups["b"], np.sqrt(2) * np.array([0.6, 0.8]), rtol=1e-6)


def test_equal_similarities_give_the_plain_mean() -> None:
    rng = np.random.default_rng(0)
    near = [Neighbour(f"n{j}", 0.3, scores(rng)) for j in range(3)]
    made = score_mask(TASK, near)
    expected = np.mean([unit(item.scores.groups["a"]) for item in near], axis=0)
    np.testing.assert_allclose(made.groups["a"], expected, atol=1e-6)


def test_the_own_score_counts_by_its_pictures() -> None:
    rng = np.random.default_rng(1)
    near, own = [Neighbour("n", 0.5, scores(rng))], scores(rng)

    def expected(share: float, group: str) -> np.ndarray:
        library = unit(near[0].scores.groups[group])
        return (1 - share) * library + share * unit(own.groups[group])

    # 40 pictures a class count as much as the library; classes without pictures do not count.
    for counts, share in [((40, 40, 0), 0.5), ((10, 10), 0.2), ((150, 10), 2 / 3)]:
        made = score_mask(sketch(*counts), near, own=own)
        for group in ("a", "b"):
            np.testing.assert_allclose(made.groups[group], expected(share, group), atol=1e-6)
    fixed = score_mask(TASK, near, own=own, own_weight=0.9)
    np.testing.assert_allclose(fixed.groups["b"], expected(0.9, "b"), atol=1e-6)


def test_without_neighbours_the_own_score_is_all() -> None:
    own = scores(np.random.default_rng(2))
    assert score_mask(TASK, [], own=own) == own.normalised()
    with pytest.raises(LibraryError, match="no neighbour"):
        score_mask(TASK, [])


def test_what_does_not_fit_is_refused() -> None:
    rng = np.random.default_rng(3)
    other = ScoreSet({"a": np.ones(5, np.float32)})
    near = [Neighbour("n", 0.5, scores(rng)), Neighbour("m", 0.1, other)]
    with pytest.raises(PlanError):
        score_mask(TASK, near)
    with pytest.raises(PlanError):
        score_mask(TASK, near[:1], own=other)
    with pytest.raises(LibraryError, match="own_weight"):
        score_mask(TASK, near[:1], own=scores(rng), own_weight=1.5)
