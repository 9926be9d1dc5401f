"""The operator's own pictures in memory: no more than it holds, and each of them once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsprig.models import ModelCard
from fedsprig.seeds import derive_seed
from fedsprig.training import ImageSet, to_tensor

_CHUNK = 256


def most_pictures(card: ModelCard, most_bytes: int) -> int:
    """How many pictures of a model's size, as float32, that many bytes hold; two at least."""
    return max(2, most_bytes // (3 * card.input_size**2 * 4))


def drawn(sets: Sequence[ImageSet], most: int, *, seed: int) -> list[ImageSet]:
    """About ``most`` pictures of all sets together, evenly at random, and one of each at least.

    Args:
        sets: One or more; those that fit are given back as they are.
        most: Of all together.
        seed: Of the draw.
    """
    total = sum(len(given) for given in sets)
    parts = []
    for number, given in enumerate(sets):
        share = max(1, min(len(given), most * len(given) // total))
        generator = torch.Generator().manual_seed(derive_seed(seed, str(number)))
        order = torch.randperm(len(given), generator=generator)
        parts.append(given.subset(order[:share].sort().values.numpy()))
    return parts


def joined(sets: Sequence[ImageSet], card: ModelCard) -> Tensor:
    """All pictures as a network takes them: float32 ``[n, 3, s, s]``, channels last.

    In that memory :class:`fedsprig.training.draw.Drawer` takes them without a copy of its own.
    """
    total, side = sum(len(given) for given in sets), card.input_size
    images = torch.empty((total, 3, side, side), memory_format=torch.channels_last)
    first = 0
    for given in sets:
        for start in range(0, len(given), _CHUNK):
            part = to_tensor(given.images[start : start + _CHUNK], card)
            images[first : first + len(part)] = part
            first += len(part)
    return images
