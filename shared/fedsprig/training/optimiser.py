"""What trainings have in common: groups and rates, the optimiser's memory, what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsprig.errors import DataError, NonFiniteLossError, TrainingError


def check_pictures(images: Tensor, labels: Tensor | None = None) -> None:
    """Refuse what nothing can be learnt from.

    Args:
        images: To be float ``[n, c, h, w]``, two at least.
        labels: To be int64 ``[n]``, where there are any.

    Raises:
        DataError: Another dtype or shape.
        TrainingError: Fewer than two pictures.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise DataError(
            f"pictures are {images.dtype} {list(images.shape)}: pass float [n, c, h, w]"
        )
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype != torch.int64):
        raise DataError(
            f"labels are {labels.dtype} {list(labels.shape)} for {len(images)} pictures: "
            "pass one int64 each"
        )
    if len(images) < 2:
        raise TrainingError(
            f"cannot train on {len(images)} picture(s): give two at least, and better ten a class"
        )


def parameter_groups(
    model: nn.Module, weight_decay: float, *, head: str = "", head_scale: float = 1.0
) -> list[dict[str, Any]]:
    """What requires a gradient, a group for each pairing of head or body with decay or none.

    Args:
        model: Whose parameters they are.
        weight_decay: Of matrices and kernels; biases and normalisation have none.
        head: Module path of the classifier; needed where its rate is scaled.
        head_scale: Factor of its rate.

    Raises:
        TrainingError: Nothing to train, or no such head.
    """
    if head_scale != 1 and not head:
        raise TrainingError("head_learning_rate_scale needs to know the head: pass its module path")
    try:
        in_head = {id(one) for one in model.get_submodule(head).parameters()} if head else set()
    except AttributeError as error:
        raise TrainingError(f"the model has no module {head!r}: name its classifier") from error
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = (id(parameter) in in_head, parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise TrainingError("nothing in the model requires a gradient: attach adapters or unfreeze")
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decayed else 0.0,
            "scale": head_scale if of_head else 1.0,
        }
        for (of_head, decayed), parameters in groups.items()
    ]


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give all groups that learning rate, each times its own factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def clipped_step(optimiser: torch.optim.Optimizer, clip_norm: float) -> None:
    """One step, its gradient shortened to ``clip_norm`` unless that is 0."""
    if clip_norm:
        parameters = [one for group in optimiser.param_groups for one in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimiser.step()


def remembered(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's own tensors, by ``quantity:parameter``; none before the first step."""
    return {
        f"{quantity}:{name}": value.detach().clone()
        for name, parameter in model.named_parameters()
        for quantity, value in optimiser.state.get(parameter, {}).items()
        if value is not None
    }


def remember(
    optimiser: torch.optim.Optimizer, model: nn.Module, memory: Mapping[str, Tensor]
) -> None:
    """Give an optimiser back what :func:`remembered` read.

    Raises:
        TrainingError: It is of another training.
    """
    parameters = dict(model.named_parameters())
    for key, value in memory.items():
        quantity, _, name = key.partition(":")
        if name not in parameters or not parameters[name].requires_grad:
            raise TrainingError(
                f"the momenta are of another training: there is no {name} to train here"
            )
        # Adam counts its steps on the CPU.
        device = value.device if quantity == "step" else parameters[name].device
        optimiser.state[parameters[name]][quantity] = value.to(device).clone()


def finite_loss(value: float, step: int, total: int, learning_rate: float) -> float:
    """The loss itself.

    Raises:
        NonFiniteLossError: It is NaN or infinite.
    """
    if not math.isfinite(value):
        raise diverged(f"the loss is {value}", step, total, learning_rate)
    return value


def check_weights(model: nn.Module, step: int, total: int, learning_rate: float) -> None:
    """Make sure that an update, which follows its step's loss, has not spoilt a model.

    Raises:
        NonFiniteLossError: A parameter or a running statistic is NaN or infinite.
    """
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers(recurse=False)
    ]
    if not all(bool(torch.isfinite(one).all()) for one in (*model.parameters(), *statistics)):
        raise diverged("a weight or a statistic is not finite", step, total, learning_rate)


def diverged(what: str, step: int, total: int, learning_rate: float) -> NonFiniteLossError:
    """The error that names when a training was lost, and what may mend it."""
    if step == 0:
        return NonFiniteLossError(
            f"{what} before the first step: look for NaN or infinity in the pictures or weights"
        )
    return NonFiniteLossError(
        f"{what} after {step} of {total} steps: lower learning_rate (now {learning_rate:g})"
    )
