"""Similarity of tasks by their class prototypes: every class with the one most like it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsprig.tasks.similarity.cosines import class_cosines
from fedsprig.tasks.similarity.evidence import Evidence
from fedsprig.tasks.similarity.index import SketchIndex


def prototypes(
    evidence: Evidence, index: SketchIndex, entries: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Centred cosine of best-matching classes, averaged over both sides.

    With ``cos[c, d]`` the cosine of the query's class ``c`` and the entry's class ``d``, both minus
    the library's centre::

        similarity = ( mean_c max_d cos[c, d] + mean_d max_c cos[c, d] ) / 2

    so that a task is near where each of its classes finds a like one and the other way round,
    whatever the numbers of classes. Classes without pictures do not count.

    Args:
        evidence: The new task; its sketch is enough.
        index: The library.
        entries: int64: positions of the entries to compare with; all of them when ``None``.

    Returns:
        float64 ``[entries]``, from -1 to 1.

    Raises:
        ProbeMismatchError: The query is of another probe.
    """
    found = [np.zeros(0)]
    for cosines, begins, sizes in class_cosines(evidence.sketch, index, entries):
        forward = np.maximum.reduceat(cosines, begins, axis=1).mean(axis=0)
        backward = np.add.reduceat(cosines.max(axis=0), begins) / sizes
        found.append((forward + backward) / 2)
    return np.clip(np.concatenate(found), -1.0, 1.0)
