"""Group plans as bytes.

One safetensors artefact with four arrays. Position lists repeat a lot (every normalisation vector
repeats its convolution's), so they are stored once:

* ``axes`` int32 ``[n, 6]``: group, tensor, axis, role, start, k
* ``taps`` int32 ``[m, 6]``: group, module, where, axis, start, k
* ``positions`` int32: rows ``[units, k]`` laid end to end; ``start`` points into it
* ``text`` uint8: JSON with the names, shapes and counts

Equal plans give equal bytes: names are sorted and the JSON is canonical.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedsprig.artifacts.container import Limits, pack, unpack
from fedsprig.errors import PlanError
from fedsprig.graph.plan import KINDS, ROLES, WHERES, AxisMap, Group, GroupPlan, Positions, Tap

_VERSION = "1"
_LIMITS = Limits(total_bytes=64 << 20, tensors=4)
# What reading text and tables of the wrong form raises.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
_ARRAYS = {"axes": np.int32, "taps": np.int32, "positions": np.int32, "text": np.uint8}

Item = TypeVar("Item")


class _Store:
    """Position lists, each kept once."""

    def __init__(self) -> None:
        self.parts: list[npt.NDArray[np.int32]] = []
        self.size = 0
        self._known: dict[bytes, int] = {}

    def add(self, positions: Positions) -> tuple[int, int]:
        """Where the list starts, and its ``k``."""
        data = positions.astype("<i4").tobytes()
        if data not in self._known:
            self._known[data] = self.size
            self.parts.append(positions.ravel())
            self.size += positions.size
        return self._known[data], positions.shape[1]


def encode_plan(plan: GroupPlan) -> bytes:
    """The plan as an artefact; equal plans give equal bytes."""
    tensors = sorted(plan.shapes)
    modules = sorted({tap.module for group in plan.groups for tap in group.taps})
    tensor_ids = {name: i for i, name in enumerate(tensors)}
    module_ids = {name: i for i, name in enumerate(modules)}
    store = _Store()
    axes: list[tuple[int, ...]] = []
    taps: list[tuple[int, ...]] = []
    for number, group in enumerate(plan.groups):
        for item in group.axes:
            where = (number, tensor_ids[item.tensor], item.axis, ROLES.index(item.role))
            axes.append((*where, *store.add(item.positions)))
        for tap in group.taps:
            where = (number, module_ids[tap.module], WHERES.index(tap.where), tap.axis)
            taps.append((*where, *store.add(tap.positions)))
    text = json.dumps(
        {
            "model": plan.model,
            "input_shape": plan.input_shape,
            "head": plan.head,
            "groups": [[group.name, group.units, group.kind] for group in plan.groups],
            "modules": modules,
            "shapes": dict(plan.shapes),
            "macs_per_weight": dict(plan.macs_per_weight),
            "unit_macs": dict(plan.unit_macs),
            "frozen": dict(plan.frozen),
            "buffers": sorted(plan.buffers),
        },
        sort_keys=True,
        separators=(",", ":"),
    )
    arrays: dict[str, npt.NDArray[Any]] = {
        "axes": np.array(axes, dtype=np.int32).reshape(-1, 6),
        "taps": np.array(taps, dtype=np.int32).reshape(-1, 6),
        "positions": np.concatenate([np.zeros(0, np.int32), *store.parts]).astype(np.int32),
        "text": np.frombuffer(text.encode(), dtype=np.uint8),
    }
    return pack(arrays, {"kind": "group plan", "version": _VERSION})


def decode_plan(data: bytes) -> GroupPlan:
    """Read what :func:`encode_plan` wrote.

    Raises:
        ArtifactError: no artefact, or a truncated or oversized one.
        PlanError: an artefact of another kind or version, or an inconsistent plan.
    """
    arrays, metadata = unpack(data, limits=_LIMITS)
    if metadata.get("kind") != "group plan" or metadata.get("version") != _VERSION:
        raise PlanError(f"not a group plan of version {_VERSION}: write it again with this release")
    for name, dtype in _ARRAYS.items():
        if name not in arrays or arrays[name].dtype != dtype:
            raise PlanError(f"the group plan's array {name} is absent or not {np.dtype(dtype)}")
    try:
        text = json.loads(arrays["text"].tobytes().decode())
        return _assemble(text, arrays["axes"], arrays["taps"], arrays["positions"].ravel())
    except _MALFORMED as error:
        raise PlanError(
            f"the group plan is malformed ({type(error).__name__}): fetch it again"
        ) from error


def _assemble(
    text: dict[str, Any],
    axes: npt.NDArray[np.int32],
    taps: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
) -> GroupPlan:
    tensors = sorted(text["shapes"])
    modules = [_text(name) for name in text["modules"]]
    positions.setflags(write=False)
    groups = [(_text(name), _count(units), kind) for name, units, kind in text["groups"]]

    def rows(start: int, units: int, k: int) -> Positions:
        if start < 0 or k < 1 or start + units * k > len(positions):
            raise ValueError("positions outside the list")
        return positions[start : start + units * k].reshape(units, k)

    def collect(
        table: npt.NDArray[np.int32], make: Callable[[list[int], Positions], Item]
    ) -> list[list[Item]]:
        found: list[list[Item]] = [[] for _ in groups]
        for line in table.reshape(-1, 6).tolist():
            number = line[0]
            if not 0 <= number < len(groups) or min(line[1], line[2]) < 0:
                raise ValueError("a map of an unknown group")
            found[number].append(make(line, rows(line[4], groups[number][1], line[5])))
        return found

    axis_maps = collect(
        axes, lambda line, at: AxisMap(tensors[line[1]], line[2], at, _pick(ROLES, line[3]))
    )
    tap_maps = collect(
        taps, lambda line, at: Tap(modules[line[1]], _pick(WHERES, line[2]), line[3], at)
    )
    return GroupPlan(
        model=_text(text["model"]),
        input_shape=tuple(_count(size) for size in text["input_shape"]),
        head=_text(text["head"]),
        groups=tuple(
            Group(name, units, _pick(KINDS, KINDS.index(kind)), tuple(maps), tuple(places))
            for (name, units, kind), maps, places in zip(groups, axis_maps, tap_maps, strict=True)
        ),
        shapes={name: tuple(map(_count, shape)) for name, shape in text["shapes"].items()},
        macs_per_weight={name: _count(macs) for name, macs in text["macs_per_weight"].items()},
        unit_macs={name: _count(macs) for name, macs in text["unit_macs"].items()},
        frozen={name: _text(why) for name, why in text["frozen"].items()},
        buffers=frozenset(_text(name) for name in text["buffers"]),
    )


def _pick(options: tuple[Item, ...], number: int) -> Item:
    if not 0 <= number < len(options):
        raise ValueError("an unknown kind, role or place")
    return options[number]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name that is no text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("a count that is no natural number")
    return value
