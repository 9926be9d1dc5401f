"""Healing a network that was cut: it learns to say what the base says, of the features it kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsprig.errors import TrainingError
from fedsprig.graph import GroupPlan, kept_index
from fedsprig.masks import Mask
from fedsprig.preparing.body import BodyTraining, check_head
from fedsprig.preparing.config import HealConfig
from fedsprig.preparing.order import StepOrder, survey
from fedsprig.preparing.sliced import batch_normalised, kept_features
from fedsprig.preparing.teacher import DISTANCES, Teacher
from fedsprig.training import features, recalibrate
from fedsprig.training.head_input import HeadInput
from fedsprig.training.loop import Progress
from fedsprig.training.modes import device_of, keeping_modes
from fedsprig.training.optimiser import check_pictures
from fedsprig.training.strides import subsampled_strides

_BATCH = 128


def base_features(
    base: nn.Module, plan: GroupPlan, images: Tensor, *, bf16: bool = False
) -> Tensor:
    """What the base's head sees of pictures, for :func:`heal`: ``float32 [n, F]``, where they are.

    Args:
        base: At full width; no other thread may run it meanwhile.
        plan: Its groups.
        images: ``float32 [n, c, h, w]``.
        bf16: Compute in bfloat16, as a healing of these settings does.
    """
    with torch.autocast(device_of(base).type, torch.bfloat16, enabled=bf16):
        return features(base, plan.head, images, _BATCH).to(images.device)


def heal(
    small: nn.Module,
    mask: Mask,
    base: nn.Module,
    plan: GroupPlan,
    images: Tensor,
    config: HealConfig,
    *,
    seed: int,
    targets: Tensor | None = None,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Distil a base into a network that was cut from it, in place; modes stay.

    The features are compared where the head sees them, so labels and classes have no part in it.
    Normalisation statistics are measured anew at the end. Bit-reproducible as
    :func:`fedsprig.preparing.prepare` is.

    Args:
        small: What ``mask`` cut from ``base``, without adapters.
        mask: What it keeps.
        base: At full width; left as it is.
        plan: Its groups.
        images: ``float32 [n, c, h, w]``; they need no labels.
        config: The settings.
        seed: Of the order of pictures and augmentation.
        targets: The base's features of ``images`` (:func:`base_features`), where many networks are
            healed on the same ones: the base is then not asked again, and nothing is augmented.
        progress: Told of every step.

    Returns:
        The loss of every step.

    Raises:
        TrainingError: Fewer than two pictures, a base without a head, targets of other pictures,
            or beside augmentation, which would make them wrong.
        DataError: Pictures of another dtype or shape.
        PlanError: A mask that does not fit the plan.
        NonFiniteLossError: The loss or a weight became NaN or infinite; the network is then spoilt.
    """
    check_head(plan)
    check_pictures(images)
    if targets is not None and (len(targets) != len(images) or config.augment != "none"):
        raise TrainingError(
            f"{len(targets)} targets for {len(images)} pictures with augment "
            f'{config.augment!r}: give one each, and augment="none"'
        )
    kept = kept_features(plan.head, kept_index(plan, mask))
    teacher = Teacher(base, plan.head) if targets is None else None
    order = StepOrder(images, config.batch_size, config.augment, seed)
    training = BodyTraining(small, plan.head, config)
    device = device_of(small)
    losses: list[float] = []
    with keeping_modes(small), subsampled_strides(small):
        batch_normalised(small)
        for step in range(config.steps):
            rows, pictures = order.batch(step)
            batch = pictures.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                if teacher is not None:
                    target = teacher.features(batch)
                elif targets is not None:
                    target = targets[rows].to(device)
                with HeadInput(small, plan.head) as seen:
                    small(batch)
            wanted = target if kept is None else target.index_select(1, kept.to(device))
            training.begin(step)
            loss = DISTANCES[config.distance](seen.take().float(), wanted)
            losses.append(training.learn(loss, step))
            training.end()
            if progress is not None:
                progress(step + 1, config.steps, losses[-1])
    training.close()
    recalibrate(small, images[survey(len(images), config.survey, seed)])
    training.check(config.steps)
    return tuple(losses)
