"""The container: round trips, interchange with the reference implementation, limits."""

import contextlib
import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsprig.artifacts import Limits, pack, read_file, unpack, write_bytes
from fedsprig.artifacts.container import DTYPES
from fedsprig.errors import ArtifactError, LimitError, TruncatedArtifactError

names = st.text(min_size=1, max_size=12).filter(lambda s: s.isprintable() and s != "__metadata__")
arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda tag: hnp.arrays(
        DTYPES[tag].newbyteorder("="), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
    )
)
texts = st.dictionaries(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    max_size=3,
)


def same(left, right):
    """Equal down to the bits: NaN equals NaN, but 0.0 is not -0.0."""
    assert left.keys() == right.keys()
    for name, array in left.items():
        other = right[name]
        assert (other.dtype, other.shape) == (array.dtype, array.shape)
        assert other.tobytes() == array.tobytes()


@given(content=st.dictionaries(names, arrays, max_size=4), metadata=texts)
@settings(max_examples=60, deadline=None)
def test_round_trip_is_exact_and_canonical(content, metadata):
    data = pack(content, metadata)
    found, text = unpack(data)
    same(content, found)
    assert text == metadata
    backwards = dict(reversed(content.items()))
    assert pack(backwards, dict(reversed(metadata.items()))) == data


@given(content=st.dictionaries(names, arrays, max_size=4))
@settings(max_examples=40, deadline=None)
def test_the_reference_implementation_reads_ours_and_we_read_its(content):
    same(content, safetensors.numpy.load(pack(content, {"k": "v"})))
    found, text = unpack(safetensors.numpy.save(content, {"k": "v"}))
    same(content, found)
    assert text == {"k": "v"}


def test_bytes_by_hand():
    data = pack({"a": np.array([1, 2], np.uint8)}, {"k": "v"})
    header = b'{"__metadata__":{"k":"v"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}  '
    assert len(header) % 8 == 0
    assert data == len(header).to_bytes(8, "little") + header + b"\x01\x02"


def test_views_and_foreign_byte_orders_are_stored_by_value():
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    content = {"view": base.T[1:, ::2], "big": base.astype(">f4")}
    found, _ = unpack(pack(content))
    np.testing.assert_array_equal(found["view"], base.T[1:, ::2])
    np.testing.assert_array_equal(found["big"], base)
    assert found["big"].dtype == np.float32


def test_arrays_own_their_memory():
    data = bytearray(pack({"a": np.zeros(4, np.float32)}))
    found, _ = unpack(data)
    data[-16:] = b"\xff" * 16
    assert not found["a"].any()
    found["a"][0] = 1  # writable


@given(cut=st.integers(0, 200))
def test_every_proper_prefix_is_truncated(cut):
    data = pack({"weight": np.arange(5, dtype=np.float32), "b": np.ones(3, np.int8)}, {"k": "v"})
    with pytest.raises(TruncatedArtifactError, match="again"):
        unpack(data[: min(cut, len(data) - 1)])


@pytest.mark.parametrize(
    "limits",
    [
        Limits(total_bytes=100),
        Limits(header_bytes=40),
        Limits(tensors=1),
        Limits(axes=1),
        Limits(name_bytes=3),
    ],
    ids=["total", "header", "tensors", "axes", "name"],
)
def test_each_limit_holds(limits):
    data = pack({"long": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.int8)})
    unpack(data)
    with pytest.raises(LimitError):
        unpack(data, limits=limits)


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "\ud800", "__metadata__"])
def test_names_that_are_not_written(name):
    with pytest.raises(ArtifactError, match="name"):
        pack({name: np.zeros(1, np.float32)})


@pytest.mark.parametrize("dtype", [np.complex64, np.longdouble, object, "U4", "datetime64[s]"])
def test_dtypes_that_are_not_written(dtype):
    with pytest.raises(ArtifactError, match="convert it to float64"):
        pack({"a": np.zeros(1, dtype)})


@pytest.mark.parametrize("metadata", [{"k": "\0"}, {"\ud800": "v"}, {"k": 1}])
def test_metadata_that_is_not_written(metadata):
    with pytest.raises(ArtifactError, match="metadata"):
        pack({}, metadata)


@given(data=st.binary(max_size=120), prefix=st.booleans())
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused_by_name_or_read(data, prefix):
    if prefix:
        data = len(data).to_bytes(8, "little") + data
    with contextlib.suppress(ArtifactError):  # any other exception fails the test
        found, _ = unpack(data)
        assert sum(array.nbytes for array in found.values()) <= len(data)


@given(position=st.integers(0, 400), value=st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_one_damaged_byte_is_refused_by_name_or_read(position, value):
    data = bytearray(pack({"w": np.ones((2, 3), np.float16), "m": np.array([True])}, {"k": "v"}))
    data[position % len(data)] = value
    with contextlib.suppress(ArtifactError):
        found, _ = unpack(data)
        assert sum(array.nbytes for array in found.values()) <= len(data)


def test_header_is_ordinary_json():
    data = pack({"x": np.zeros((2, 3), np.float32)})
    length = int.from_bytes(data[:8], "little")
    assert json.loads(data[8 : 8 + length])["x"]["shape"] == [2, 3]


def test_files(tmp_path):
    path = tmp_path / "made" / "a.safetensors"
    content = {"a": np.arange(3, dtype=np.int32)}
    write_bytes(path, pack(content, {"k": "v"}))
    found, text = read_file(path)
    same(content, found)
    assert text == {"k": "v"}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TruncatedArtifactError, match=r"a\.safetensors"):
        read_file(path)
