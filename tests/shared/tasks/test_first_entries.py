"""An index of the entries that were there at some moment."""

import numpy as np
import pytest

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
            fingerprint=np.zeros(0, np.float32),
        )
        for number in range(5)
    ]
    then = SketchIndex.build(names[:count], sketches[:count])
    first = SketchIndex.build(names, sketches).first(count)
    assert first.names == then.names
    for field in ("prototypes", "starts", "centre", "means"):
        assert np.array_equal(getattr(first, field), getattr(then, field))
