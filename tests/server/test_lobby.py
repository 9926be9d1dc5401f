"""The lobby waits for nobody in particular, and admits only what makes sense."""

import logging
import math

import pytest

from fedsprig.graph import trace_groups
from fedsprig.masks import Mask, plan_macs
from fedsprig.models import build
from fedsprig.wire import PROFILE, Envelope
from fedsprig.wire import device_pb2 as pb
from fedsprig_server.lobby import Lobby
from fedsprig_server.scheduler import run_flows
from fedsprig_server.transport import Reply

JOIN = 60.0
CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def plan():
    import torch

    model = build("cifar_resnet20", num_classes=4)
    return trace_groups(model, torch.zeros(1, 3, 32, 32), name="cifar_resnet20")


def profile(device="d", task="t", classes=CLASSES, pictures=10, **limits):
    return pb.ProfileReply(
        device=device,
        task=task,
        classes=classes,
        pictures=pictures,
        budget=pb.Budget(**limits),
        plans=["p"],
    )


class Script:
    """A transport on the test's clock.

    Args:
        nodes: Node -> answers to its first, second, ... question, each ``(seconds, what)``: bytes
            are a body, a text is a refusal, ``None`` is silence. The last one is repeated.
        appear: Node -> the second at which it is there; 0 where it is not named.
    """

    def __init__(self, clock, nodes, appear=()):
        self.clock = clock
        self.script = nodes
        self.appear = dict(appear)
        self.asked = {node: [] for node in nodes}
        self.open = {}

    def nodes(self):
        return [node for node in self.script if self.appear.get(node, 0) <= self.clock.now]

    def push(self, requests, *, ttl_seconds):
        ids = []
        for request in requests:
            assert request.envelope.kind == PROFILE
            times = self.asked[request.node]
            answers = self.script[request.node]
            seconds, what = answers[min(len(times), len(answers) - 1)]
            times.append(self.clock.now)
            ids.append(f"{request.node}.{len(times)}")
            self.open[ids[-1]] = (self.clock.now + seconds, self.clock.now + ttl_seconds, what)
        return ids

    def pull(self, message_ids):
        replies = []
        for message_id in message_ids:
            at, ends, what = self.open[message_id]
            if what is not None and at <= min(self.clock.now, ends):
                del self.open[message_id]
                said = isinstance(what, bytes)
                replies.append(
                    Reply(
                        message_id, Envelope(PROFILE, what) if said else None, "" if said else what
                    )
                )
        return replies


def gather(clock, plan, nodes, expected, appear=()):
    """A lobby at its end, when that was, and its transport."""
    script = {
        node: [
            (s, w if w is None or isinstance(w, str | bytes) else w.SerializeToString())
            for s, w in answers
        ]
        for node, answers in nodes.items()
    }
    transport = Script(clock, script, appear)
    lobby = Lobby(transport, plan, expected, join_seconds=JOIN, poll_seconds=0.25)
    assert run_flows({"lobby": lobby.gather()}, transport, poll_seconds=0.25) == {}
    return lobby, transport


def names(lobby):
    return {task: [member.device for member in group] for task, group in lobby.cohorts.items()}


def test_it_ends_as_soon_as_every_task_has_its_devices(clock, plan):
    nodes = {
        4: [(1, profile("b", "t"))],
        5: [(2, profile("a", "t"))],
        6: [(0, profile("c", "u"))],
    }
    lobby, transport = gather(clock, plan, nodes, {"t": 2, "u": 1})
    assert names(lobby) == {"t": ["a", "b"], "u": ["c"]}
    assert lobby.missing == {}
    assert clock.now == 2
    assert transport.asked == {4: [0], 5: [0], 6: [0]}
    member = lobby.cohorts["t"][0]
    assert (member.node, member.classes, member.pictures) == (5, CLASSES, 10)
    assert member.plans == {"p"}


def test_a_silent_node_holds_up_no_later_one(clock, plan):
    nodes = {4: [(0, None)], 5: [(1, profile("late"))]}
    lobby, transport = gather(clock, plan, nodes, {"t": 1}, appear={5: 7})
    assert names(lobby) == {"t": ["late"]}
    assert clock.now <= 8.5
    assert transport.asked[4] == [0, 5]


def test_a_silent_node_is_asked_again_ever_less_often(clock, plan):
    nodes = {4: [(0, None), (0, None), (0, None), (1, profile("back"))]}
    lobby, transport = gather(clock, plan, nodes, {"t": 1})
    assert transport.asked[4] == [0, 5, 15, 35]
    assert names(lobby) == {"t": ["back"]}


def test_a_device_that_takes_longer_than_the_first_pause_is_heard_once(clock, plan):
    nodes = {4: [(12, profile("slow"))], 5: [(20, profile("slower"))]}
    lobby, transport = gather(clock, plan, nodes, {"t": 2})
    assert names(lobby) == {"t": ["slow", "slower"]}
    assert clock.now == 20
    assert transport.asked[4] == [0, 5]


