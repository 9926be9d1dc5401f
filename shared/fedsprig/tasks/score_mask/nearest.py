"""The nearest neighbour alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsprig.errors import LibraryError
from fedsprig.tasks.score_mask.neighbour import Neighbour, Settings, closest
from fedsprig.tasks.score_mask.prior import Prior, mixed
from fedsprig.tasks.task_sketch import TaskSketch


def nearest(sketch: TaskSketch, neighbours: Sequence[Neighbour], settings: Settings) -> Prior:
    """The normalised scores of the most similar entry; of equal ones, the first by name.

    Raises:
        LibraryError: A count other than 1.
    """
    if settings.count not in (None, 1):
        raise LibraryError(
            f"count {settings.count} with the nearest neighbour alone: use the method 'mean'"
        )
    shares = np.zeros(len(neighbours))
    shares[closest(neighbours, 1)] = 1
    return mixed(neighbours, shares)
