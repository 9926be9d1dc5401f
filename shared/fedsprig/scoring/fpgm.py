"""The geometric median criterion: units whose filters the others could stand in for matter least.

He, Liu, Wang, Hu and Yang 2019, "Filter Pruning via Geometric Median for Deep Neural Networks
Acceleration", arXiv 1811.00250, equation 6: the sum of a filter's Euclidean distances to all
filters of its layer. It sees no data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn

from fedsprig.errors import PlanError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.scores import ScoreSet

_CANCELS: Final = 1e-6
"""Distances below this share of the norms have lost too many of a double's sixteen digits."""


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
        for item in plan.producers(group):
            weight = state.get(item.tensor)
            if weight is None or weight.shape[item.axis] != plan.shapes[item.tensor][item.axis]:
                raise PlanError(
                    f"the model has no {item.tensor} of full width: score the plan's base model"
                )
            rows = weight.detach().movedim(item.axis, 0).flatten(1).double().cpu()
            own = rows[torch.tensor(item.positions, dtype=torch.int64)].flatten(1)
            squares += _squared_distances(own)
        scores[group.name] = squares.sqrt().sum(1).numpy()
    return ScoreSet(scores)


def _squared_distances(rows: Tensor) -> Tensor:
    """Squared distances of all rows of doubles, by one product, and where that cancels exactly.

    By products alone, equal filters would come out apart.
    """
    norms = rows.square().sum(1)
    sums = norms[:, None] + norms
    found = sums - 2 * rows @ rows.T
    close = found <= _CANCELS * sums
    for row in torch.nonzero(close.sum(1) > 1).flatten().tolist():
        near = torch.nonzero(close[row]).flatten()
        found[row, near] = (rows[near] - rows[row]).square().sum(1)
    found.diagonal().mul_(0)  # what is not finite stays so
    return found
