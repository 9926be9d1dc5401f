"""Whole states in a codec."""

import json

import numpy as np
import pytest
import torch

from fedsprig.artifacts import Limits, pack, unpack
from fedsprig.errors import ArtifactError, LimitError, NonFiniteUpdateError, UpdateShapeError
from fedsprig.models.cifar_resnet import CifarResNet
from fedsprig.updates import CODECS, decode_state, encode_state


def network_state():
    torch.manual_seed(0)
    return CifarResNet(8, num_classes=3, width=4).state_dict()


@pytest.mark.parametrize("codec", CODECS)
def test_a_network_survives_within_the_bound(codec):
    state = network_state()
    decoded = decode_state(encode_state(state, codec))
    assert decoded.keys() == state.keys()
    for name, tensor in state.items():
        array = tensor.numpy()
        assert decoded[name].shape == array.shape
        if array.dtype == np.float32:
            assert (np.abs(decoded[name] - array) <= CODECS[codec].error_bound(array)).all()
        else:
            assert decoded[name].dtype == array.dtype == np.int64
            np.testing.assert_array_equal(decoded[name], array)


def test_bytes_per_value():
    state = {"w": torch.zeros(64, 64, 3, 3)}
    assert len(encode_state(state, "int8")) < 64 * 64 * 9 + 64 + 500
    assert len(encode_state(state, "float16")) < 2 * 64 * 64 * 9 + 500


def test_not_finite_weights_are_not_sent():
    with pytest.raises(NonFiniteUpdateError, match="'w'"):
        encode_state({"w": torch.tensor([float("nan")])}, "int8")


def changed(**metadata):
    arrays, found = unpack(encode_state({"w": torch.ones(2, 2), "n": torch.tensor(3)}, "int8"))
    return pack(arrays, found | metadata)


@pytest.mark.parametrize(
    "table",
    [
        "",
        "{}",
        "[" * 10_000,
        '["w"]',
        '[["w",[2,2]],["w",[2,2]]]',
        '[["w",[2,-2]]]',
        '[["w",[true,4]]]',
        '[["w",[2.0,2]]]',
        '[["w",[0]]]',
        '[["w",[99999999999999]]]',
        "[[1,[2,2]]]",
        json.dumps([["w", [2, 2] + [1] * 70]]),
    ],
)
def test_tables_that_are_no_tables_are_refused(table):
    with pytest.raises(ArtifactError, match="table"):
        decode_state(changed(tensors=table))


def test_a_table_that_promises_more_than_the_bytes_hold_allocates_nothing():
    with pytest.raises(UpdateShapeError, match="integers int8"):
        decode_state(changed(tensors=json.dumps([["w", [1 << 40, 1 << 40]]])))


def test_other_refusals():
    with pytest.raises(ArtifactError, match="same version"):
        decode_state(changed(format="fedsprig-update/1"))
    with pytest.raises(LimitError):
        decode_state(changed(), limits=Limits(total_bytes=100))
    arrays, metadata = unpack(changed())
    for smuggled in ({"raw:w": np.zeros(2, np.int8)}, {"raw:x": np.array([np.nan], np.float32)}):
        with pytest.raises(ArtifactError, match="encode it once"):
            decode_state(pack(arrays | smuggled, metadata))
