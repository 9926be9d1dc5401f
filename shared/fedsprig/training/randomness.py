"""Modules that drop at random, drawing from one generator instead of torch's global one.

Torch's generator belongs to the whole process: two fits in two threads would take each other's
numbers, and neither could be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

Forward = Callable[[Any, torch.Generator, Tensor], Tensor]

_ALPHA: Final = -1.7580993408473766
"""Where SELU saturates: minus its scale times its alpha (Klambauer et al. 2017, section 3)."""


@contextmanager
def drawing_from(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Within it, the model's dropout and stochastic depth draw from ``generator``.

    That is the dropout modules of torch, torchvision's ``StochasticDepth`` and timm's ``DropPath``,
    on inputs that have a batch axis. Dropout that a module computes without such a module draws
    from torch's global generator as before.

    Args:
        model: No other thread may run it meanwhile.
        generator: On the model's device.
    """
    swapped = []
    for module in model.modules():
        kind = type(module)
        forward = _FORWARDS.get(f"{kind.__module__}.{kind.__qualname__}")
        if forward is not None and "forward" not in vars(module):
            swapped.append((module, partial(forward, module, generator)))
    try:
        for module, own in swapped:
            vars(module)["forward"] = own
        yield
    finally:
        for module, _ in swapped:
            vars(module).pop("forward", None)


def _dropout(module: nn.Dropout, generator: torch.Generator, values: Tensor) -> Tensor:
    if not module.training or module.p == 0:
        return values
    return _scaled(values, _kept(values, values.shape, module.p, generator), module.p)


def _channels(module: nn.Dropout2d, generator: torch.Generator, values: Tensor) -> Tensor:
    if not module.training or module.p == 0:
        return values
    return _scaled(values, _kept(values, _leading(values, 2), module.p, generator), module.p)


def _alpha(module: nn.AlphaDropout, generator: torch.Generator, values: Tensor) -> Tensor:
    """Dropped values become SELU's limit; mean and variance stay (Klambauer et al. 2017)."""
    p = module.p
    if not module.training or p == 0:
        return values
    if p == 1:
        return values * 0
    whole = isinstance(module, nn.FeatureAlphaDropout)
    shape = _leading(values, 2) if whole else values.shape
    kept = _kept(values, shape, p, generator)
    scale = 1 / math.sqrt((1 - p) * (1 + p * _ALPHA**2))
    return scale * (values * kept + _ALPHA * (1 - kept)) - scale * _ALPHA * p


def _stochastic_depth(module: Any, generator: torch.Generator, values: Tensor) -> Tensor:
    if not module.training or module.p == 0:
        return values
    shape = _leading(values, 1 if module.mode == "row" else 0)
    return _scaled(values, _kept(values, shape, module.p, generator), module.p)


def _drop_path(module: Any, generator: torch.Generator, values: Tensor) -> Tensor:
    p = module.drop_prob or 0.0
    if not module.training or p == 0:
        return values
    kept = _kept(values, _leading(values, 1), p, generator)
    return _scaled(values, kept, p) if module.scale_by_keep else values * kept


def _leading(values: Tensor, axes: int) -> tuple[int, ...]:
    """The shape of one draw for all that lies behind the first axes."""
    return (*values.shape[:axes], *(1 for _ in values.shape[axes:]))


def _kept(values: Tensor, shape: tuple[int, ...], p: float, generator: torch.Generator) -> Tensor:
    return values.new_empty(shape).bernoulli_(1 - p, generator=generator)


def _scaled(values: Tensor, kept: Tensor, p: float) -> Tensor:
    # A factor of its own: half precision would round 1 / (1 - p) in the mask.
    return values * kept * (1 / (1 - p) if p < 1 else 1.0)


# By name, so that neither torchvision nor timm is imported for a model that has nothing of theirs.
_FORWARDS: Final[Mapping[str, Forward]] = {
    "torch.nn.modules.dropout.Dropout": _dropout,
    "torch.nn.modules.dropout.Dropout1d": _channels,
    "torch.nn.modules.dropout.Dropout2d": _channels,
    "torch.nn.modules.dropout.Dropout3d": _channels,
    "torch.nn.modules.dropout.AlphaDropout": _alpha,
    "torch.nn.modules.dropout.FeatureAlphaDropout": _alpha,
    "torchvision.ops.stochastic_depth.StochasticDepth": _stochastic_depth,
    "timm.layers.drop.DropPath": _drop_path,
}
