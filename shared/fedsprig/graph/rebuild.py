"""Copies of a module with other tensors in it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fedsprig.errors import PlanError
from fedsprig.graph.index import KeptIndex
from fedsprig.graph.plan import GroupPlan
from fedsprig.models.head import is_of_head


def rebuild(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Deep-copy a module with some of its tensors replaced; what is replaced is never copied.

    The result is that of ``copy.deepcopy``, in less than half the time: most of what a module holds
    is empty (a dozen dictionaries of hooks) or cannot change.

    Args:
        model: left as it is.
        tensors: replacements by ``state_dict`` name; a parameter's becomes a parameter that is
            trainable if the old one is.
    """
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in tensors:
            memo[id(parameter)] = nn.Parameter(tensors[name], parameter.requires_grad)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in tensors:
            memo[id(buffer)] = tensors[name]
    plain = [module for module in model.modules() if _is_plain(type(module))]
    for module in plain:
        memo[id(module)] = object.__new__(type(module))
    for module in plain:
        own = vars(memo[id(module)])
        for name, value in vars(module).items():
            own[name] = _copy(value, memo)
    return copy.deepcopy(model, memo)


_SETSTATES = (nn.Module.__setstate__, nn.modules.conv._ConvNd.__setstate__)
"""Ways to restore a module that do nothing to one of this release but set its attributes."""


def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether copying such a module is copying its attributes."""
    return (
        not hasattr(kind, "__deepcopy__")
        and kind.__setstate__ in _SETSTATES
        and all(
            getattr(kind, name, None) is getattr(nn.Module, name, None)
            for name in ("__reduce__", "__reduce_ex__", "__getstate__")
        )
    )


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    """As ``copy.deepcopy``; empty containers, dictionaries and what cannot change go first."""
    kind = type(value)
    if kind in (bool, int, float, str, type(None)):
        return value
    if (found := memo.get(id(value))) is not None:
        return found
    if kind in (dict, OrderedDict, list, set) and not value:
        found = memo[id(value)] = kind()
        return found
    if kind is dict:
        found = memo[id(value)] = {}
        found.update((name, _copy(item, memo)) for name, item in value.items())
        return found
    return copy.deepcopy(value, memo)


def check_fits(model: nn.Module, plan: GroupPlan, index: KeptIndex) -> None:
    """Refuse a model that is not the plan's base model, at full width.

    Adapter tensors beside the base's, and a head of another width, are welcome.

    Raises:
        PlanError: a tensor is absent or of another shape.
    """
    state = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    shapes |= {name: tuple(b.shape) for name, b in model.named_buffers(remove_duplicate=False)}
    for name, shape in plan.shapes.items():
        found = shapes.get(name)
        free = 1 if is_of_head(name, plan.head) else 0
        if found is None or found[free:] != shape[free:] or len(found) != len(shape):
            raise PlanError(
                f"the plan of {plan.model or 'another model'} does not fit: {name} is "
                f"{'absent' if found is None else found}, not {shape}"
            )
        if free and 0 in index.get(name, {}):
            raise PlanError(f"the mask drops classes of the head {plan.head}")
