"""What the library says of a new task's units, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsprig.tasks.score_mask.neighbour import Neighbour
from fedsprig.tasks.score_mask.shrinkage import spread_of
from fedsprig.tasks.score_mask.weights import normalised_rows, normalised_sum

if TYPE_CHECKING:
    from fedsprig.masks.scores import ScoreSet


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """What one way makes of the neighbours.

    Attributes:
        scores: Of the task.
        spread: How far tasks lie from these scores, a variance ``[units]`` in the scale of
            normalised ones, worked out when it is asked for; ``None``: they are no scores (votes),
            or nothing is known of it.
    """

    scores: ScoreSet
    spread: Callable[[], NDArray[np.float64]] | None


def mixed(neighbours: Sequence[Neighbour], shares: NDArray[np.float64]) -> Prior:
    """``sum_j shares[j] s_j`` of normalised scores.

    Args:
        neighbours: At least one.
        shares: ``[neighbours]``, of sum 1; those at 0 tell how far tasks differ, and no more.
    """
    sets = [item.scores for item in neighbours]
    return Prior(normalised_sum(sets, shares), lambda: spread_of(normalised_rows(sets), shares))
