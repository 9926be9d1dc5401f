"""Plans are checked when they are made, and survive their bytes bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.artifacts import pack, unpack
from fedsprig.errors import FedsprigError, PlanError
from fedsprig.graph import AxisMap, Group, GroupPlan, Tap

FOUR = np.arange(4)[:, None]
SHAPES = {
    "a.weight": (4, 3, 3, 3),
    "a_bn.running_mean": (4,),
    "b.weight": (5, 16),
    "head.weight": (10, 5),
    "head.bias": (10,),
}


def plan_of(*groups, **changes):
    fields = {
        "model": "tiny",
        "input_shape": (1, 3, 8, 8),
        "head": "head",
        "groups": groups or (group_a(), group_b()),
        "shapes": SHAPES,
        "macs_per_weight": {"a.weight": 64, "b.weight": 1},
        "unit_macs": {},
        "frozen": {"head": "outputs of the model (classes)"},
        "buffers": frozenset({"a_bn.running_mean"}),
    }
    return GroupPlan(**(fields | changes))


def group_a(**changes):
    pixels = np.arange(16).reshape(4, 4)  # four pixels a channel after the flatten
    fields = {
        "name": "a",
        "units": 4,
        "kind": "inner",
        "axes": (
            AxisMap("a.weight", 0, FOUR, "out"),
            AxisMap("a_bn.running_mean", 0, FOUR, "norm"),
            AxisMap("b.weight", 1, pixels, "in"),
        ),
        "taps": (Tap("a_bn", "output", 1, FOUR),),
    }
    return Group(**(fields | changes))


def group_b():
    five = np.arange(5)[:, None]
    axes = (AxisMap("b.weight", 0, five, "out"), AxisMap("head.weight", 1, five, "in"))
    return Group("b", 5, "stream", axes, (Tap("b", "output", -1, five),))


def assert_same(one, other):
    for name in ("model", "input_shape", "head", "shapes", "macs_per_weight", "unit_macs"):
        assert getattr(one, name) == getattr(other, name)
    assert (one.frozen, one.buffers) == (other.frozen, other.buffers)
    for a, b in zip(one.groups, other.groups, strict=True):
        assert (a.name, a.units, a.kind) == (b.name, b.units, b.kind)
        for x, y in zip(a.axes, b.axes, strict=True):
            assert (x.tensor, x.axis, x.role) == (y.tensor, y.axis, y.role)
            assert np.array_equal(x.positions, y.positions)
        for x, y in zip(a.taps, b.taps, strict=True):
            assert (x.module, x.where, x.axis) == (y.module, y.where, y.axis)
            assert np.array_equal(x.positions, y.positions)


def test_bytes_give_the_same_plan_and_the_same_bytes():
    plan = plan_of()
    again = GroupPlan.from_bytes(plan.to_bytes())
    assert_same(plan, again)
    assert again.to_bytes() == plan.to_bytes()
    assert again.digest == plan.digest
    assert len(plan.digest) == 64


def test_the_order_of_mappings_does_not_change_the_digest():
    turned = plan_of(shapes=dict(reversed(SHAPES.items())))
    assert turned.digest == plan_of().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"input_shape": (1, 3, 9, 8)},
        {"head": ""},
        {"macs_per_weight": {"a.weight": 65, "b.weight": 1}},
        {"unit_macs": {"a": 1}},
        {"frozen": {}},
        {"buffers": frozenset()},
        {"groups": (group_a(),)},
    ],
)
def test_every_field_changes_the_digest(changes):
    assert plan_of(**changes).digest != plan_of().digest


def test_units_are_counted_over_all_groups():
    assert plan_of().units == 9


def test_a_group_is_found_by_name_and_a_frozen_one_says_why():
    assert plan_of().group("b").units == 5
    with pytest.raises(PlanError, match=r"head.*classes"):
        plan_of().group("head")
    with pytest.raises(PlanError, match="no such group"):
        plan_of().group("c")


def test_another_number_of_classes_changes_the_head_only():
    plan = plan_of().with_num_classes(3)
    assert plan.shapes["head.weight"] == (3, 5)
    assert plan.shapes["head.bias"] == (3,)
    assert {n for n in SHAPES if plan.shapes[n] != SHAPES[n]} == {"head.weight", "head.bias"}
    assert plan.buffers == plan_of().buffers
    with pytest.raises(PlanError, match="at least 1"):
        plan_of().with_num_classes(0)
    with pytest.raises(PlanError, match="no head"):
        plan_of(head="").with_num_classes(3)


def test_values_cannot_be_changed_afterwards():
    positions = FOUR.astype(np.int32)
    mapped = AxisMap("a.weight", 0, positions, "out")
    positions[0, 0] = 3
    assert mapped.positions[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        mapped.positions[0, 0] = 1
    with pytest.raises(TypeError):
        plan_of().shapes["a.weight"] = (1,)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ((AxisMap("zzz", 0, FOUR, "out"),), "no axis"),
        ((AxisMap("a.weight", 4, FOUR, "out"),), "no axis 4"),
        ((AxisMap("a.weight", 1, FOUR, "out"),), "exceed"),
        ((AxisMap("a.weight", 0, FOUR - 1, "out"),), "exceed"),
        ((AxisMap("a.weight", 0, np.array([[0], [1], [2], [2]]), "out"),), "two units"),
        ((AxisMap("a.weight", 0, FOUR, "out"), AxisMap("a.weight", 0, FOUR, "in")), "two units"),
    ],
)
def test_maps_that_do_not_fit_are_refused(axes, message):
    with pytest.raises(PlanError, match=message):
        plan_of(group_a(axes=axes))


def test_other_inconsistencies_are_refused():
    with pytest.raises(PlanError, match="same name"):
        plan_of(group_a(), group_a())
    with pytest.raises(PlanError, match="both prunable and frozen"):
        plan_of(frozen={"a": "why"})
    with pytest.raises(PlanError, match="a map has 4"):
        group_a(units=5)
    with pytest.raises(PlanError, match="kind"):
        group_a(kind="outer")
    with pytest.raises(PlanError, match="role"):
        AxisMap("a.weight", 0, FOUR, "sideways")
    with pytest.raises(PlanError, match="tap"):
        Tap("a", "within", 1, FOUR)
    with pytest.raises(PlanError, match=r"\[units, k\]"):
        AxisMap("a.weight", 0, np.arange(4), "out")
    with pytest.raises(PlanError, match="unit_macs"):
        plan_of(unit_macs={"nobody": 3})
    with pytest.raises(PlanError, match="macs_per_weight"):
        plan_of(macs_per_weight={"a.weight": -1})


def test_bytes_of_another_kind_are_no_plan():
    with pytest.raises(PlanError, match="not a group plan"):
        GroupPlan.from_bytes(pack({"x": np.zeros(3, np.int32)}, {"kind": "mask", "version": "1"}))
    arrays, metadata = unpack(plan_of().to_bytes())
    with pytest.raises(PlanError, match="version"):
        GroupPlan.from_bytes(pack(arrays, metadata | {"version": "2"}))
    for name in arrays:
        fewer = {key: value for key, value in arrays.items() if key != name}
        with pytest.raises(PlanError, match=name):
            GroupPlan.from_bytes(pack(fewer, metadata))


@pytest.mark.parametrize(
    ("name", "row", "column", "value"),
    [
        ("axes", 0, 0, 9),  # a group that is not there
        ("axes", 0, 0, -1),
        ("axes", 0, 1, 99),  # a tensor that is not there
        ("axes", 0, 1, -1),
        ("axes", 0, 3, 7),  # a role that is not there
        ("axes", 0, 4, 10_000),  # positions beyond the list
        ("axes", 0, 4, -1),
        ("axes", 0, 5, 0),
        ("axes", 0, 5, 2**31 - 1),
        ("taps", 0, 1, 99),
        ("taps", 0, 2, -3),
    ],
)
def test_forged_tables_are_refused(name, row, column, value):
    arrays, metadata = unpack(plan_of().to_bytes())
    arrays[name][row, column] = value
    with pytest.raises(PlanError):
        GroupPlan.from_bytes(pack(arrays, metadata))


def test_a_forged_width_is_refused_before_anything_of_its_size_is_made():
    arrays, metadata = unpack(plan_of().to_bytes())
    text = arrays["text"].tobytes().replace(b"[4,3,3,3]", b"[4000000000000,3,3,3]")
    arrays["text"] = np.frombuffer(text, np.uint8)
    with pytest.raises(PlanError, match="4,000,000,000,000"):
        GroupPlan.from_bytes(pack(arrays, metadata))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_raise_named_errors_only(data):
    whole = plan_of().to_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:at]
    else:
        damaged = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
    try:
        again = GroupPlan.from_bytes(damaged)
    except FedsprigError:
        return
    assert GroupPlan.from_bytes(again.to_bytes()).digest == again.digest
