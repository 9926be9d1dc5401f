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


class Schedule:
    """A transport on the test's clock: node -> ``(second of its answer, word)``."""

    def __init__(self, clock, answers):
        self.clock = clock
        self.answers = answers
        self.open = {}
        self.pulls = 0

    def nodes(self):
        return list(self.answers)

    def push(self, requests, *, ttl_seconds):
        ids = []
        for request in requests:
            if request.node not in self.answers:
                ids.append("")  # a node that has gone
                continue
            ids.append(f"m{len(self.open)}")
            self.open[ids[-1]] = (request.node, self.clock.now)
        return ids

    def pull(self, message_ids):
        self.pulls += 1
        replies = []
        for message_id in message_ids:
            node, asked = self.open[message_id]
            second, word = self.answers[node]
            if second is not None and asked + second <= self.clock.now:
                envelope = Envelope(PROFILE, word) if word else None
                replies.append(Reply(message_id, envelope, "" if word else "I will not"))
        return replies


def heard(clock, answers, question, nodes):
    """What a flow that asks ``nodes`` once gets, and when."""
    got = []

    def flow():
        got.extend((yield question([Request(node, Envelope(PROFILE, b"?")) for node in nodes])))
        got.append(clock.now)

    transport = Schedule(clock, answers)
    assert run_flows({"a": flow()}, transport, poll_seconds=0.25) == {}
    *said, seconds = got
    return {a.node: a.envelope.body if a.envelope else a.refusal for a in said}, seconds, transport


def test_silence_ends_at_the_deadline_and_is_said(clock):
    said, seconds, _ = heard(clock, {1: (1, b"yes"), 2: (None, b"")}, lambda r: Ask(r, 60), [2, 1])
    assert list(said.items()) == [(2, "no answer in time"), (1, b"yes")]  # as they were asked
    assert seconds == 60


def test_waiting_is_sleeping(clock):
    _, _, transport = heard(clock, {1: (None, b"")}, lambda r: Ask(r, 60), [1])
    assert len(clock.sleeps) == 60 / 0.25
    assert transport.pulls <= len(clock.sleeps) + 1


@pytest.mark.parametrize(
    ("slowest", "expected", "seconds"),
    [
        (102, b"yes", 102),
        (119, b"yes", 119),
        (121, "no answer in time", 120),
        (None, "no answer in time", 120),
    ],
)
def test_enough_good_answers_leave_the_others_a_fifth_of_their_time(
    clock, slowest, expected, seconds
):
    answers = {1: (10, b"yes"), 2: (100, b"yes"), 3: (slowest, b"yes")}
    question = lambda r: Ask(r, 600, enough=2, grace_seconds=5)  # noqa: E731
    said, ended, _ = heard(clock, answers, question, [1, 2, 3])
    assert said == {1: b"yes", 2: b"yes", 3: expected}
    assert ended == seconds


def test_the_grace_has_a_least_length_and_ends_with_the_deadline(clock):
    answers = {1: (1, b"yes"), 2: (None, b"")}
    _, ended, _ = heard(clock, answers, lambda r: Ask(r, 600, enough=1, grace_seconds=5), [1, 2])
    assert ended == 6
    clock.now = 0.0
    _, ended, _ = heard(clock, answers, lambda r: Ask(r, 4, enough=1, grace_seconds=5), [1, 2])
    assert ended == 4


def test_bad_answers_are_not_enough(clock):
    answers = {1: (1, b""), 2: (2, b"junk"), 3: (50, b"yes")}
    seen = []

    def good(answer):
        seen.append(answer.node)
        return answer.envelope is not None and answer.envelope.body == b"yes"

    question = lambda r: Ask(r, 600, enough=1, grace_seconds=5, good=good)  # noqa: E731
    said, ended, _ = heard(clock, answers, question, [1, 2, 3])
    assert said == {1: "I will not", 2: b"junk", 3: b"yes"}
    assert ended == 50
    assert seen == [1, 2, 3]  # each once, when it came


@pytest.mark.parametrize("enough", [None, 2, 3])
def test_without_a_quorum_all_are_waited_for(clock, enough):
    answers = {1: (1, b"yes"), 2: (300, b"yes")}
    said, ended, _ = heard(clock, answers, lambda r: Ask(r, 600, enough=enough), [1, 2])
    assert said == {1: b"yes", 2: b"yes"}
    assert ended == 300


def test_a_message_that_cannot_be_sent_is_an_answer(clock):
    said, ended, _ = heard(clock, {1: (1, b"yes")}, lambda r: Ask(r, 600), [1, 7])
    assert said == {1: b"yes", 7: "the message could not be sent"}
    assert ended == 1
    said, ended, _ = heard(clock, {}, lambda r: Ask(r, 600), [7])
    assert (said, ended) == ({7: "the message could not be sent"}, 1)


def test_an_ask_without_messages_is_a_pause_that_holds_up_no_other_flow(clock):
    moments = []

    def sleeper():
        for _ in range(3):
            assert (yield Ask((), 2.1)) == []
            moments.append(("sleeper", round(clock.now, 6)))

    def worker():
        yield Ask([Request(1, Envelope(PROFILE, b"?"))], 60)
        moments.append(("worker", clock.now))

    transport = Schedule(clock, {1: (3, b"yes")})
    assert run_flows({"a": sleeper(), "b": worker()}, transport, poll_seconds=0.5) == {}
    assert [name for name, _ in moments] == ["sleeper", "worker", "sleeper", "sleeper"]
    assert [at for name, at in moments if name == "sleeper"] == [2.1, 4.2, 6.3]


def test_a_reply_that_nobody_waits_for_is_ignored():
    class Echo(Post):
        def pull(self, message_ids):
            replies = super().pull(message_ids)
            return replies + replies + [Reply("stranger", None, "hello")]

    got = []

    def flow():
        got.extend((yield ask([1, 2], "x")))

    assert run_flows({"a": flow()}, Echo({1: 1, 2: 3}), poll_seconds=0.001) == {}
    assert [answer.node for answer in got] == [1, 2]


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
