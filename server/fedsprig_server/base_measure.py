"""What a base is worth for cutting: accuracy of class means right after the cut, by width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsprig.graph import GroupPlan
from fedsprig.masks import Mask
from fedsprig.models import ModelCard
from fedsprig.seeds import derive_seed
from fedsprig.training import ImageSet
from fedsprig_server.library_build import accuracy_of_cut, tensors

MEASURED = 2048
"""Pictures of a source, at most, that class means are taken of, and that they are tried on."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One source of the operator's pictures, as a network takes them.

    Attributes:
        train: Pictures float ``[n, 3, s, s]`` and labels int64 ``[n]`` that class means and
            statistics are taken of.
        held: Those held out.
        classes: How many there are.
    """

    train: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    classes: int

    @classmethod
    def of(cls, rest: ImageSet, held: ImageSet, card: ModelCard, *, most: int, seed: int) -> Source:
        """At most that many pictures of each part, drawn evenly."""
        return cls(
            tensors(_drawn(rest, most, derive_seed(seed, "train")), card),
            tensors(_drawn(held, most, derive_seed(seed, "held")), card),
            len(rest.classes),
        )


def accuracies(
    base: nn.Module,
    plan: GroupPlan,
    card: ModelCard,
    masks: Mapping[str, Mask],
    sources: Sequence[Source],
    *,
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, float]:
    """Share of held-out pictures that class means get right, the mean over the sources.

    Nothing is trained after the cut: statistics are measured anew on a source's own pictures and
    the classifier is made of the class means, as a device of a new task begins.

    Args:
        base: At full width; left as it is.
        plan: Its groups.
        card: Its card.
        masks: By name.
        sources: Each is a task of its own.
        done: Told of the number of masks that are measured.
    """
    found: dict[str, float] = {}
    for name, mask in masks.items():
        right = [
            accuracy_of_cut(base, plan, card, mask, source.train, source.held, source.classes)
            for source in sources
        ]
        found[name] = sum(right) / len(right)
        done(len(found))
    return found


def _drawn(pictures: ImageSet, most: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=generator)[:most]
    return pictures.subset(order.sort().values.numpy())
