"""The devices of one task: asking them all, counting what that costs, and who is left out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fedsprig.errors import FedsprigError, RunError
from fedsprig.graph import KeptIndex
from fedsprig.masks import Mask
from fedsprig.wire import Envelope
from fedsprig_server.ledger import Ledger
from fedsprig_server.lobby import Member
from fedsprig_server.scheduler import Answer, Ask
from fedsprig_server.transport import Request

Read = TypeVar("Read")
log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""What a device may be later than the quorum, at least: a SuperNode looks for messages every 3 s,
so that equally fast devices may answer that far apart."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The mask of one device."""

    mask: Mask
    index: KeptIndex

    @property
    def stratum(self) -> str:
        """Devices of one stratum have the same network."""
        return self.mask.digest


class Cohort:
    """Members by name.

    Attributes:
        task: What they share.
        members: In the order of their names.
        classes: The classes of all of them.
    """

    def __init__(
        self,
        task: str,
        members: Sequence[Member],
        *,
        quorum: float,
        deadline_seconds: float,
        expected: int | None = None,
    ) -> None:
        """Fix the number of devices that are enough.

        Args:
            task: What they share.
            members: Who is here; at least one.
            quorum: Share of the expected devices whose good answers are enough. From then on the
                others are waited for only a little longer (:class:`Ask`), so who is part of a round
                depends on speed; with a quorum of 1 all are waited for until the deadline.
            deadline_seconds: For the answers to one message.
            expected: Devices of the task, whether they are here or not; ``members`` when not given.
        """
        self.task = task
        self.members = {member.device: member for member in members}
        self.classes = members[0].classes
        # Less a hair, or 0.28 of 25 devices would be 8 of them, for 0.28 * 25 is 7.000000000000001.
        self._needed = max(1, math.ceil(quorum * (expected or len(members)) - 1e-9))
        self._deadline_seconds = deadline_seconds

    def ask(
        self,
        messages: Mapping[str, Envelope],
        ledger: Ledger,
        read: Callable[[str, Envelope], Read],
    ) -> Generator[Ask, list[Answer], dict[str, Read]]:
        """Ask devices by name; what ``read`` makes of their answers, in the order of their names.

        A device that refuses, stays silent or answers what ``read`` refuses is left out and noted.
        ``read`` sees an answer when it arrives: one that it refuses does not count as an answer.

        Raises:
            RunError: Fewer good answers than the quorum, or fewer devices to ask.
        """
        names = sorted(messages)
        if len(names) < self._needed:
            raise RunError(
                f"task {self.task!r}: {len(names)} devices are here, {self._needed} are needed: "
                "start the others, or lower the quorum"
            )
        name_of = {self.members[name].node: name for name in names}
        taken: dict[str, Read] = {}
        refused: dict[str, str] = {}

        def good(answer: Answer) -> bool:
            name = name_of[answer.node]
            if answer.envelope is None:
                refused[name] = answer.refusal
                return False
            try:
                taken[name] = read(name, answer.envelope)
            except FedsprigError as error:
                refused[name] = f"{type(error).__name__}: {error}"
                return False
            return True

        requests = [Request(self.members[name].node, messages[name]) for name in names]
        answers = yield Ask(
            requests, self._deadline_seconds, self._needed, GRACE_SECONDS, good=good
        )
        for answer in answers:  # in the order of the names, whoever was faster
            name, sent = name_of[answer.node], messages[name_of[answer.node]]
            if name in taken and answer.envelope is not None:
                up = len(answer.envelope.body) + len(answer.envelope.blob)
                ledger.sent(name, sent.kind, len(sent.body) + len(sent.blob), up)
            else:
                self._refuse(name, refused.get(name, answer.refusal), ledger)
        if len(taken) < self._needed:
            reason = ledger.refusals[-1] if ledger.refusals else "they said nothing"
            raise RunError(
                f"task {self.task!r}: {len(taken)} devices answered, {self._needed} are needed "
                f"({reason}): mend them, or lower the quorum"
            )
        return {name: taken[name] for name in names if name in taken}

    def _refuse(self, device: str, reason: str, ledger: Ledger) -> None:
        log.error("task %s, device %s: %s", self.task, device, reason)
        ledger.refusals.append(f"{device}: {reason}")
