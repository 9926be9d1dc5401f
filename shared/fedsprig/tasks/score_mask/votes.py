"""Votes: each neighbour elects its best units, and counts by its similarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.tasks.score_mask.neighbour import Neighbour, Settings, closest
from fedsprig.tasks.score_mask.prior import Prior
from fedsprig.tasks.score_mask.weights import neighbour_weights, normalised_rows
from fedsprig.tasks.task_sketch import TaskSketch

if TYPE_CHECKING:
    from fedsprig.masks.layout import Layout

TIE: Final = 1e-3
"""What a unit's weighted score counts beside its votes: many units get all votes, and without it
the order of their numbers would choose among them."""

Floats32 = NDArray[np.float32]


def elected(values: Floats32, keep: float) -> Floats32:
    """Which units each neighbour's own mask would keep: its best ``keep`` of the whole network.

    Args:
        values: Normalised scores ``[neighbours, units]``.
        keep: Share of units, above 0; rounded, at least one unit.

    Returns:
        float32 ``[neighbours, units]`` of zeros and ones; of equal units, the first are elected.
    """
    count = max(1, round(keep * values.shape[1]))
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    ballots = np.zeros(values.shape, np.float32)
    np.put_along_axis(ballots, best, 1.0, axis=1)
    return ballots


def votes_of(values: Floats32, layout: Layout, keep: float) -> Floats32:
    """One ballot a neighbour, ``[neighbours, units]``: ones, with scores between equals."""
    highest = np.maximum(values.max(axis=1, keepdims=True), np.float32(1e-12))
    return np.asarray(elected(values, keep) + np.float32(TIE) * values / highest, np.float32)


def importance_votes_of(values: Floats32, layout: Layout, keep: float) -> Floats32:
    """As :func:`votes_of`, but a vote is worth the unit's score over the best of its group."""
    highest = np.maximum.reduceat(values, layout.starts, axis=1)
    highest = np.repeat(np.maximum(highest, np.float32(1e-12)), layout.sizes, axis=1)
    return np.asarray(elected(values, keep) * values / highest, np.float32)


def votes(sketch: TaskSketch, neighbours: Sequence[Neighbour], settings: Settings) -> Prior:
    """``sum_j w_j m_j`` with ``m_j`` the mask that neighbour ``j`` would keep for itself."""
    return _counted(neighbours, settings, votes_of)


def importance_votes(
    sketch: TaskSketch, neighbours: Sequence[Neighbour], settings: Settings
) -> Prior:
    """``sum_j w_j m_j i_j`` with ``i_j`` the scores of ``j`` over the highest of their group."""
    return _counted(neighbours, settings, importance_votes_of)


def _counted(
    neighbours: Sequence[Neighbour],
    settings: Settings,
    ballots_of: Callable[[Floats32, Layout, float], Floats32],
) -> Prior:
    from fedsprig.masks.scores import ScoreSet

    near = [neighbours[at] for at in closest(neighbours, settings.count)]
    shares = neighbour_weights([item.similarity for item in near], settings.temperature)
    layout = near[0].scores.layout
    ballots = ballots_of(normalised_rows([item.scores for item in near]), layout, settings.keep)
    return Prior(ScoreSet(layout.split((shares @ ballots).astype(np.float32))), None)
