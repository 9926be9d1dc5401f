"""Pictures to what a network takes: resized and standardised."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedsprig.training.pictures import check_images

_CHUNK_PIXELS: Final = 1 << 22


class InputCard(Protocol):
    """What a model expects of its pictures; ``fedsprig.models.ModelCard`` is one."""

    @property
    def input_size(self) -> int:
        """Side of the square picture in pixels."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of red, green and blue, of pixels between 0 and 1."""

    @property
    def std(self) -> tuple[float, ...]:
        """Their standard deviations."""


def to_tensor(images: NDArray[np.uint8], card: InputCard) -> Tensor:
    """``(pixel / 255 - mean) / std``, resized to the model's square.

    The resize is bilinear with antialiasing, so that a shrunken picture has no Moire. It squeezes a
    picture that is not square; the readers can crop instead.

    Args:
        images: ``uint8 [n, h, w, 3]``.
        card: Size, mean and standard deviation.

    Returns:
        ``float32 [n, 3, s, s]``, contiguous. Convolutions on a CPU are faster with
        ``channels_last`` memory but not all of them safe (see `fedsprig.training.strides`); the
        functions of this package change to it where they know it is.

    Raises:
        DataError: Pictures of another dtype or shape.
    """
    check_images(images)
    count, height, width, _ = images.shape
    side = card.input_size
    mean = torch.tensor(card.mean, dtype=torch.float32).view(1, 3, 1, 1)
    std = torch.tensor(card.std, dtype=torch.float32).view(1, 3, 1, 1)
    out = torch.empty((count, 3, side, side))
    chunk = max(1, _CHUNK_PIXELS // (max(height * width, side * side) * 3))
    for first in range(0, count, chunk):
        # Torch takes no negative strides and warns of arrays that cannot be written to.
        pixels = np.require(images[first : first + chunk], requirements=["C", "W"])
        part = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
        if (height, width) != (side, side):
            part = F.interpolate(part, (side, side), mode="bilinear", antialias=True)
        out[first : first + chunk] = part.div_(255).sub_(mean).div_(std)
    return out
