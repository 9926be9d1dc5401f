"""The geometric median criterion: units whose filters the others could stand in for matter least.

He, Liu, Wang, Hu and Yang 2019, "Filter Pruning via Geometric Median for Deep Neural Networks
Acceleration", arXiv 1811.00250, equation 6: the sum of a filter's Euclidean distances to all
filters of its layer. It sees no data.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedsprig.errors import PlanError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.scores import ScoreSet


def score_fpgm(
    model: nn.Module,
    plan: GroupPlan,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
) -> ScoreSet:
    """Score units by the sum of their filters' distances to the filters of all units of the group.

    A unit that several layers produce together owns the filters of all of them in a row, so that
    squared distances add up over the layers. Biases and normalisation do not count. In a group of
    one unit, or of equal units, all scores are 0. Memory: ``units ** 2`` doubles.

    Args:
        model: the base model; adapters are to be merged first, or they are not seen.
        plan: its groups.
        batches: not read.

    Raises:
        PlanError: the model lacks a tensor of the plan, or has it at another width.
        ScoreError: a weight that is not finite.
    """
    state = model.state_dict()
    scores = {}
    for group in plan.groups:
        squares = torch.zeros(group.units, group.units, dtype=torch.float64)
        for item in group.axes:
            if item.role != "out" or len(plan.shapes[item.tensor]) < 2:
                continue
            weight = state.get(item.tensor)
            if weight is None or weight.shape[item.axis] != plan.shapes[item.tensor][item.axis]:
                raise PlanError(
                    f"the model has no {item.tensor} of full width: score the plan's base model"
                )
            rows = weight.detach().movedim(item.axis, 0).flatten(1).double().cpu()
            own = rows[torch.tensor(item.positions, dtype=torch.int64)].flatten(1)
            # The exact differences: by products, equal filters would come out apart.
            squares += torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist").square()
        scores[group.name] = squares.sqrt().sum(1).numpy()
    return ScoreSet(scores)
