"""The weight criterion: units with small filters matter least. It sees no data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedsprig.errors import PlanError, ScoreError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.scores import ScoreSet


def score_magnitude(
    model: nn.Module,
    plan: GroupPlan,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    *,
    p: float = 1.0,
) -> ScoreSet:
    """Score units by the Lp norm of all weights that produce them.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv 1608.08710, section 3.1 (p = 1).
    A unit that several layers produce together (a stream, the channels of a depthwise convolution
    and of the one before it) owns the filters of all of them. Biases and normalisation do not
    count.

    Args:
        model: the base model; adapters are to be merged first, or they are not seen.
        plan: its groups.
        batches: not read.
        p: the norm's power; above 0.

    Raises:
        PlanError: the model lacks a tensor of the plan, or has it at another width.
        ScoreError: a power that is not above 0, or a weight that is not finite.
    """
    if not p > 0:
        raise ScoreError(f"the magnitude score needs a power above 0, not {p}")
    state = model.state_dict()
    scores = {}
    for group in plan.groups:
        total = torch.zeros(group.units, dtype=torch.float64)
        for item in plan.producers(group):
            weight = state.get(item.tensor)
            if weight is None or weight.shape[item.axis] != plan.shapes[item.tensor][item.axis]:
                raise PlanError(
                    f"the model has no {item.tensor} of full width: score the plan's base model"
                )
            powers = weight.detach().movedim(item.axis, 0).flatten(1).double().abs().pow(p).sum(1)
            total += powers.cpu()[torch.tensor(item.positions, dtype=torch.int64)].sum(1)
        scores[group.name] = total.pow(1 / p).numpy()
    return ScoreSet(scores)
