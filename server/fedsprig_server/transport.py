"""How the server reaches devices, without a word of Flower, whose grid the ServerApp wraps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedsprig.wire import Envelope


@dataclass(frozen=True, slots=True)
class Request:
    """A message for one node."""

    node: int
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: an envelope, or a refusal in words."""

    message_id: str
    envelope: Envelope | None
    refusal: str = ""


class Transport(Protocol):
    """Pushes messages and pulls answers; neither waits."""

    def nodes(self) -> list[int]:
        """The nodes that are reachable now."""

    def push(self, requests: Sequence[Request], *, ttl_seconds: float) -> list[str]:
        """Send messages; their identifiers in the same order, empty for one that was not sent."""

    def pull(self, message_ids: Collection[str]) -> list[Reply]:
        """The answers that have arrived for these messages; each is handed out once."""
