"""Weighted scores: near neighbours count more, by one number each for all units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsprig.tasks.score_mask.neighbour import Neighbour, Settings, closest
from fedsprig.tasks.score_mask.weights import neighbour_weights, normalised_sum
from fedsprig.tasks.task_sketch import TaskSketch

if TYPE_CHECKING:
    from fedsprig.masks.scores import ScoreSet


def weighted(sketch: TaskSketch, neighbours: Sequence[Neighbour], settings: Settings) -> ScoreSet:
    """``sum_j w_j s_j`` with ``w`` from :func:`neighbour_weights`, every ``s_j`` normalised."""
    near = closest(neighbours, settings.count)
    shares = neighbour_weights([item.similarity for item in near], settings.temperature)
    return normalised_sum([item.scores for item in near], shares)
