"""Costs from the plan: by hand, against counting real arrays, monotone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import PlanError
from fedsprig.graph import kept_index, restrict
from fedsprig.masks import Cost, Mask, PlanCosts, cost, plan_macs, plan_parameters

sizes = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def counted(plan, mask):
    """Slow: cut real arrays and count what is left."""
    state = {name: np.zeros(shape, np.int8) for name, shape in plan.shapes.items()}
    small = restrict(state, kept_index(plan, mask))
    parameters = sum(array.size for name, array in small.items() if name not in plan.buffers)
    macs = sum(per * small[name].size for name, per in plan.macs_per_weight.items())
    return parameters, macs + sum(per * mask.kept(name) for name, per in plan.unit_macs.items())


def test_the_tiny_plan_by_hand(tiny_plan):
    full = Mask.full(tiny_plan)
    assert plan_parameters(tiny_plan, full) == 4 * 2 * 9 + 8 + 6 * 4 * 9 + 6 * 3 + 3
    assert plan_macs(tiny_plan, full) == 16 * 72 + 16 * 216 + 18
    half = Mask(
        {"conv1": np.array([1, 0, 0, 0], bool), "conv2": np.array([1, 1, 0, 0, 0, 1], bool)}
    )
    assert plan_parameters(tiny_plan, half) == 1 * 2 * 9 + 2 + 3 * 1 * 9 + 3 * 3 + 3
    assert plan_macs(tiny_plan, half) == 16 * 18 + 16 * 27 + 9


def test_the_plan_agrees_with_the_network(tiny_plan, tiny_net):
    full = Mask.full(tiny_plan)
    measured = cost(tiny_net, torch.zeros(tiny_plan.input_shape))
    assert plan_parameters(tiny_plan, full) == measured.parameters
    assert plan_macs(tiny_plan, full) == measured.macs


@given(sizes=sizes, wide=st.integers(1, 3), pixels=st.integers(1, 4), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_fast_equals_counting_arrays(chain_plan, sizes, wide, pixels, seed):
    plan = chain_plan(sizes, wide=wide, pixels=pixels)
    mask = Mask.random(
        plan, float(np.random.default_rng(seed).random()), np.random.default_rng(seed)
    )
    assert (plan_parameters(plan, mask), plan_macs(plan, mask)) == counted(plan, mask)


@given(sizes=sizes, wide=st.integers(1, 3), data=st.data())
@settings(max_examples=40, deadline=None)
def test_another_unit_never_costs_less(chain_plan, sizes, wide, data):
    plan = chain_plan(sizes, wide=wide)
    costs = PlanCosts(plan)
    kept = np.array([data.draw(st.integers(0, units - 1)) for units in sizes], np.int64)
    more = kept.copy()
    more[data.draw(st.integers(0, len(sizes) - 1))] += 1
    assert costs.parameters(more) >= costs.parameters(kept)
    assert costs.macs(more) >= costs.macs(kept)


def test_a_mask_that_does_not_fit_is_refused(tiny_plan, chain_plan):
    for function in (plan_macs, plan_parameters):
        with pytest.raises(PlanError):
            function(tiny_plan, Mask.full(chain_plan([4, 6])))
        with pytest.raises(PlanError, match="drops all"):
            function(tiny_plan, Mask({"conv1": np.zeros(4, bool), "conv2": np.ones(6, bool)}))


def test_weights_are_four_bytes_each():
    assert Cost(parameters=317, macs=1, peak_bytes=1).weight_bytes == 1268
