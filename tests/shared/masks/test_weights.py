"""Weight masks: bytes, sizes, checks, and what they do to a network."""

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.artifacts.container import pack, unpack
from fedsprig.errors import ArtifactError, LimitError, PlanError, TruncatedArtifactError
from fedsprig.masks import WeightMask

shape_tables = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    max_size=4,
)
seeds = st.integers(0, 2**32)
SHAPES = {"fc.weight": (3, 2), "conv.weight": (2, 1, 1, 2)}
OTHERS = {"fc.bias": (3,), "more.weight": (9, 9)}


def drawn(shapes, seed):
    """Any mask at all, empty tensors included."""
    rng = np.random.default_rng(seed)
    return WeightMask({n: rng.random(shape) < rng.random() for n, shape in shapes.items()})


@pytest.fixture
def mask():
    return WeightMask(
        {
            "fc.weight": np.array([[1, 0], [0, 1], [1, 1]], bool),
            "conv.weight": np.array([1, 0, 0, 1], bool).reshape(2, 1, 1, 2),
        }
    )


@given(shapes=shape_tables, seed=seeds)
@settings(max_examples=100)
def test_a_mask_survives_the_round_trip(shapes, seed):
    mask = drawn(shapes, seed)
    data = mask.to_bytes()
    back = WeightMask.from_bytes(data, {**OTHERS, **shapes})
    assert back == mask
    assert hash(back) == hash(mask)
    assert back.to_bytes() == data
    assert {name: keep.shape for name, keep in back.tensors.items()} == shapes


@given(shapes=shape_tables, seed=seeds, more=st.integers(0, 1000))
@settings(max_examples=50)
def test_sizes_are_those_of_the_tensors(shapes, seed, more):
    mask = drawn(shapes, seed)
    assert mask.size == sum(keep.size for keep in mask.tensors.values())
    assert mask.kept == sum(int(keep.sum()) for keep in mask.tensors.values())
    bits = (mask.size + 7) // 8
    assert mask.stored_bytes(mask.size + more) == 4 * mask.kept + 4 * more + bits


def test_the_bytes_are_these(mask):
    """Golden: conv before fc, the first weight in the lowest bit, row by row."""
    arrays, metadata = unpack(mask.to_bytes())
    assert arrays.keys() == {"bits"}
    assert arrays["bits"].tolist() == [0b1001_1001, 0b11]
    assert metadata == {
        "kind": "weight mask",
        "version": "1",
        "tensors": '["conv.weight","fc.weight"]',
        "layout": "71b73f311ca637d8",
    }
    assert mask.digest == "d3444d5a27bf3a1ef31562b8c5f20dd160a48ce7d0677671974c4e2cc9cea251"
    assert (mask.size, mask.kept) == (10, 6)
    assert mask.stored_bytes(13) == 4 * 6 + 4 * 3 + 2


def test_equality_and_digest_do_not_depend_on_the_order_of_tensors(mask):
    other = WeightMask(dict(reversed(mask.tensors.items())))
    assert (mask, hash(mask), mask.digest) == (other, hash(other), other.digest)
    flipped = WeightMask({**mask.tensors, "fc.weight": ~mask.tensors["fc.weight"]})
    assert flipped != mask
    assert flipped.digest != mask.digest
    reshaped = WeightMask({**mask.tensors, "fc.weight": mask.tensors["fc.weight"].reshape(2, 3)})
    assert reshaped != mask
    assert reshaped.digest != mask.digest


