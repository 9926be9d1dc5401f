"""Layer-aware thresholds by hand, and what they drop for any strengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedsprig.graph import AxisMap, Group, GroupPlan, Tap
from fedsprig.pruning.aap.thresholds import (
    crossing,
    dropped_at,
    falling_thresholds,
    group_shares,
    layer_count,
    next_fall,
    share_threshold,
)


def rows(units):
    return np.arange(units, dtype=np.int32).reshape(units, 1)


def group(name, units, kind, *tensors):
    axes = tuple(AxisMap(tensor, 0, rows(units), "out") for tensor in tensors)
    return Group(name, units, kind, axes, (Tap(name, "output", 1, rows(units)),))


@pytest.fixture(scope="module")
def plan():
    """Layers of 20, 60 and 20 weights; the last two make one stream. MACs per weight 6, 1, 1."""
    return GroupPlan(
        model="three layers",
        input_shape=(1, 1, 4, 4),
        head="",
        groups=(group("a", 2, "inner", "a.weight", "a.bias"), group("b", 4, "stream", "b", "c")),
        shapes={"a.weight": (2, 10), "a.bias": (2,), "b": (4, 15), "c": (4, 5)},
        macs_per_weight={"a.weight": 6, "b": 1, "c": 1},
        unit_macs={},
        frozen={},
    )


def test_shares_are_of_parameters_or_macs_and_a_stream_has_the_mean_of_its_layers(plan):
    assert layer_count(plan) == 3
    assert group_shares(plan, "parameters") == pytest.approx({"a": 0.2, "b": (0.6 + 0.2) / 2})
    assert group_shares(plan, "macs") == pytest.approx({"a": 0.6, "b": (0.3 + 0.1) / 2})


def test_a_unit_falls_where_its_attention_is_at_most_t_times_the_share(plan):
    strengths = {"a": np.array([0.6, 0.3]), "b": np.array([1.2, 0.0, 0.3, 2.4])}
    falls = falling_thresholds(strengths, plan, "parameters", scale=3.0)  # L = 3, mean(F) = 1
    assert falls["a"] == pytest.approx([1.0, 0.5])
    assert falls["b"] == pytest.approx([1.0, 0.0, 0.25, 2.0])
    least = {"a": 1, "b": 1}
    gone = dropped_at(falls, 0.5, least)
    assert gone["a"].tolist() == [False, True]
    assert gone["b"].tolist() == [False, True, True, False]
    assert next_fall(falls, least) == 0.0
    # Beside the dead unit, 0.25, 0.5 and 1 may fall: two of the three at 0.5.
    assert share_threshold(falls, least, 0.5) == pytest.approx(0.5)
    assert dropped_at(falls, 99.0, least)["b"].tolist() == [True, True, True, False]
    assert next_fall({"a": falls["a"]}, {"a": 2}) == np.inf


def test_a_layer_without_cost_keeps_all_but_its_dead_units(plan):
    strengths = {"a": np.array([0.0, 0.3])}
    free = GroupPlan(
        model="free",
        input_shape=(1, 1, 4, 4),
        head="",
        groups=(plan.groups[0],),
        shapes={"a.weight": (2, 10), "a.bias": (2,)},
        macs_per_weight={},
        unit_macs={},
        frozen={},
    )
    assert falling_thresholds(strengths, free, "macs", 1.0)["a"].tolist() == [0.0, np.inf]


strengths_of_any_kind = st.fixed_dictionaries(
    {
        name: arrays(np.float64, units, elements=st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]))
        for name, units in (("a", 5), ("b", 3), ("c", 1))
    }
)


@given(strengths_of_any_kind, st.floats(0, 3), st.floats(0, 3), st.integers(1, 5))
def test_a_higher_threshold_drops_no_less_and_the_least_stays(falls, one, other, least):
    floors = {name: min(least, len(values)) for name, values in falls.items()}
    low, high = sorted((one, other))
    fewer, more = dropped_at(falls, low, floors), dropped_at(falls, high, floors)
    for name, values in falls.items():
        assert not (fewer[name] & ~more[name]).any()
        assert (~more[name]).sum() >= floors[name]
        assert (values[more[name]] <= high).all()
        if more[name].any():  # a unit that stays is no weaker than one that goes
            assert values[~more[name]].min() >= values[more[name]].max()


@given(strengths_of_any_kind, st.integers(3, 9))
def test_the_crossing_is_the_least_drop_that_fits(falls, allowed):
    least = dict.fromkeys(falls, 1)

    def fits(gone):
        return sum(int((~units).sum()) for units in gone.values()) <= allowed

    found = crossing(falls, least, fits)
    assert fits(found)
    lost = sum(int(units.sum()) for units in found.values())
    thresholds = sorted(set(np.concatenate(list(falls.values())).tolist()))
    fitting = [t for t in thresholds if fits(dropped_at(falls, t, least))]
    assert lost == sum(int(u.sum()) for u in dropped_at(falls, fitting[0], least).values())
