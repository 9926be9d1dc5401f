"""Masks: one bool per unit, True = keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedsprig.artifacts.digest import digest
from fedsprig.errors import ArtifactError, BudgetError, PlanError, TruncatedArtifactError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.bits import Bools, pack_bits, unpack_bits
from fedsprig.masks.layout import Layout

MAGIC: Final = b"FSM1"
_HEADER_BYTES: Final = len(MAGIC) + 8


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Which units of a plan stay; immutable, equal by value.

    Attributes:
        groups: group name -> bool ``[units]``, read-only.
        layout: the canonical order of the groups.
        flat: bool ``[all units]`` in that order, read-only.

    Raises:
        PlanError: a group that is not a bool vector with at least one unit.
    """

    groups: Mapping[str, Bools]
    layout: Layout = field(init=False, repr=False)
    flat: Bools = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, units in self.groups.items():
            if units.dtype != np.bool_ or units.ndim != 1 or not units.size:
                raise PlanError(
                    f"the mask of group {name} is {units.dtype} {units.shape}: use bool [units]"
                )
        layout = Layout.of(self.groups)
        flat = np.concatenate(
            [np.zeros(0, np.bool_), *(self.groups[name] for name in layout.names)]
        )
        flat.setflags(write=False)
        views = layout.split(flat)
        object.__setattr__(self, "groups", {name: views[name] for name in self.groups})
        object.__setattr__(self, "layout", layout)
        object.__setattr__(self, "flat", flat)

    @classmethod
    def full(cls, plan: GroupPlan) -> Mask:
        """Keep everything."""
        return cls({group.name: np.ones(group.units, np.bool_) for group in plan.groups})

    @classmethod
    def random(cls, plan: GroupPlan, keep: float, rng: np.random.Generator) -> Mask:
        """Keep about ``keep`` of every group's units, drawn evenly, and at least one.

        Args:
            plan: the groups.
            keep: keep ratio of units, 0 to 1.
            rng: the source of randomness.

        Raises:
            BudgetError: ``keep`` is no ratio.
        """
        if not 0 <= keep <= 1:
            raise BudgetError(f"a keep ratio lies between 0 and 1, not at {keep}")
        groups: dict[str, Bools] = {}
        for group in plan.groups:
            units = np.zeros(group.units, np.bool_)
            units[rng.permutation(group.units)[: max(1, round(keep * group.units))]] = True
            groups[group.name] = units
        return cls(groups)

    def kept(self, group: str) -> int:
        """How many units of a group stay.

        Raises:
            PlanError: no such group.
        """
        if group not in self.groups:
            raise PlanError(f"the mask has no group {group}: it has {', '.join(self.layout.names)}")
        return int(np.count_nonzero(self.groups[group]))

    @property
    def unit_ratio(self) -> float:
        """Kept units / all units."""
        return float(np.count_nonzero(self.flat)) / max(1, self.flat.size)

    def check(self, plan: GroupPlan) -> None:
        """Refuse a mask that does not fit ``plan`` or leaves nothing of a group.

        Raises:
            PlanError: groups or sizes differ, or a group would vanish.
        """
        self.layout.check(Layout.of_plan(plan), "the mask")
        for name, units in self.groups.items():
            if not units.any():
                raise PlanError(f"the mask drops all of group {name}: keep at least one unit")

    def is_subset_of(self, other: Mask) -> bool:
        """Whether ``other`` keeps all that this mask keeps."""
        self.layout.check(other.layout, "the mask")
        return not bool(np.any(self.flat & ~other.flat))

    def __and__(self, other: Mask) -> Mask:
        """What both keep; groups may end empty (see :meth:`check`)."""
        self.layout.check(other.layout, "the mask")
        return Mask(self.layout.split(self.flat & other.flat))

    def __or__(self, other: Mask) -> Mask:
        """What either keeps."""
        self.layout.check(other.layout, "the mask")
        return Mask(self.layout.split(self.flat | other.flat))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.layout == other.layout and bool(np.array_equal(self.flat, other.flat))

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of :meth:`to_bytes`."""
        return digest(self.to_bytes())

    def to_bytes(self) -> bytes:
        """One bit per unit behind a header of 12 bytes; equal masks give equal bytes.

        ``b"FSM1"``, the eight bytes of :attr:`Layout.digest`, then the flat array, eight units a
        byte, the first unit in the lowest bit, the last byte padded with zeros.
        """
        return MAGIC + self.layout.digest + pack_bits(self.flat).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, plan: GroupPlan) -> Mask:
        """Read what :meth:`to_bytes` wrote for the same groups.

        Raises:
            TruncatedArtifactError: the bytes end too early.
            ArtifactError: no mask, bytes behind its end, or set bits in the padding.
            PlanError: a mask of other groups.
        """
        if len(data) < _HEADER_BYTES:
            raise TruncatedArtifactError(f"{len(data)} bytes are no mask: fetch it again")
        if data[: len(MAGIC)] != MAGIC:
            raise ArtifactError("the bytes do not begin as a mask does: fetch it again")
        layout = Layout.of_plan(plan)
        if data[len(MAGIC) : _HEADER_BYTES] != layout.digest:
            raise PlanError("the mask is of another plan: use the plan that it was solved with")
        packed = np.frombuffer(data, np.uint8, offset=_HEADER_BYTES)
        views = layout.split(unpack_bits(packed, layout.units, "the mask", "units"))
        return cls({group.name: views[group.name] for group in plan.groups})
