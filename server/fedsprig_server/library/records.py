"""What the library hands out: plain values, and the checks that they pass on their way in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from fedsprig.errors import LibraryError
from fedsprig_server.library.blobs import is_digest

MAX_NAME: Final = 200
MAX_ROUND: Final = 1 << 31
STATE_BLOBS: Final = ("sketch", "scores", "masks", "healed", "adapter")
"""Keys of a run's state that hold the digest of a blob, or a table of several."""


@dataclass(frozen=True, slots=True)
class BaseRecord:
    """A base model that library entries belong to.

    Attributes:
        digest: Digest of its weights; ``Entry.base`` of its entries.
        model: The builder's name.
        plan: Blob of its group plan.
        probe: Blob of the probe that devices describe their tasks with.
    """

    digest: str
    model: str
    plan: str
    probe: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What the library knows of one finished task.

    Attributes:
        name: Unique in the library.
        base: The base model.
        plan: Digest of the group plan that scores and masks follow.
        method: What made the scores: a scorer, or ``one_shot``.
        sketch: Blob of the task's sketch.
        scores: Blob of its score set.
        masks: Blobs of masks, by device or budget.
        adapter: Blob of the adapter that the task ended with.
        metrics: Finite figures by name.
        lineage: Where it came from, as plain JSON data.
        created: Seconds since 1970.
    """

    name: str
    base: str
    plan: str
    method: str
    sketch: str
    scores: str
    masks: dict[str, str] = field(default_factory=dict)
    adapter: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    created: float = 0.0

    @property
    def blobs(self) -> tuple[str, ...]:
        """Digests of all blobs that the entry names."""
        return (
            self.sketch,
            self.scores,
            *self.masks.values(),
            *([self.adapter] if self.adapter is not None else []),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of work that a restarted server goes on with.

    Attributes:
        name: Unique in the library.
        phase: Where it stands, in the caller's words.
        round: The last committed round; 0 before the first.
        spec: What it was started with, as plain JSON data.
        state: What a restarted server needs to go on, as plain JSON data.
    """

    name: str
    phase: str
    round: int
    spec: dict[str, Any]
    state: dict[str, Any]

    @property
    def blobs(self) -> dict[str, str]:
        """Digests of the blobs that its state names (``STATE_BLOBS``), by what they are."""
        found = {}
        for key in STATE_BLOBS:
            named = self.state.get(key)
            several = named if isinstance(named, dict) else {"": named}
            for name, value in several.items():
                if isinstance(value, str) and is_digest(value):
                    found[f"{key} {name[:12]!r}" if name else key] = value
        return found


@dataclass(frozen=True, slots=True)
class Round:
    """A committed round.

    Attributes:
        run: Name of its run.
        round: Its number; the rounds of a run are consecutive.
        adapter: Blob of the adapter after the round.
        metrics: Finite figures by name.
        state: What it changed in the run's state.
    """

    run: str
    round: int
    adapter: str
    metrics: dict[str, float]
    state: dict[str, Any]


def check_name(name: object, what: str) -> str:
    """Refuse a name that cannot be shown, typed or stored.

    Raises:
        LibraryError: It is no text of 1 to 200 printable characters without blanks at its ends.
    """
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= MAX_NAME
        or not name.isprintable()
        or name != name.strip()
    ):
        raise LibraryError(
            f"{what} {name!r:.80} is refused: use 1 to {MAX_NAME} printable characters"
        )
    return name


def check_digest(name: object, what: str) -> str:
    """Refuse what is no SHA-256.

    Raises:
        LibraryError: It is not 64 lower-case hexadecimal digits.
    """
    if not is_digest(name):
        raise LibraryError(f"{what} {name!r:.80} is no digest: put the blob first")
    return str(name)


def check_round(number: object) -> int:
    """Refuse what is no round number.

    Raises:
        LibraryError: It is no integer from 0 up.
    """
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MAX_ROUND:
        raise LibraryError(f"round {number!r:.40} is refused: use an integer from 0 up")
    return number


def plain(value: dict[str, Any], what: str) -> dict[str, Any]:
    """A deep copy as JSON would give it back: what is stored equals what is read.

    Raises:
        LibraryError: Something in it is no JSON data, or a number is not finite.
    """
    try:
        copy: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise LibraryError(
            f"{what} cannot be stored ({error}): use texts, finite numbers, lists and dicts"
        ) from None
    if not isinstance(copy, dict):
        raise LibraryError(f"{what} must be a dict, not {type(value).__name__}")
    return copy
