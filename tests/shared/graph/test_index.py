"""Kept positions by hand, and restrict against one position at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import PlanError
from fedsprig.graph import (
    AxisMap,
    Group,
    GroupPlan,
    index_within,
    kept_axes,
    kept_index,
    restrict,
)
from fedsprig.graph.index import follow

THREE = np.arange(3)[:, None]


@pytest.fixture
def plan():
    """a: 3 channels, flattened to 2 pixels each in b; c shares b's input axis by concatenation."""
    a = Group(
        "a",
        3,
        "inner",
        (
            AxisMap("a.weight", 0, THREE, "out"),
            AxisMap("b.weight", 1, np.arange(6).reshape(3, 2), "in"),
        ),
        (),
    )
    c = Group(
        "c",
        2,
        "inner",
        (
            AxisMap("c.weight", 0, THREE[:2], "out"),
            AxisMap("b.weight", 1, np.array([[6], [7]]), "in"),
        ),
        (),
    )
    shapes = {"a.weight": (3, 4), "b.weight": (5, 8), "c.weight": (2, 4), "b.bias": (5,)}
    return GroupPlan("m", (1, 4), "b", (a, c), shapes, {}, {}, {})


def mask(**groups):
    return SimpleNamespace(groups={k: np.array(v, dtype=bool) for k, v in groups.items()})


def as_lists(index):
    return {t: {a: kept.tolist() for a, kept in axes.items()} for t, axes in index.items()}


def test_the_index_by_hand(plan):
    found = kept_index(plan, mask(a=[1, 0, 1], c=[0, 1]))
    assert as_lists(found) == {
        "a.weight": {0: [0, 2]},
        "b.weight": {1: [0, 1, 4, 5, 7]},
        "c.weight": {0: [1]},
    }
    assert found["a.weight"][0].dtype == np.int64


def test_a_group_that_keeps_everything_does_not_appear(plan):
    assert kept_index(plan, mask(a=[1, 1, 1], c=[1, 1])) == {}
    assert as_lists(kept_index(plan, mask(a=[1, 1, 1], c=[1, 0]))) == {
        "b.weight": {1: [0, 1, 2, 3, 4, 5, 6]},
        "c.weight": {0: [0]},
    }


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": [1, 1, 1]}, "group c"),
        ({"a": [1, 1], "c": [1, 1]}, "group a"),
        ({"a": [0, 0, 0], "c": [1, 1]}, "keep at least one"),
        ({"a": [1, 1, 1], "c": [1, 1], "d": [1]}, "no such group"),
    ],
)
def test_masks_of_another_plan_are_refused(plan, groups, message):
    with pytest.raises(PlanError, match=message):
        kept_index(plan, mask(**groups))


def test_a_mask_of_numbers_is_refused(plan):
    bad = SimpleNamespace(groups={"a": np.array([1, 0, 1]), "c": np.array([1, 1])})
    with pytest.raises(PlanError, match="bool"):
        kept_index(plan, bad)


def test_whom_adapter_tensors_follow(plan):
    assert follow("x.y.adapter_b") == ("x.y.weight", {0: 0})
    assert follow("x.y.adapter_a") == ("x.y.weight", {1: 1})
    assert follow("adapter_b") == ("weight", {0: 0})
    assert follow("x.adapter_scale") == ("x.adapter_scale", {})
    index = kept_index(plan, mask(a=[1, 0, 1], c=[0, 1]))
    assert {a: k.tolist() for a, k in kept_axes("b.adapter_a", index).items()} == {
        1: [0, 1, 4, 5, 7]
    }
    assert kept_axes("b.adapter_b", index) == {}  # b's outputs stay
    assert kept_axes("b.bias", index) == {}


def test_restrict_by_hand_with_adapters(plan):
    index = kept_index(plan, mask(a=[1, 0, 1], c=[0, 1]))
    full = {
        "a.weight": np.arange(12.0).reshape(3, 4),
        "a.adapter_b": np.array([[1.0], [2.0], [3.0]]),
        "b.adapter_a": np.arange(8.0)[None],
        "b.bias": np.ones(5),
    }
    small = restrict(full, index)
    assert small["a.weight"].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert small["a.adapter_b"].tolist() == [[1], [3]]
    assert small["b.adapter_a"].tolist() == [[0, 1, 4, 5, 7]]
    assert small["b.bias"] is full["b.bias"]


def test_widths_that_do_not_fit_are_refused(plan):
    index = kept_index(plan, mask(a=[1, 0, 1], c=[0, 1]))
    with pytest.raises(PlanError, match="full width"):
        restrict({"a.weight": np.zeros((2, 4))}, index)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_restrict_keeps_the_same_of_arrays_and_tensors(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    index = {"x": {}}
    for axis in axes:
        kept = data.draw(st.sets(st.integers(0, shape[axis] - 1), min_size=1))
        index["x"][axis] = np.array(sorted(kept), dtype=np.int64)
    full = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    small = restrict({"x": full}, index)
    # A slow reference: one position at a time.
    expected = [
        full[at]
        for at in np.ndindex(*shape)
        if all(at[axis] in kept for axis, kept in index["x"].items())
    ]
    assert small["x"].ravel().tolist() == expected
    assert small["x"].shape == tuple(len(index["x"].get(a, range(n))) for a, n in enumerate(shape))
    tensor = restrict({"x": torch.from_numpy(full)}, index)
    assert np.array_equal(tensor["x"].numpy(), small["x"])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cutting_twice_is_cutting_once(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=2)))
    outer, inner = {}, {}
    for axis, size in enumerate(shape):
        wide = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
        narrow = data.draw(st.sets(st.sampled_from(sorted(wide)), min_size=1))
        for index, kept in ((outer, wide), (inner, narrow)):
            if len(kept) < size:
                index.setdefault("x.weight", {})[axis] = np.array(sorted(kept), np.int64)
    values = np.random.default_rng(0).normal(size=shape)
    full = {"x.weight": values, "x.adapter_b": values[:, :1], "x.adapter_a": values[:1]}
    twice = restrict(restrict(full, outer), index_within(outer, inner))
    for name, value in restrict(full, inner).items():
        np.testing.assert_array_equal(twice[name], value)


def test_what_is_gone_cannot_come_back(plan):
    wide, narrow = (
        kept_index(plan, mask(a=[1, 0, 1], c=[1, 1])),
        kept_index(plan, mask(a=[1, 1, 0], c=[1, 1])),
    )
    for inner in (narrow, {}):
        with pytest.raises(PlanError, match=r"keeps more of a\.weight"):
            index_within(wide, inner)
    assert index_within({}, narrow) == narrow
    assert index_within(wide, wide) == {}
