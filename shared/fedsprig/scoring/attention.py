"""Activation-based attention: how strongly a unit responds, in AAP's three forms.

Zhao, Jain and Zhao 2022, "Adaptive Activation-based Structured Pruning", arXiv 2201.10520 (later
"Automatic Attention Pruning", AISTATS 2023, arXiv 2303.08595), section 3.1, after the attention
maps of Zagoruyko and Komodakis 2017 (arXiv 1612.03928): with ``A_c`` the map of unit ``c`` after
the nonlinearity,

* ``"mean"``: the mean over pixels of ``|A_c| ** p``,
* ``"sum"``: the sum over pixels, which weighs layers by their resolution,
* ``"max"``: the largest ``|A_c| ** p``,

each averaged over pictures. Their code averages maps over one batch before the power; here the
power comes first, which is the same for their p = 1 and does not depend on how pictures are
batched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsprig.errors import ScoreError
from fedsprig.graph.plan import Group, GroupPlan, Tap
from fedsprig.masks.scores import ScoreSet
from fedsprig.scoring.taps import owners, per_picture, visiting

MAX_POWER: Final = 16.0
"""Activations to higher powers leave the range of float32."""
Form = Literal["mean", "sum", "max"]
Strengths = dict[str, NDArray[np.float64]]
"""Group name -> attention ``[units]``."""


def score_attention(
    model: nn.Module,
    plan: GroupPlan,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    p: float = 1.0,
) -> ScoreSet:
    """Score units by the mean magnitude of their activation; no gradient, labels are not read.

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
    sums, pictures = summed_attention(model, plan, (images for images, _ in batches), power=p)
    if not pictures:
        raise ScoreError("the attention score needs pictures: pass at least one batch")
    return ScoreSet({name: (total / pictures).astype(np.float32) for name, total in sums.items()})


def summed_attention(
    model: nn.Module,
    plan: GroupPlan,
    batches: Iterable[Tensor],
    *,
    power: float,
    form: Form = "mean",
) -> tuple[Strengths, int]:
    """The attention of every unit, summed over pictures, and their number.

    Taps lie before the nonlinearity. Inner units meet one next, so they are rectified as ReLU does
    (AAP's networks; close for GELU and SiLU). Streams and heads pass signed values on and count by
    magnitude. Several taps of a group count equally.

    Args:
        model: in the mode that it is to be looked at in.
        plan: its groups; that of the cut network where it was cut.
        batches: pictures ``[n, channels, h, w]`` where the model is.
        power: p, above 0.
        form: how pixels are taken together.
    """
    totals = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in plan.groups}
    pictures = 0

    def collect(group: Group, tap: Tap, value: Tensor) -> None:
        strength = (value.relu() if group.kind == "inner" else value.abs()).pow(power)
        rows = per_picture(strength, count).movedim(tap.axis % value.ndim + 1, 1)
        units, places = len(tap.positions), tap.positions.shape[1]
        flat = rows.flatten(2).double()  # [pictures, channels, pixels]
        owner = owners(tap, flat.shape[1]).to(flat.device)
        kept = torch.zeros(count, units + 1, dtype=torch.float64, device=flat.device)
        if form == "max":
            pixels = flat.amax(2)
            kept.scatter_reduce_(1, owner.expand_as(pixels), pixels, "amax")
        else:
            kept.index_add_(1, owner, flat.mean(2) if form == "mean" else flat.sum(2))
            kept /= places
        totals[group.name] += kept[:, :-1].sum(0).cpu() / len(group.taps)

    with torch.no_grad(), visiting(model, plan, collect):
        for images in batches:
            count = len(images)
            model(images)
            pictures += count
    return {name: total.numpy() for name, total in totals.items()}, pictures