def test_masks_cannot_be_changed():
    keep = np.ones((3, 2), bool)
    mask = WeightMask({"w": keep})
    keep[:] = False
    assert mask.kept == 6
    for array in (mask.flat, mask.tensors["w"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = False
    with pytest.raises(TypeError):
        mask.tensors["v"] = keep


def spoilt(mask, bits=None, **metadata):
    """The bytes of a mask with parts of them replaced."""
    arrays, text = unpack(mask.to_bytes())
    text |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    return pack(arrays if bits is None else bits, text)


BAD_NAMES = {
    "no JSON": "[",
    "deep": "[" * 100_000,
    "no list": {},
    "a number": [1],
    "no name": [""],
    "a name with a line break": ["fc\n"],
    "a tensor twice": ["fc.weight", "fc.weight"],
    "another order": ["fc.weight", "conv.weight"],
    "too many tensors": [f"{i:09}" for i in range((1 << 14) + 1)],
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_list_of_tensors_is_refused(mask, name):
    with pytest.raises(ArtifactError):
        WeightMask.from_bytes(spoilt(mask, tensors=BAD_NAMES[name]), SHAPES)


def test_bits_that_are_none_are_refused(mask):
    two = np.array([3, 1], np.uint8)
    for bits, error, why in (
        ({"bits": two[:1]}, TruncatedArtifactError, "has 1 of 2"),
        ({"bits": np.append(two, two)}, ArtifactError, "more bits"),
        ({"bits": two + np.uint8(4)}, ArtifactError, "more bits"),
        ({"bits": two.astype(np.int32)}, ArtifactError, "no uint8"),
        ({"bits": two[None]}, ArtifactError, "no uint8"),
        ({"other": two}, ArtifactError, "no uint8"),
        ({"bits": two, "more": two}, LimitError, "arrays"),
    ):
        with pytest.raises(error, match=why):
            WeightMask.from_bytes(spoilt(mask, bits), SHAPES)


def test_shapes_that_are_larger_than_the_bits_allocate_nothing(mask):
    huge = {"fc.weight": (1 << 30, 1 << 30), "conv.weight": (2, 1, 1, 2)}
    tiny = WeightMask({"w": np.ones((1,), bool)})
    with pytest.raises(PlanError, match="other shapes"):
        WeightMask.from_bytes(mask.to_bytes(), huge)
    forged = spoilt(tiny, layout=layout_of({"w": (1 << 30, 1 << 30)}))
    with pytest.raises(TruncatedArtifactError, match="has 1 of"):
        WeightMask.from_bytes(forged, {"w": (1 << 30, 1 << 30)})


def layout_of(shapes):
    """The digest as the format says it, written anew."""
    import hashlib

    text = json.dumps([[n, *shapes[n]] for n in sorted(shapes)], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_layout_is_the_documented_one(mask):
    assert unpack(mask.to_bytes())[1]["layout"] == layout_of(SHAPES)


def test_bytes_of_something_else_are_refused(mask):
    for change in ({"kind": "block mask"}, {"version": "2"}):
        with pytest.raises(ArtifactError, match="no weight mask"):
            WeightMask.from_bytes(spoilt(mask, **change), SHAPES)
    with pytest.raises(PlanError, match="no parameter here"):
        WeightMask.from_bytes(mask.to_bytes(), {"fc.weight": (3, 2)})
    with pytest.raises(PlanError, match="other shapes"):
        WeightMask.from_bytes(mask.to_bytes(), {**SHAPES, "fc.weight": (2, 3)})


@given(cut=st.integers(0, 300), flip=st.integers(0, 8 * 300))
@settings(max_examples=100)
def test_damaged_bytes_are_a_mask_or_a_named_error(cut, flip):
    data = bytearray(drawn(SHAPES, 1).to_bytes())
    with pytest.raises(ArtifactError):
        WeightMask.from_bytes(bytes(data[: min(cut, len(data) - 1)]), SHAPES)
    data[flip // 8 % len(data)] ^= 1 << flip % 8
    with contextlib.suppress(ArtifactError, PlanError):
        WeightMask.from_bytes(bytes(data), SHAPES).to_bytes()


def test_masks_that_do_not_fit_are_refused(mask):
    mask.check({**SHAPES, **OTHERS})
    with pytest.raises(PlanError, match=r"names conv\.weight"):
        mask.check({"fc.weight": (3, 2)})
    with pytest.raises(PlanError, match=r"fc\.weight \[3, 2\], the network has \[2, 3\]"):
        mask.check({**SHAPES, "fc.weight": (2, 3)})
    with pytest.raises(PlanError, match=r"drops all of fc\.weight"):
        WeightMask({"fc.weight": np.zeros((3, 2), bool)}).check(SHAPES)
    for bad in (np.ones((3, 2)), np.ones((), bool), np.ones((0, 2), bool)):
        with pytest.raises(PlanError, match="use bool"):
            WeightMask({"fc.weight": bad})


@pytest.mark.parametrize("kind", ["module", "tensors", "arrays"])
def test_absent_weights_become_zero_and_nothing_else_changes(kind):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    keep = np.array([[1, 0], [0, 1], [1, 1]], bool)
    mask = WeightMask({"0.weight": keep})
    with torch.no_grad():
        network[0].weight[0, 1] = float("inf")
        network[0].weight[1, 0] = float("nan")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: value.clone() for name, value in before.items()}
    arrays = {name: value.numpy() for name, value in state.items()}
    mask.apply_({"module": network, "tensors": state, "arrays": arrays}[kind])
    found = network.state_dict() if kind == "module" else state
    assert not found["0.weight"][~keep].any()
    assert torch.equal(found["0.weight"][keep], before["0.weight"][keep])
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(found[name], before[name])
    with pytest.raises(PlanError, match="no parameter here"):
        WeightMask({"0.weight": keep, "2.weight": keep}).apply_(network)
