"""Units in one line: the canonical order in which masks and score sets lay out all their groups."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import PlanError
from fedsprig.graph.plan import GroupPlan

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Layout:
    """Group names in alphabetical order, and their units.

    The order of a mapping is an accident of who built it; bytes and digests must not depend on it.

    Attributes:
        names: group names, sorted.
        sizes: units of each.
        starts: int64 ``[groups]``, where each group begins in the flat array.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    starts: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ends = np.cumsum(np.array(self.sizes, np.int64))
        object.__setattr__(self, "starts", ends - np.array(self.sizes, np.int64))

    @classmethod
    def of(cls, groups: Mapping[str, NDArray[Any]]) -> Layout:
        """The layout of arrays by group."""
        names = tuple(sorted(groups))
        return cls(names, tuple(len(groups[name]) for name in names))

    @classmethod
    def of_plan(cls, plan: GroupPlan) -> Layout:
        """The layout that masks and score sets of this plan have."""
        sizes = {group.name: group.units for group in plan.groups}
        names = tuple(sorted(sizes))
        return cls(names, tuple(sizes[name] for name in names))

    @property
    def units(self) -> int:
        """Length of the flat array."""
        return sum(self.sizes)

    @property
    def digest(self) -> bytes:
        """Eight bytes that differ for another set of groups; it finds mistakes, not attacks."""
        whole = hashlib.sha256()
        for name, size in zip(self.names, self.sizes, strict=True):
            encoded = name.encode()
            whole.update(f"{len(encoded)} {size} ".encode() + encoded)
        return whole.digest()[:8]

    def split(self, flat: NDArray[T]) -> dict[str, NDArray[T]]:
        """``[units]`` -> views by group."""
        return {
            name: flat[start : start + size]
            for name, start, size in zip(self.names, self.starts, self.sizes, strict=True)
        }

    def check(self, expected: Layout, what: str) -> None:
        """Refuse a layout other than ``expected``.

        Args:
            expected: the layout of the plan, or of the other operand.
            what: whose groups are checked, for the message: ``"the mask"``.

        Raises:
            PlanError: names the first group that is missing, unknown or of another size.
        """
        if (self.names, self.sizes) == (expected.names, expected.sizes):
            return
        own = dict(zip(self.names, self.sizes, strict=True))
        other = dict(zip(expected.names, expected.sizes, strict=True))
        for name in sorted(own.keys() | other.keys()):
            if own.get(name) != other.get(name):
                raise PlanError(
                    f"{what} has {_units(own.get(name))} for group {name}, the plan expects "
                    f"{_units(other.get(name))}: use the plan that {what} was made with"
                )


def loudness(rows: NDArray[Any], sizes: Sequence[int]) -> NDArray[np.float64]:
    """Root mean square of its group, for every unit: float64 ``[n, units]``; 1 in groups of zeros.

    Args:
        rows: ``[n, units]``, group after group.
        sizes: Units of every group; their sum is ``units``.
    """
    counts = np.array(sizes, np.int64)
    if not rows.shape[1]:
        return np.zeros(rows.shape)
    squares = np.square(rows.astype(np.float64))
    roots = np.sqrt(np.add.reduceat(squares, np.cumsum(counts) - counts, axis=1) / counts)
    return np.repeat(np.where(roots > 0, roots, 1.0), counts, axis=1)


def levelled(rows: NDArray[Any], sizes: Sequence[int]) -> NDArray[np.float64]:
    """Rows with every group at root mean square 1: float64 ``[n, units]``; zeros stay zeros.

    Arguments as in :func:`loudness`.
    """
    made: NDArray[np.float64] = rows / loudness(rows, sizes)
    return made


def _units(count: int | None) -> str:
    return "nothing" if count is None else f"{count} units"
