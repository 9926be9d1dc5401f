"""Random scores: the floor that every criterion must beat."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor, nn

from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.scores import ScoreSet


def score_random(
    model: nn.Module,
    plan: GroupPlan,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    *,
    seed: int = 0,
) -> ScoreSet:
    """Score units evenly in [0, 1), by the seed alone.

    Args:
        model: not read.
        plan: the groups.
        batches: not read.
        seed: of the generator.
    """
    rng = np.random.default_rng(seed)
    return ScoreSet({group.name: rng.random(group.units, np.float32) for group in plan.groups})
