"""Where units are observed: hooks at a plan's taps.

A tap names a module, whether its input or its output carries the unit, and the axis. Attention
inside windows folds pictures and windows into the first axis, picture by picture; everything here
allows for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsprig.errors import PlanError, ScoreError
from fedsprig.graph.plan import Group, GroupPlan, Tap

Visit = Callable[[Group, Tap, Tensor], Tensor | None]


@contextmanager
def visiting(model: nn.Module, plan: GroupPlan, visit: Visit) -> Iterator[None]:
    """Call ``visit(group, tap, activation)`` at every tap of every forward pass inside the context.

    Where it returns a tensor, the network goes on with that one.

    Args:
        model: the base model that the plan was traced from, at full width.
        plan: its groups.
        visit: must not change the activation in place.

    Raises:
        PlanError: the model has no such module.
        ScoreError: an activation that is no tensor of the plan's width.
    """
    handles = []
    try:
        for group in plan.groups:
            for tap in group.taps:
                module = _module(model, tap.module)
                hook = _hook(group, tap, visit)
                if tap.where == "output":
                    handles.append(module.register_forward_hook(hook))
                else:
                    handles.append(module.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def owners(tap: Tap, width: int) -> Tensor:
    """Which unit owns each position along a tap's axis, int64 ``[width]``.

    A position that no unit owns gets the number of units.

    Args:
        tap: the tap.
        width: length of its axis in the activation.
    """
    units = len(tap.positions)
    owner = np.full(width, units, np.int64)
    owner[tap.positions] = np.arange(units)[:, None]
    return torch.from_numpy(owner)


def per_picture(values: Tensor, pictures: int) -> Tensor:
    """Rows of a tap's activation ``[pictures * windows, ...]`` as ``[pictures, windows, ...]``.

    Raises:
        ScoreError: the first axis does not hold the pictures.
    """
    if values.shape[0] % pictures:
        raise ScoreError(
            f"a tap sees {values.shape[0]} rows for {pictures} pictures: "
            "its first axis must be the batch"
        )
    return values.reshape(pictures, values.shape[0] // pictures, *values.shape[1:])


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise PlanError(
            f"the model has no module {path}: use the plan that was traced from this model"
        ) from None


def _hook(group: Group, tap: Tap, visit: Visit) -> Callable[..., Any]:
    def check(value: Any) -> Tensor:
        if not isinstance(value, Tensor) or not -value.ndim <= tap.axis < value.ndim:
            raise ScoreError(f"the {tap.where} of {tap.module} is no tensor with axis {tap.axis}")
        if tap.positions.max() >= value.shape[tap.axis]:
            raise ScoreError(
                f"the {tap.where} of {tap.module} has {value.shape[tap.axis]} positions, the plan "
                f"knows {int(tap.positions.max()) + 1}: score the base model at full width"
            )
        return value

    if tap.where == "output":
        return lambda module, args, output: visit(group, tap, check(output))

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args:
            raise ScoreError(f"{tap.module} is called without a positional argument")
        changed = visit(group, tap, check(args[0]))
        return None if changed is None else (changed, *args[1:])

    return before
