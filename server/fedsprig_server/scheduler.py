"""Runs the flows of all tasks side by side in one thread.

A flow is a generator that reads like its algorithm: it yields an :class:`Ask` (messages and a
deadline) and is resumed with the answers. Tasks do not wait for each other; a task that fails
leaves the others alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from fedsprig.errors import FedsprigError
from fedsprig.wire import Envelope
from fedsprig_server.transport import Reply, Request, Transport

log = logging.getLogger(__name__)
GRACE_SHARE = 0.2
"""A device a fifth slower than those that are enough is as good as they are: it is waited for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one node; ``envelope`` is ``None`` where it refused or stayed silent."""

    node: int
    envelope: Envelope | None
    refusal: str = ""


def answered(answer: Answer) -> bool:
    """The least that makes an answer good: there is one."""
    return answer.envelope is not None


@dataclass(frozen=True, slots=True)
class Ask:
    """Messages that a flow wants answered; without messages, a pause.

    Attributes:
        requests: To one node each. Where there are none, the flow is resumed at the deadline.
        deadline_seconds: Who has not answered by then is not waited for.
        enough: This many good answers do: the others have ``grace_seconds`` left, or a fifth
            (``GRACE_SHARE``) of the time that the good ones took where that is longer, and never
            more than the deadline. ``None``, or as many as there are requests: all are waited for.
        good: Told of every answer when it arrives, once; whether it counts towards ``enough``. An
            answer that is quick and worthless must not end the wait for the others.
    """

    requests: Sequence[Request]
    deadline_seconds: float
    enough: int | None = None
    grace_seconds: float = 1.0
    good: Callable[[Answer], bool] = answered


Flow = Generator[Ask, list[Answer], None]


@dataclass(slots=True)
class _Waiting:
    """A flow and what it waits for, in seconds of the monotonic clock."""

    flow: Flow
    ask: Ask
    began: float
    ends: float
    pending: dict[str, int] = field(default_factory=dict)
    answers: dict[int, Answer] = field(default_factory=dict)
    good: int = 0

    def take(self, answer: Answer) -> None:
        self.answers[answer.node] = answer
        self.good += self.ask.good(answer)
        if self.good == self.ask.enough and self.pending:
            now = time.monotonic()
            grace = max(self.ask.grace_seconds, GRACE_SHARE * (now - self.began))
            self.ends = min(self.ends, now + grace)

    def over(self, now: float) -> bool:
        return now >= self.ends or (bool(self.ask.requests) and not self.pending)

    def in_order(self) -> list[Answer]:
        nodes = (request.node for request in self.ask.requests)
        silent = "no answer in time"
        return [self.answers.get(node) or Answer(node, None, silent) for node in nodes]


def run_flows(
    flows: dict[str, Flow], transport: Transport, *, poll_seconds: float = 0.2
) -> dict[str, FedsprigError]:
    """Run flows to their ends.

    Answers are matched by the message that they reply to; one that comes after its deadline is
    never asked for again and so is ignored. A flow is resumed with its answers in the order of its
    requests, whatever order they came in.

    Returns:
        The errors of the flows that failed, by name.
    """
    failed: dict[str, FedsprigError] = {}
    waiting: dict[str, _Waiting] = {}

    def advance(name: str, flow: Flow, answers: list[Answer] | None) -> None:
        waiting.pop(name, None)
        try:
            ask = next(flow) if answers is None else flow.send(answers)
        except StopIteration:
            return
        except FedsprigError as error:
            log.error("%s: %s", name, error)
            failed[name] = error
            return
        waiting[name] = _send(flow, ask, transport)

    for name, flow in flows.items():
        advance(name, flow, None)
    while waiting:
        owner = {message_id: wait for wait in waiting.values() for message_id in wait.pending}
        replies = transport.pull(list(owner)) if owner else []
        for reply in replies:
            _take(owner.pop(reply.message_id, None), reply)
        now = time.monotonic()
        ready = [(name, wait) for name, wait in waiting.items() if wait.over(now)]
        for name, wait in ready:
            advance(name, wait.flow, wait.in_order())
        if not replies and not ready:
            next_end = min(wait.ends for wait in waiting.values())
            time.sleep(min(poll_seconds, max(next_end - now, 0.0)))
    return failed


def _send(flow: Flow, ask: Ask, transport: Transport) -> _Waiting:
    ids = transport.push(ask.requests, ttl_seconds=ask.deadline_seconds) if ask.requests else []
    began = time.monotonic()
    wait = _Waiting(flow, ask, began, began + ask.deadline_seconds)
    unsent = []
    for message_id, request in zip(ids, ask.requests, strict=True):
        if message_id:
            wait.pending[message_id] = request.node
        else:
            unsent.append(Answer(request.node, None, "the message could not be sent"))
    for answer in unsent:
        wait.take(answer)
    return wait


def _take(wait: _Waiting | None, reply: Reply) -> None:
    if wait is not None:  # a second reply to one message is ignored
        node = wait.pending.pop(reply.message_id)
        wait.take(Answer(node, reply.envelope, reply.refusal))
