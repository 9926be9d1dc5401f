"""Residual networks for 32x32 pictures: He et al. 2016, "Deep Residual Learning", section 4.2.

Three stages of ``(depth - 2) / 6`` basic blocks at widths ``w, 2w, 4w``. Two kinds of shortcut
where the width doubles:

* ``"pad"`` (option A, no parameters): every second pixel, zero channels on both sides. The public
  CIFAR-10 weights use it.
* ``"conv"`` (option B): a 1x1 convolution and its normalisation. It keeps the stages' residual
  streams apart, so each can be pruned on its own; the shipped base uses it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shortcut = Literal["pad", "conv"]


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides.

    ``[n, c, h, w] -> [n, before + c + after, h / 2, w / 2]``. Both start as ``pad``; a cut network
    keeps of each side as many as its output stream keeps there.
    """

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.before = self.after = pad

    def forward(self, x: Tensor) -> Tensor:
        """Subsample the pixels and pad the channels."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``."""

    def __init__(self, in_planes: int, planes: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_planes != planes:
            if shortcut == "pad":
                self.shortcut = PadShortcut((planes - in_planes) // 2)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
                )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, in_planes, h, w]`` to ``[n, planes, h / stride, w / stride]``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A CIFAR ResNet; ``depth`` is ``6 n + 2``, ``width`` the channels of the first stage."""

    def __init__(
        self, depth: int, *, num_classes: int, width: int = 16, shortcut: Shortcut = "pad"
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth {depth} is not 6 n + 2")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, 1, shortcut)
        self.layer2 = _stage(width, 2 * width, blocks, 2, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2, shortcut)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures ``[n, 3, h, w]`` to logits ``[n, num_classes]``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = torch.flatten(F.adaptive_avg_pool2d(out, 1), 1)
        logits: Tensor = self.linear(out)
        return logits


def _stage(
    in_planes: int, planes: int, blocks: int, stride: int, shortcut: Shortcut
) -> nn.Sequential:
    return nn.Sequential(
        *(
            BasicBlock(in_planes if i == 0 else planes, planes, stride if i == 0 else 1, shortcut)
            for i in range(blocks)
        )
    )
