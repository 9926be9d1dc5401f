"""Cosines of a task's classes with those of library entries, a bounded part of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.tasks.similarity.index import SketchIndex, unit
from fedsprig.tasks.task_sketch import TaskSketch

CHUNK_ENTRIES: Final = 2048  # bounds the copied prototypes: memory stays small in a large library


def class_cosines(
    query: TaskSketch, index: SketchIndex, entries: NDArray[np.int64] | None
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]]:
    """Centred cosines of the query's classes with those of entries, chunk of entries by chunk.

    Both sides are taken minus the library's centre. Classes without pictures do not count.

    Args:
        query: The new task.
        index: The library.
        entries: Positions; all when ``None``.

    Yields:
        Cosines float64 ``[classes of the query, P]``, and for every entry of the chunk where its
        columns begin and how many they are, int64 ``[chunk]``.

    Raises:
        ProbeMismatchError: The query is of another probe.
    """
    index.check(query)
    if entries is None:
        entries = np.arange(len(index))
    if not len(entries):
        return
    own = unit(query.present - index.centre)
    for start in range(0, len(entries), CHUNK_ENTRIES):
        rows, begins = index.rows_of(entries[start : start + CHUNK_ENTRIES])
        rows -= index.centre
        cosines = (own @ unit(rows).T).astype(np.float64)
        yield cosines, begins, np.diff(np.append(begins, len(rows)))
