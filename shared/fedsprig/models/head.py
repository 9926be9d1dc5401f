"""The classifier at the end of a base model: what belongs to it, and another one in its place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedsprig.errors import WeightsError


def is_of_head(name: str, head: str) -> bool:
    """Whether a module path or a state name is of the classifier, or of a part of it.

    Args:
        name: such as ``"fc"``, ``"fc.weight"``; ``"fc2"`` is not of ``"fc"``.
        head: the classifier's module path; empty if there is none, and then nothing is of it.
    """
    return bool(head) and f"{name}.".startswith(f"{head}.")


def replace_head(model: nn.Module, head: str, num_classes: int, *, seed: int = 0) -> nn.Module:
    """Put a fresh classifier in place of the old one.

    The weight is drawn from U(-1/sqrt(f), 1/sqrt(f)) for ``f`` inputs (what ``nn.Linear`` draws
    from), from ``seed`` alone; the bias is zero. Device and dtype stay.

    Args:
        model: changed in place and returned.
        head: module path of the classifier, an ``nn.Linear`` or an ``nn.Conv2d``.
        num_classes: width of the new one.
        seed: equal seeds give equal heads.

    Raises:
        WeightsError: no such classifier, or ``num_classes`` below 1.
    """
    if num_classes < 1:
        raise WeightsError(f"a classifier needs at least 1 class, not {num_classes}")
    try:
        old = model.get_submodule(head) if head else None
    except AttributeError:
        old = None
    if not isinstance(old, nn.Linear | nn.Conv2d):
        raise WeightsError(f"the model has no linear or convolutional classifier at {head!r}")
    weight = torch.empty(
        num_classes, *old.weight.shape[1:], dtype=old.weight.dtype, device=old.weight.device
    )
    old.weight = nn.Parameter(_uniform_like(weight, seed), old.weight.requires_grad)
    if old.bias is not None:
        old.bias = nn.Parameter(weight.new_zeros(num_classes), old.bias.requires_grad)
    if isinstance(old, nn.Linear):
        old.out_features = num_classes
    else:
        old.out_channels = num_classes
    return model


def _uniform_like(weight: Tensor, seed: int) -> Tensor:
    if weight.is_meta:
        return weight
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
    drawn = torch.rand(weight.shape, generator=generator) * (2 * bound) - bound
    return drawn.to(dtype=weight.dtype, device=weight.device)
