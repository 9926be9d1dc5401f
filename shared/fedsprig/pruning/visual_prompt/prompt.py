"""The visual prompt: a frame of learnt values that is added to every picture of a task.

Pictures arrive normalised (``(pixel / 255 - mean) / std``), and so is the prompt. The published
sibling code clamps prompted pictures to the range of pixels; here the range of normalised pictures
is not known, networks take any number, and nothing is clamped.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.errors import BudgetError

BORDER_SHARE: Final = 14
"""The frame is this part of the picture's side wide: 16 of 224 pixels, the sibling's default."""
REACH: Final = 20.0
"""Adam moves a number by about its learning rate a step, whatever the gradient. Pixels have to go
farther than a hyper-network's weights: the sibling's, at 1e-4 a step, take thousands of steps."""
_FIXED_SPREAD: Final = 0.5
"""Standard deviation of a prompt that is random and not learnt, in those of the pictures."""
_WIDTHS: Final = (16, 32, 64)


class Prompt(nn.Module):
    """Values that are added to pictures along their border.

    Attributes:
        values: ``[c, h, w]``, zero at first, in units of ``REACH``; what lies inside the frame is
            never used.
        border: ``[1, h, w]``, 1 in the frame, 0 inside it.
    """

    border: Tensor

    def __init__(self, shape: tuple[int, int, int], width: int | None = None) -> None:
        """A prompt of zeros.

        Args:
            shape: of a picture, ``(c, h, w)``.
            width: of the frame, in pixels; by default a fourteenth of the shorter side.

        Raises:
            BudgetError: a width below 1.
        """
        super().__init__()
        _, height, breadth = shape
        if width is not None and width < 1:
            raise BudgetError(f"the prompt's border is {width} pixels wide: choose 1 or more")
        width = width or max(1, round(min(height, breadth) / BORDER_SHARE))
        border = torch.ones(1, height, breadth)
        border[:, width : height - width, width : breadth - width] = 0
        self.values = nn.Parameter(torch.zeros(shape))
        self.register_buffer("border", border, persistent=False)

    def randomise_(self, generator: torch.Generator) -> None:
        """Draw the values at random: a prompt that says nothing of a task."""
        with torch.no_grad():
            drawn = torch.randn(self.values.shape, generator=generator)
            self.values.copy_(drawn * _FIXED_SPREAD / REACH)

    def forward(self) -> Tensor:
        """The frame: what is added to a picture, ``[c, h, w]``."""
        return self.values * self.border * REACH


class PromptEncoder(nn.Module):
    """g_omega: what a hyper-network begins with, read from a prompt."""

    def __init__(self, channels: int, width: int, generator: torch.Generator) -> None:
        """Three convolutions of stride 2, the mean over all pixels, a linear layer.

        Args:
            channels: of the prompt.
            width: d; the code has 2 d numbers.
            generator: of the first weights.
        """
        super().__init__()
        widths = (channels, *_WIDTHS)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            for inputs, outputs in zip(widths, _WIDTHS, strict=False)
        )
        self.linear = nn.Linear(_WIDTHS[-1], 2 * width)
        draw_(self, generator)

    def forward(self, frame: Tensor) -> Tensor:
        """``[c, h, w]`` -> ``[2 d]``."""
        maps = frame[None]
        for convolution in self.convolutions:
            maps = F.relu(convolution(maps))
        code: Tensor = self.linear(maps.mean((2, 3)))[0]
        return code


def draw_(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights of layers evenly within 1 / sqrt(inputs), as torch does, repeatably."""
    for layer in module.modules():
        own = dict(layer.named_parameters(recurse=False))
        if not own:
            continue
        # An LSTM cell's gates share its state: torch goes by the width of that.
        if isinstance(layer, nn.LSTMCell):
            inputs = layer.hidden_size
        else:
            inputs = math.prod(own["weight"].shape[1:])
        bound = 1 / math.sqrt(inputs)
        with torch.no_grad():
            for value in own.values():
                if not value.is_meta:
                    value.copy_((torch.rand(value.shape, generator=generator) * 2 - 1) * bound)
