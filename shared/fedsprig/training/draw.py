"""Batches of pictures in memory, drawn and augmented in one gather, with no loop over pictures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

from fedsprig.training.config import Augment, batch_sizes

SHIFT_SHARE: Final = 8
"""A shift moves a picture by up to this fraction of its side: four pixels of 32."""


def endless_batches(pictures: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices ``int64 [b]`` of one batch after the other, shuffled anew for every pass."""
    ends = list(accumulate(batch_sizes(pictures, batch_size)))
    while True:
        yield from torch.randperm(pictures, generator=generator).tensor_split(ends[:-1])


class Drawer:
    """Gathers and augments batches of ``images``.

    The pictures are seen as a table with a row per pixel. Shift and mirror only change which rows a
    batch takes, so that drawing, augmenting and ordering in memory are one copy.
    """

    def __init__(self, images: Tensor, augment: Augment) -> None:
        """Look at ``images [n, c, h, w]``; they are copied only when they are not channels last."""
        self._size = images.shape[1:]
        self._flip = "flip" in augment
        self._shift = "shift" in augment
        pixels = images.permute(0, 2, 3, 1).contiguous()
        whole = not (self._flip or self._shift)
        self._table = pixels.flatten(1) if whole else pixels.flatten(0, 2)

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """The pictures at ``index [b]``, augmented: ``[b, c, h, w]``, channels last."""
        channels, height, width = self._size
        count = len(index)
        if self._flip or self._shift:
            rows = _positions(count, height, self._shift, generator)
            columns = _positions(count, width, self._shift, generator)
            if self._flip:
                mirrored = torch.rand((count, 1), generator=generator) < 0.5
                columns = torch.where(mirrored, width - 1 - columns, columns)
            lines = (index[:, None] * height + rows) * width
            index = (lines[:, :, None] + columns[:, None, :]).flatten()
        batch = self._table.index_select(0, index.to(self._table.device))
        return batch.view(count, height, width, channels).permute(0, 3, 1, 2)


def _positions(count: int, side: int, shift: bool, generator: torch.Generator) -> Tensor:
    """Source coordinates ``[count, side]``; each row has its own shift, mirrored at the border."""
    positions = torch.arange(side).expand(count, side)
    if not shift:
        return positions
    reach = side // SHIFT_SHARE
    moved = positions + torch.randint(-reach, reach + 1, (count, 1), generator=generator)
    last = side - 1
    return last - (last - moved.abs()).abs()
