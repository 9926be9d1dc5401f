"""How strongly the units of a network respond, as AAP asks it round by round.

Formulas: :mod:`fedsprig.scoring.attention`; ``"mean"`` is what the scorer ``attention`` gives.

What is averaged is a sum over pictures and their number, and sums add up: the attention over the
pictures of many devices is the sum of their sums over the sum of their numbers
(:func:`attention_sums`), whoever holds which picture.
"""

from __future__ import annotations

from typing import Final, get_args

import numpy as np
from torch import Tensor, nn

from fedsprig.errors import ScoreError, UnknownNameError
from fedsprig.graph.plan import GroupPlan
from fedsprig.scoring.attention import Form, Strengths, summed_attention
from fedsprig.spelling import unknown
from fedsprig.training.modes import batches, device_of, keeping_modes

__all__ = ["Form", "Strengths", "attention", "attention_sums"]

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
    with keeping_modes(model):
        model.eval()
        device = device_of(model)
        parts = (part.to(device) for part in batches(images, _BATCH))
        found, _ = summed_attention(model, plan, parts, power=power, form=form)
    if not all(np.isfinite(values).all() for values in found.values()):
        raise ScoreError("an attention is not finite: look for NaN in the pictures or weights")
    return found
