"""Which channels are coupled: from the dependency tracer's groups to units.

Every layer has *ports*, sides at which channels enter or leave: ``(path, "out")``,
``(path, "in")``, ``(path, "norm")``. The tracer says which positions of which ports follow from
pruning a channel of a producer. Positions that follow from the same channel get the same label,
labels that meet in one position are joined (union-find), and what is left is the finest partition
of all positions in which a class can be dropped as a whole: the units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedsprig.graph.plan import Positions

Port = tuple[str, str]
Labels = npt.NDArray[np.int64]

_NONE = -1


@dataclass(frozen=True, slots=True, eq=False)
class UnitClass:
    """Units with the same number of positions at the same ports.

    Attributes:
        ports: port -> int32 ``[units, k]``, in the order in which the ports were declared.
        reasons: why the units must stay; empty if they may go.
        is_stream: several producers are added into these channels.
    """

    ports: Mapping[Port, Positions]
    reasons: tuple[str, ...]
    is_stream: bool

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(next(iter(self.ports.values())))


@dataclass(slots=True)
class Coupling:
    """Positions of ports under construction; see the module's description."""

    labels: dict[Port, Labels] = field(default_factory=dict)
    _parent: list[int] = field(default_factory=list)
    _reasons: dict[int, dict[str, None]] = field(default_factory=dict)
    _streams: set[int] = field(default_factory=set)

    def declare(self, port: Port, size: int) -> None:
        """Announce a port of ``size`` positions; the order decides the order of the classes."""
        self.labels[port] = np.full(size, _NONE, dtype=np.int64)

    def open(self, port: Port) -> npt.NDArray[np.int64]:
        """Positions of a port that have no label yet."""
        return np.flatnonzero(self.labels[port] == _NONE)

    def new(self, count: int) -> Labels:
        """Fresh labels."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def assign(self, port: Port, positions: npt.NDArray[np.int64], labels: Labels) -> None:
        """Give positions their labels; a position that has one already joins the two.

        Raises:
            IndexError: a position that the port does not have.
        """
        own = self.labels[port]
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(own):
            raise IndexError(f"{port[0]} has {len(own)} positions, not {int(positions.max()) + 1}")
        before = own[positions]
        fresh = before == _NONE
        own[positions[fresh]] = labels[fresh]
        self.join(before[~fresh], labels[~fresh])

    def join(self, left: Labels, right: Labels) -> None:
        """Make pairs of labels one unit each."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            first, second = self._find(a), self._find(b)
            if first != second:
                self._parent[max(first, second)] = min(first, second)

    def freeze(self, labels: Iterable[int], reason: str) -> None:
        """Note why the units of these labels must stay."""
        for label in labels:
            self._reasons.setdefault(int(label), {})[reason] = None

    def mark_stream(self, labels: Iterable[int]) -> None:
        """Note that these labels' units are sums of several producers."""
        self._streams.update(int(label) for label in labels)

    def tie(self, ports: Iterable[Port], groups: int) -> None:
        """Join, at each of ``groups`` equal blocks, all positions of all the ports.

        A grouped convolution loses whole blocks of inputs and outputs together. A position that
        no producer fills (the picture's channels) keeps its whole block.
        """
        for block in zip(*(np.split(self.labels[port], groups) for port in ports), strict=True):
            members = np.concatenate(block)
            known = members[members != _NONE]
            self.join(np.repeat(known[:1], len(known)), known)
            if len(known) < len(members):
                self.freeze(known.tolist(), "grouped convolution of channels that nothing produces")

    def classes(self) -> list[UnitClass]:
        """The units, gathered into classes; classes in the order of their first positions.

        Units of one class have the same number of positions at every port, the same reasons to
        stay, and are ordered by their first position at the class's first port.
        """
        root = np.array([self._find(i) for i in range(len(self._parent))], dtype=np.int64)
        units = {port: np.where(own >= 0, root[own], _NONE) for port, own in self.labels.items()}
        counts: list[tuple[Port, Labels]] = [
            (port, np.bincount(own[own >= 0], minlength=len(root))) for port, own in units.items()
        ]
        signature: dict[int, list[tuple[int, int]]] = {}
        for number, (_, count) in enumerate(counts):
            for unit in np.flatnonzero(count).tolist():
                signature.setdefault(unit, []).append((number, int(count[unit])))
        reasons: dict[int, dict[str, None]] = {}
        for label, why in self._reasons.items():
            reasons.setdefault(int(root[label]), {}).update(why)
        streams = {int(root[label]) for label in self._streams}
        members: dict[tuple[object, ...], list[int]] = {}
        for unit, ports in signature.items():
            key = (tuple(ports), tuple(sorted(reasons.get(unit, {}))), unit in streams)
            members.setdefault(key, []).append(unit)
        ports_in_order = list(units)
        return [
            _gather(
                {ports_in_order[n]: units[ports_in_order[n]] for n, _ in key[0]},  # type: ignore[attr-defined]
                np.array(which, dtype=np.int64),
                key[1],  # type: ignore[arg-type]
                bool(key[2]),
            )
            for key, which in members.items()
        ]

    def _find(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label


def _gather(
    ports: Mapping[Port, Labels], units: Labels, reasons: tuple[str, ...], is_stream: bool
) -> UnitClass:
    first = next(iter(ports.values()))
    seen, at = np.unique(first, return_index=True)
    order = units[np.argsort(at[np.searchsorted(seen, units)])]
    rank = np.empty(int(max(order.max(), max(own.max() for own in ports.values()))) + 1, np.int64)
    rank[:] = _NONE
    rank[order] = np.arange(len(order))
    gathered: dict[Port, Positions] = {}
    for port, own in ports.items():
        ranks = np.where(own >= 0, rank[own], _NONE)
        positions = np.flatnonzero(ranks >= 0)
        positions = positions[np.argsort(ranks[positions], kind="stable")]
        gathered[port] = positions.astype(np.int32).reshape(len(order), -1)
    return UnitClass(gathered, reasons, is_stream)
