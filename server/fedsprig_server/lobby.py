"""Who is here: asks new nodes for their profiles until every task has its devices."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fedsprig.errors import FedsprigError, MessageError, RunError
from fedsprig.graph import GroupPlan
from fedsprig.masks import Budget
from fedsprig.wire import PROFILE, Envelope, parse
from fedsprig.wire import device_pb2 as pb
from fedsprig.wire.budgets import from_wire
from fedsprig_server.scheduler import Answer, Ask, Flow
from fedsprig_server.transport import Request, Transport

log = logging.getLogger(__name__)
MAX_CLASSES = 10_000


@dataclass(frozen=True, slots=True)
class Member:
    """A device of a cohort.

    Attributes:
        limits: Its budget as it stated it; devices with equal limits share a mask.
        budget: The same in absolute numbers.
        plans: Digests of the group plans that it holds.
    """

    device: str
    node: int
    classes: tuple[str, ...]
    pictures: int
    limits: Mapping[str, float]
    budget: Budget
    plans: frozenset[str]


class Lobby:
    """Collects the cohorts; run :meth:`gather` with the scheduler, then read :attr:`cohorts`."""

    def __init__(
        self,
        transport: Transport,
        plan: GroupPlan,
        expected: Mapping[str, int],
        *,
        join_seconds: float,
        poll_seconds: float,
    ) -> None:
        self._transport = transport
        self._plan = plan
        self._expected = expected
        self._join_seconds = join_seconds
        self._poll_seconds = poll_seconds
        self.cohorts: dict[str, list[Member]] = {task: [] for task in expected}

    def gather(self) -> Flow:
        """Ask nodes as they appear, until every task has its devices or the time is up.

        Raises:
            RunError: A task has no device by then. Fewer devices than expected are a warning.
        """
        known: set[int] = set()
        ends = time.monotonic() + self._join_seconds
        while self._missing() and time.monotonic() < ends:
            new = sorted(set(self._transport.nodes()) - known)
            if not new:
                time.sleep(self._poll_seconds)
                continue
            known.update(new)
            body = pb.ProfileRequest().SerializeToString()
            requests = [Request(node, Envelope(PROFILE, body)) for node in new]
            remaining = max(ends - time.monotonic(), 1.0)
            for answer in (yield Ask(requests, remaining)):
                self._admit(answer)
        for task, missing in self._missing().items():
            if not self.cohorts[task]:
                raise RunError(
                    f"no device of task {task!r} joined within {self._join_seconds:g} s: "
                    "start one, or raise join_seconds"
                )
            log.warning("task %s starts with %d devices too few", task, missing)
        for members in self.cohorts.values():
            members.sort(key=lambda member: member.device)

    def _missing(self) -> dict[str, int]:
        return {
            task: count - len(self.cohorts[task])
            for task, count in self._expected.items()
            if len(self.cohorts[task]) < count
        }

    def _admit(self, answer: Answer) -> None:
        try:
            if answer.envelope is None:
                raise MessageError(answer.refusal)
            profile = parse(pb.ProfileReply, answer.envelope.body)
            members = self.cohorts.get(profile.task)
            if members is None:
                raise MessageError(
                    f"device {profile.device!r} has the unknown task {profile.task!r}"
                )
            if any(member.device == profile.device for member in members):
                raise MessageError(f"two devices call themselves {profile.device!r}: rename one")
            if not 2 <= len(profile.classes) <= MAX_CLASSES or not profile.device:
                raise MessageError(
                    f"device {profile.device!r} names {len(profile.classes)} classes"
                )
            classes = tuple(profile.classes)
            if members and members[0].classes != classes:
                raise MessageError(
                    f"device {profile.device!r} has other classes than {members[0].device!r}: "
                    "all devices of a task need the same ones"
                )
            members.append(
                Member(
                    profile.device,
                    answer.node,
                    classes,
                    profile.pictures,
                    {item.name: value for item, value in profile.budget.ListFields()},
                    from_wire(profile.budget, self._plan.with_num_classes(len(classes))),
                    frozenset(profile.plans),
                )
            )
        except FedsprigError as error:
            log.error("node %d is left out: %s", answer.node, error)
