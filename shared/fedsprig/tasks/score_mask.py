"""The one-shot score mask: what the library says about the units that a new task needs.

The idea is that of "One-Shot Pruning for Fast-adapting Pre-trained Models on Devices" (Zhao et al.,
arXiv 2307.04365): a score mask from the pruned models of similar tasks, then a single round of
pruning. Only its abstract could be read; the weights below are this project's own
(docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsprig.errors import LibraryError
from fedsprig.tasks.task_sketch import TaskSketch

if TYPE_CHECKING:
    from fedsprig.masks.scores import ScoreSet

OWN_HALF: Final = 40.0
"""Pictures a class at which a device's own score counts as much as the library's: in the first
trial the two were equally good at 40 a class, and the own score poor below about 10."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A library entry with its similarity to the new task and its scores."""

    name: str
    similarity: float
    scores: ScoreSet


def neighbour_weights(similarities: ArrayLike, temperature: float = 0.5) -> NDArray[np.float64]:
    """How much each neighbour counts: ``softmax(zscore(similarities) / temperature)``.

    The z-score (over all given neighbours) makes the temperature free of the similarity's scale.
    Equal similarities give equal weights; one neighbour gets 1.

    Args:
        similarities: ``[n]``, finite, at least one.
        temperature: Above 0; small values listen to the nearest alone, large ones give the plain
            mean. From 0.35 to 0.75 the first trial saw no difference.

    Returns:
        float64 ``[n]``, positive, of sum 1.

    Raises:
        LibraryError: No similarity, one that is not finite, or a temperature that is not above 0.
    """
    values = np.asarray(similarities, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise LibraryError("neighbours need one finite similarity each, and at least one neighbour")
    if not (np.isfinite(temperature) and temperature > 0):
        raise LibraryError(f"temperature {temperature}: use a number above 0, such as 0.5")
    values = values - values.mean()
    spread = values.std()
    # Below this the differences are rounding of equal similarities, not a ranking.
    if spread <= 1e-12 * max(1.0, float(np.abs(similarities).max())):
        return np.full(values.shape, 1.0 / values.size)
    exponent = values / spread / temperature
    result = np.exp(exponent - exponent.max())
    total: NDArray[np.float64] = result / result.sum()
    return total


def score_mask(
    sketch: TaskSketch,
    neighbours: Sequence[Neighbour],
    *,
    temperature: float = 0.5,
    own: ScoreSet | None = None,
    own_weight: float | None = None,
) -> ScoreSet:
    """The score of every unit for a new task, from its neighbours' scores and (if given) its own.

    ``S = sum_j w_j s_j`` with ``w`` from :func:`neighbour_weights` and every ``s_j`` at root
    mean square 1 in each group, so that no neighbour and no layer dominates by its scale. With the
    device's own score ``o`` the result is ``(1 - r) S + r o``, both normalised so: a shrinkage of
    the noisy own score towards the library by its reliability ``r = n / (n + 40)``, ``n`` being the
    task's pictures a class. (The noise variance of a mean over pictures falls as ``1 / n``.)

    Args:
        sketch: The new task; the pictures that it counts are those behind ``own``.
        neighbours: Library entries, whose score sets are of the same plan.
        temperature: See :func:`neighbour_weights`.
        own: The device's own score set, of any scale.
        own_weight: A fixed ``r`` from 0 to 1 in place of the above.

    Raises:
        LibraryError: No neighbour and no own score, or a parameter out of its range.
        PlanError: Score sets of different plans.
    """
    from fedsprig.masks.scores import weighted_sum

    if not neighbours and own is None:
        raise LibraryError(
            "the library has no neighbour for this task: build it first, or send the device's score"
        )
    if own_weight is not None and not 0 <= own_weight <= 1:
        raise LibraryError(f"own_weight {own_weight}: use a number from 0 to 1")
    if not neighbours and own is not None:
        return own.normalised()
    shares = neighbour_weights([item.similarity for item in neighbours], temperature)
    library = _normalised_sum([item.scores for item in neighbours], shares)
    if own is None:
        return library
    reliability = _reliability(sketch) if own_weight is None else own_weight
    return weighted_sum([library.normalised(), own.normalised()], [1 - reliability, reliability])


def _normalised_sum(sets: Sequence[ScoreSet], shares: NDArray[np.float64]) -> ScoreSet:
    """``sum_j shares[j] * sets[j].normalised()`` without making a thousand score sets."""
    from fedsprig.masks.scores import ScoreSet

    layout = sets[0].layout
    total = np.zeros(layout.units)
    for scores, share in zip(sets, shares, strict=True):
        scores.layout.check(layout, "a neighbour's score set")
        scale = scores.rms
        factors = np.divide(share, scale, out=np.zeros_like(scale), where=scale > 0)
        total += scores.flat.astype(np.float64) * np.repeat(factors, layout.sizes)
    return ScoreSet(layout.split(total.astype(np.float32)))


def _reliability(sketch: TaskSketch) -> float:
    pictures = sketch.pictures / int((sketch.counts > 0).sum())
    return pictures / (pictures + OWN_HALF)
