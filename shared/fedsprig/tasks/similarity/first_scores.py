"""Similarity of tasks by the scores that they give the units: a first batch and its gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import LibraryError
from fedsprig.tasks.similarity.correlation import group_centre, group_correlation
from fedsprig.tasks.similarity.evidence import Evidence
from fedsprig.tasks.similarity.index import SketchIndex


def first_scores(
    evidence: Evidence, index: SketchIndex, entries: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Correlation of the task's own scores with those of the library.

    It asks the question itself, which units matter, and not what pictures look like; and it costs
    the device a gradient. See :func:`~fedsprig.tasks.similarity.correlation.group_correlation`.

    Args:
        evidence: The new task with its own scores.
        index: The library with scores.
        entries: int64: positions of the entries to compare with; all of them when ``None``.

    Returns:
        float64 ``[entries]``, from -1 to 1.

    Raises:
        ProbeMismatchError: The task was described by another probe.
        SketchError: The task has no scores.
        LibraryError: The index has none.
        PlanError: The two are of different plans.
    """
    index.check(evidence.sketch)
    own = evidence.need_scores("first_scores")
    if not len(index):
        return np.zeros(0)
    if index.scores is None or index.layout is None:
        raise LibraryError("first_scores needs the library's scores: build the index with_scores")
    own.layout.check(index.layout, "the task's score set")
    rows = index.scores if entries is None else index.scores[entries]
    sizes = index.layout.sizes
    return group_correlation(own.flat, rows, group_centre(index.scores, sizes), sizes)
