"""Runs the flows of all tasks side by side in one thread.

A flow is a generator that reads like its algorithm: it yields an :class:`Ask` (messages and a
deadline) and is resumed with the answers. Tasks do not wait for each other; a task that fails
leaves the others alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from fedsprig.errors import FedsprigError
from fedsprig.wire import Envelope
from fedsprig_server.transport import Reply, Request, Transport

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ask:
    """Messages that a flow wants answered within ``deadline_seconds``."""

    requests: Sequence[Request]
    deadline_seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one node; ``envelope`` is ``None`` where it refused or stayed silent."""

    node: int
    envelope: Envelope | None
    refusal: str = ""


Flow = Generator[Ask, list[Answer], None]


@dataclass(slots=True)
class _Waiting:
    flow: Flow
    ends: float
    pending: dict[str, int]
    answers: list[Answer] = field(default_factory=list)


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
        ids = transport.push(ask.requests, ttl_seconds=ask.deadline_seconds)
        pending = {
            message_id: request.node for message_id, request in zip(ids, ask.requests, strict=True)
        }
        waiting[name] = _Waiting(flow, time.monotonic() + ask.deadline_seconds, pending)

    for name, flow in flows.items():
        advance(name, flow, None)
    while waiting:
        owner = {message_id: name for name, wait in waiting.items() for message_id in wait.pending}
        replies = transport.pull(list(owner)) if owner else []
        for reply in replies:
            _take(waiting[owner[reply.message_id]], reply)
        now = time.monotonic()
        ready = [name for name, wait in waiting.items() if not wait.pending or now >= wait.ends]
        for name in ready:
            wait = waiting[name]
            wait.answers += [
                Answer(node, None, "no answer before the deadline")
                for node in wait.pending.values()
            ]
            advance(name, wait.flow, wait.answers)
        if not replies and not ready:
            time.sleep(poll_seconds)
    return failed


def _take(wait: _Waiting, reply: Reply) -> None:
    node = wait.pending.pop(reply.message_id)
    wait.answers.append(Answer(node, reply.envelope, reply.refusal))
