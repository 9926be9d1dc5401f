"""The cut networks that training steps are timed on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import nn

from fedsprig.graph import materialize, trace_groups
from fedsprig.masks import Mask
from fedsprig.models import build

CLASSES: Final = 10


@dataclass(frozen=True, slots=True)
class Network:
    """A network to train.

    Attributes:
        make: Builds it, with random weights.
        side: Of its pictures, in pixels.
    """

    make: Callable[[], nn.Module]
    side: int


def resnet18(width: int) -> nn.Module:
    """A ResNet-18 for small pictures (3x3 first convolution, no pooling), cut to a base width."""
    model = build("torchvision/resnet18", num_classes=CLASSES)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return _cut(model, width / 64, 32)


def resnet50(share: float) -> nn.Module:
    """A ResNet-50 that keeps a share of its channels everywhere."""
    return _cut(build("torchvision/resnet50", num_classes=CLASSES), share, 64)


def _cut(model: nn.Module, share: float, side: int) -> nn.Module:
    """Keep the first units of every group: which ones makes no difference to the time."""
    plan = trace_groups(model, torch.zeros(1, 3, side, side))
    kept = {
        group.name: np.arange(group.units) < math.ceil(share * group.units) for group in plan.groups
    }
    return materialize(model, plan, Mask(kept))


NETWORKS: Final[Mapping[str, Network]] = {
    **{f"resnet18-w{width}": Network(partial(resnet18, width), 32) for width in (16, 20, 32, 64)},
    "resnet50-30%": Network(partial(resnet50, 0.3), 64),
}
