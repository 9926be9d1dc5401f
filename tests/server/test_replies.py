"""Answers are checked before they are believed."""

import pytest

from fedsprig.errors import MessageError
from fedsprig.wire import EVALUATE, ROUND, Envelope
from fedsprig.wire import device_pb2 as pb
from fedsprig_server.replies import read_evaluation, read_update


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
