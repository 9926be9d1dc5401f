"""Answers are checked before they are believed."""

import numpy as np
import pytest
import torch

from fedsprig.adapters import is_statistic
from fedsprig.artifacts import pack
from fedsprig.errors import MessageError, UpdateError
from fedsprig.graph import trace_groups
from fedsprig.models import build
from fedsprig.updates import encode_update
from fedsprig.wire import EVALUATE, INSTALL, ROUND, Envelope
from fedsprig.wire import device_pb2 as pb
from fedsprig_server.replies import read_evaluation, read_installed, read_update


def test_an_answer_without_the_evaluation_that_was_asked_for_is_refused():
    with pytest.raises(MessageError, match="no evaluation"):
        read_update(Envelope(ROUND, pb.RoundReply(loss=1.0).SerializeToString()), {}, "")
    with pytest.raises(MessageError, match="no evaluation"):
        read_evaluation(Envelope(EVALUATE, pb.EvaluateReply(seconds=1.0).SerializeToString()))


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
