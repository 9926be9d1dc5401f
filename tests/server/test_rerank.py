"""Which entries devices are asked about."""

import numpy as np

from fedsprig.tasks import Hit, SketchIndex, TaskSketch
from fedsprig.tasks.similarity.packed_heads import MAX_CLASSES
from fedsprig_server.rerank import askable


def sketch(classes):
    rows = np.ones((classes, 2), np.float32)
    counts = np.ones(classes, np.int64)
    return TaskSketch("a" * 64, rows, counts, ("",) * classes, np.zeros(0, np.float32))


def test_an_entry_of_too_many_classes_is_left_out():
    sizes = {"small": 2, "huge": MAX_CLASSES + 1, "large": MAX_CLASSES}
    index = SketchIndex.build(list(sizes), [sketch(size) for size in sizes.values()])
    hits = [Hit(name, 0.5) for name in ("huge", "large", "small")]
    assert askable(hits, index) == hits[1:]
    assert askable(hits[:1], index) == []
    assert askable([], index) == []
