"""Every way from neighbours to scores, by hand on a network of five units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import LibraryError, SketchError, UnknownNameError
from fedsprig.masks import ScoreSet
from fedsprig.tasks import (
    SCORE_MASKS,
    Neighbour,
    SketchIndex,
    TaskSketch,
    embedding,
    embeddings,
    neighbour_weights,
    score_mask,
)
from fedsprig.tasks.score_mask.votes import TIE, elected


def sketch(prototypes: list[list[float]], fingerprint: list[float] | None = None) -> TaskSketch:
    size = len(prototypes)
    return TaskSketch(
        "a" * 64,
        np.array(prototypes, np.float32),
        np.full(size, 10, np.int64),
        ("",) * size,
        np.array(fingerprint or [], np.float32),
    )


TASK = sketch([[1.0, 0.0], [0.0, 1.0]])


def neighbour(name: str, similarity: float, a: list[float], b: list[float]) -> Neighbour:
    groups = {"a": np.array(a, np.float32), "b": np.array(b, np.float32)}
    vector = np.array([similarity, 1.0], np.float32)
    return Neighbour(name, similarity, ScoreSet(groups), vector)


def unit(values: list[float]) -> np.ndarray:
    return np.array(values) / np.sqrt(np.mean(np.square(values)))


NEAR = [
    neighbour("far", 0.1, [4.0, 1.0, 1.0], [1.0, 2.0]),
    neighbour("near", 0.9, [1.0, 2.0, 5.0], [3.0, 1.0]),
    neighbour("middle", 0.5, [1.0, 1.0, 1.0], [0.5, 4.0]),
]


def test_the_mean_counts_all_alike() -> None:
    made = score_mask(TASK, NEAR, method="mean")
    expected = np.mean([unit([4, 1, 1]), unit([1, 2, 5]), unit([1, 1, 1])], axis=0)
    np.testing.assert_allclose(made.groups["a"], expected, rtol=1e-6)


def test_the_nearest_is_the_most_similar_and_of_equals_the_first_by_name() -> None:
    assert score_mask(TASK, NEAR, method="nearest") == NEAR[1].scores.normalised()
    equal = [
        neighbour("b", 0.3, [1.0, 2.0, 3.0], [1.0, 2.0]),
        neighbour("a", 0.3, [3.0, 2.0, 1.0], [1.0, 2.0]),
    ]
    assert score_mask(TASK, equal, method="nearest") == equal[1].scores.normalised()


def test_a_count_leaves_the_farther_ones_out() -> None:
    expected = score_mask(TASK, [NEAR[1], NEAR[2]], temperature=0.7)
    assert score_mask(TASK, NEAR, temperature=0.7, count=2) == expected
    assert score_mask(TASK, NEAR, count=1) == score_mask(TASK, NEAR, method="nearest")


@pytest.mark.parametrize("method", [name for name in SCORE_MASKS if name != "nearest"])
def test_every_way_hears_as_many_as_it_is_told(method: str) -> None:
    expected = score_mask(TASK, [NEAR[1], NEAR[2]], method=method)
    assert score_mask(TASK, NEAR, method=method, count=2) == expected
    assert score_mask(TASK, NEAR, method=method, count=9).flat == pytest.approx(
        score_mask(TASK, NEAR, method=method).flat
    )


def test_the_nearest_alone_hears_one() -> None:
    assert score_mask(TASK, NEAR, method="nearest", count=1) == NEAR[1].scores.normalised()
    with pytest.raises(LibraryError, match="count 2 with the nearest neighbour alone"):
        score_mask(TASK, NEAR, method="nearest", count=2)


def test_votes_are_weighted_and_scores_decide_between_equals() -> None:
    # Normalised: far a (1.63, .41, .41) b (.63, 1.26); near a (.32, .63, 1.58) b (1.34, .45).
    # Two of five units: far elects a0 and b1, near elects a2 and b0.
    pair = NEAR[:2]
    far, near = neighbour_weights([0.1, 0.9], 0.5)
    made = score_mask(TASK, pair, method="votes", keep=0.4)
    first = np.concatenate([unit([4, 1, 1]), unit([1, 2])])
    second = np.concatenate([unit([1, 2, 5]), unit([3, 1])])
    ballots = far * np.array([1, 0, 0, 0, 1]) + near * np.array([0, 0, 1, 1, 0])
    ballots = ballots + TIE * (far * first / first.max() + near * second / second.max())
    np.testing.assert_allclose(made.flat, ballots, rtol=1e-5)


def test_votes_by_importance_are_shares_of_the_groups_best() -> None:
    pair = NEAR[:2]
    far, near = neighbour_weights([0.1, 0.9], 0.5)
    made = score_mask(TASK, pair, method="importance_votes", keep=0.6)
    # Three of five: far elects b1, a0, b0 (half of b1); near elects a2, b0 and a1 (2/5 of a2).
    np.testing.assert_allclose(made.groups["a"], [far, 0.4 * near, near], rtol=1e-5)
    np.testing.assert_allclose(made.groups["b"], [far * 0.5 + near, far], rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.floats(0.01, 1))
def test_ballots_hold_the_best_units_of_the_whole_network(seed: int, keep: float) -> None:
    values = np.random.default_rng(seed).integers(0, 5, (3, 17)).astype(np.float32)
    for row, ballot in zip(values, elected(values, keep), strict=True):
        assert ballot.sum() == max(1, round(17 * keep))
        assert row[ballot > 0].min() >= row[ballot == 0].max(initial=-1)


@pytest.mark.parametrize("method", SCORE_MASKS)
def test_one_neighbour_is_followed_by_every_way(method: str) -> None:
    made = score_mask(TASK, NEAR[:1], method=method, keep=1.0)
    for name in ("a", "b"):
        own = NEAR[0].scores.groups[name]
        assert np.argsort(made.groups[name]).tolist() == np.argsort(own).tolist()


@pytest.mark.parametrize("method", SCORE_MASKS)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_no_way_hears_a_neighbours_scale(method: str, scale: float) -> None:
    loud = ScoreSet({key: (scale * value) for key, value in NEAR[0].scores.groups.items()})
    moved = [Neighbour("far", 0.1, loud, NEAR[0].embedding), *NEAR[1:]]
    expected = score_mask(TASK, NEAR, method=method).flat
    np.testing.assert_allclose(
        score_mask(TASK, moved, method=method).flat, expected, rtol=1e-4, atol=1e-6
    )


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'votes'"):
        score_mask(TASK, NEAR, method="vote")
    with pytest.raises(LibraryError, match="count 0"):
        score_mask(TASK, NEAR, count=0)
    for count in (1.5, True, "2"):
        with pytest.raises(LibraryError, match=f"count {count}: use a whole number"):
            score_mask(TASK, NEAR, count=count)  # type: ignore[arg-type]
    for keep in (0.0, 1.1, float("nan")):
        with pytest.raises(LibraryError, match="share of units"):
            score_mask(TASK, NEAR, method="votes", keep=keep)
    lost = Neighbour("lost", float("nan"), NEAR[0].scores)
    with pytest.raises(LibraryError, match="finite similarity"):
        score_mask(TASK, [lost], method="nearest")


def test_an_embedding_is_the_mean_of_classes_then_the_fingerprint() -> None:
    first = sketch([[1.0, 3.0], [3.0, 5.0]], [3.0, 4.0])
    second = sketch([[2.0, 0.0]], [0.5, 0.0])
    root = np.sqrt(2)
    np.testing.assert_allclose(embedding(first), [2, 4, 0.6 * root, 0.8 * root], rtol=1e-6)
    index = SketchIndex.build(["first", "second"], [first, second])
    np.testing.assert_allclose(
        embeddings(index), np.stack([embedding(first), embedding(second)]), rtol=1e-6
    )
    np.testing.assert_allclose(embeddings(index, np.array([1])), [[2, 0, root, 0]], rtol=1e-6)
    # A fingerprint that some entries lack is of no use.
    more = index.extended(["bare"], [sketch([[1.0, 1.0]])])
    np.testing.assert_array_equal(embeddings(more), [[2, 4], [2, 0], [1, 1]])
    assert embeddings(SketchIndex.build((), ())).size == 0


def test_no_group_of_a_fingerprint_is_louder_than_another() -> None:
    quiet = replace(sketch([[1.0]], [0.3, 0.4, 7.0]), groups=(2, 1))
    root = np.sqrt(2)
    np.testing.assert_allclose(embedding(quiet), [1, 0.6 * root, 0.8 * root, 1], rtol=1e-6)
    np.testing.assert_allclose(
        embeddings(SketchIndex.build(["quiet"], [quiet]))[0], embedding(quiet), rtol=1e-6
    )


def test_a_task_lies_in_the_space_of_its_library_whatever_its_own_sketch_knows() -> None:
    new = replace(sketch([[1.0]], [0.3, 0.4, 7.0]), groups=(2, 1))
    old = replace(new, groups=())
    for library, query in ((new, old), (old, new), (old, old)):
        index = SketchIndex.build(["entry"], [library])
        made = embedding(query, index.groups)
        np.testing.assert_array_equal(made, embeddings(index)[0])
        near = [replace(item, embedding=made, groups=index.groups) for item in NEAR[:1]]
        moved = replace(near[0], name="elsewhere", scores=NEAR[1].scores, embedding=made[::-1])
        # The task is where the first entry is, so that it weighs as if it were that entry.
        expected = score_mask(library, [*near, moved], method="ridge")
        assert score_mask(query, [*near, moved], method="ridge") == expected
    with pytest.raises(SketchError, match="3 units, the library's groups 4"):
        embedding(old, (2, 2))
