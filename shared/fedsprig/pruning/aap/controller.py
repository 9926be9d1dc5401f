"""AAP's controller: raise the threshold while the target holds, else roll back and halve the step.

Zhao, Jain and Zhao 2022, "Adaptive Activation-based Structured Pruning", arXiv 2201.10520,
Algorithm 1 and section 3.3. Written from the algorithm's description; pure values, no network.

A judged round ``r`` with threshold ``T`` and step ``s``:

* accepted: one may roll back to it; the next threshold is ``T + s``.
* rejected: back to the last accepted round ``k``; the first failure after it tries
  ``T[k] + s[k] / 2``, the second ``T[k] + s[k] / 4``, the third gives ``k`` up: it leaves the
  rounds that one may roll back to, the step is half the last one, and ``k``'s own threshold is
  tried again from ``k``'s weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

FAILURES: Final = 3


@dataclass(frozen=True, slots=True)
class Accepted:
    """A round that one may roll back to."""

    round: int
    threshold: float
    step: float


@dataclass(frozen=True, slots=True)
class Controller:
    """Where the search stands before a round is judged; immutable.

    Attributes:
        step: what the threshold grew by to get here (lambda).
        threshold: of this round.
        round: its number; round 0 is the whole network at threshold 0.
        accepted: rounds that one may roll back to, the last one first in line at the end.
        failures: rejected rounds since the last accepted one.
        retry: this round tries the threshold of a round that was given up.
        pace: the step that goes on after this round, where the round itself was held to a smaller
            one (:meth:`bounded`).
    """

    step: float
    threshold: float = 0.0
    round: int = 0
    accepted: tuple[Accepted, ...] = ()
    failures: int = 0
    retry: bool = False
    pace: float | None = None

    def at(self, threshold: float) -> Controller:
        """The same round at another threshold."""
        return replace(self, threshold=threshold)

    def bounded(self, threshold: float) -> Controller:
        """The same round held to a lower threshold: rejected, it halves what was really tried."""
        before = self.threshold - self.step
        if threshold <= before:
            return self.at(threshold)
        pace = self.step if self.pace is None else self.pace
        return replace(self, threshold=threshold, step=threshold - before, pace=pace)

    def accept(self) -> Controller:
        """The next round, after this one held the target."""
        step = self.step if self.pace is None else self.pace
        own = Accepted(self.round, self.threshold, step)
        return Controller(step, self.threshold + step, self.round + 1, (*self.accepted, own))

    def reject(self) -> Controller | None:
        """The next round, after this one missed the target; ``None`` where nothing is left."""
        if not self.accepted:
            return None
        last = self.accepted[-1]
        failures = self.failures + 1
        if failures == FAILURES:
            return Controller(
                self.step / 2, last.threshold, self.round + 1, self.accepted[:-1], retry=True
            )
        step = last.step / 2**failures
        if not self.retry:
            step = min(step, self.step / 2)
        return Controller(step, last.threshold + step, self.round + 1, self.accepted, failures)

    def to_json(self) -> dict[str, Any]:
        """Plain data; floats survive JSON to the bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Controller:
        """Read what :meth:`to_json` wrote."""
        accepted = tuple(Accepted(**item) for item in data["accepted"])
        return cls(**{**data, "accepted": accepted})
