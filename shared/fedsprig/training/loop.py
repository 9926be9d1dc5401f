"""The one local training loop, of devices and of the server's library alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.errors import LabelRangeError
from fedsprig.seeds import derive_seed
from fedsprig.training.config import TrainConfig
from fedsprig.training.draw import Drawer, endless_batches
from fedsprig.training.metrics import Evaluation, evaluate, features
from fedsprig.training.modes import device_of, keeping_modes
from fedsprig.training.normalisation import recalibrate
from fedsprig.training.optimiser import (
    check_pictures,
    check_weights,
    finite_loss,
    parameter_groups,
    remember,
    remembered,
    set_rate,
)
from fedsprig.training.randomness import drawing_from
from fedsprig.training.strides import subsampled_strides

__all__ = [
    "Evaluation",
    "Progress",
    "TrainConfig",
    "TrainReport",
    "evaluate",
    "features",
    "fit",
    "recalibrate",
]

Progress = Callable[[int, int, float], None]
"""Called after every step with the steps done, all steps and the loss."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a fit did.

    Attributes:
        losses: Mean loss of every step's batch.
        steps: Optimiser steps.
        pictures: Pictures seen, repetitions counted.
        seconds: Wall-clock time.
    """

    losses: tuple[float, ...]
    steps: int
    pictures: int
    seconds: float


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    *,
    seed: int,
    head: str = "",
    progress: Progress | None = None,
    momenta: dict[str, Tensor] | None = None,
) -> TrainReport:
    """Train the parameters that require a gradient, in place; modules keep their modes.

    The same model, pictures, settings and seed give the same weights bit for bit on a CPU with the
    same number of threads, whatever other threads do: nothing is drawn from torch's global
    generator (:func:`fedsprig.training.randomness.drawing_from` names the modules).

    Args:
        model: Maps ``[n, c, h, w]`` to logits ``[n, classes]``.
        images: ``float32 [n, c, h, w]``. Batches are drawn in ``channels_last`` memory.
        labels: ``int64 [n]``.
        config: The settings.
        seed: Of the order of the pictures, augmentation and dropout.
        head: Module path of the classifier; needed when its learning rate is scaled.
        progress: Told of every step.
        momenta: What the optimiser remembers, by parameter: empty before the first part of a
            training that is done in parts, and passed on from part to part.

    Raises:
        TrainingError: Fewer than two pictures, nothing to train, or no such head.
        DataError: Pictures and labels do not fit each other.
        LabelRangeError: A label beyond the model's classes.
        NonFiniteLossError: The loss or a weight became NaN or infinite; the model is then spoilt.
    """
    started = time.perf_counter()
    check_pictures(images, labels)
    optimiser = _optimiser(model, config, head)
    if momenta:
        remember(optimiser, model, momenta)
    total = config.total_steps(len(images))
    generator = torch.Generator().manual_seed(seed)
    drawer = Drawer(images, config.augment)
    device = device_of(model)
    labels = labels.to(device)
    losses: list[float] = []
    pictures = 0
    dropping = torch.Generator(device).manual_seed(derive_seed(seed, "dropout"))
    with keeping_modes(model), subsampled_strides(model), drawing_from(model, dropping):
        model.train()
        order = endless_batches(len(images), config.batch_size, generator)
        for step, index in zip(range(total), order, strict=False):
            batch = drawer.draw(index, generator).to(device)
            target = labels[index.to(device)]
            with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                logits = model(batch)
            if step == 0:
                _check_range(labels, logits)
            loss = F.cross_entropy(logits.float(), target, label_smoothing=config.label_smoothing)
            value = finite_loss(loss.item(), step, total, config.learning_rate)
            set_rate(optimiser, config.learning_rate_at(step, total))
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            losses.append(value)
            pictures += len(index)
            if progress is not None:
                progress(step + 1, total, value)
    optimiser.zero_grad()
    if momenta is not None:
        momenta.clear()
        momenta.update(remembered(optimiser, model))
    if total:
        check_weights(model, total, total, config.learning_rate)
    return TrainReport(tuple(losses), total, pictures, time.perf_counter() - started)


def _check_range(labels: Tensor, logits: Tensor) -> None:
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= logits.shape[1]:
        raise LabelRangeError(
            f"labels go from {lowest} to {highest}, the model has {logits.shape[1]} classes: "
            "build it with num_classes to fit, or relabel from 0"
        )


def _optimiser(model: nn.Module, config: TrainConfig, head: str) -> torch.optim.Optimizer:
    groups = parameter_groups(
        model, config.weight_decay, head=head, head_scale=config.head_learning_rate_scale
    )
    if config.optimiser == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
