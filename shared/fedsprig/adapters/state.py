"""What a task trains, as a state dictionary: read, checked, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedsprig.adapters.attaching import require_attached
from fedsprig.errors import AdapterError
from fedsprig.spelling import some

_STATISTICS: Final = ("running_mean", "running_var")


def is_statistic(name: str) -> bool:
    """Whether a state name is that of a normalisation statistic: measured, not trained."""
    return name.rpartition(".")[2] in _STATISTICS


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return all that an attached model has learnt: what trains, and the normalisation statistics.

    Counters (``num_batches_tracked``) are not part of it.

    Returns:
        Copies on the CPU by state name, in the order of the model.

    Raises:
        AdapterError: No adapter is attached, or the model is a masked reference.
    """
    return {name: tensor.detach().cpu().clone() for name, tensor in _slots(model).items()}


def load_adapter_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Copy a state into an attached model; all of it is checked before any of it is written.

    Variances below zero become zero: a variance that vanished may come out of the rounding of an
    update a hair below, and one such value would make every output NaN.

    Args:
        model: Attached as the model that the state was read from.
        state: Floating point tensors or arrays by state name; all of them and no others.

    Raises:
        AdapterError: A tensor is missing, unknown, of another shape, not dense, not of floating
            point or not finite, or no adapter is attached.
    """
    slots = _slots(model)
    if not isinstance(state, Mapping):
        raise AdapterError(f"a state is a mapping by name, not {type(state).__name__}: pass one")
    missing, unknown = slots.keys() - state.keys(), state.keys() - slots.keys()
    if missing or unknown:
        raise AdapterError(
            f"the state lacks {some(missing)} and has {some(map(str, unknown))} too many: "
            "attach with the same kind, rank and train_a as where it was read"
        )
    values: dict[str, Tensor] = {}
    for name, slot in slots.items():
        tensor = _dense(name, state[name])
        if tensor.shape != slot.shape:
            raise AdapterError(
                f"{name} has shape {list(tensor.shape)}, the model needs {list(slot.shape)}: "
                "cut by the same mask and attach at the same rank"
            )
        if tensor.is_floating_point():
            tensor = tensor.to(slot)  # what is finite in one type may not be in another
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{name} is not all finite floating point: load an earlier state")
        values[name] = tensor.clamp(min=0) if name.endswith("running_var") else tensor
    with torch.no_grad():
        for name, slot in slots.items():
            slot.copy_(values[name])


def _dense(name: str, value: Any) -> Tensor:
    """A value of a state as a tensor, whatever it may be."""
    tensor = value
    if isinstance(value, np.ndarray):
        try:
            tensor = torch.from_numpy(np.require(value, requirements="C"))
        except (TypeError, ValueError):  # objects, texts, another order of bytes
            raise AdapterError(
                f"{name} is an array of {value.dtype.str:.20}: pass native floating point"
            ) from None
    if not isinstance(tensor, Tensor):
        raise AdapterError(f"{name} is a {type(value).__name__:.80}: pass tensors or arrays")
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise AdapterError(f"{name} is no dense tensor: pass to_dense() of it")
    if tensor.is_meta:
        raise AdapterError(f"{name} has no values (meta device): load them first")
    return tensor


def _slots(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's own tensors that make up the state."""
    require_attached(model)
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise AdapterError("the model is masked by parametrisations: use that of materialize()")
    slots: dict[str, Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    return slots | {name: b for name, b in model.named_buffers() if is_statistic(name)}
