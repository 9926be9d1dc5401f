"""Exact budgets forward, gradients straight through backward, the way down to the budget."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsprig.errors import InfeasibleBudgetError
from fedsprig.masks import Budget, Mask, PlanCosts, plan_macs, plan_parameters
from fedsprig.pruning.visual_prompt.selection import Selection


def by_hand(plan, scores, floor, fits):
    """Begin with every group's best; add the best unit of all groups until one does not fit."""
    kept = {}
    for group in plan.groups:
        ranked = sorted(range(group.units), key=lambda u: -scores[group.name][u])
        kept[group.name] = set(ranked[: max(1, int(np.ceil(floor * group.units - 1e-9)))])

    def mask():
        return Mask(
            {g.name: np.array([u in kept[g.name] for u in range(g.units)]) for g in plan.groups}
        )

    if not fits(mask()):
        return None
    left = [
        (-scores[group.name][unit], group.name, unit)
        for group in plan.groups
        for unit in range(group.units)
        if unit not in kept[group.name]
    ]
    for _, name, unit in sorted(left):
        kept[name].add(unit)
        if not fits(mask()):
            kept[name].remove(unit)
            break
    return mask()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000),
    share=st.floats(0.05, 1),
    floor=st.sampled_from([0.0, 0.05, 0.3]),
    kind=st.sampled_from(["macs", "parameters"]),
)
def test_the_best_units_stay_as_they_are_within_the_budget(small_plan, seed, share, floor, kind):
    rng = np.random.default_rng(seed)
    level = rng.uniform(0.1, 1, len(small_plan.groups))  # whole groups may be worth less
    soft = [
        torch.from_numpy(scale * rng.random(group.units)).float()
        for scale, group in zip(level, small_plan.groups, strict=True)
    ]
    selection = Selection(plan=small_plan, floor=floor)
    budget = Budget.fraction(small_plan, **{kind: share})

    def fits(mask):
        if kind == "macs":
            return plan_macs(small_plan, mask) <= budget.macs
        return 4 * plan_parameters(small_plan, mask) <= budget.weight_bytes

    names = [group.name for group in small_plan.groups]
    values = {name: value.tolist() for name, value in zip(names, soft, strict=True)}
    expected = by_hand(small_plan, values, floor, fits)
    if expected is None:
        with pytest.raises(InfeasibleBudgetError):
            selection.gates(soft, budget)
        return
    gates = selection.gates(soft, budget)
    assert Mask({name: gate.numpy() == 1 for name, gate in gates.items()}) == expected
    assert all(set(gate.unique().tolist()) <= {0.0, 1.0} for gate in gates.values())


def test_the_gradient_of_a_gate_is_that_of_its_score(small_plan):
    generator = torch.Generator().manual_seed(0)
    soft = [torch.rand(g.units, generator=generator).requires_grad_() for g in small_plan.groups]
    selection = Selection(plan=small_plan, floor=0.05)
    gates = selection.gates(soft, Budget.fraction(small_plan, macs=0.4))
    weights = [torch.randn(g.units, generator=generator) for g in small_plan.groups]
    loss = sum(((w * gate).sum() for w, gate in zip(weights, gates.values(), strict=True)))
    loss.backward()
    closed = 0
    for score, weight, gate in zip(soft, weights, gates.values(), strict=True):
        assert torch.equal(score.grad, weight)
        closed += int((gate == 0).sum())
    assert closed > 10


def test_the_budget_goes_down_over_the_first_half(small_plan):
    costs = PlanCosts(small_plan)
    whole = costs.macs(costs.units)
    target = Budget(macs=whole // 4)
    selection = Selection(plan=small_plan, floor=0.05)
    found = [selection.between(target, done / 8).macs for done in range(9)]
    assert found[0] == whole
    assert found[4:] == [target.macs] * 5
    steps = np.diff(found[:5])
    assert steps == pytest.approx(-(whole - target.macs) / 4, abs=1)
    bytes_ = Budget(weight_bytes=400)
    parameters = costs.parameters(costs.units)
    assert selection.between(bytes_, 0.25).weight_bytes == (4 * parameters + 400) // 2
    assert selection.between(bytes_, 1) == bytes_
