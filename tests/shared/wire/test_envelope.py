"""Bytes from the other side are measured and parsed before anything believes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsprig.errors import FedsprigError, LimitError, MessageError
from fedsprig.wire import KINDS, PROFILE, Envelope, parse
from fedsprig.wire import device_pb2 as pb
from fedsprig.wire.envelope import BODY_BYTES


def test_a_message_survives_the_trip():
    sent = pb.RoundRequest(run="a.one_shot", round=3, adapter="ff", codec="int8", evaluate=True)
    assert parse(pb.RoundRequest, sent.SerializeToString()) == sent


def test_kinds_are_flower_message_types():
    for kind in KINDS:
        category, _, action = kind.partition(".")
        assert category in {"train", "evaluate", "query"}
        assert action.isidentifier()


def test_a_body_over_the_limit_is_refused_before_it_is_parsed():
    with pytest.raises(LimitError, match="body"):
        Envelope(PROFILE, bytes(BODY_BYTES + 1))
    with pytest.raises(LimitError, match="ProfileReply"):
        parse(pb.ProfileReply, bytes(BODY_BYTES + 1))


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused_by_name(data):
    for message_type in (pb.SubNetwork, pb.RoundReply, pb.ProfileReply, pb.EvaluateRequest):
        refusal = None
        try:
            parse(message_type, data)
        except FedsprigError as error:
            refusal = error
        assert refusal is None or isinstance(refusal, MessageError)
        assert "\n" not in str(refusal)
