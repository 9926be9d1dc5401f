"""The plan of a cut network: the units that are left, in the small tensors' positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedsprig.graph.index import KeptIndex, UnitMask, kept_index
from fedsprig.graph.plan import AxisMap, Group, GroupPlan, Positions, Tap


def shrink_plan(plan: GroupPlan, mask: UnitMask) -> GroupPlan:
    """What tracing the network that ``mask`` cuts would find.

    A device scores and describes with the network that it has, and needs no tracer for that.

    Args:
        plan: The base model's groups.
        mask: What was kept of them.

    Raises:
        PlanError: The mask does not fit the plan.
    """
    index = kept_index(plan, mask)
    shapes = {
        name: tuple(
            len(index[name][axis]) if axis in index.get(name, {}) else size
            for axis, size in enumerate(shape)
        )
        for name, shape in plan.shapes.items()
    }
    taps = _kept_at_taps(plan, mask)
    groups = []
    for group in plan.groups:
        units = mask.groups[group.name]
        groups.append(
            Group(
                name=group.name,
                units=int(units.sum()),
                kind=group.kind,
                axes=tuple(
                    replace(axis, positions=_renumbered(axis.positions[units], _kept(index, axis)))
                    for axis in group.axes
                ),
                taps=tuple(
                    replace(tap, positions=_renumbered(tap.positions[units], taps[_place(tap)]))
                    for tap in group.taps
                ),
            )
        )
    return replace(plan, groups=tuple(groups), shapes=shapes)


def _kept(index: KeptIndex, axis: AxisMap) -> npt.NDArray[np.int64] | None:
    return index.get(axis.tensor, {}).get(axis.axis)


def _place(tap: Tap) -> tuple[str, str, int]:
    return tap.module, tap.where, tap.axis


def _kept_at_taps(
    plan: GroupPlan, mask: UnitMask
) -> dict[tuple[str, str, int], npt.NDArray[np.int64]]:
    """Kept positions of the activations that taps look at.

    An activation has no tensor of its own to look its size up in; all groups that own a part of it
    tap it, so its kept positions are those that no dropped unit owns.
    """
    dropped: dict[tuple[str, str, int], list[Positions]] = {}
    top: dict[tuple[str, str, int], int] = {}
    for group in plan.groups:
        for tap in group.taps:
            dropped.setdefault(_place(tap), []).append(tap.positions[~mask.groups[group.name]])
            top[_place(tap)] = max(top.get(_place(tap), 0), int(tap.positions.max()) + 1)
    kept = {}
    for place, parts in dropped.items():
        flags = np.ones(top[place], np.bool_)
        flags[_joined(parts)] = False
        kept[place] = np.flatnonzero(flags).astype(np.int64)
    return kept


def _joined(parts: Iterable[Positions]) -> npt.NDArray[np.int64]:
    return np.concatenate([part.ravel() for part in parts]).astype(np.int64)


def _renumbered(positions: Positions, kept: npt.NDArray[np.int64] | None) -> Positions:
    if kept is None:
        return positions
    return np.searchsorted(kept, positions).astype(np.int32)
