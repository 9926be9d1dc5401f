"""How to train: the settings of one local fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from fedsprig.errors import TrainingError

Schedule = Literal["cosine", "constant"]
Augment = Literal["none", "flip", "shift", "flip+shift"]
Optimiser = Literal["sgd", "adam"]

MAX_STEPS: Final = 10_000_000
LARGEST: Final = 3.4e38
"""What float32 holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of one training. Give ``steps`` or ``epochs``.

    Attributes:
        steps: Optimiser steps.
        epochs: Passes over the pictures.
        batch_size: Pictures per step, two at least.
        learning_rate: At the first step.
        optimiser: ``"sgd"``, or ``"adam"`` (Kingma and Ba 2015) with torch's own settings.
        momentum: Of the classical (heavy ball) kind, from 0 to below 1; Adam has its own.
        weight_decay: L2 penalty of matrices and kernels; biases and normalisation have none.
        schedule: ``"cosine"`` lowers the learning rate along half a cosine (Loshchilov and Hutter
            2017, equation 5, one period), ``"constant"`` keeps it but for milestones.
        milestones: Epochs at which a constant learning rate falls to a tenth.
        head_learning_rate_scale: Factor of the head's learning rate.
        label_smoothing: Share of the target that is spread over all classes, from 0 to below 1.
        augment: ``"flip"`` mirrors half of the pictures, ``"shift"`` moves each by up to an eighth
            of its side both ways and mirrors at the border.
        bf16: Compute in bfloat16 by autocast; weights and the loss stay in float32.

    Raises:
        TrainingError: A setting out of its range.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float = 0.05
    optimiser: Optimiser = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    milestones: tuple[int, ...] = ()
    head_learning_rate_scale: float = 1.0
    label_smoothing: float = 0.0
    augment: Augment = "none"
    bf16: bool = False

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise TrainingError(
                "give either steps or epochs, not both and not neither: the other is none"
            )
        length = self.steps if self.epochs is None else self.epochs
        if length is None or not 0 <= length <= MAX_STEPS:
            raise TrainingError(f"steps or epochs is {length}: choose 0 to {MAX_STEPS}")
        if self.batch_size < 2:
            raise TrainingError(
                f"batch_size is {self.batch_size}: choose 2 or more, for batch normalisation"
            )
        for name in ("learning_rate", "head_learning_rate_scale"):
            value = getattr(self, name)
            if not 0 < value <= LARGEST:
                raise TrainingError(f"{name} is {value}: choose a positive number below 3.4e38")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}: choose 0 to below 1")
        if not 0 <= self.weight_decay <= LARGEST:
            raise TrainingError(f"weight_decay is {self.weight_decay}: choose 0 to below 3.4e38")
        for name, kinds in (("schedule", Schedule), ("augment", Augment), ("optimiser", Optimiser)):
            if getattr(self, name) not in get_args(kinds):
                raise TrainingError(
                    f"{name} is {getattr(self, name)!r}: use {', '.join(get_args(kinds))}"
                )

        if self.milestones and (self.schedule != "constant" or self.epochs is None):
            raise TrainingError(
                "milestones are epochs of a constant rate: give schedule='constant' and epochs"
            )

    def learning_rate_at(self, step: int, total: int) -> float:
        """The learning rate of one step, ``0 <= step < total``, before the head's factor."""
        if self.schedule == "constant":
            each = total // max(1, self.epochs or 1)
            passed = sum(milestone * each <= step for milestone in self.milestones)
            return float(self.learning_rate * 0.1**passed)
        return cosine(self.learning_rate, step, total)

    def total_steps(self, pictures: int) -> int:
        """Optimiser steps over that many pictures."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 0) * len(batch_sizes(pictures, self.batch_size))


def cosine(learning_rate: float, step: int, total: int) -> float:
    """The rate of one step, ``0 <= step < total``, along half a cosine from ``learning_rate``.

    Loshchilov and Hutter 2017, "SGDR", arXiv 1608.03983, equation 5, one period.
    """
    return learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))


def batch_sizes(pictures: int, batch_size: int) -> tuple[int, ...]:
    """How a pass is divided: full batches, then the rest. A rest of one joins the batch before.

    A batch of one picture has no variance to normalise by. All pictures are one batch where they
    are fewer than ``batch_size``.
    """
    full, rest = divmod(pictures, batch_size)
    sizes = [batch_size] * full
    if rest == 1 and full:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return tuple(sizes)
