"""Flows run side by side; answers find their questions whatever order and time they come in."""

import pytest

from fedsprig.errors import RunError
from fedsprig.wire import PROFILE, Envelope
from fedsprig_server.scheduler import Ask, run_flows
from fedsprig_server.transport import Reply, Request


class Post:
    """A transport whose answers are written down beforehand: node -> pulls until it answers."""

    def __init__(self, delays):
        self.delays = delays
        self.sent = {}
        self.pulls = 0

    def nodes(self):
        return list(self.delays)

    def push(self, requests, *, ttl_seconds):
        ids = []
        for request in requests:
            message_id = f"m{len(self.sent)}"
            self.sent[message_id] = (request, self.pulls + self.delays[request.node])
            ids.append(message_id)
        return ids

    def pull(self, message_ids):
        self.pulls += 1
        # Newest first, to show that order does not matter.
        return [
            Reply(i, self.sent[i][0].envelope)
            for i in sorted(message_ids, reverse=True)
            if self.sent[i][1] <= self.pulls
        ]


def ask(nodes, word, seconds=60.0):
    return Ask([Request(node, Envelope(PROFILE, word.encode())) for node in nodes], seconds)


def test_answers_reach_the_flow_that_asked():
    heard = {}

    def flow(name, nodes):
        for number in range(3):
            answers = yield ask(nodes, f"{name}{number}")
            heard.setdefault(name, []).append(
                sorted((a.node, a.envelope.body.decode()) for a in answers)
            )

    failed = run_flows(
        {"a": flow("a", [1, 2]), "b": flow("b", [2, 3])},
        Post({1: 4, 2: 1, 3: 2}),
        poll_seconds=0.001,
    )
    assert failed == {}
    assert heard["a"] == [[(1, f"a{n}"), (2, f"a{n}")] for n in range(3)]
    assert heard["b"] == [[(2, f"b{n}"), (3, f"b{n}")] for n in range(3)]


def test_silence_ends_at_the_deadline_and_is_said():
    got = []

    def flow():
        got.extend((yield ask([1, 2], "hello", seconds=0.05)))

    assert run_flows({"a": flow()}, Post({1: 1, 2: 10**9}), poll_seconds=0.001) == {}
    by_node = {answer.node: answer for answer in got}
    assert by_node[1].envelope is not None
    assert by_node[2].envelope is None
    assert "deadline" in by_node[2].refusal


def test_a_failed_flow_leaves_the_others_alone():
    done = []

    def bad():
        yield ask([1], "x")
        raise RunError("it broke: mend it")

    def good():
        for _ in range(3):
            yield ask([2], "y")
        done.append(True)

    failed = run_flows({"bad": bad(), "good": good()}, Post({1: 1, 2: 1}), poll_seconds=0.001)
    assert done == [True]
    assert list(failed) == ["bad"]
    assert str(failed["bad"]) == "it broke: mend it"


def test_a_fault_of_the_program_is_not_swallowed():
    def broken():
        yield ask([1], "x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_flows({"a": broken()}, Post({1: 1}), poll_seconds=0.001)
