"""Enough answers is a share of the devices that were expected, and only good ones count."""

import pytest

from fedsprig.errors import MessageError, RunError
from fedsprig.masks import Budget
from fedsprig.wire import ROUND, Envelope
from fedsprig_server.cohort import GRACE_SECONDS, Cohort
from fedsprig_server.ledger import Ledger
from fedsprig_server.lobby import Member
from fedsprig_server.scheduler import Answer


def members(count):
    return [
        Member(f"d{number}", 10 + number, ("a", "b"), 5, {}, Budget(), frozenset())
        for number in range(count)
    ]


def asked(cohort, ledger, read=lambda _, answer: answer.body):
    """The flow of one question to all members, and what it asks."""
    flow = cohort.ask(dict.fromkeys(cohort.members, Envelope(ROUND, b"go", b"!!")), ledger, read)
    return flow, next(flow)


def finish(flow, answers):
    with pytest.raises(StopIteration) as stop:
        flow.send(answers)
    return stop.value.value


@pytest.mark.parametrize(
    ("quorum", "here", "expected", "needed"),
    [
        (1.0, 3, 3, 3),
        (0.5, 3, 3, 2),
        (0.5, 3, 6, 3),  # of the expected, though they are not all here
        (0.01, 3, 3, 1),
        (0.28, 7, 25, 7),  # 0.28 * 25 is 7.000000000000001
        (0.5, 3, None, 2),
    ],
)
def test_the_quorum_is_a_share_of_the_expected_devices(quorum, here, expected, needed):
    cohort = Cohort("t", members(here), quorum=quorum, deadline_seconds=60, expected=expected)
    _, ask = asked(cohort, Ledger())
    assert ask.enough == needed
    assert ask.deadline_seconds == 60
    assert ask.grace_seconds == GRACE_SECONDS
    assert [request.node for request in ask.requests] == [10 + n for n in range(here)]


def test_too_few_devices_are_not_asked_at_all():
    cohort = Cohort("t", members(2), quorum=0.5, deadline_seconds=60, expected=6)
    with pytest.raises(RunError, match=r"2 devices are here, 3 are needed.*quorum"):
        asked(cohort, Ledger())


def test_answers_are_read_once_when_they_come_and_handed_on_by_name():
    cohort = Cohort("t", members(4), quorum=0.5, deadline_seconds=60)
    ledger, reads = Ledger(), []

    def read(name, answer):
        reads.append(name)
        if answer.body == b"junk":
            raise MessageError("no sense in it: mend it")
        return answer.body.decode()

    flow, ask = asked(cohort, ledger, read)
    answers = [
        Answer(10, Envelope(ROUND, b"zero")),
        Answer(11, Envelope(ROUND, b"junk")),
        Answer(12, None, "no answer in time"),
        Answer(13, Envelope(ROUND, b"three", b"...")),
    ]
    assert [ask.good(answers[n]) for n in (3, 1, 0)] == [True, False, True]
    taken = finish(flow, answers)
    assert list(taken.items()) == [("d0", "zero"), ("d3", "three")]
    assert reads == ["d3", "d1", "d0"]
    assert ledger.bytes == {"d0": {ROUND: [4, 4]}, "d3": {ROUND: [4, 8]}}
    assert ledger.refusals == [
        "d1: MessageError: no sense in it: mend it",
        "d2: no answer in time",
    ]


def test_less_than_a_quorum_fails_and_says_why():
    cohort = Cohort("t", members(3), quorum=1.0, deadline_seconds=60)
    flow, ask = asked(cohort, Ledger())
    answers = [Answer(10, Envelope(ROUND, b"")), Answer(11, None, "my disk is full")]
    for answer in answers:
        ask.good(answer)
    with pytest.raises(RunError, match=r"1 devices answered, 3 are needed .*disk is full"):
        flow.send([*answers[:1], Answer(12, None, "no answer in time"), answers[1]])
