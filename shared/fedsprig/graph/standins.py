"""What the dependency tracer cannot read, replaced by layers that couple channels alike.

A stand-in is traced, never computed with: it has the shapes and the couplings of what it replaces.

* Attention mixes its input features freely and writes fresh ones: a linear layer does the same.
* A padded shortcut lays its input between zeros: so does a concatenation with two fresh layers,
  whose channels then stand for the padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.graph.heads import feature_ports
from fedsprig.models.attention import PackedAttention
from fedsprig.models.cifar_resnet import BasicBlock, PadShortcut

# Axes that a stand-in's port stands for: (tensor, axis).
Axes = tuple[tuple[str, int], ...]


class TokenMix(nn.Module):
    """Stands in for self-attention: ``[..., e]`` to ``[..., f]``."""

    def __init__(self, features: int, width: int, *, returns_pair: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(features, width)
        self.returns_pair = returns_pair

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Mix the features of every token."""
        mixed = self.mix(x)
        return (mixed, None) if self.returns_pair else mixed


class PadByLayers(nn.Module):
    """Stands in for a padded shortcut: ``[n, c, h, w]`` to ``[n, before + c + after, ...]``."""

    def __init__(self, channels: int, before: int, after: int) -> None:
        super().__init__()
        self.low = nn.Conv2d(channels, before, 1)
        self.high = nn.Conv2d(channels, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample, and lay the input between two fresh sets of channels."""
        x = F.avg_pool2d(x, 1, 2)
        return torch.cat([self.low(x), x, self.high(x)], 1)


def install_standins(model: nn.Module) -> tuple[dict[str, tuple[Axes, Axes]], set[str]]:
    """Replace in place what the tracer cannot read.

    Returns:
        For every linear stand-in, by its module path, the axes of the replaced module that its
        outputs and its inputs stand for; and the paths of layers that stand for nothing.
    """
    linear: dict[str, tuple[Axes, Axes]] = {}
    nothing: set[str] = set()
    for path, module in list(_outermost(model)):
        if isinstance(module, BasicBlock) and isinstance(module.shortcut, PadShortcut):
            pad = module.shortcut
            channels = module.conv1.in_channels
            module.shortcut = PadByLayers(channels, pad.before, pad.after)
            nothing |= {f"{path}.shortcut.low", f"{path}.shortcut.high"}
        ports = feature_ports(module)
        if ports is not None:
            writes, reads = ports
            own = dict(module.named_parameters())
            width, features = own[writes].shape[0], own[reads].shape[1]
            mix = TokenMix(features, width, returns_pair=_returns_pair(module))
            _set_submodule(model, path, mix)
            out = [(f"{path}.{writes}", 0)]
            bias = writes.replace("weight", "bias")
            if bias in own:
                out.append((f"{path}.{bias}", 0))
            linear[f"{path}.mix"] = tuple(out), ((f"{path}.{reads}", 1),)
    return linear, nothing


def _returns_pair(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention | PackedAttention)


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Named modules, without those inside an attention module."""
    inside: str | None = None
    for path, module in model.named_modules():
        if inside is not None and path.startswith(inside):
            continue
        yield path, module
        inside = f"{path}." if feature_ports(module) is not None else None


def _set_submodule(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
