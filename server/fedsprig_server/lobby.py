"""Who is here: asks nodes for their profiles until every task has its devices."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedsprig.errors import BudgetError, FedsprigError, MessageError, RunError
from fedsprig.graph import GroupPlan
from fedsprig.masks import Budget
from fedsprig.wire import PROFILE, Envelope, parse
from fedsprig.wire import device_pb2 as pb
from fedsprig.wire.budgets import from_wire
from fedsprig_server.scheduler import Ask, Flow
from fedsprig_server.transport import Reply, Request, Transport

log = logging.getLogger(__name__)
ASK_AGAIN_SECONDS: Final = 5.0
DEVICE_NAME: Final = 100
CLASS_NAME: Final = 200
MAX_CLASSES: Final = 10_000
MAX_PICTURES: Final = 10**9
MAX_LIMIT: Final = 1e18


@dataclass(frozen=True, slots=True)
class Member:
    """A device of a cohort.

    Attributes:
        limits: Its budget as it stated it; devices with equal limits share a mask.
        budget: The same in absolute numbers.
        plans: Digests of the group plans that it holds.
        bases: Digests of the base models that it holds.
    """

    device: str
    node: int
    classes: tuple[str, ...]
    pictures: int
    limits: Mapping[str, float]
    budget: Budget
    plans: frozenset[str]
    bases: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Node:
    """A node that was asked; ``again`` is the moment at which it is asked once more."""

    again: float
    pause: float
    refusal: str = ""


class Lobby:
    """Collects the cohorts; run :meth:`gather` with the scheduler, then read the attributes.

    Attributes:
        cohorts: Who is here, by task, in the order of their names; tasks without a device are not
            among them.
        missing: Why the other tasks cannot start, by task.
    """

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
        self._nodes: dict[int, _Node] = {}
        self._settled: set[int] = set()
        self._open: dict[str, int] = {}
        # Devices that name other classes than their task's others are told apart at the end, when
        # it is known which of them are more: the first one to come need not be the one in the right
        self._here: dict[str, dict[tuple[str, ...], list[Member]]] = {t: {} for t in expected}
        self.cohorts: dict[str, list[Member]] = {}
        self.missing: dict[str, RunError] = {}

    def gather(self) -> Flow:
        """Ask nodes as they appear, until every task has its devices or the time is up.

        A node that is silent or refuses is asked again after 5 s, 10 s, 20 s and so on, and holds
        up no other one. Its answer counts whichever question it belongs to, since a device may well
        take longer than the first pause to start. Fewer devices than expected are a warning here.
        """
        ends = time.monotonic() + self._join_seconds
        while self._too_few() and (now := time.monotonic()) < ends:
            self._ask(now, ends)
            for reply in self._transport.pull(list(self._open)) if self._open else ():
                self._hear(reply)
            if self._too_few():
                yield Ask((), min(self._poll_seconds, max(ends - now, 0.0)))
        self._close()

    def _ask(self, now: float, ends: float) -> None:
        due = []
        for node in sorted(set(self._transport.nodes()) - self._settled):
            known = self._nodes.setdefault(node, _Node(now, ASK_AGAIN_SECONDS))
            if now >= known.again:
                known.again, known.pause = now + known.pause, 2 * known.pause
                due.append(node)
        if due:
            envelope = Envelope(PROFILE, pb.ProfileRequest().SerializeToString())
            requests = [Request(node, envelope) for node in due]
            ids = self._transport.push(requests, ttl_seconds=ends - now)
            self._open.update((i, node) for i, node in zip(ids, due, strict=True) if i)

    def _hear(self, reply: Reply) -> None:
        node = self._open.pop(reply.message_id, None)
        if node is None or node in self._settled:
            return
        if reply.envelope is None:
            if reply.refusal != self._nodes[node].refusal:  # say the same but once
                log.warning("node %d does not tell its profile: %s", node, reply.refusal)
            self._nodes[node].refusal = reply.refusal
            return
        self._settled.add(node)
        try:
            profile = parse(pb.ProfileReply, reply.envelope.body)
            self._admit(profile.task, read_member(profile, node, self._plan))
        except FedsprigError as error:
            log.error("node %d is left out: %s", node, error)

    def _admit(self, task: str, member: Member) -> None:
        groups = self._here.get(task)
        if groups is None:
            raise MessageError(
                f"device {member.device!r} has the task {_short(task)}, which is not expected: "
                f"its file may name {', '.join(sorted(self._here))}"
            )
        if any(member.device == other.device for group in groups.values() for other in group):
            raise MessageError(f"two devices call themselves {member.device!r}: rename one")
        groups.setdefault(member.classes, []).append(member)

    def _too_few(self) -> dict[str, int]:
        """How many devices are missing, for tasks that lack any."""
        here = {
            task: max(map(len, groups.values()), default=0) for task, groups in self._here.items()
        }
        return {
            task: count - here[task] for task, count in self._expected.items() if here[task] < count
        }

    def _close(self) -> None:
        for task, groups in self._here.items():
            if not groups:
                self.missing[task] = RunError(
                    f"no device of task {task!r} joined within {self._join_seconds:g} s: "
                    "start one, or raise join_seconds"
                )
                log.error("%s", self.missing[task])
                continue
            ranked = sorted(groups.values(), key=_rank)
            self.cohorts[task] = sorted(ranked[0], key=lambda member: member.device)
            for member in (member for group in ranked[1:] for member in group):
                log.error(
                    "node %d is left out: device %r has other classes than %r: all devices of a "
                    "task need the same ones",
                    member.node,
                    member.device,
                    self.cohorts[task][0].device,
                )
            if (missing := self._expected[task] - len(ranked[0])) > 0:
                log.warning("task %s starts with %d devices too few", task, missing)


def read_member(profile: pb.ProfileReply, node: int, plan: GroupPlan) -> Member:
    """Check what a device says of itself.

    Args:
        profile: Its answer.
        node: Where it came from.
        plan: Of the base model, which a budget's ratios are of.

    Raises:
        MessageError: A name, classes or a number of pictures that cannot be.
        BudgetError: A limit that cannot be.
    """
    device, classes = profile.device, tuple(profile.classes)
    if not 0 < len(device) <= DEVICE_NAME or not device.isprintable():
        raise MessageError(
            f"a device calls itself {_short(device)}: use 1 to {DEVICE_NAME} printable characters"
        )
    if not 1 <= profile.pictures <= MAX_PICTURES:
        raise MessageError(
            f"device {device!r} has {profile.pictures} pictures: give it 1 to {MAX_PICTURES:,}"
        )
    if not 2 <= len(classes) <= MAX_CLASSES or len(set(classes)) < len(classes):
        raise MessageError(
            f"device {device!r} names {len(classes)} classes, {len(set(classes))} of them "
            f"different: name 2 to {MAX_CLASSES:,}, each once"
        )
    for name in classes:
        if not 0 < len(name) <= CLASS_NAME or not name.isprintable():
            raise MessageError(
                f"device {device!r} has a class {_short(name)}: use 1 to {CLASS_NAME} printable "
                "characters"
            )
    limits = {item.name: value for item, value in profile.budget.ListFields()}
    for name, value in limits.items():
        if value > MAX_LIMIT:
            raise BudgetError(
                f"device {device!r} has the limit {name} = {value:g}: give it {MAX_LIMIT:g} at "
                "most, or leave it away"
            )
    return Member(
        device,
        node,
        classes,
        profile.pictures,
        limits,
        from_wire(profile.budget, plan.with_num_classes(len(classes))),
        frozenset(profile.plans),
        frozenset(profile.bases),
    )


def _rank(group: list[Member]) -> tuple[int, str]:
    """The larger group first; of two equal ones the one with the first name."""
    return -len(group), min(member.device for member in group)


def _short(text: str) -> str:
    return repr(text if len(text) <= DEVICE_NAME else text[:DEVICE_NAME] + "...")
