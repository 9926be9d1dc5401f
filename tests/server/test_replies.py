"""Answers are checked before they are believed."""

import numpy as np
import pytest
import torch

from fedsprig.adapters import is_statistic
from fedsprig.artifacts import pack
from fedsprig.errors import MessageError, NonFiniteUpdateError, SketchError, UpdateError
from fedsprig.graph import trace_groups
from fedsprig.models import build
from fedsprig.tasks.similarity import HEAD_VALUES
from fedsprig.updates import encode_update
from fedsprig.wire import ATTENTION, COMPARE, CUT, EVALUATE, INSTALL, ROUND, Envelope
from fedsprig.wire import device_pb2 as pb
from fedsprig_server.replies import (
    read_attention,
    read_compared,
    read_cut,
    read_evaluation,
    read_installed,
    read_update,
)


def test_an_answer_without_the_evaluation_that_was_asked_for_is_refused():
    with pytest.raises(MessageError, match="no evaluation"):
        read_update(Envelope(ROUND, pb.RoundReply(loss=1.0).SerializeToString()), {}, "")
    with pytest.raises(MessageError, match="no evaluation"):
        read_evaluation(Envelope(EVALUATE, pb.EvaluateReply(seconds=1.0).SerializeToString()))


def compared(values, pictures=4):
    reply = pb.CompareReply(values=values, pictures=pictures, seconds=1.0)
    return Envelope(COMPARE, reply.SerializeToString())


def test_values_of_classifiers_are_counted_and_bounded():
    asked = {"heads": 2, "pictures": 4, "value": HEAD_VALUES["h_score"], "classes": 3}
    reply = read_compared(compared([1.5, 0.25]), **asked)
    assert list(reply.values) == [1.5, 0.25]
    for values in ([], [0.0], [0.0] * 3):
        with pytest.raises(MessageError, match="for 2 classifiers"):
            read_compared(compared(values), **asked)
    for value in (float("nan"), float("inf"), -1e31):
        with pytest.raises(NonFiniteUpdateError):
            read_compared(compared([0.0, value]), **asked)
    for pictures in (0, 5):
        with pytest.raises(MessageError, match="1 to 4"):
            read_compared(compared([0.0, 0.0], pictures), **asked)


@pytest.mark.parametrize(
    ("name", "value", "holds"),
    [
        ("leep", 0.0, True),
        ("leep", -708.0, True),
        ("leep", 1e-9, True),
        ("leep", 0.1, False),
        ("leep", -1e4, False),
        ("h_score", 0.0, True),
        ("h_score", 2.0, True),
        ("h_score", -1e-9, True),
        ("h_score", -0.1, False),
        ("h_score", 2.1, False),
    ],
)
def test_no_device_says_more_of_a_classifier_than_can_be_said(name, value, holds):
    asked = {"heads": 1, "pictures": 4, "value": HEAD_VALUES[name], "classes": 3}
    if holds:
        assert list(read_compared(compared([value]), **asked).values) == [value]
        return
    with pytest.raises(SketchError, match=f"{name} of .* for 3 classes: it lies between"):
        read_compared(compared([value]), **asked)


@pytest.mark.parametrize("accuracy", [-0.1, 1.5, float("nan")])
def test_an_accuracy_that_is_none_is_refused(accuracy):
    reply = pb.EvaluateReply(evaluation=pb.Evaluation(accuracy=accuracy))
    with pytest.raises(MessageError, match="accuracy"):
        read_evaluation(Envelope(EVALUATE, reply.SerializeToString()))


def test_a_factor_that_did_not_train_is_not_taken():
    received = {
        name: np.ones((2, 2), np.float32)
        for name in ("x.adapter_a", "x.adapter_b", "y.adapter_b", "bias")
    }
    reply = pb.RoundReply(loss=1.0, evaluation=pb.Evaluation(accuracy=0.5)).SerializeToString()

    def answer(*names):
        change = {name: np.full((2, 2), 0.5, np.float32) for name in names}
        return Envelope(ROUND, reply, encode_update(change, base_digest="0" * 64, codec="float32"))

    for trains, names in {
        "b": ("x.adapter_b", "y.adapter_b", "bias"),
        "a": ("x.adapter_a", "y.adapter_b", "bias"),
        "both": tuple(received),
    }.items():
        _, state = read_update(answer(*names), received, "0" * 64, trains)
        assert state.keys() == set(names)
        assert all((value == 1.5).all() for value in state.values())
        for other in {"a", "b", "both"} - {trains}:
            with pytest.raises(UpdateError):
                read_update(answer(*names), received, "0" * 64, other)


