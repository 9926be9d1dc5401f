"""The one local training loop, of devices and of the server's library alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fedsprig.errors import DataError, LabelRangeError, NonFiniteLossError, TrainingError
from fedsprig.seeds import derive_seed
from fedsprig.training.config import TrainConfig
from fedsprig.training.draw import Drawer, endless_batches
from fedsprig.training.metrics import Evaluation, evaluate, features
from fedsprig.training.modes import device_of, keeping_modes
from fedsprig.training.normalisation import recalibrate
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
    _check(images, labels)
    optimiser = _optimiser(model, config, head)
    if momenta:
        _remember(optimiser, model, momenta)
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
            value = loss.item()
            if not math.isfinite(value):
                raise _diverged(f"the loss is {value}", step, total, config)
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate_at(step, total) * group["scale"]
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
        momenta.update(_remembered(optimiser, model))
    if total and not _finite(model):
        raise _diverged("a weight or a statistic is not finite", total, total, config)
    return TrainReport(tuple(losses), total, pictures, time.perf_counter() - started)


def _check(images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise DataError(
            f"pictures are {images.dtype} {list(images.shape)}: pass float [n, c, h, w]"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise DataError(
            f"labels are {labels.dtype} {list(labels.shape)} for {len(images)} pictures: "
            "pass one int64 each"
        )
    if len(images) < 2:
        raise TrainingError(
            f"cannot train on {len(images)} picture(s): give two at least, and better ten a class"
        )


def _check_range(labels: Tensor, logits: Tensor) -> None:
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= logits.shape[1]:
        raise LabelRangeError(
            f"labels go from {lowest} to {highest}, the model has {logits.shape[1]} classes: "
            "build it with num_classes to fit, or relabel from 0"
        )


def _optimiser(model: nn.Module, config: TrainConfig, head: str) -> torch.optim.Optimizer:
    """One group for each pairing of head or body with weight decay or none."""
    if config.head_learning_rate_scale != 1 and not head:
        raise TrainingError("head_learning_rate_scale needs to know the head: pass its module path")
    if head:
        try:
            in_head = {id(parameter) for parameter in model.get_submodule(head).parameters()}
        except AttributeError as error:
            raise TrainingError(f"the model has no module {head!r}: name its classifier") from error
    else:
        in_head = set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = (id(parameter) in in_head, parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise TrainingError("nothing in the model requires a gradient: attach adapters or unfreeze")
    described = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "scale": config.head_learning_rate_scale if of_head else 1.0,
        }
        for (of_head, decayed), parameters in groups.items()
    ]
    if config.optimiser == "adam":
        return torch.optim.Adam(described, lr=config.learning_rate)
    return torch.optim.SGD(described, lr=config.learning_rate, momentum=config.momentum)


def _remembered(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's own tensors, by ``quantity:parameter``."""
    return {
        f"{quantity}:{name}": value.detach().clone()
        for name, parameter in model.named_parameters()
        for quantity, value in optimiser.state.get(parameter, {}).items()
        if value is not None
    }


def _remember(
    optimiser: torch.optim.Optimizer, model: nn.Module, momenta: dict[str, Tensor]
) -> None:
    """Give an optimiser back what :func:`_remembered` read."""
    parameters = dict(model.named_parameters())
    for key, value in momenta.items():
        quantity, _, name = key.partition(":")
        if name not in parameters or not parameters[name].requires_grad:
            raise TrainingError(
                f"the momenta are of another training: there is no {name} to train here"
            )
        # Adam counts its steps on the CPU.
        device = value.device if quantity == "step" else parameters[name].device
        optimiser.state[parameters[name]][quantity] = value.to(device).clone()


def _finite(model: nn.Module) -> bool:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers(recurse=False)
    ]
    return all(bool(torch.isfinite(tensor).all()) for tensor in (*trained, *statistics))


def _diverged(what: str, step: int, total: int, config: TrainConfig) -> NonFiniteLossError:
    if step == 0:
        return NonFiniteLossError(
            f"{what} before the first step: look for NaN or infinity in the pictures or weights"
        )
    return NonFiniteLossError(
        f"{what} after {step} of {total} steps: lower learning_rate (now {config.learning_rate:g})"
    )
