"""Similarity of tasks by how strongly the probe's units respond: forward passes alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import SketchError
from fedsprig.tasks.similarity.correlation import group_centre, group_correlation
from fedsprig.tasks.similarity.evidence import Evidence
from fedsprig.tasks.similarity.index import SketchIndex


def fingerprints(
    evidence: Evidence, index: SketchIndex, entries: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Correlation of mean activations by unit, layer by layer.

    See :func:`~fedsprig.tasks.similarity.correlation.group_correlation`. Where one side does not
    know where the layers of a fingerprint begin, the other's count; where neither does, it is one.

    Args:
        evidence: The new task; its sketch must have a fingerprint.
        index: The library; an entry without a fingerprint is at 0, neither like nor unlike.
        entries: int64: positions of the entries to compare with; all of them when ``None``.

    Returns:
        float64 ``[entries]``, from -1 to 1.

    Raises:
        ProbeMismatchError: The task was described by another probe.
        SketchError: The task has no fingerprint, or one of other units or groups than the
            library's.
    """
    query, library = evidence.sketch, index.fingerprints
    index.check(query)
    rows = library if entries is None else library[entries]
    if not len(rows) or not library.shape[1]:
        return np.zeros(len(rows))
    if query.fingerprint.size != library.shape[1]:
        raise SketchError(
            f"the sketch's fingerprint has {query.fingerprint.size} units, the library's "
            f"{library.shape[1]}: describe the task again with the probe and its plan"
        )
    sizes = index.groups or query.groups or (library.shape[1],)
    centre = group_centre(library[library.any(axis=1)], sizes)
    return np.where(rows.any(axis=1), group_correlation(query.fingerprint, rows, centre, sizes), 0)
