"""Who of a task's devices takes part, and why the others do not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TypeVar

from fedsprig.errors import FedsprigError, RunError
from fedsprig.wire import Envelope
from fedsprig_server.cohort import Cohort
from fedsprig_server.config import RoundsConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.lobby import Member
from fedsprig_server.networks import Networks
from fedsprig_server.scheduler import Answer, Ask

Read = TypeVar("Read")
log = logging.getLogger(__name__)


class Attendance:
    """A cohort, less the devices that are left out.

    Attributes:
        task: What they share.
        members: Who takes part, by name, in the order of the names.
        classes: The classes of all of them.
        left_out: Why the others do not.
    """

    def __init__(
        self, task: str, members: Sequence[Member], rounds: RoundsConfig, *, expected: int
    ) -> None:
        self.task = task
        self._cohort = Cohort(
            task,
            members,
            quorum=rounds.quorum,
            deadline_seconds=rounds.deadline_seconds,
            expected=expected,
        )
        self.members = dict(self._cohort.members)
        self.classes = self._cohort.classes
        self.left_out: dict[str, FedsprigError] = {}
        self._nodes = {member.node: name for name, member in self.members.items()}

    def recognise(self, before: Mapping[str, Mapping[str, float]]) -> None:
        """Go on with the devices of the start: their masks were made for what they said then.

        Args:
            before: The limits of those that have a mask; empty before there are any.
        """
        if not before:
            return
        for name, member in list(self.members.items()):
            if name not in before:
                self.leave_out(
                    name,
                    RunError(
                        f"device {name!r} had no network when task {self.task!r} began: "
                        "it can take part in another task"
                    ),
                )
            elif dict(member.limits) != dict(before[name]):
                self.leave_out(
                    name,
                    RunError(
                        f"device {name!r} now has the budget {_words(member.limits)}, and had "
                        f"{_words(before[name])} when task {self.task!r} began: put that back"
                    ),
                )

    def leave_out(self, device: str, error: FedsprigError) -> None:
        """Go on without a device."""
        log.error("task %s, device %s is left out: %s", self.task, device, error)
        self.left_out[device] = error
        self.members.pop(device, None)

    def note(self, ledger: Ledger) -> None:
        """Write down who was left out."""
        for device, error in self.left_out.items():
            ledger.refused(device, f"{type(error).__name__}: {error}")

    def ask(
        self,
        messages: Mapping[str, Envelope],
        ledger: Ledger,
        read: Callable[[str, Envelope], Read],
        networks: Networks | None = None,
    ) -> Generator[Ask, list[Answer], dict[str, Read]]:
        """As :meth:`Cohort.ask`; with ``networks``, who has lost the network gets it again."""
        asking = self._cohort.ask(messages, ledger, read)
        try:
            ask = next(asking)
        except RunError as error:  # too few devices: say why they are so few
            raise next(iter(self.left_out.values()), error) from None
        if networks is None:
            answers = yield ask
        else:
            answers = yield from networks.answered(ask, self._nodes, ledger)
        try:
            asking.send(answers)
        except StopIteration as end:
            taken: dict[str, Read] = end.value
            return taken
        raise RunError("a cohort asked twice")


def _words(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in sorted(limits.items())) or "no limit"
