"""The learned predictor against explicit refits, and its fall back to the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import LibraryError
from fedsprig.masks import ScoreSet
from fedsprig.tasks import Neighbour, TaskSketch, embedding, score_mask
from fedsprig.tasks.score_mask import Ridge
from fedsprig.tasks.score_mask.ridge import SHARES
from fedsprig.tasks.score_mask.smoother import PENALTIES

FEATURES = 4


def drawn(seed: int, count: int, units: int = 7, prints: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings, and scores that depend on them but for some noise."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(2, 1, (count, FEATURES + prints)).astype(np.float32)
    slopes = rng.normal(size=(FEATURES + prints, units))
    values = vectors @ slopes + rng.normal(0, 0.5, (count, units))
    return vectors, values.astype(np.float32)


def kernel_of(vectors: np.ndarray, share: float) -> np.ndarray:
    """Slow and obvious: cosines around the mean, entry by entry."""
    parts = []
    for columns, scaled in ((slice(0, FEATURES), False), (slice(FEATURES, None), True)):
        part = vectors[:, columns].astype(np.float64)
        part = part - part.mean(axis=0)
        if scaled:
            part = part / vectors[:, columns].astype(np.float64).std(axis=0)
        kernel = np.zeros((len(part), len(part)))
        for i, one in enumerate(part):
            for j, other in enumerate(part):
                kernel[i, j] = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        parts.append(kernel)
    return (1 - share) * parts[0] + share * parts[1]


def refitted(kernel: np.ndarray, values: np.ndarray, i: int, penalty: float) -> np.ndarray:
    """The prediction of entry i from all others: solved anew, with an explicit intercept."""
    rest = np.array([j for j in range(len(values)) if j != i])
    mean = values[rest].mean(axis=0)
    if math.isinf(penalty):
        return mean
    count = len(rest)
    # [K + penalty, 1; 1, 0] [dual; intercept] = [values; 0]
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = kernel[np.ix_(rest, rest)] + penalty * np.eye(count)
    system[count, count] = 0
    solved = np.linalg.solve(system, np.vstack([values[rest], np.zeros(values.shape[1])]))
    return kernel[i, rest] @ solved[:count] + solved[count]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.integers(2, 9))
def test_errors_in_closed_form_are_those_of_refits(seed: int, count: int) -> None:
    vectors, values = drawn(seed, count)
    ridge = Ridge(vectors, FEATURES, values)
    assert len(ridge.choices) == len(SHARES) * len(PENALTIES)
    for (share, penalty), errors in zip(ridge.choices, ridge.errors, strict=True):
        kernel = kernel_of(vectors, share)
        for i, error in enumerate(errors):
            missed = values[i] - refitted(kernel, values.astype(np.float64), i, penalty)
            assert error == pytest.approx(np.mean(missed**2), rel=1e-3, abs=1e-5)


def test_what_is_left_out_is_predicted_as_by_a_refit() -> None:
    vectors, values = drawn(3, 12)
    ridge = Ridge(vectors, FEATURES, values)
    rows = np.array([0, 5, 11])
    for i, predicted in zip(rows, ridge.left_out(rows), strict=True):
        # Its own error has no say in the choice either.
        others = ridge.errors.sum(axis=1) - ridge.errors[:, i]
        share, penalty = ridge.choices[int(np.argmin(others))]
        expected = refitted(kernel_of(vectors, share), values.astype(np.float64), i, penalty)
        np.testing.assert_allclose(predicted, expected, rtol=1e-3, atol=1e-3)
    residuals = []
    share, penalty = ridge.choices[ridge.best]
    for i in range(len(values)):
        kernel = kernel_of(vectors, share)
        residuals.append(values[i] - refitted(kernel, values.astype(np.float64), i, penalty))
    np.testing.assert_allclose(ridge.spread(), np.mean(np.square(residuals), axis=0), rtol=1e-3)


def test_weights_are_those_of_the_fit_and_sum_to_one() -> None:
    vectors, values = drawn(5, 10)
    ridge = Ridge(vectors[:9], FEATURES, values[:9])
    share, penalty = ridge.choices[ridge.best]
    assert not math.isinf(penalty)
    # An entry as the new task, with all nine to learn from: the system is solved for it.
    kernel = kernel_of(vectors[:9], share)
    system = np.ones((10, 10))
    system[:9, :9] = kernel + penalty * np.eye(9)
    system[9, 9] = 0
    solved = np.linalg.solve(system, np.vstack([values[:9], np.zeros(values.shape[1])]))
    for i in (0, 4):
        weights = ridge.weights(vectors[i])
        assert weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(
            weights @ values[:9], kernel[i] @ solved[:9] + solved[9], rtol=1e-4, atol=1e-4
        )
    assert ridge.weights(vectors[9]).sum() == pytest.approx(1)


def test_where_nothing_can_be_learned_it_is_the_mean() -> None:
    # All tasks lie in two places, and scores differ within a place as between them.
    vectors = np.tile([[1, 0, 0, 0], [0, 1, 0, 0]], (4, 1)).astype(np.float32)
    values = np.repeat([[1.0, 3.0], [3.0, 1.0]], 4, axis=0).astype(np.float32)
    ridge = Ridge(vectors, FEATURES, values)
    assert math.isinf(ridge.choices[ridge.best][1])
    np.testing.assert_allclose(ridge.weights(vectors[0]), np.full(8, 1 / 8))


def test_places_that_tell_scores_are_listened_to() -> None:
    vectors = np.tile([[1, 0, 0, 0], [0, 1, 0, 0]], (4, 1)).astype(np.float32)
    values = np.tile([[1.0, 3.0], [3.0, 1.0]], (4, 1)).astype(np.float32)
    ridge = Ridge(vectors, FEATURES, values)
    np.testing.assert_allclose(ridge.weights(vectors[0]) @ values, [1, 3], atol=0.05)


def test_as_a_score_mask_it_reads_the_sketch() -> None:
    vectors, values = drawn(7, 9, units=5)
    near = [
        Neighbour(f"n{j}", 0.0, ScoreSet({"a": 9 + row[:3], "b": 9 + row[3:]}), vector)
        for j, (vector, row) in enumerate(zip(vectors, values, strict=True))
    ]
    rows = np.stack([item.scores.normalised().flat for item in near])
    for prints in (vectors[2, FEATURES:], np.zeros(0, np.float32)):
        task = TaskSketch("a" * 64, vectors[2:3, :FEATURES], np.array([9]), ("",), prints)
        used = vectors if prints.size else vectors[:, :FEATURES]
        expected = Ridge(used, FEATURES, rows).weights(embedding(task)) @ rows
        made = score_mask(task, near, method="ridge")
        np.testing.assert_allclose(made.flat, expected, rtol=1e-5)
        assert not np.allclose(made.flat, rows.mean(axis=0), atol=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    vectors, values = drawn(1, 3)
    with pytest.raises(LibraryError, match="embedding for every neighbour"):
        Ridge(vectors[:2], FEATURES, values)
    with pytest.raises(LibraryError, match="embedding for every neighbour"):
        Ridge(vectors * np.nan, FEATURES, values)
    with pytest.raises(LibraryError, match=r"not a finite \[9\]"):
        Ridge(vectors, FEATURES, values).weights(vectors[0, :-1])
    for features in (vectors.shape[1] + 1, 0):
        with pytest.raises(LibraryError, match=f"{features} features"):
            Ridge(vectors, features, values)
    for row in (3, -1):
        with pytest.raises(LibraryError, match="entries 0 to 2"):
            Ridge(vectors, FEATURES, values).left_out(np.array([0, row]))
    lonely = Ridge(vectors[:1], FEATURES, values[:1])
    assert lonely.weights(vectors[1]).tolist() == [1]
    for ask in (lonely.spread, lambda: lonely.left_out(np.array([0]))):
        with pytest.raises(LibraryError, match="one entry"):
            ask()
    task = TaskSketch(
        "a" * 64, np.ones((1, 4), np.float32), np.array([9]), ("",), np.zeros(0, np.float32)
    )
    bare = Neighbour("bare", 0.0, ScoreSet({"a": np.ones(2, np.float32)}))
    with pytest.raises(LibraryError, match="give every neighbour its own"):
        score_mask(task, [bare], method="ridge")