def test_a_refusal_is_said_once_and_may_pass(clock, plan, caplog):
    nodes = {4: [(0, "no pictures yet"), (0, "no pictures yet"), (0, profile("ready"))]}
    with caplog.at_level(logging.WARNING):
        lobby, _ = gather(clock, plan, nodes, {"t": 1})
    assert names(lobby) == {"t": ["ready"]}
    assert [r.getMessage() for r in caplog.records] == [
        "node 4 does not tell its profile: no pictures yet"
    ]


def test_a_task_without_devices_is_named_and_stops_no_other(clock, plan):
    lobby, _ = gather(clock, plan, {4: [(0, profile("a", "t"))]}, {"t": 2, "u": 1})
    assert names(lobby) == {"t": ["a"]}  # one too few is a warning here
    assert list(lobby.missing) == ["u"]
    assert "no device of task 'u' joined within 60 s" in str(lobby.missing["u"])
    assert "\n" not in str(lobby.missing["u"])
    assert clock.now == JOIN


def test_nobody_at_all_is_waited_for_asleep(clock, plan):
    lobby, _ = gather(clock, plan, {}, {"t": 1})
    assert list(lobby.missing) == ["t"]
    assert len(clock.sleeps) == JOIN / 0.25


def test_of_devices_with_different_classes_the_more_are_right(clock, plan, caplog):
    nodes = {
        4: [(0, profile("liar", classes=("dog", "cat")))],
        5: [(3, profile("y"))],
        6: [(4, profile("z"))],
    }
    lobby, _ = gather(clock, plan, nodes, {"t": 2})
    assert names(lobby) == {"t": ["y", "z"]}
    assert "node 4 is left out: device 'liar' has other classes" in caplog.text


def test_of_two_with_different_classes_the_first_name_is_right(clock, plan):
    nodes = {4: [(0, profile("z", classes=("dog", "cat")))], 5: [(3, profile("y"))]}
    lobby, _ = gather(clock, plan, nodes, {"t": 2})
    assert names(lobby) == {"t": ["y"]}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (profile(""), "calls itself ''"),
        (profile("x" * 101), "1 to 100 printable"),
        (profile("a\nERROR: forged"), "1 to 100 printable"),
        (profile(pictures=0), "has 0 pictures"),
        (profile(pictures=2**32 - 1), "has 4294967295 pictures"),
        (profile(classes=("cat",)), "names 1 classes"),
        (profile(classes=("cat", "cat")), "2 classes, 1 of them different"),
        (profile(classes=[str(n) for n in range(10_001)]), "names 10001 classes"),
        (profile(classes=("cat", "")), "has a class ''"),
        (profile(classes=("cat", "d\tg")), r"has a class 'd\tg'"),
        (profile(classes=("cat", "d" * 201)), "1 to 200 printable"),
        (profile(task="other"), "has the task 'other', which is not expected"),
        (profile(task="\n" * 5000), "which is not expected"),
        (profile("good"), "two devices call themselves 'good'"),
        (profile(macs_ratio=math.nan), "macs_ratio"),
        (profile(macs_ratio=-1.0), "macs_ratio"),
        (profile(macs_ratio=1e308), "macs_ratio"),
        (profile(macs_ratio=1e-300), "macs"),
        (profile(parameters_ratio=math.inf), "parameters_ratio"),
        (profile(units=2.0), "units"),
        (profile(macs=0), "macs"),
        (profile(weight_bytes=2**64 - 1), "weight_bytes"),
        (b"\xff" * 40, "bytes that are no ProfileReply"),
        (b"", "calls itself ''"),
        (b"\x00" * (1 << 20), "bytes that are no ProfileReply"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_admitted_is_one_line_in_the_log(clock, plan, caplog, bad, words):
    nodes = {4: [(0, profile("good"))], 5: [(1, bad)]}
    with caplog.at_level(logging.ERROR):
        lobby, transport = gather(clock, plan, nodes, {"t": 2})
    assert names(lobby) == {"t": ["good"]}
    (record,) = caplog.records
    assert record.getMessage().startswith("node 5 is left out: ")
    assert words in record.getMessage()
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 400
    assert transport.asked[5] == [0]  # it has spoken, and is not asked again


def test_ratios_become_absolute(clock, plan):
    lobby, _ = gather(clock, plan, {4: [(0, profile("a", macs_ratio=0.25))]}, {"t": 1})
    (member,) = lobby.cohorts["t"]
    own = plan.with_num_classes(2)
    assert member.limits == {"macs_ratio": 0.25}
    assert member.budget.macs == int(0.25 * plan_macs(own, Mask.full(own)))
