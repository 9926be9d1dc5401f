"""Healing a network that was cut: it learns to say what the base says, of the features it kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsprig.errors import TrainingError
from fedsprig.graph import GroupPlan, kept_index
from fedsprig.masks import Mask
from fedsprig.preparing.config import HealConfig, cosine
from fedsprig.preparing.order import StepOrder, survey
from fedsprig.preparing.prepare import check_pictures, finite, set_rate, sgd_of, update
from fedsprig.preparing.sliced import HeadInput, batch_normalised, kept_features
from fedsprig.preparing.teacher import DISTANCES, Teacher
from fedsprig.training import recalibrate
from fedsprig.training.loop import Progress
from fedsprig.training.modes import device_of, keeping_modes
from fedsprig.training.strides import subsampled_strides

_BATCH = 128


def base_features(base: nn.Module, plan: GroupPlan, images: Tensor) -> Tensor:
    """What the base's head sees of pictures, for :func:`heal`: ``[n, F]``, on their device."""
    teacher, device = Teacher(base, plan.head), device_of(base)
    found = [
        teacher.features(images[first : first + _BATCH].to(device)).to(images.device)
        for first in range(0, len(images), _BATCH)
    ]
    return torch.cat(found)


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
        PlanError: A mask that does not fit the plan.
        NonFiniteLossError: The loss became NaN or infinite; the network is then spoilt.
    """
    check_pictures(plan, images)
    if targets is not None and (len(targets) != len(images) or config.augment != "none"):
        raise TrainingError(
            f"{len(targets)} targets for {len(images)} pictures with augment "
            f'{config.augment!r}: give one each, and augment="none"'
        )
    kept = kept_features(plan.head, kept_index(plan, mask))
    teacher = Teacher(base, plan.head)
    order = StepOrder(images, config.batch_size, config.augment, seed)
    required = {name: one.requires_grad for name, one in small.named_parameters()}
    optimiser = sgd_of(small, plan.head, config)
    device = device_of(small)
    losses: list[float] = []
    with keeping_modes(small), subsampled_strides(small):
        batch_normalised(small)
        for step in range(config.steps):
            rows, pictures = order.batch(step)
            batch = pictures.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                target = teacher.features(batch) if targets is None else targets[rows].to(device)
                with HeadInput(small, plan.head) as seen:
                    small(batch)
            wanted = target if kept is None else target.index_select(1, kept.to(device))
            loss = DISTANCES[config.distance](seen.value.float(), wanted)
            losses.append(finite(loss.item(), step, config))
            set_rate(optimiser, cosine(config, step))
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            update(optimiser, config.clip_norm)
            if progress is not None:
                progress(step + 1, config.steps, losses[-1])
    optimiser.zero_grad()
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(required[name])
    recalibrate(small, images[survey(len(images), config.survey, seed)])
    return tuple(losses)
