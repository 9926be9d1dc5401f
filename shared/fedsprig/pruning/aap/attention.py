"""How strongly units respond: AAP's attention in its three forms.

Zhao, Jain and Zhao 2022, arXiv 2201.10520, section 3.1, after the attention maps of Zagoruyko and
Komodakis 2017 (arXiv 1612.03928): with ``A_c`` the map of unit ``c`` after the nonlinearity,

* ``"mean"``: the mean over pixels of ``|A_c| ** p``,
* ``"sum"``: the sum over pixels, which weighs layers by their resolution,
* ``"max"``: the largest ``|A_c| ** p``,

each averaged over pictures. ``"mean"`` is what the scorer ``attention`` gives.

What is averaged is a sum over pictures and their number, and sums add up: the attention over the
pictures of many devices is the sum of their sums over the sum of their numbers
(:func:`attention_sums`), whoever holds which picture.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsprig.errors import ScoreError, UnknownNameError
from fedsprig.graph.plan import Group, GroupPlan, Tap
from fedsprig.scoring.taps import owners, per_picture, visiting
from fedsprig.spelling import unknown
from fedsprig.training.modes import batches, device_of, keeping_modes

Form = Literal["mean", "sum", "max"]
Strengths = dict[str, NDArray[np.float64]]
"""Group name -> attention ``[units]``."""

_BATCH: Final = 64


def attention(
    model: nn.Module, plan: GroupPlan, images: Tensor, *, power: float = 1.0, form: Form = "mean"
) -> Strengths:
    """The attention of every unit: that of :func:`attention_sums`, over the number of pictures."""
    sums = attention_sums(model, plan, images, power=power, form=form)
    return {name: values / len(images) for name, values in sums.items()}


def attention_sums(
    model: nn.Module, plan: GroupPlan, images: Tensor, *, power: float = 1.0, form: Form = "mean"
) -> Strengths:
    """The attention of every unit, summed over the pictures.

    Args:
        model: a network, in evaluation mode meanwhile.
        plan: its groups; that of the cut network where it was cut.
        images: ``float32 [n, c, h, w]``.
        power: p, above 0.
        form: how pixels are taken together.

    Raises:
        ScoreError: no pictures, a power that is not above 0, or a value that is not finite.
        UnknownNameError: no such form.
    """
    if form not in get_args(Form):
        raise UnknownNameError(unknown("form of attention", form, get_args(Form)))
    if not power > 0 or not len(images):
        raise ScoreError("the attention needs a power above 0 and one picture at least")
    totals = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in plan.groups}

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

    with torch.no_grad(), keeping_modes(model), visiting(model, plan, collect):
        model.eval()
        device = device_of(model)
        for part in batches(images, _BATCH):
            count = len(part)
            model(part.to(device))
    found = {name: total.numpy() for name, total in totals.items()}
    if not all(np.isfinite(values).all() for values in found.values()):
        raise ScoreError("an attention is not finite: look for NaN in the pictures or weights")
    return found