def test_statistics_are_taken_where_they_travel_alone():
    module = build("cifar_resnet20", num_classes=2)
    plan = trace_groups(module, torch.zeros(1, 3, 32, 32), name="cifar_resnet20")
    arrays = {"prototypes": np.zeros((3, 64), np.float32), "counts": np.ones(3, np.int64)}
    sent = {
        f"statistics/{name}": np.ones(shape, np.float32)
        for name, shape in plan.shapes.items()
        if is_statistic(name)
    }
    assert sent
    body = pb.InstallReply(projected_variance=1.0).SerializeToString()

    def installed(parts, statistics):
        answer = Envelope(INSTALL, body, pack(parts))
        return read_installed(answer, plan, {}, num_classes=3, statistics=statistics).statistics

    assert installed(arrays, statistics=False) == {}
    assert len(installed(arrays | sent, statistics=True)) == len(sent)
    for parts, statistics in ((arrays, True), (arrays | sent, False)):
        with pytest.raises(MessageError, match="does not fit"):
            installed(parts, statistics)


@pytest.fixture(scope="module")
def plan():
    module = build("cifar_resnet20", num_classes=2)
    return trace_groups(module, torch.zeros(1, 3, 32, 32), name="cifar_resnet20")


def measured(plan, pictures=7, accuracy=0.5, **changes):
    """An answer to a question for attention; ``changes`` replaces sums by group."""
    sums = {group.name: np.full(group.units, 2.0) for group in plan.groups} | changes
    evaluation = pb.Evaluation(accuracy=accuracy)
    body = pb.AttentionReply(pictures=pictures, evaluation=evaluation).SerializeToString()
    return Envelope(ATTENTION, body, pack(sums))


def test_sums_of_attention_are_read(plan):
    reply, sums = read_attention(measured(plan), plan, pictures=7)
    assert (reply.pictures, reply.evaluation.accuracy) == (7, 0.5)
    assert {name: len(values) for name, values in sums.items()} == {
        group.name: group.units for group in plan.groups
    }


def test_sums_that_cannot_be_are_refused_by_name(plan):
    first = plan.groups[0]
    for value, error, words in (
        (np.full(first.units, np.nan), NonFiniteUpdateError, "not finite"),
        (np.full(first.units, np.inf), NonFiniteUpdateError, "not finite"),
        (np.full(first.units, 1e31), NonFiniteUpdateError, "too large"),
        (np.arange(first.units) - 1.0, MessageError, "negative"),
        (np.ones(first.units, np.int64), NonFiniteUpdateError, "not finite"),
        (np.ones(first.units - 1), MessageError, "not of the network that was meant"),
        (np.ones((first.units, 1)), MessageError, "not of the network that was meant"),
    ):
        with pytest.raises(error, match=words):
            read_attention(measured(plan, **{first.name: value}), plan, pictures=7)
    with pytest.raises(MessageError, match="not of the network"):
        read_attention(measured(plan, stranger=np.ones(3)), plan, pictures=7)


@pytest.mark.parametrize("pictures", [0, 8, 2**31])
def test_pictures_that_a_device_cannot_have_are_refused(plan, pictures):
    with pytest.raises(MessageError, match=f"over {pictures} pictures, the device has 1 to 7"):
        read_attention(measured(plan, pictures), plan, pictures=7)


def test_attention_without_an_accuracy_is_refused(plan):
    answer = measured(plan)
    bare = Envelope(ATTENTION, pb.AttentionReply(pictures=7).SerializeToString(), answer.blob)
    with pytest.raises(MessageError, match="no evaluation"):
        read_attention(bare, plan, pictures=7)
    with pytest.raises(MessageError, match="accuracy of 2"):
        read_attention(measured(plan, accuracy=2.0), plan, pictures=7)


def test_statistics_of_a_smaller_network_are_checked(plan):
    body = pb.CutReply(seconds=1.5).SerializeToString()
    sent = {
        f"statistics/{name}": np.ones(shape, np.float32)
        for name, shape in plan.shapes.items()
        if is_statistic(name)
    }

    def read(arrays, statistics=True):
        return read_cut(Envelope(CUT, body, pack(arrays)), plan, {}, statistics=statistics)

    found, seconds = read(sent)
    assert seconds == 1.5
    assert found.keys() == {name.removeprefix("statistics/") for name in sent}
    assert read({}, statistics=False) == ({}, 1.5)
    variance = next(name for name in sent if name.endswith("running_var"))
    for arrays, statistics, error, words in (
        (sent, False, MessageError, "does not fit"),
        ({}, True, MessageError, "does not fit"),
        (sent | {variance: sent[variance][:-1]}, True, MessageError, "does not fit"),
        (sent | {variance: -sent[variance]}, True, MessageError, "negative"),
        (sent | {variance: sent[variance] * np.nan}, True, NonFiniteUpdateError, "not finite"),
    ):
        with pytest.raises(error, match=words):
            read(arrays, statistics)
