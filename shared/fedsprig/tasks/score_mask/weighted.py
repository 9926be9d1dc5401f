"""Weighted scores: near neighbours count more, by one number each for all units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsprig.tasks.score_mask.neighbour import Neighbour, Settings, closest
from fedsprig.tasks.score_mask.prior import Prior, mixed
from fedsprig.tasks.score_mask.weights import neighbour_weights
from fedsprig.tasks.task_sketch import TaskSketch


def weighted(sketch: TaskSketch, neighbours: Sequence[Neighbour], settings: Settings) -> Prior:
    """``sum_j w_j s_j`` with ``w`` from :func:`neighbour_weights`, every ``s_j`` normalised."""
    near = closest(neighbours, settings.count)
    shares = np.zeros(len(neighbours))
    similarities = [neighbours[at].similarity for at in near]
    shares[near] = neighbour_weights(similarities, settings.temperature)
    return mixed(neighbours, shares)
