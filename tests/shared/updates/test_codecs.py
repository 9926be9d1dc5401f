"""Codecs keep the error that they state, for every float32 tensor there is."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsprig.errors import NonFiniteUpdateError, UnknownNameError
from fedsprig.updates import CODECS, get_codec

BIG = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).smallest_subnormal)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Rows of very different magnitude, which per-row scales are for.
mixed = st.one_of(finite, st.sampled_from([0.0, -0.0, TINY, -TINY, BIG, -BIG, 1.0, 1e-30]))
tensors = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4), elements=mixed)


def transfer(codec, array):
    parts = codec.encode(array)
    layout = codec.layout(array.shape)
    assert {name: (part.dtype, part.size) for name, part in parts.items()} == dict(layout)
    assert all(part.ndim == 1 for part in parts.values())
    return codec.decode(parts, array.shape)


@pytest.mark.parametrize("name", CODECS)
@given(array=tensors)
@example(array=np.array([[BIG, -BIG], [TINY, 0], [3 * TINY, -TINY]], np.float32))
@example(array=np.array([BIG, 1, TINY], np.float32))
@example(array=np.array(TINY, np.float32))
@example(array=np.zeros((3, 2), np.float32))
@settings(max_examples=150, deadline=None)
def test_error_is_within_the_stated_bound(name, array):
    codec = CODECS[name]
    decoded = transfer(codec, array)
    assert decoded.dtype == np.float32
    assert decoded.shape == array.shape
    assert np.isfinite(decoded).all()
    bound = codec.error_bound(array)
    assert bound.shape == array.shape
    assert bound.dtype == np.float64
    assert (np.abs(decoded.astype(np.float64) - array.astype(np.float64)) <= bound).all()


@given(array=tensors)
@settings(max_examples=100, deadline=None)
def test_bounds_are_useful(array):
    # A bound that is always true because it is huge would pass the test above.
    rows = np.abs(array.astype(np.float64))
    largest = rows.max(initial=0)
    assert (CODECS["float32"].error_bound(array) == 0).all()
    half = CODECS["float16"].error_bound(array)
    assert (half <= rows * 2.0**-10 + largest * 2.0**-38 + 2 * TINY).all()
    if array.ndim >= 2:
        peak = rows.reshape(len(rows), -1).max(axis=1).reshape((-1,) + (1,) * (array.ndim - 1))
        byte = CODECS["int8"].error_bound(array)
        assert (byte <= np.maximum(peak / 127, largest * 2.0**-38) * 0.55 + 2 * TINY).all()


def test_int8_by_hand():
    array = np.array([[127.0, -63.5, 0.4], [0.0, 0.0, 0.0], [2.0, -1.0, 0.0]], np.float32)
    parts = CODECS["int8"].encode(array)
    # Row 0: step 1 = 2^(0/8). Row 2: 2/127 = 0.01575, the next eighth above is 2^(-47/8) = 0.01703.
    assert parts["bases"].tolist() == [0]
    assert parts["codes"].tolist() == [0, 255, 47]
    assert parts["integers"].tolist() == [127, -64, 0, 0, 0, 0, 117, -59, 0]
    decoded = CODECS["int8"].decode(parts, (3, 3))
    np.testing.assert_array_equal(decoded[:2], [[127, -64, 0], [0, 0, 0]])
    np.testing.assert_allclose(decoded[2], [117 * 2 ** (-47 / 8), -59 * 2 ** (-47 / 8), 0])


@given(
    bits=hnp.arrays(np.uint16, st.integers(1, 8), elements=st.integers(0, 2**16 - 1)),
    exponent=st.integers(-128, 127),
)
@example(bits=np.array([0x7BFF, 0xFBFF, 0x0001], np.uint16), exponent=127)
@example(bits=np.array([0x7BFF, 0x8001, 0x03FF], np.uint16), exponent=-128)
@settings(max_examples=300)
def test_float16_is_what_float64_would_give_to_the_bit(bits, exponent):
    """It computes in float32 for speed; devices of any release must agree on every bit."""
    halves = bits.view(np.float16)
    halves = halves[np.isfinite(halves)]
    if not halves.size:
        return
    parts = {"halves": halves, "exponents": np.array([exponent], np.int8)}
    decoded = CODECS["float16"].decode(parts, halves.shape)
    slow = np.clip(np.ldexp(halves.astype(np.float64), exponent), -BIG, BIG).astype(np.float32)
    assert decoded.tobytes() == slow.tobytes()


@given(array=hnp.arrays(np.float32, st.integers(1, 8), elements=mixed))
@settings(max_examples=300)
def test_float16_rounds_as_float64_would(array):
    parts = CODECS["float16"].encode(array)
    exponent = int(parts["exponents"][0])
    slow = np.ldexp(array.astype(np.float64), -exponent).astype(np.float16)
    assert parts["halves"].tobytes() == slow.tobytes()


def test_float16_by_hand():
    parts = CODECS["float16"].encode(np.array([1e6, 1.0, -3.0], np.float32))
    # 1e6 = 0.954 * 2^20 goes to 0.954 * 2^15 = 31250; there float16 counts in steps of 16.
    assert parts["exponents"].tolist() == [5]
    assert parts["halves"].tolist() == [31248.0, 1 / 32, -3 / 32]


def test_vectors_keep_small_values_beside_large_ones():
    variances = np.array([1000.0, 1e-3], np.float32)
    decoded = transfer(CODECS["int8"], variances)
    np.testing.assert_allclose(decoded, variances, rtol=2**-10)


def test_decoding_is_the_same_whatever_surrounds_a_row():
    rng = np.random.default_rng(0)
    array = rng.normal(size=(5, 7)).astype(np.float32)
    whole = transfer(CODECS["int8"], array)
    alone = np.concatenate([transfer(CODECS["int8"], row[None]) for row in array])
    np.testing.assert_array_equal(whole, alone)


@pytest.mark.parametrize(
    ("name", "part", "value"),
    [
        ("float32", "floats", np.nan),
        ("float32", "floats", -np.inf),
        ("float16", "halves", np.nan),
        ("float16", "halves", np.inf),
        ("int8", "bases", 32767),
    ],
)
def test_parts_that_are_not_finite_are_refused(name, part, value):
    codec = CODECS[name]
    parts = {key: np.array(values) for key, values in codec.encode(np.ones((2, 2), "f4")).items()}
    parts[part][-1] = value
    with pytest.raises(NonFiniteUpdateError):
        codec.decode(parts, (2, 2))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_a_stranger_sends_decodes_to_finite_numbers_or_is_refused(data):
    codec = CODECS[data.draw(st.sampled_from(sorted(CODECS)))]
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=3))
    parts = {}
    for part, (dtype, length) in codec.layout(shape).items():
        raw = data.draw(
            st.binary(min_size=length * dtype.itemsize, max_size=length * dtype.itemsize)
        )
        parts[part] = np.frombuffer(raw, dtype)
    try:
        decoded = codec.decode(parts, shape)
    except NonFiniteUpdateError:
        return
    assert np.isfinite(decoded).all()
    assert (decoded.shape, decoded.dtype) == (shape, np.float32)


def test_unknown_codec_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'int8'"):
        get_codec("int4")
