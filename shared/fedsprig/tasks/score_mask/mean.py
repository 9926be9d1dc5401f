"""The plain mean: what the library as a whole says, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsprig.tasks.score_mask.neighbour import Neighbour, Settings, closest
from fedsprig.tasks.score_mask.prior import Prior, mixed
from fedsprig.tasks.task_sketch import TaskSketch


def mean(sketch: TaskSketch, neighbours: Sequence[Neighbour], settings: Settings) -> Prior:
    """The mean of all neighbours' normalised scores: what every other way must beat."""
    near = closest(neighbours, settings.count)
    shares = np.zeros(len(neighbours))
    shares[near] = 1 / len(near)
    return mixed(neighbours, shares)
