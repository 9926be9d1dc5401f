"""What a base is worth for cutting: accuracy of class means right after the cut, by width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsprig.graph import GroupPlan, materialize
from fedsprig.masks import Mask
from fedsprig.models import ModelCard, replace_head
from fedsprig.seeds import derive_seed
from fedsprig.training import ImageSet, evaluate, hold_out, recalibrate, to_tensor
from fedsprig_server.library_build import set_class_mean_head

MEASURED = 2048
"""Pictures of a source, at most, that class means are taken of, and that they are tried on."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One source of the operator's pictures, as a network takes them.

    Attributes:
        images: Float ``[n, 3, s, s]`` to train on.
        labels: Int64 ``[n]``.
        held: Pictures held out.
        held_labels: Theirs.
        classes: How many there are.
    """

    images: Tensor
    labels: Tensor
    held: Tensor
    held_labels: Tensor
    classes: int

    @classmethod
    def of(cls, pictures: ImageSet, card: ModelCard, held_out: float, *, seed: int) -> Source:
        """Divide pictures and make tensors of them.

        Raises:
            DataError: A share outside 0 to 1.
        """
        rest, held = hold_out(pictures, held_out, seed=seed)
        return cls(
            to_tensor(rest.images, card),
            torch.from_numpy(rest.labels),
            to_tensor(held.images, card),
            torch.from_numpy(held.labels),
            len(pictures.classes),
        )

    def sample(self, most: int, *, seed: int) -> Source:
        """At most that many pictures of each part, drawn evenly."""
        train = _drawn(len(self.images), most, derive_seed(seed, "train"))
        held = _drawn(len(self.held), most, derive_seed(seed, "held"))
        return Source(
            self.images[train],
            self.labels[train],
            self.held[held],
            self.held_labels[held],
            self.classes,
        )


def accuracies(
    base: nn.Module,
    plan: GroupPlan,
    card: ModelCard,
    masks: Mapping[float, Mask],
    sources: Sequence[Source],
) -> dict[float, float]:
    """Share of held-out pictures that class means get right, the mean over the sources.

    Nothing is trained after the cut: statistics are measured anew on a source's own pictures and
    the classifier is made of the class means, as a device of a new task begins.

    Args:
        base: At full width; left as it is.
        plan: Its groups.
        card: Its card.
        masks: By the share of multiply-accumulates that they stand for.
        sources: Each is a task of its own.
    """
    found = {}
    for ratio, mask in masks.items():
        right = []
        for source in sources:
            small = replace_head(materialize(base, plan, mask), card, source.classes)
            recalibrate(small, source.images)
            set_class_mean_head(small, card.head, source.images, source.labels, source.classes)
            right.append(evaluate(small, source.held, source.held_labels).accuracy)
        found[ratio] = sum(right) / len(right)
    return found


def _drawn(count: int, most: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values
