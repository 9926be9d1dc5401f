"""One score mask from the library's say and, where it is known, the device's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import LibraryError
from fedsprig.masks.layout import loudness
from fedsprig.spelling import lookup
from fedsprig.tasks.score_mask.mean import mean
from fedsprig.tasks.score_mask.nearest import nearest
from fedsprig.tasks.score_mask.neighbour import Neighbour, Settings
from fedsprig.tasks.score_mask.prior import Prior
from fedsprig.tasks.score_mask.ridge import ridge
from fedsprig.tasks.score_mask.shrinkage import floored, shrunk
from fedsprig.tasks.score_mask.votes import importance_votes, votes
from fedsprig.tasks.score_mask.weighted import weighted
from fedsprig.tasks.task_sketch import TaskSketch

if TYPE_CHECKING:
    from fedsprig.masks.scores import ScoreSet

OWN_HALF: Final = 40.0
"""Pictures a class at which a device's own score counts as much as the library's: in the first
trial the two were equally good at 40 a class, and the own score poor below about 10."""


@dataclass(frozen=True, slots=True)
class ScoreMask:
    """A way from the neighbours of a task to the scores of its units.

    Attributes:
        name: Its name in ``SCORE_MASKS``.
        prior: What it makes of a sketch, of at least one neighbour, and of the settings.
        by_similarity: Whether the similarities of the neighbours decide how much each counts.
    """

    name: str
    prior: Callable[[TaskSketch, Sequence[Neighbour], Settings], Prior]
    by_similarity: bool = True


SCORE_MASKS: Final[Mapping[str, ScoreMask]] = MappingProxyType(
    {
        way.name: way
        for way in (
            ScoreMask("weighted", weighted),
            ScoreMask("mean", mean, by_similarity=False),
            ScoreMask("nearest", nearest),
            ScoreMask("votes", votes),
            ScoreMask("importance_votes", importance_votes),
            ScoreMask("ridge", ridge, by_similarity=False),
        )
    }
)


def score_mask(
    sketch: TaskSketch,
    neighbours: Sequence[Neighbour],
    *,
    method: str = "weighted",
    temperature: float = 0.5,
    count: int | None = None,
    keep: float = 0.5,
    own: ScoreSet | None = None,
    own_weight: float | None = None,
    own_error: ScoreSet | None = None,
) -> ScoreSet:
    """The score of every unit for a new task, from its neighbours' scores and (if given) its own.

    By default ``S = sum_j w_j s_j`` with ``w`` from :func:`neighbour_weights` and every ``s_j`` at
    root mean square 1 in each group, so that no neighbour and no layer dominates by its scale. With
    the device's own score ``o`` the result is ``(1 - r) S + r o``, both normalised so: a shrinkage
    of the noisy own score towards the library by its reliability ``r = n / (n + 40)``, ``n`` being
    the task's pictures a class. (The noise variance of a mean over pictures falls as ``1 / n``.)

    Where the standard error of the own score is known too, every unit has an ``r`` of its own, from
    that error and from how far the neighbours differ in the unit: see :func:`shrunk`. Neighbours
    alone, a single one, tell nothing of that; the reliability above is used then.

    Args:
        sketch: The new task; the pictures that it counts are those behind ``own``.
        neighbours: Library entries, whose score sets are of the same plan.
        method: A name of ``SCORE_MASKS``.
        temperature: See :func:`neighbour_weights`.
        count: See :class:`Settings`.
        keep: See :class:`Settings`.
        own: The device's own score set, of any scale.
        own_weight: A fixed ``r`` from 0 to 1 in place of the above.
        own_error: Standard errors of ``own``, in its scale.

    Raises:
        LibraryError: No neighbour and no own score, or a parameter out of its range.
        UnknownNameError: No such method.
        PlanError: Score sets of different plans.
    """
    from fedsprig.masks.scores import weighted_sum

    way = lookup(SCORE_MASKS, method, "score mask")
    settings = Settings(temperature=temperature, count=count, keep=keep)
    if not neighbours and own is None:
        raise LibraryError(
            "the library has no neighbour for this task: build it first, or send the device's score"
        )
    if own_weight is not None and not 0 <= own_weight <= 1:
        raise LibraryError(f"own_weight {own_weight}: use a number from 0 to 1")
    if own is None and (own_weight is not None or own_error is not None):
        raise LibraryError("own_weight and own_error go with own: give the device's score too")
    if own_error is not None and own_weight is not None:
        raise LibraryError("own_weight and own_error exclude each other: give one of the two")
    if not neighbours and own is not None:
        return own.normalised()
    prior = way.prior(sketch, neighbours, settings)
    if own is None:
        return prior.scores
    if own_error is not None and len(neighbours) > 1:
        if prior.spread is None:
            raise LibraryError(f"{method}: nothing tells how far tasks differ; drop own_error")
        return _unit_by_unit(prior.scores, prior.spread(), own, own_error)
    reliability = _reliability(sketch) if own_weight is None else own_weight
    parts = [prior.scores.normalised(), own.normalised()]
    return weighted_sum(parts, [1 - reliability, reliability])


def _unit_by_unit(
    library: ScoreSet, spread: NDArray[np.float64], own: ScoreSet, error: ScoreSet
) -> ScoreSet:
    """The shrinkage of each unit by its own variances, all in the scale of normalised scores."""
    from fedsprig.masks.scores import ScoreSet

    layout = library.layout
    own.layout.check(layout, "the device's score set")
    error.layout.check(layout, "the device's standard errors")
    scale = loudness(own.flat[None], layout.sizes)[0]
    made = shrunk(
        library.flat.astype(np.float64),
        floored(spread, layout.starts, layout.sizes),
        own.flat / scale,
        floored(np.square(error.flat / scale), layout.starts, layout.sizes),
    )
    return ScoreSet(layout.split(made.astype(np.float32)))


def _reliability(sketch: TaskSketch) -> float:
    pictures = sketch.pictures / int((sketch.counts > 0).sum())
    return pictures / (pictures + OWN_HALF)
