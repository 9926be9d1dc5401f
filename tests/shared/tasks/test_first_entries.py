"""An index of some of the entries, as if there were no others."""

import dataclasses

import numpy as np
import pytest

from fedsprig.errors import LibraryError, PlanError, SketchError
from fedsprig.masks import ScoreSet
from fedsprig.tasks import SIMILARITIES, Evidence, TaskSketch
from fedsprig.tasks.similarity.index import SketchIndex

NAMES = [f"task-{number}" for number in range(5)]


def drawn() -> list[TaskSketch]:
    rng = np.random.default_rng(0)
    return [
        TaskSketch(
            probe="0" * 64,
            prototypes=rng.normal(size=(2 + number, 4)).astype(np.float32),
            counts=np.ones(2 + number, np.int64),
            classes=("",) * (2 + number),
            fingerprint=rng.random(5 if number else 0, np.float32),
            groups=(3, 2) if number == 3 else (),
            spread=float(number),
        )
        for number in range(5)
    ]


@pytest.mark.parametrize("positions", [[], [0], [0, 1, 2], [4, 1, 3], [3, 2, 4, 0, 1]])
def test_some_entries_are_what_a_library_of_them_alone_would_be(positions):
    sketches = drawn()
    then = SketchIndex.build([NAMES[at] for at in positions], [sketches[at] for at in positions])
    subset = SketchIndex.build(NAMES, sketches).subset(np.array(positions, np.int64))
    assert subset.names == then.names
    for field in ("prototypes", "starts", "centre", "means", "spreads"):
        assert np.array_equal(getattr(subset, field), getattr(then, field))
    width = then.fingerprints.shape[1]
    assert width == (5 if set(positions) - {0} else 0)
    assert np.array_equal(subset.fingerprints[:, :width], then.fingerprints)
    assert not subset.fingerprints[:, width:].any()


@pytest.mark.parametrize("name", ["prototypes", "transport", "fingerprints"])
def test_no_similarity_with_some_entries_knows_the_others(name):
    sketches, positions = drawn(), np.array([3, 0, 1])
    then = SketchIndex.build([NAMES[at] for at in positions], [sketches[at] for at in positions])
    whole = SketchIndex.build(NAMES, sketches)
    query = dataclasses.replace(sketches[2], fingerprint=np.arange(5, dtype=np.float32))
    compare = SIMILARITIES[name].compare
    found = compare(Evidence(query), whole.subset(positions))
    np.testing.assert_array_equal(found, compare(Evidence(query), then))
    assert not np.allclose(found, compare(Evidence(query), whole, positions))


def test_a_subset_has_no_entry_twice():
    index = SketchIndex.build(NAMES, drawn())
    with pytest.raises(SketchError, match="each entry once"):
        index.subset(np.array([1, 1]))


@pytest.mark.parametrize("count", [-1, 0, 1, 3, 5, 9])
def test_the_first_entries_are_what_was_indexed_then(count):
    index = SketchIndex.build(NAMES, drawn())
    assert index.first(count).names == tuple(NAMES[: max(count, 0)])
    assert (index.first(count) is index) == (count >= 5)


def test_scores_go_with_their_entries_and_are_given_again_for_new_ones():
    rng = np.random.default_rng(1)

    def one() -> TaskSketch:
        values = rng.normal(size=(2, 4)).astype(np.float32)
        counts, none = np.ones(2, np.int64), np.zeros(0, np.float32)
        return TaskSketch("0" * 64, values, counts, ("", ""), none)

    sets = [ScoreSet({"a": rng.random(3), "b": 100 * rng.random(2)}) for _ in range(3)]
    index = SketchIndex.build("xyz", [one(), one(), one()])
    scored = index.with_scores(sets)
    assert index.scores is None
    assert scored.layout == sets[0].layout
    assert np.array_equal(scored.scores, [item.normalised().flat for item in sets])
    assert np.array_equal(scored.subset(np.array([2, 0])).scores, scored.scores[[2, 0]])
    assert scored.extended(["w"], [one()]).scores is None
    assert scored.positions(["z", "x"]).tolist() == [2, 0]
    with pytest.raises(LibraryError, match="no entry 'w'"):
        scored.positions(["w"])
    with pytest.raises(LibraryError, match="2 score sets for 3"):
        index.with_scores(sets[:2])
    with pytest.raises(PlanError):
        index.with_scores([*sets[:2], ScoreSet({"a": rng.random(4)})])


def test_fingerprints_of_other_groups_are_refused():
    def one(units: int, groups: tuple[int, ...]) -> TaskSketch:
        values, counts = np.ones((1, 4), np.float32), np.ones(1, np.int64)
        return TaskSketch(
            "0" * 64, values, counts, ("",), np.ones(units, np.float32), groups=groups
        )

    index = SketchIndex.build("ab", [one(5, ()), one(5, (3, 2))])
    assert index.groups == (3, 2)
    assert index.extended("cd", [one(0, ()), one(5, ())]).groups == (3, 2)
    for other in (one(5, (2, 3)), one(4, ()), one(4, (4,))):
        with pytest.raises(SketchError, match="'c' has"):
            index.extended("c", [other])
