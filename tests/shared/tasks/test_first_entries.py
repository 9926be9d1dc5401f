"""An index of the entries that were there at some moment."""

import numpy as np
import pytest

from fedsprig.errors import LibraryError, PlanError, SketchError
from fedsprig.masks import ScoreSet
from fedsprig.tasks import TaskSketch
from fedsprig.tasks.similarity.index import SketchIndex


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9])
def test_the_first_entries_are_what_was_indexed_then(count):
    rng = np.random.default_rng(0)
    names = [f"task-{number}" for number in range(5)]
    sketches = [
        TaskSketch(
            probe="0" * 64,
            prototypes=rng.normal(size=(2 + number, 4)).astype(np.float32),
            counts=np.ones(2 + number, np.int64),
            classes=("",) * (2 + number),
            fingerprint=rng.random(5 if number % 2 else 0, np.float32),
            groups=(3, 2) if number == 3 else (),
            spread=float(number),
        )
        for number in range(5)
    ]
    then = SketchIndex.build(names[:count], sketches[:count])
    first = SketchIndex.build(names, sketches).first(count)
    assert first.names == then.names
    for field in ("prototypes", "starts", "centre", "means", "spreads"):
        assert np.array_equal(getattr(first, field), getattr(then, field))
    width = then.fingerprints.shape[1]
    assert width == (5 if count > 1 else 0)
    assert np.array_equal(first.fingerprints[:, :width], then.fingerprints)
    assert not first.fingerprints[:, width:].any()


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
    assert np.array_equal(scored.first(2).scores, scored.scores[:2])
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
