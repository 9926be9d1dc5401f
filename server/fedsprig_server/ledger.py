"""What a run has cost and reached so far; kept in the run's row, so that a restart goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fedsprig.wire import Envelope
from fedsprig.wire import device_pb2 as pb


@dataclass(slots=True)
class Ledger:
    """Costs and figures of one run, by device.

    Attributes:
        bytes: ``[down, up]`` by device and message kind.
        seconds: Computing on the device by device and message kind.
        accuracy: By device and number of the state that it was measured on: "0" is right after the
            cut, "1" after the first round. A device that missed a round has a gap.
        largest_update: Bytes by device.
        rounds: By device, the rounds that its update was part of.
        refusals: What was refused and why, in words.
    """

    bytes: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    accuracy: dict[str, dict[str, float]] = field(default_factory=dict)
    largest_update: dict[str, int] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ledger:
        """The ledger of :meth:`to_json`."""
        return cls(**data)

    def sent(self, device: str, kind: str, down: int, up: int) -> None:
        """Count the bytes of one exchange."""
        both = self.bytes.setdefault(device, {}).setdefault(kind, [0, 0])
        both[0] += down
        both[1] += up

    def worked(self, device: str, kind: str, seconds: float) -> None:
        """Count the device's own seconds."""
        if math.isfinite(seconds) and seconds >= 0:
            kinds = self.seconds.setdefault(device, {})
            kinds[kind] = kinds.get(kind, 0.0) + seconds

    def exchanged(self, device: str, request: Envelope, answer: Envelope) -> None:
        """Count the bytes of a message and of the answer to it."""
        down, up = (len(item.body) + len(item.blob) for item in (request, answer))
        self.sent(device, request.kind, down, up)

    def reached(self, device: str, state: int, evaluation: pb.Evaluation) -> None:
        """Note how good a state is on a device's test pictures."""
        self.accuracy.setdefault(device, {})[str(state)] = evaluation.accuracy

    def at(self, state: int) -> dict[str, float]:
        """The figures of one state, for the devices that have one."""
        key = str(state)
        return {name: curve[key] for name, curve in self.accuracy.items() if key in curve}

    def refused(self, device: str, reason: str) -> None:
        """Note why a device was left out, once."""
        if (line := f"{device}: {reason}") not in self.refusals:
            self.refusals.append(line)

    def updated(self, device: str, size: int) -> None:
        """Count an update that was taken."""
        self.largest_update[device] = max(self.largest_update.get(device, 0), size)
        self.rounds[device] = self.rounds.get(device, 0) + 1
