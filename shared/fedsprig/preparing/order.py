"""Batches that follow from a seed and the number of a step, not from the steps before."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsprig.seeds import derive_seed
from fedsprig.training.config import Augment
from fedsprig.training.draw import Drawer


class StepOrder:
    """The batch of every step; passes over the pictures are shuffled anew.

    What does not fill a last batch of a pass is left out of it.

    Args:
        images: ``float32 [n, c, h, w]``.
        batch_size: Pictures per step; all of them where they are fewer.
        augment: As in local training.
        seed: Of order and augmentation.
    """

    def __init__(self, images: Tensor, batch_size: int, augment: Augment, seed: int) -> None:
        self._drawer = Drawer(images, augment)
        self._count, self._seed = len(images), seed
        self._size = min(batch_size, len(images))
        self._pass: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Indices ``int64 [b]`` and augmented pictures ``[b, c, h, w]`` of a step, from 0."""
        number, place = divmod(step, self._count // self._size)
        if self._pass is None or self._pass[0] != number:
            shuffled = torch.randperm(
                self._count, generator=_generator(self._seed, "order", number)
            )
            self._pass = number, shuffled
        index = self._pass[1][place * self._size : (place + 1) * self._size]
        return index, self._drawer.draw(index, _generator(self._seed, "augment", step))


def survey(count: int, most: int, seed: int) -> Tensor:
    """Up to ``most`` of ``count`` pictures, drawn evenly: int64, sorted."""
    generator = _generator(seed, "survey", 0)
    return torch.randperm(count, generator=generator)[:most].sort().values


def _generator(seed: int, what: str, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, what, str(number)))
