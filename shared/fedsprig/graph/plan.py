"""Group plans: which channels and heads must be kept or dropped together, as plain data.

A **unit** is one channel or one attention head; a **group** is a set of units that touch the same
tensors. Dropping unit ``u`` of a group means dropping ``positions[u]`` along ``axis`` of every
tensor that the group lists. A plan is traced once on the server (:mod:`fedsprig.graph.trace`) and
replayed wherever the base model is known, so a device needs no tracer. It names tensors as the base
model's ``state_dict`` does.

The words are Torch-Pruning's (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", arXiv
2301.12900).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedsprig.errors import PlanError

Positions = npt.NDArray[np.int32]
Role = Literal["out", "in", "norm"]
Kind = Literal["inner", "stream", "heads"]
Where = Literal["input", "output"]

ROLES: tuple[Role, ...] = ("out", "in", "norm")
KINDS: tuple[Kind, ...] = ("inner", "stream", "heads")
WHERES: tuple[Where, ...] = ("input", "output")


@dataclass(frozen=True, slots=True, eq=False)
class AxisMap:
    """Where the units of a group lie along one axis of one tensor.

    Attributes:
        tensor: name in the base model's ``state_dict``, as ``"layer1.0.conv1.weight"``.
        axis: the axis of that tensor, counted from 0.
        positions: int32 ``[units, k]``; unit ``u`` owns ``positions[u]``. ``k`` is 1 for channels,
            the pixels of a channel for a linear layer after a flatten, the width of a head for
            attention.
        role: ``"out"`` where the layer produces the unit, ``"in"`` where it consumes it, ``"norm"``
            for the per-channel vectors of normalisation (running statistics too).
    """

    tensor: str
    axis: int
    positions: Positions
    role: Role

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", _positions(self.positions, self.tensor))
        if self.role not in ROLES:
            raise PlanError(f"{self.tensor}: role {self.role!r} is none of {', '.join(ROLES)}")


@dataclass(frozen=True, slots=True, eq=False)
class Tap:
    """Where a group's units can be observed: after normalisation, before the nonlinearity.

    Attributes:
        module: path of a module that is called exactly once in a forward pass.
        where: its ``"input"`` (first positional argument) or its ``"output"``.
        axis: the axis of that activation along which the units lie; may be negative (-1 for token
            layouts).
        positions: int32 ``[units, k]`` along that axis.
    """

    module: str
    where: Where
    axis: int
    positions: Positions

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", _positions(self.positions, self.module))
        if self.where not in WHERES:
            raise PlanError(
                f"{self.module}: a tap is at the input or the output, not {self.where!r}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Units that touch the same tensors in the same way.

    Attributes:
        name: module path of the first producer; unique within a plan.
        units: how many units there are.
        kind: ``"inner"`` (inside a block), ``"stream"`` (several producers are added into the same
            channels) or ``"heads"``.
        axes: every tensor axis that shrinks with the group.
        taps: where the units can be observed; never empty in a traced plan.
    """

    name: str
    units: int
    kind: Kind
    axes: tuple[AxisMap, ...]
    taps: tuple[Tap, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PlanError(f"group {self.name}: kind {self.kind!r} is none of {', '.join(KINDS)}")
        if self.units < 1 or not self.axes:
            raise PlanError(f"group {self.name} has no units or no axes: trace the model again")
        parts = [item.positions for item in self.axes] + [tap.positions for tap in self.taps]
        for positions in parts:
            if len(positions) != self.units:
                raise PlanError(
                    f"group {self.name} has {self.units} units, but a map has {len(positions)}"
                )


@dataclass(frozen=True, slots=True, eq=False)
class GroupPlan:
    """All prunable groups of a base model; immutable and checked when it is made.

    Attributes:
        model: the base model's name (for messages; the digest of its weights is kept elsewhere).
        input_shape: shape of the example input, batch 1: ``(1, 3, h, w)``.
        head: module path of the classifier, ``""`` if there is none.
        groups: in the order of their first producers.
        shapes: shape of every parameter and buffer of the base model.
        macs_per_weight: multiply-accumulates that one element of a weight tensor takes part in, for
            one picture of ``input_shape``: the MACs of a layer are this times the kept elements of
            its weight.
        unit_macs: MACs that one kept unit of a group costs beside its weights (attention products).
        frozen: name -> why these channels are never pruned. Frozen groups do not appear in
            ``groups``.
        buffers: those of ``shapes`` that are no parameters (running statistics, index tables).

    Raises:
        PlanError: a map that does not fit the shapes, or one position owned by two units.
    """

    model: str
    input_shape: tuple[int, ...]
    head: str
    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    macs_per_weight: Mapping[str, int]
    unit_macs: Mapping[str, int]
    frozen: Mapping[str, str]
    buffers: frozenset[str] = frozenset()
    _memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        shapes = {name: tuple(int(size) for size in shape) for name, shape in self.shapes.items()}
        for name, value in (
            ("shapes", shapes),
            ("macs_per_weight", dict(self.macs_per_weight)),
            ("unit_macs", dict(self.unit_macs)),
            ("frozen", dict(self.frozen)),
        ):
            object.__setattr__(self, name, MappingProxyType(value))
        object.__setattr__(self, "buffers", frozenset(self.buffers))
        _check(self)

    @property
    def units(self) -> int:
        """Number of units of all groups together."""
        return sum(group.units for group in self.groups)

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            PlanError: no such group; says why when its channels are frozen.
        """
        by_name: dict[str, Group] = self._memo.setdefault(
            "by_name", {group.name: group for group in self.groups}
        )
        if name not in by_name:
            reason = (
                f"it is frozen: {self.frozen[name]}" if name in self.frozen else "no such group"
            )
            raise PlanError(
                f"the plan of {self.model or 'the model'} cannot prune {name}: {reason}"
            )
        return by_name[name]

    def producers(self, group: Group) -> tuple[AxisMap, ...]:
        """Where the weights lie that produce a group's units: kernels and matrices.

        Biases and normalisation are not among them. A group may have none.
        """
        return tuple(
            item for item in group.axes if item.role == "out" and len(self.shapes[item.tensor]) >= 2
        )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of :meth:`to_bytes`: equal for equal plans, on every machine."""
        if "digest" not in self._memo:
            self._memo["digest"] = hashlib.sha256(self.to_bytes()).hexdigest()
        return str(self._memo["digest"])

    def to_bytes(self) -> bytes:
        """The plan as an artefact (layout: :mod:`fedsprig.graph.encoding`)."""
        from fedsprig.graph.encoding import encode_plan

        return encode_plan(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> GroupPlan:
        """Read a plan that :meth:`to_bytes` wrote.

        Raises:
            ArtifactError: the bytes are no artefact (truncated, too large, ...).
            PlanError: an artefact, but no consistent plan.
        """
        from fedsprig.graph.encoding import decode_plan

        return decode_plan(data)

    def with_num_classes(self, num_classes: int) -> GroupPlan:
        """The plan of the same base with a classifier of another width.

        Raises:
            PlanError: the model has no head, or ``num_classes`` is below 1.
        """
        if not self.head:
            raise PlanError(f"the plan of {self.model or 'the model'} has no head to resize")
        if num_classes < 1:
            raise PlanError(f"a head needs at least 1 class, not {num_classes}")
        shapes = dict(self.shapes)
        for suffix in ("weight", "bias"):
            name = f"{self.head}.{suffix}"
            if name in shapes:
                shapes[name] = (num_classes, *shapes[name][1:])
        return replace(self, shapes=shapes)


def _positions(values: Positions, where: str) -> Positions:
    array = np.asarray(values)
    if array.dtype != np.int32 or array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(values, dtype=np.int32, order="C")
    if array.ndim != 2 or 0 in array.shape:
        raise PlanError(f"{where}: positions have shape {array.shape}, not [units, k]")
    array.setflags(write=False)
    return array


# No layer is wider; bounds what a plan from outside can make its reader allocate.
_MAX_AXIS = 1 << 24


def _check(plan: GroupPlan) -> None:
    """Every map fits its tensor, and no position belongs to two units."""
    if len(plan.input_shape) < 2 or min(plan.input_shape) < 1:
        raise PlanError(f"the plan's input has shape {plan.input_shape}: trace the model again")
    names = [group.name for group in plan.groups]
    if len(set(names)) != len(names):
        raise PlanError("two groups of the plan have the same name: trace the model again")
    if unknown := plan.buffers - plan.shapes.keys():
        raise PlanError(f"buffer {min(unknown)} has no shape: trace the model again")
    owned: dict[tuple[str, int], list[Positions]] = {}
    for group in plan.groups:
        if group.name in plan.frozen:
            raise PlanError(f"group {group.name} is both prunable and frozen")
        for item in group.axes:
            shape = plan.shapes.get(item.tensor)
            if shape is None or not 0 <= item.axis < len(shape):
                raise PlanError(f"group {group.name}: {item.tensor} has no axis {item.axis}")
            if shape[item.axis] > _MAX_AXIS:
                raise PlanError(f"{item.tensor} has {shape[item.axis]:,} positions on an axis")
            if item.positions.min() < 0 or item.positions.max() >= shape[item.axis]:
                raise PlanError(
                    f"group {group.name}: positions of {item.tensor} exceed "
                    f"axis {item.axis} of {shape}"
                )
            owned.setdefault((item.tensor, item.axis), []).append(item.positions)
    for (tensor, axis), parts in owned.items():
        # Counting first keeps a forged plan from making us join long lists.
        if sum(part.size for part in parts) > plan.shapes[tensor][axis] or _repeats(parts):
            raise PlanError(f"a position of {tensor} axis {axis} belongs to two units")
    for what, mapping in (("macs_per_weight", plan.macs_per_weight), ("unit_macs", plan.unit_macs)):
        known = plan.shapes if what == "macs_per_weight" else names
        for name, macs in mapping.items():
            if name not in known or macs < 0:
                raise PlanError(f"{what} of {name}: unknown name or negative count")


def _repeats(parts: Sequence[Positions]) -> bool:
    return bool(np.bincount(np.concatenate([part.ravel() for part in parts])).max() > 1)
