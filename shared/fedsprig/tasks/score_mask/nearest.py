"""The nearest neighbour alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsprig.tasks.score_mask.neighbour import Neighbour, Settings, closest
from fedsprig.tasks.task_sketch import TaskSketch

if TYPE_CHECKING:
    from fedsprig.masks.scores import ScoreSet


def nearest(sketch: TaskSketch, neighbours: Sequence[Neighbour], settings: Settings) -> ScoreSet:
    """The normalised scores of the most similar entry; of equal ones, the first by name."""
    return closest(neighbours, 1)[0].scores.normalised()
