"""Updates: round trips within the bound, few bytes, and every refusal by its name."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsprig.artifacts import pack, unpack
from fedsprig.errors import (
    LimitError,
    NonFiniteUpdateError,
    StaleUpdateError,
    TruncatedArtifactError,
    UnknownNameError,
    UpdateError,
    UpdateShapeError,
)
from fedsprig.updates import CODECS, decode_update, encode_update

BASE = "ab" * 32

deltas = st.dictionaries(
    st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=6),
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=4, max_side=4),
        elements=st.floats(-1e4, 1e4, width=32),
    ),
    min_size=1,
    max_size=5,
)


def shapes_of(delta):
    return {name: array.shape for name, array in delta.items()}


def resnet20_adapter(rank=8, width=16):
    """Shapes of what a device of a ResNet-20 sends: B, normalisation and the head, 80 tensors."""
    shapes = {}
    for i in range(19):
        channels = width << min(i // 7, 2)
        shapes[f"layer{i}.conv.adapter_b"] = (channels, rank)
        for suffix in ("weight", "bias", "running_mean"):
            shapes[f"layer{i}.bn.{suffix}"] = (channels,)
    return shapes | {"linear.weight": (10, 4 * width), "linear.bias": (10,)}


@given(delta=deltas, codec=st.sampled_from(sorted(CODECS)))
@settings(max_examples=80, deadline=None)
def test_round_trip_is_within_the_bound(delta, codec):
    data = encode_update(delta, base_digest=BASE, codec=codec)
    decoded = decode_update(data, shapes=shapes_of(delta), base_digest=BASE)
    assert decoded.keys() == delta.keys()
    for name, array in delta.items():
        assert decoded[name].shape == array.shape
        bound = CODECS[codec].error_bound(array)
        assert (np.abs(decoded[name].astype(np.float64) - array) <= bound).all()
    reordered = dict(reversed(delta.items()))
    assert encode_update(reordered, base_digest=BASE, codec=codec) == data


def test_tensors_and_other_floats_are_accepted():
    delta = {"a": torch.ones(2, 3), "b": np.full(2, 0.5, np.float64), "c": np.ones(1, np.float16)}
    decoded = decode_update(
        encode_update(delta, base_digest=BASE, codec="float32"),
        shapes={"a": (2, 3), "b": (2,), "c": (1,)},
        base_digest=BASE,
    )
    assert all(array.dtype == np.float32 for array in decoded.values())
    assert decoded["b"].tolist() == [0.5, 0.5]


def test_int8_costs_one_byte_a_value_and_little_beside():
    rng = np.random.default_rng(0)
    shapes = resnet20_adapter()
    delta = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    data = encode_update(delta, base_digest=BASE)
    matrices = sum(array.size for array in delta.values() if array.ndim > 1)
    vectors = sum(array.size for array in delta.values() if array.ndim == 1)
    assert len(data) - matrices - 2 * vectors < 2_000  # scales, names, digests: all of it
    big = {"conv.adapter_b": rng.normal(size=(1000, 100)).astype(np.float32)}
    assert len(encode_update(big, base_digest=BASE)) < 1.02 * 100_000


def small():
    delta = {"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)}
    return delta, shapes_of(delta)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_is_not_finite_is_not_sent(value):
    delta = {"fine": np.ones(2), "broken": np.array([0, value])}
    with pytest.raises(NonFiniteUpdateError, match="broken"):
        encode_update(delta, base_digest=BASE)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_what_is_not_finite_is_not_taken(value, codec):
    delta, shapes = small()
    arrays, metadata = unpack(encode_update(delta, base_digest=BASE, codec=codec))
    part = "floats" if codec == "float32" else "halves"
    arrays[part][-1] = value
    with pytest.raises(NonFiniteUpdateError, match="'b'"):
        decode_update(pack(arrays, metadata), shapes=shapes, base_digest=BASE)


def test_an_update_against_another_state_is_stale():
    delta, shapes = small()
    data = encode_update(delta, base_digest="cd" * 32)
    with pytest.raises(StaleUpdateError, match=r"cdcdcd.*ababab.*current adapter"):
        decode_update(data, shapes=shapes, base_digest=BASE)


@pytest.mark.parametrize(
    "shapes",
    [
        {"a": (2, 2)},
        {"a": (2, 2), "b": (3,), "c": (1,)},
        {"a": (2, 2), "x": (3,)},
        {"a": (4, 1), "b": (3,)},
        {"a": (3,), "b": (2, 2)},
    ],
)
def test_other_tensors_are_refused(shapes):
    data = encode_update(small()[0], base_digest=BASE)
    with pytest.raises(UpdateShapeError, match="mask"):
        decode_update(data, shapes=shapes, base_digest=BASE)


@pytest.mark.parametrize(
    "delta",
    [{}, {"a": np.zeros((0, 3))}, {"a": np.zeros((3, 0))}, {"a": np.zeros(0)}],
    ids=["no tensor", "no rows", "empty rows", "empty vector"],
)
def test_what_holds_no_numbers_is_refused(delta):
    with pytest.raises(UpdateShapeError):
        encode_update(delta, base_digest=BASE)
    with pytest.raises(UpdateShapeError):
        decode_update(b"", shapes=shapes_of(delta), base_digest=BASE)


def test_integers_are_refused():
    with pytest.raises(UpdateShapeError, match="floating point"):
        encode_update({"a": np.zeros(2, np.int64)}, base_digest=BASE)


def test_parts_that_do_not_fit_the_layout_are_refused():
    delta, shapes = small()
    arrays, metadata = unpack(encode_update(delta, base_digest=BASE))
    for change in (
        {"integers": arrays["integers"][:-1]},
        {"integers": arrays["integers"].astype(np.int16)},
        {"integers": arrays["integers"].reshape(2, 2)},
        {"more": np.zeros(1, np.int8)},
    ):
        with pytest.raises(UpdateShapeError, match="integers int8"):
            decode_update(pack(arrays | change, metadata), shapes=shapes, base_digest=BASE)
    del arrays["codes"]
    with pytest.raises(UpdateShapeError, match="codes"):
        decode_update(pack(arrays, metadata), shapes=shapes, base_digest=BASE)


def test_other_refusals_have_names():
    delta, shapes = small()
    data = encode_update(delta, base_digest=BASE)
    with pytest.raises(TruncatedArtifactError):
        decode_update(data[:-1], shapes=shapes, base_digest=BASE)
    with pytest.raises(LimitError):
        decode_update(data + bytes(1 << 20), shapes=shapes, base_digest=BASE)
    arrays, metadata = unpack(data)
    with pytest.raises(UpdateError, match="same version"):
        decode_update(
            pack(arrays, metadata | {"format": "fedsprig-update/9"}),
            shapes=shapes,
            base_digest=BASE,
        )
    with pytest.raises(UnknownNameError):
        decode_update(pack(arrays, metadata | {"codec": "?"}), shapes=shapes, base_digest=BASE)
    with pytest.raises(UnknownNameError):
        encode_update(delta, base_digest=BASE, codec="?")
