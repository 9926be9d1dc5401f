"""From similarities to shares, and the sums that shares make of score sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsprig.errors import LibraryError
from fedsprig.masks.layout import levelled

if TYPE_CHECKING:
    from fedsprig.masks.scores import ScoreSet

LOWEST: Final = 1e-6
"""Temperature; far below it, weights overflow."""


def neighbour_weights(similarities: ArrayLike, temperature: float = 0.5) -> NDArray[np.float64]:
    """How much each neighbour counts: ``softmax(zscore(similarities) / temperature)``.

    The z-score (over all given neighbours) makes the temperature free of the similarity's scale.
    Equal similarities give equal weights; one neighbour gets 1.

    Args:
        similarities: ``[n]``, finite, at least one.
        temperature: From ``LOWEST`` up; small values listen to the nearest alone, large ones give
            the plain mean. From 0.35 to 0.75 the first trial saw no difference.

    Returns:
        float64 ``[n]``, positive, of sum 1.

    Raises:
        LibraryError: No similarity, one that is not finite, or a temperature out of its range.
    """
    values = np.asarray(similarities, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise LibraryError("neighbours need one finite similarity each, and at least one neighbour")
    if not LOWEST <= temperature < np.inf:
        raise LibraryError(f"temperature {temperature}: use a number from {LOWEST:g} up, as 0.5")
    values = values - values.mean()
    spread = values.std()
    # Below this the differences are rounding of equal similarities, not a ranking.
    if spread <= 1e-12 * max(1.0, float(np.abs(similarities).max())):
        return np.full(values.shape, 1.0 / values.size)
    exponent = values / spread / temperature
    result = np.exp(exponent - exponent.max())
    total: NDArray[np.float64] = result / result.sum()
    return total


def normalised_sum(sets: Sequence[ScoreSet], shares: NDArray[np.float64]) -> ScoreSet:
    """``sum_j shares[j] * sets[j].normalised()`` without making a thousand score sets.

    A set with a share of 0 is not looked at.

    Raises:
        PlanError: Score sets of different plans.
    """
    from fedsprig.masks.scores import ScoreSet

    layout = sets[0].layout
    total = np.zeros(layout.units)
    for scores, share in zip(sets, shares, strict=True):
        scores.layout.check(layout, "a neighbour's score set")
        if share:
            total += share * levelled(scores.flat[None], layout.sizes)[0]
    return ScoreSet(layout.split(total.astype(np.float32)))


def normalised_rows(sets: Sequence[ScoreSet]) -> NDArray[np.float32]:
    """Every set at root mean square 1 in each group: float32 ``[sets, units]``.

    Raises:
        PlanError: Score sets of different plans.
    """
    layout = sets[0].layout
    rows = np.empty((len(sets), layout.units), np.float32)
    for row, scores in zip(rows, sets, strict=True):
        scores.layout.check(layout, "a neighbour's score set")
        row[:] = levelled(scores.flat[None], layout.sizes)[0]
    return rows
