"""Healing a network that was cut: it learns to say what the base says, of the features it kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsprig.graph import GroupPlan, kept_index
from fedsprig.masks import Mask
from fedsprig.preparing.config import HealConfig, cosine
from fedsprig.preparing.order import StepOrder, survey
from fedsprig.preparing.prepare import check_pictures, finite, set_rate, sgd_of, update
from fedsprig.preparing.sliced import HeadInput, batch_normalised, kept_features
from fedsprig.preparing.teacher import Teacher, feature_distance
from fedsprig.training import recalibrate
from fedsprig.training.loop import Progress
from fedsprig.training.modes import device_of, keeping_modes
from fedsprig.training.strides import subsampled_strides


def heal(
    small: nn.Module,
    mask: Mask,
    base: nn.Module,
    plan: GroupPlan,
    images: Tensor,
    config: HealConfig,
    *,
    seed: int,
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
        progress: Told of every step.

    Returns:
        The loss of every step.

    Raises:
        TrainingError: Fewer than two pictures, or a base without a head.
        PlanError: A mask that does not fit the plan.
        NonFiniteLossError: The loss became NaN or infinite; the network is then spoilt.
    """
    check_pictures(plan, images)
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
            batch = order.batch(step)[1].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                target = teacher.features(batch)
                with HeadInput(small, plan.head) as seen:
                    small(batch)
            wanted = target if kept is None else target.index_select(1, kept.to(device))
            loss = feature_distance(seen.value.float(), wanted)
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
