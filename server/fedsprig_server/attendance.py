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
from fedsprig_server.networks import LOST, Networks
from fedsprig_server.scheduler import Answer, Ask
from fedsprig_server.transport import Request

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
        *,
        whole: Callable[[str], Envelope | None] = lambda device: None,
    ) -> Generator[Ask, list[Answer], dict[str, Read]]:
        """As :meth:`Cohort.ask`, but devices that lack what a message relies on are helped.

        Args:
            messages: What devices are asked, by name.
            ledger: Told of what is sent.
            read: Makes something of an answer.
            networks: Where messages rely on a network: who has lost it gets it again.
            whole: Where messages leave out what a device said it holds: the same with all of it, by
                name, for one that turns out not to hold it.
        """
        asking = self._cohort.ask(messages, ledger, read)
        try:
            ask = next(asking)
        except RunError as error:  # too few devices: say why they are so few
            raise next(iter(self.left_out.values()), error) from None
        if networks is not None:
            answers = yield from networks.answered(ask, self._nodes, ledger)
        else:
            answers = yield from self._answered(ask, whole, ledger)
        try:
            asking.send(answers)
        except StopIteration as end:
            taken: dict[str, Read] = end.value
            return taken
        raise RunError("a cohort asked twice")

    def _answered(
        self, ask: Ask, whole: Callable[[str], Envelope | None], ledger: Ledger
    ) -> Generator[Ask, list[Answer], list[Answer]]:
        """Ask; who lacks what its message left out is asked again, once, with all of it."""
        answers = yield ask
        again = {
            item.node: message
            for item in answers
            if item.refusal.startswith(LOST) and (message := whole(self._nodes[item.node]))
        }
        if not again:
            return answers
        requests = [Request(node, message) for node, message in again.items()]
        second = {a.node: a for a in (yield Ask(requests, ask.deadline_seconds, good=ask.good))}
        for node, message in again.items():
            down = len(message.body) + len(message.blob)
            ledger.sent(self._nodes[node], message.kind, down, 0)
        return [second.get(answer.node, answer) for answer in answers]


def _words(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in sorted(limits.items())) or "no limit"
