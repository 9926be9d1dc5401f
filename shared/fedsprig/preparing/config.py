"""How to prepare a base model for cutting, and how to heal a network that was cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fedsprig.errors import TrainingError
from fedsprig.training.config import LARGEST, MAX_STEPS, Augment

Distance = Literal["squared", "direction"]
Order = Literal["nested", "varied"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """Settings of :func:`fedsprig.preparing.prepare`.

    The defaults of the optimiser are those of a careful fine-tuning; the sandwich of widths is that
    of Yu and Huang 2019, "Universally Slimmable Networks", arXiv 1903.05134, section 3.3, but for
    the whole width, which costs the most by far and is trained every ``whole_every`` steps only.

    Attributes:
        steps: Optimiser steps.
        batch_size: Pictures per step, two at least; all widths of a step see the same.
        learning_rate: At the first step; falls along half a cosine. SGD.
        momentum: Of the classical kind, from 0 to below 1.
        weight_decay: L2 penalty of matrices and kernels.
        clip_norm: Longest gradient of a step; 0 for any length.
        ratios: Shares of the MACs, each above 0 and below 1. Every step trains a mask of the
            smallest and ``fresh_masks`` of the others.
        order: ``"nested"``: all masks follow one order of the units, the mean of the scores, so
            that a ratio has one mask and the smaller lie in the larger. ``"varied"``: masks are
            drawn anew, as the next three settings say.
        fresh_masks: Masks a step beside the smallest, each of a ratio drawn from the others.
        whole_every: The whole base trains at every such step; 0 for never.
        random_share: Share of masks of random units among varied ones that are not given.
        given_share: Share of given masks, of ratios that have any, among varied ones.
        noise: Added to the scores of varied masks, in standard deviations of a group.
        distance: Between features and the original's: ``"squared"``, in units of their variance, or
            ``"direction"``, by the cosine about the mean.
        feature_weight: Of that distance.
        logit_weight: Of the divergence from the original's class probabilities, by the class-mean
            classifier of the original's features.
        label_weight: Of the cross-entropy of the labels by the same classifier.
        temperature: That both probabilities of the divergence are taken at.
        survey: Pictures, at most, that the classifier and the final statistics are measured on.
        augment: As in local training.
        bf16: Compute in bfloat16 by autocast; weights and losses stay in float32.

    Raises:
        TrainingError: A setting out of its range.
    """

    steps: int = 1200
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    ratios: tuple[float, ...] = (0.1, 0.25, 0.5)
    order: Order = "nested"
    fresh_masks: int = 1
    whole_every: int = 4
    random_share: float = 0.25
    given_share: float = 0.25
    noise: float = 1.0
    distance: Distance = "squared"
    feature_weight: float = 1.0
    logit_weight: float = 1.0
    label_weight: float = 0.0
    temperature: float = 2.0
    survey: int = 4096
    augment: Augment = "flip+shift"
    bf16: bool = False

    def __post_init__(self) -> None:
        _check_training(self)
        if not self.ratios or not all(0 < ratio < 1 for ratio in self.ratios):
            raise TrainingError(f"ratios are {self.ratios}: give shares of the MACs from 0 to 1")
        if list(self.ratios) != sorted(set(self.ratios)):
            raise TrainingError(f"ratios are {self.ratios}: give them once each, ascending")
        if self.order not in get_args(Order):
            raise TrainingError(f"order is {self.order!r}: use {', '.join(get_args(Order))}")
        if self.fresh_masks < 0 or self.whole_every < 0:
            raise TrainingError("fresh_masks and whole_every count: choose 0 or more")
        for name in ("random_share", "given_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} is {getattr(self, name)}: choose a share, 0 to 1")
        for name in ("noise", "feature_weight", "logit_weight", "label_weight"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise TrainingError(f"{name} is {getattr(self, name)}: choose 0 or more")
        if not self.feature_weight + self.logit_weight + self.label_weight > 0:
            raise TrainingError("nothing to learn: give one of the three weights above 0")
        if not 0 < self.temperature <= LARGEST:
            raise TrainingError(f"temperature is {self.temperature}: choose a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class HealConfig:
    """Settings of :func:`fedsprig.preparing.heal`; as in :class:`PrepareConfig`, but for one.

    Attributes:
        survey: Pictures, at most, that the final statistics are measured on; there is no
            classifier.
    """

    steps: int = 250
    batch_size: int = 64
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    survey: int = 2048
    distance: Distance = "squared"
    augment: Augment = "flip+shift"
    bf16: bool = False

    def __post_init__(self) -> None:
        _check_training(self)


def _check_training(config: PrepareConfig | HealConfig) -> None:
    if not 0 <= config.steps <= MAX_STEPS:
        raise TrainingError(f"steps is {config.steps}: choose 0 to {MAX_STEPS}")
    for name in ("batch_size", "survey"):
        if getattr(config, name) < 2:
            raise TrainingError(f"{name} is {getattr(config, name)}: choose 2 pictures or more")
    if not 0 < config.learning_rate <= LARGEST:
        raise TrainingError(
            f"learning_rate is {config.learning_rate}: choose a positive number below 3.4e38"
        )
    if not 0 <= config.momentum < 1:
        raise TrainingError(f"momentum is {config.momentum}: choose 0 to below 1")
    for name in ("weight_decay", "clip_norm"):
        if not 0 <= getattr(config, name) <= LARGEST:
            raise TrainingError(f"{name} is {getattr(config, name)}: choose 0 to below 3.4e38")
    if config.distance not in get_args(Distance):
        raise TrainingError(f"distance is {config.distance!r}: use {', '.join(get_args(Distance))}")
    if config.augment not in get_args(Augment):
        raise TrainingError(f"augment is {config.augment!r}: use {', '.join(get_args(Augment))}")
