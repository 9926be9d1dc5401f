"""The plain mean: what the library as a whole says, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsprig.tasks.score_mask.neighbour import Neighbour, Settings
from fedsprig.tasks.score_mask.weights import normalised_sum
from fedsprig.tasks.task_sketch import TaskSketch

if TYPE_CHECKING:
    from fedsprig.masks.scores import ScoreSet


def mean(sketch: TaskSketch, neighbours: Sequence[Neighbour], settings: Settings) -> ScoreSet:
    """The mean of all neighbours' normalised scores: what every other way must beat."""
    count = len(neighbours)
    return normalised_sum([item.scores for item in neighbours], np.full(count, 1 / count))
