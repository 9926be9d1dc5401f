"""AAP's activation-based attention: how strongly a unit responds.

Zhao, Jain and Zhao 2022, "Adaptive Activation-based Structured Pruning", arXiv 2201.10520 (later
"Automatic Attention Pruning", AISTATS 2023, arXiv 2303.08595): ``F_c = mean over pixels of |A_c| **
p`` with ``A`` the map after the nonlinearity, averaged over pictures. Their code averages maps over
one batch before the power; here the power comes first, which is the same for their p = 1 and does
not depend on how pictures are batched.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedsprig.errors import ScoreError
from fedsprig.graph.plan import Group, GroupPlan, Tap
from fedsprig.masks.scores import ScoreSet
from fedsprig.scoring.taps import owners, per_picture, visiting


def score_attention(
    model: nn.Module,
    plan: GroupPlan,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    p: float = 1.0,
) -> ScoreSet:
    """Score units by the mean magnitude of their activation; no gradient, labels are not read.

    Taps lie before the nonlinearity. Inner units meet one next, so they are rectified as ReLU does
    (AAP's networks; close for GELU and SiLU). Streams and heads pass signed values on and count by
    magnitude. Several taps of a group count equally.

    Args:
        model: the base model.
        plan: its groups.
        batches: pictures ``[n, channels, h, w]``, and labels.
        p: the power; above 0.

    Raises:
        ScoreError: no pictures, a power that is not above 0, or a score that is not finite.
    """
    if not p > 0:
        raise ScoreError(f"the attention score needs a power above 0, not {p}")
    totals = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in plan.groups}
    pictures = 0

    def collect(group: Group, tap: Tap, value: Tensor) -> None:
        strength = (value.relu() if group.kind == "inner" else value.abs()).pow(p)
        rows = per_picture(strength, count).movedim(tap.axis % value.ndim + 1, 1)
        means = rows.flatten(2).double().mean(2).sum(0)
        owner = owners(tap, len(means)).to(means.device)
        units = torch.zeros(group.units + 1, dtype=torch.float64, device=means.device)
        units.index_add_(0, owner, means)
        totals[group.name] += units[:-1].cpu() / (tap.positions.shape[1] * len(group.taps))

    with torch.no_grad(), visiting(model, plan, collect):
        for images, _ in batches:
            count = len(images)
            model(images)
            pictures += count
    if not pictures:
        raise ScoreError("the attention score needs pictures: pass at least one batch")
    return ScoreSet({name: (total / pictures).numpy() for name, total in totals.items()})
