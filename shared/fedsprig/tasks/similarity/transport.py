"""Similarity of tasks by optimal transport between their class prototypes."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import LibraryError
from fedsprig.tasks.similarity.cosines import class_cosines
from fedsprig.tasks.similarity.evidence import Evidence
from fedsprig.tasks.similarity.index import SketchIndex

EPSILON: Final = 0.05
"""Weight of the entropy against costs from 0 to 2: small enough that classes are hardly shared out,
and large enough for the iterations to converge."""
SMALLEST: Final = 1e-6
"""Of that weight; costs over much smaller ones overflow."""
ITERATIONS: Final = 100


def transport(
    evidence: Evidence, index: SketchIndex, entries: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Centred cosine of classes, averaged over the cheapest transport between the two tasks.

    Every class of a task weighs the same, and moving class ``c`` to class ``d`` costs
    ``1 - cos[c, d]``; the similarity is 1 minus the cost. Unlike the best match of
    :func:`~fedsprig.tasks.similarity.prototypes.prototypes`, no class may serve twice: tasks of
    as many classes are matched one to one. (The distance between data sets of Alvarez-Melis and
    Fusi 2020, arXiv 2002.02923, transports pictures; here it is classes alone.)

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
        values = np.zeros(len(sizes))
        for size in np.unique(sizes):  # entries of as many classes at once
            chosen = np.flatnonzero(sizes == size)
            columns = begins[chosen][:, None] + np.arange(size)
            costs = 1 - np.moveaxis(cosines[:, columns], 1, 0)
            values[chosen] = 1 - transport_cost(costs)
        found.append(values)
    return np.clip(np.concatenate(found), -1.0, 1.0)


def transport_cost(
    costs: NDArray[np.float64], *, epsilon: float = EPSILON, iterations: int = ITERATIONS
) -> NDArray[np.float64]:
    """Cost of the entropy-regularised transport between two uniform distributions.

    Sinkhorn's iterations (Cuturi 2013, arXiv 1306.0895, algorithm 1) on logarithms, so that no
    small ``epsilon`` underflows. The entropy itself is not counted as cost.

    Args:
        costs: ``[problems, n, m]``.
        epsilon: Weight of the entropy; towards 0 the cost becomes that of the exact transport, and
            more iterations are needed.
        iterations: How often both marginals are put right in turn.

    Returns:
        float64 ``[problems]``.

    Raises:
        LibraryError: Costs of another shape or not finite, or settings out of their ranges.
    """
    if costs.ndim != 3 or 0 in costs.shape[1:] or not np.isfinite(costs).all():
        raise LibraryError(
            f"transport at costs {costs.shape}: give finite ones, [problems, n, m] of one class up"
        )
    if not (SMALLEST <= epsilon < np.inf and iterations >= 1):
        raise LibraryError(
            f"transport with epsilon {epsilon} in {iterations} iterations: use an epsilon from "
            f"{SMALLEST:g} and an iteration or more"
        )
    kernel = -costs / epsilon
    rows, columns = -np.log(costs.shape[1]), -np.log(costs.shape[2])
    g = np.zeros((len(costs), 1, costs.shape[2]))
    for _ in range(iterations):
        f = rows - _log_sum(kernel + g, axis=2)
        g = columns - _log_sum(kernel + f, axis=1)
    total: NDArray[np.float64] = (np.exp(kernel + f + g) * costs).sum(axis=(1, 2))
    return total


def _log_sum(values: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """``log(sum(exp(values)))`` along an axis, which is kept."""
    top = values.max(axis=axis, keepdims=True)
    total: NDArray[np.float64] = top + np.log(np.exp(values - top).sum(axis=axis, keepdims=True))
    return total
