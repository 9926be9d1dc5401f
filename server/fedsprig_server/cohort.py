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
        self, task: str, members: Sequence[Member], *, quorum: float, deadline_seconds: float
    ) -> None:
        self.task = task
        self.members = {member.device: member for member in members}
        self.classes = members[0].classes
        self._needed = max(1, math.ceil(quorum * len(members)))
        self._deadline_seconds = deadline_seconds

    def ask(
        self,
        messages: Mapping[str, Envelope],
        ledger: Ledger,
        read: Callable[[str, Envelope], Read],
    ) -> Generator[Ask, list[Answer], dict[str, Read]]:
        """Ask devices by name; what ``read`` makes of their answers, in the order of their names.

        A device that refuses, stays silent or answers what ``read`` refuses is left out and noted.

        Raises:
            RunError: Fewer good answers than the quorum.
        """
        names = sorted(messages)
        requests = [Request(self.members[name].node, messages[name]) for name in names]
        answers = yield Ask(requests, self._deadline_seconds)
        by_node = {answer.node: answer for answer in answers}
        taken = {}
        for name in names:
            answer = by_node[self.members[name].node]
            sent = messages[name]
            if answer.envelope is None:
                self._refuse(name, answer.refusal, ledger)
                continue
            try:
                taken[name] = read(name, answer.envelope)
            except FedsprigError as error:
                self._refuse(name, f"{type(error).__name__}: {error}", ledger)
                continue
            up = len(answer.envelope.body) + len(answer.envelope.blob)
            ledger.sent(name, sent.kind, len(sent.body) + len(sent.blob), up)
        if len(taken) < self._needed:
            reason = ledger.refusals[-1] if ledger.refusals else "they said nothing"
            raise RunError(
                f"task {self.task!r}: {len(taken)} devices answered, {self._needed} are needed "
                f"({reason}): mend them, or lower the quorum"
            )
        return taken

    def _refuse(self, device: str, reason: str, ledger: Ledger) -> None:
        log.error("task %s, device %s: %s", self.task, device, reason)
        ledger.refusals.append(f"{device}: {reason}")
