"""First-batch scores and fingerprints, compared group by group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import LibraryError, PlanError, SketchError
from fedsprig.masks import ScoreSet
from fedsprig.tasks import SIMILARITIES, Evidence, SketchIndex, TaskSketch
from fedsprig.tasks.similarity import correlation

SIZES = (3, 1, 5)
first_scores = SIMILARITIES["first_scores"].compare
fingerprints = SIMILARITIES["fingerprints"].compare


def sketch(values: np.ndarray | None = None, groups: tuple[int, ...] = SIZES) -> TaskSketch:
    means, counts = np.ones((1, 2), np.float32), np.ones(1, np.int64)
    if values is None:
        return TaskSketch("a" * 64, means, counts, ("",), np.zeros(0, np.float32))
    return TaskSketch("a" * 64, means, counts, ("",), values.astype(np.float32), groups=groups)


def index_of(rows: np.ndarray, groups: tuple[int, ...] = SIZES) -> SketchIndex:
    names = [f"t{number}" for number in range(len(rows))]
    return SketchIndex.build(names, [sketch(row, groups) for row in rows])


def reference(own: np.ndarray, rows: np.ndarray, sizes: tuple[int, ...]) -> list[float]:
    """Pearson's correlation group by group, by numpy's own, at root mean square 1."""
    result = np.zeros(len(rows))
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        level = [row[part] / np.sqrt(np.mean(row[part] ** 2)) for row in (own, *rows)]
        centre = np.mean(level[1:], axis=0)
        for number, row in enumerate(level[1:]):
            if size > 1:
                found = np.corrcoef(level[0] - centre, row - centre)[0, 1]
                result[number] += size / sum(sizes) * found
        start += size
    return list(result)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(3, 9))
def test_both_are_the_centred_correlation_group_by_group(seed: int, entries: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.uniform(0.5, 2, (entries, 9)).astype(np.float32)
    own = rng.uniform(0.5, 2, 9).astype(np.float32)
    expected = reference(own.astype(float), rows.astype(float), SIZES)
    index = index_of(rows)
    np.testing.assert_allclose(fingerprints(Evidence(sketch(own)), index), expected, atol=1e-4)

    def scores(values: np.ndarray) -> ScoreSet:
        a, b, c = np.split(values, [3, 4])
        return ScoreSet({"a": a, "b": b, "c": c})

    scored = index.with_scores([scores(row) for row in rows])
    evidence = Evidence(sketch(), scores=scores(100 * own))
    np.testing.assert_allclose(first_scores(evidence, scored), expected, atol=1e-4)
    chosen = np.array([2, 0])
    np.testing.assert_allclose(
        first_scores(evidence, scored, chosen), np.array(expected)[chosen], atol=1e-4
    )


def test_by_hand() -> None:
    # The mean of the library is (1, 1, 1, 1) at root mean square 1 in both groups of two, and what
    # is left of entry 0 there is the opposite of entry 1.
    a, b = 1.4, 0.2
    rows = np.array([[a, b, b, a], [b, a, a, b]])
    index = index_of(rows, (2, 2))
    task = Evidence(sketch(np.array([a, b, b, a]), (2, 2)))
    np.testing.assert_allclose(fingerprints(task, index), [1, -1])
    # Alike in one of two groups, unlike in the other.
    task = Evidence(sketch(np.array([3 * a, 3 * b, a, b]), (2, 2)))
    np.testing.assert_allclose(fingerprints(task, index), [0, 0], atol=1e-7)
    # Without groups, all is one.
    task = Evidence(sketch(np.array([a, b, b, a]), ()))
    np.testing.assert_allclose(fingerprints(task, index_of(rows, ())), [1, -1])


def test_what_does_not_vary_says_nothing() -> None:
    rows = np.ones((3, 9))
    assert fingerprints(Evidence(sketch(np.arange(1.0, 10))), index_of(rows)).tolist() == [0, 0, 0]
    one = index_of(np.arange(1.0, 10)[None])
    assert fingerprints(Evidence(sketch(np.ones(9))), one).tolist() == [0]  # its own centre


def test_entries_without_a_fingerprint_are_in_the_middle_and_do_not_move_the_centre() -> None:
    rng = np.random.default_rng(0)
    rows, own = rng.uniform(0.5, 2, (4, 9)), Evidence(sketch(rng.uniform(0.5, 2, 9)))
    index = index_of(rows)
    more = index.extended(["none"], [sketch()])
    np.testing.assert_allclose(fingerprints(own, more), [*fingerprints(own, index), 0])
    none = SketchIndex.build(["none"], [sketch()])
    assert fingerprints(own, none).tolist() == [0]


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    index = index_of(rng.uniform(0.5, 2, (7, 9)))
    own = Evidence(sketch(rng.uniform(0.5, 2, 9)))
    whole = fingerprints(own, index)
    monkeypatch.setattr(correlation, "CHUNK_ENTRIES", 2)
    np.testing.assert_allclose(fingerprints(own, index), whole)


def test_what_cannot_be_compared_is_refused() -> None:
    index = index_of(np.ones((2, 9)))
    for own in (sketch(), sketch(np.ones(4), ())):
        with pytest.raises(SketchError, match="units, the library's 9"):
            fingerprints(Evidence(own), index)
    with pytest.raises(SketchError, match="score a first batch"):
        first_scores(Evidence(sketch()), index)
    scores = ScoreSet({"a": np.ones(4)})
    with pytest.raises(LibraryError, match="with_scores"):
        first_scores(Evidence(sketch(), scores=scores), index)
    other = index.with_scores([ScoreSet({"a": np.ones(5)})] * 2)
    with pytest.raises(PlanError):
        first_scores(Evidence(sketch(), scores=scores), other)


def test_a_side_that_does_not_know_its_groups_takes_the_other_ones() -> None:
    rng = np.random.default_rng(2)
    rows, own = rng.uniform(0.5, 2, (4, 9)), rng.uniform(0.5, 2, 9)
    expected = fingerprints(Evidence(sketch(own)), index_of(rows))
    np.testing.assert_array_equal(fingerprints(Evidence(sketch(own, ())), index_of(rows)), expected)
    np.testing.assert_array_equal(fingerprints(Evidence(sketch(own)), index_of(rows, ())), expected)


@pytest.mark.parametrize("name", ["fingerprints", "prototypes"])
def test_a_sketch_of_other_groups_is_refused_by_every_similarity(name: str) -> None:
    index = index_of(np.ones((2, 9)))
    other = Evidence(sketch(np.ones(9), (5, 1, 3)))
    with pytest.raises(SketchError, match="other groups than the library's"):
        SIMILARITIES[name].compare(other, index)
