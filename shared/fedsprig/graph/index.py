"""Kept positions: from a mask to what remains of every tensor, and back to full coordinates.

Pure data (numpy; torch tensors are accepted and returned where they are given), so that aggregation
and the wire can use it without a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fedsprig.errors import PlanError
from fedsprig.graph.plan import GroupPlan

if TYPE_CHECKING:
    from torch import Tensor

Kept = npt.NDArray[np.int64]
KeptIndex = Mapping[str, Mapping[int, Kept]]
"""tensor -> axis -> sorted kept positions; only axes that lose something appear."""

Value = TypeVar("Value", "npt.NDArray[Any]", "Tensor")

_NOWHERE: Kept = np.array([-1], np.int64)  # stands for an axis that stays whole

# adapter tensor suffix -> {its axis: axis of "<module>.weight" whose kept positions it shares}
_FOLLOWERS: dict[str, dict[int, int]] = {
    "adapter_b": {0: 0},
    "adapter_a": {1: 1},
    "adapter_d": {0: 0, 1: 1},
    "adapter_rows": {0: 0},
    "adapter_columns": {0: 1},
}


class UnitMask(Protocol):
    """What this package needs of :class:`fedsprig.masks.Mask`."""

    @property
    def groups(self) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Group name -> bool ``[units]``, True = keep."""


def kept_index(plan: GroupPlan, mask: UnitMask) -> KeptIndex:
    """What a mask leaves of every tensor of the base model.

    Args:
        plan: the base model's groups.
        mask: one bool per unit for every group of the plan.

    Returns:
        For every (tensor, axis) that loses positions, the sorted positions that stay.

    Raises:
        PlanError: a group is missing, unknown, of another size, or loses its last unit.
    """
    if unknown := set(mask.groups) - {group.name for group in plan.groups}:
        plan.group(min(unknown))
    keep: dict[tuple[str, int], npt.NDArray[np.bool_]] = {}
    for group in plan.groups:
        units = mask.groups.get(group.name)
        if units is None or units.shape != (group.units,) or units.dtype != np.bool_:
            raise PlanError(f"the mask has no bool [{group.units}] for group {group.name}")
        if units.all():
            continue
        if not units.any():
            raise PlanError(f"the mask drops all of group {group.name}: keep at least one unit")
        for item in group.axes:
            key = (item.tensor, item.axis)
            if key not in keep:
                keep[key] = np.ones(plan.shapes[item.tensor][item.axis], dtype=np.bool_)
            keep[key][item.positions[~units]] = False
    index: dict[str, dict[int, Kept]] = {}
    for (tensor, axis), flags in keep.items():
        index.setdefault(tensor, {})[axis] = np.flatnonzero(flags).astype(np.int64)
    return index


def index_within(outer: KeptIndex, inner: KeptIndex) -> KeptIndex:
    """What a smaller mask leaves of tensors that a larger one has cut already.

    Args:
        outer: of the larger mask, in the base's positions.
        inner: of the smaller one, likewise.

    Returns:
        The positions of ``inner`` counted among those of ``outer``; only axes that lose something.

    Raises:
        PlanError: ``inner`` keeps what ``outer`` does not.
    """
    for tensor, axes in outer.items():
        for axis, there in axes.items():
            if not np.isin(inner.get(tensor, {}).get(axis, _NOWHERE), there).all():
                raise PlanError(f"the smaller mask keeps more of {tensor} than the larger one")
    found: dict[str, dict[int, Kept]] = {}
    for tensor, axes in inner.items():
        for axis, stays in axes.items():
            had = outer.get(tensor, {}).get(axis)
            if had is None or len(stays) < len(had):
                places = stays if had is None else np.searchsorted(had, stays).astype(np.int64)
                found.setdefault(tensor, {})[axis] = places
    return found


def follow(name: str) -> tuple[str, dict[int, int]]:
    """Whose kept positions a tensor shares.

    Args:
        name: a ``state_dict`` name; that of an adapter tensor may be absent from every plan.

    Returns:
        The owner's name and {axis of this tensor: axis of the owner}. An ordinary tensor is its own
        owner, with an empty mapping; ``"x.adapter_b"`` gives ``("x.weight", {0: 0})``,
        ``"x.adapter_a"`` ``("x.weight", {1: 1})``.
    """
    module, _, suffix = name.rpartition(".")
    axes = _FOLLOWERS.get(suffix)
    if axes is None:
        return name, {}
    return (f"{module}.weight" if module else "weight"), dict(axes)


def kept_axes(name: str, index: KeptIndex) -> Mapping[int, Kept]:
    """Kept positions of one tensor by its own axes, adapter tensors included; {} if whole."""
    owner, axes = follow(name)
    owned = index.get(owner, {})
    followed = {axis: owned[source] for axis, source in axes.items() if source in owned}
    return followed | dict(index.get(name, {}))


def restrict(state: Mapping[str, Value], index: KeptIndex) -> dict[str, Value]:
    """Full tensors -> what the mask keeps of them.

    Args:
        state: name -> array or tensor at full width; adapter tensors are understood.
        index: from :func:`kept_index`.

    Returns:
        The same names; tensors that stay whole are passed on, not copied.

    Raises:
        PlanError: a tensor is narrower than the index expects.
    """
    small: dict[str, Value] = {}
    for name, value in state.items():
        for axis, kept in kept_axes(name, index).items():
            if axis >= value.ndim or kept[-1] >= value.shape[axis]:
                raise PlanError(f"{name} of shape {tuple(value.shape)} is not of full width")
            value = _take(value, axis, kept)
        small[name] = value
    return small


def _take(value: Any, axis: int, kept: Kept) -> Any:
    if isinstance(value, np.ndarray):
        return np.take(value, kept, axis=axis)
    import torch

    return value.index_select(axis, torch.from_numpy(kept).to(value.device))
