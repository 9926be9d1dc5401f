"""The solver: equal to a slow reference, nested, exact at every limit, clear when it cannot."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedsprig.errors import BudgetError, InfeasibleBudgetError, PlanError
from fedsprig.graph import kept_index, restrict
from fedsprig.masks import Budget, Mask, PlanCosts, ScoreSet, plan_macs, plan_parameters, solve


def peak(mask):
    """A stand-in for a measurement: grows with every unit, and not evenly."""
    return sum((i + 2) * mask.kept(name) ** 2 for i, name in enumerate(sorted(mask.groups)))


def latency(mask):
    return 0.5 + sum(0.25 * mask.kept(name) for name in mask.groups)


def slow_costs(plan, mask):
    """Every limit's value, from real arrays cut by the mask."""
    state = {name: np.zeros(shape, np.int8) for name, shape in plan.shapes.items()}
    small = restrict(state, kept_index(plan, mask))
    macs = sum(per * small[name].size for name, per in plan.macs_per_weight.items())
    return {
        "weight_bytes": 4 * sum(a.size for n, a in small.items() if n not in plan.buffers),
        "macs": macs + sum(per * mask.kept(name) for name, per in plan.unit_macs.items()),
        "units": Fraction(int(mask.flat.sum()), plan.units),
        "peak_bytes": peak(mask),
        "latency_ms": latency(mask),
    }


def slow_solve(scores, plan, budget, *, floor, round_to, protect, normalise):
    """Add one chunk after another, the best first; stop before the first that breaks a limit."""
    if normalise:
        scores = scores.normalised()
    groups, chunks = {}, []
    for number, group in enumerate(plan.groups):
        owned = math.gcd(
            *(a.positions.shape[1] for a in group.axes if a.tensor in plan.macs_per_weight)
        )
        step = next(n for n in range(1, round_to + 1) if n * owned % round_to == 0)
        least = max(1, math.ceil(Fraction(str(floor)) * group.units))
        while least % step:
            least += 1
        least = min(least, group.units)
        if group.name in protect or group.kind in protect:
            least = group.units
        values = scores.groups[group.name].astype(float).tolist()
        best = sorted(range(group.units), key=lambda unit: (-values[unit], unit))
        groups[group.name] = np.zeros(group.units, bool)
        groups[group.name][best[:least]] = True
        for start in range(least, group.units, step):
            members = best[start : start + step]
            mean = sum(values[unit] for unit in members) / len(members)
            chunks.append((-mean, number, start, group.name, members))
    mask = Mask(groups)
    limits = {k: Fraction(str(v)) for k, v in budget.limits().items()}
    if any(slow_costs(plan, mask)[name] > limit for name, limit in limits.items()):
        return None
    for *_, name, members in sorted(chunks):
        groups = {key: units.copy() for key, units in mask.groups.items()}
        groups[name][members] = True
        larger = Mask(groups)
        if any(slow_costs(plan, larger)[key] > limit for key, limit in limits.items()):
            break
        mask = larger
    return mask


@st.composite
def cases(draw, chain_plan):
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    plan = chain_plan(sizes, wide=draw(st.sampled_from([1, 2, 4])), pixels=draw(st.integers(1, 2)))
    # few distinct values: ties within and between groups are the rule
    scores = ScoreSet(
        {
            group.name: np.array(
                draw(st.lists(st.integers(0, 3), min_size=group.units, max_size=group.units))
            )
            for group in plan.groups
        }
    )
    names = [group.name for group in plan.groups]
    options = {
        "floor": draw(st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.7, 1.0])),
        "round_to": draw(st.sampled_from([1, 2, 4])),
        "protect": draw(st.lists(st.sampled_from([*names, "heads"]), max_size=2)),
        "normalise": draw(st.booleans()),
    }
    return plan, scores, options


@st.composite
def budgets(draw, plan):
    full = slow_costs(plan, Mask.full(plan))
    limits = {}
    for name in draw(st.lists(st.sampled_from(sorted(full)), max_size=3)):
        ratio = draw(st.integers(2, 40)) / 40
        limits[name] = ratio if name == "units" else max(1, int(ratio * full[name]))
    return Budget(**limits)


MEASURED = {"peak_bytes": peak, "latency_ms": latency}


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_fast_equals_adding_one_chunk_after_another(chain_plan, data):
    plan, scores, options = data.draw(cases(chain_plan))
    budget = data.draw(budgets(plan))
    expected = slow_solve(scores, plan, budget, **options)
    if expected is None:
        with pytest.raises(InfeasibleBudgetError):
            solve(scores, plan, budget, **options, **MEASURED)
    else:
        assert solve(scores, plan, budget, **options, **MEASURED) == expected


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_nested_budgets_give_nested_masks(chain_plan, data):
    plan, scores, options = data.draw(cases(chain_plan))
    large = data.draw(budgets(plan))
    assume(large.limits())
    small = Budget(
        **{
            name: max(1, int(value * data.draw(st.floats(0.3, 1))))
            if isinstance(value, int)
            else value * data.draw(st.floats(0.3, 1))
            for name, value in large.limits().items()
        }
    )
    try:
        inner = solve(scores, plan, small, **options, **MEASURED)
    except InfeasibleBudgetError:
        return
    assert inner.is_subset_of(solve(scores, plan, large, **options, **MEASURED))


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_floors_widths_and_protection_hold(chain_plan, data):
    plan, scores, options = data.draw(cases(chain_plan))
    budget = data.draw(budgets(plan))
    try:
        mask = solve(scores, plan, budget, **options, **MEASURED)
    except InfeasibleBudgetError:
        return
    mask.check(plan)
    for group in plan.groups:
        kept = mask.kept(group.name)
        assert kept >= math.ceil(Fraction(str(options["floor"])) * group.units)
        if group.name in options["protect"] or group.kind in options["protect"]:
            assert kept == group.units
        width = kept * group.axes[0].positions.shape[1]
        assert kept == group.units or width % options["round_to"] == 0
        scored = scores.groups[group.name]
        if 0 < kept < group.units:
            assert scored[mask.groups[group.name]].min() >= scored[~mask.groups[group.name]].max()


def test_the_tiny_plan_by_hand(tiny_plan):
    """Normalised: conv1 .8 .6 0 0, conv2 .9 .3 .3 .1 0 0. At least one unit each: .8 and .9 stay.

    Order of the rest: .6 (conv1), .3, .3, .1 (conv2), then zeros. Parameters of (a, b) units are
    18 a + 2 a + 9 a b + 3 b + 3: (1, 1) 35, (2, 1) 64, (2, 2) 85, (2, 3) 106.
    """
    scores = ScoreSet(
        {"conv1": np.array([0, 4.0, 3, 0]), "conv2": np.array([0.1, 0.9, 0, 0.3, 0.3, 0])}
    )

    def kept(parameters):
        mask = solve(scores, tiny_plan, Budget(weight_bytes=4 * parameters), floor=0)
        return np.flatnonzero(mask.groups["conv1"]), np.flatnonzero(mask.groups["conv2"])

    for parameters, conv1, conv2 in (
        (35, [1], [1]),
        (63, [1], [1]),
        (64, [1, 2], [1]),
        (85, [1, 2], [1, 3]),
        (105, [1, 2], [1, 3]),
        (106, [1, 2], [1, 3, 4]),
        (317, [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]),
    ):
        got = kept(parameters)
        np.testing.assert_array_equal(got[0], conv1)
        np.testing.assert_array_equal(got[1], conv2)


def test_without_limits_everything_stays(tiny_plan):
    zeros = ScoreSet({"conv1": np.zeros(4), "conv2": np.zeros(6)})
    assert solve(zeros, tiny_plan, Budget()) == Mask.full(tiny_plan)


def test_ties_go_to_the_earlier_group_and_unit(tiny_plan):
    equal = {"conv1": np.ones(4), "conv2": np.full(6, 1.0)}
    equal["conv2"] *= math.sqrt(6) / 2  # any factor: groups are normalised
    mask = solve(ScoreSet(equal), tiny_plan, Budget(units=0.5), floor=0)
    again = solve(ScoreSet(dict(reversed(equal.items()))), tiny_plan, Budget(units=0.5), floor=0)
    # 1/sqrt(4) beats 1/sqrt(6), so conv1 fills up before conv2 gets its second unit
    np.testing.assert_array_equal(mask.groups["conv1"], [1, 1, 1, 1])
    np.testing.assert_array_equal(mask.groups["conv2"], [1, 0, 0, 0, 0, 0])
    assert mask == again


def test_widths_grow_by_the_best_mean(tiny_plan):
    """Pairs; two units of each group stay, and one pair may enter.

    The next pair of conv1 is about (.56, .10), that of conv2 (.40, .40): the mean decides.
    """
    scores = ScoreSet(
        {
            "conv1": np.array([0.6, 0.55, 0.55, 0.1]),
            "conv2": np.array([0.6, 0.5, 0.4, 0.4, 0.2, 0.17]),
        }
    )
    mask = solve(scores, tiny_plan, Budget(units=0.6), round_to=2, floor=0)
    assert (mask.kept("conv1"), mask.kept("conv2")) == (2, 4)


def test_widths_are_channels_not_units(chain_plan):
    """Heads of 4 channels: two make a width of 8. A group narrower than 8 stays whole."""
    plan = chain_plan([4, 8], wide=4)
    scores = ScoreSet({"l0": np.arange(4), "l1": np.arange(8)})
    mask = solve(scores, plan, Budget(units=0.5), round_to=8, floor=0)
    assert (mask.kept("l0"), mask.kept("l1")) == (4, 2)


def test_ratios_mean_the_whole_number_they_come_near(chain_plan):
    """0.29 * 100 is 28.999999999999996 and 0.07 * 100 is 7.000000000000001 in floating point."""
    plan = chain_plan([100])
    scores = ScoreSet({"l0": np.arange(100)})
    assert solve(scores, plan, Budget(units=0.29)).kept("l0") == 29
    assert solve(scores, plan, Budget(units=0.07), floor=0.07).kept("l0") == 7


def test_an_infeasible_budget_says_which_limit_and_by_how_much(tiny_plan):
    """One unit each: 35 parameters = 140 bytes, and 16 * (18 + 9) + 3 = 435 MACs."""
    scores = ScoreSet({"conv1": np.ones(4), "conv2": np.ones(6)})
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(scores, tiny_plan, Budget(weight_bytes=139, macs=435))
    assert str(caught.value) == (
        "the smallest network needs 140 weight_bytes, 1 over the 139 allowed: "
        "raise weight_bytes or take a smaller base model"
    )
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(
            scores,
            tiny_plan,
            Budget(weight_bytes=600, macs=1000, latency_ms=1.5),
            floor=0.5,
            round_to=2,
            protect=["conv1"],
            latency_ms=lambda mask: 2.25,
        )
    # (4, 4): 4 * (72 + 8 + 144 + 12 + 3) bytes, 16 * (72 + 144) + 12 MACs
    assert str(caught.value) == (
        "the smallest network needs 956 weight_bytes, 356 over the 600 allowed and 3,468 macs, "
        "2,468 over the 1,000 allowed and 2.25 latency_ms, 0.75 over the 1.5 allowed: "
        "raise weight_bytes, raise macs, raise latency_ms, protect fewer groups, "
        "lower round_to (now 2), lower floor (now 0.5) or take a smaller base model"
    )
    solve(scores, tiny_plan, Budget(weight_bytes=140, macs=435))


def test_a_measured_limit_needs_its_measurement(tiny_plan):
    scores = ScoreSet({"conv1": np.ones(4), "conv2": np.ones(6)})
    with pytest.raises(BudgetError, match="pass peak_bytes= to solve"):
        solve(scores, tiny_plan, Budget(peak_bytes=10))
    with pytest.raises(BudgetError, match="pass latency_ms= to solve"):
        solve(scores, tiny_plan, Budget(latency_ms=10), peak_bytes=peak)
    with pytest.raises(InfeasibleBudgetError, match="nan latency_ms"):
        solve(scores, tiny_plan, Budget(latency_ms=10), latency_ms=lambda mask: math.nan)


@given(seed=st.integers(0, 2**32), allowed=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_a_measurement_that_is_not_monotone_still_holds(chain_plan, seed, allowed):
    """Any function of the mask: the result must meet it, or the smallest mask does not."""
    plan = chain_plan([6, 5, 7])

    def jumpy(mask):
        return int(np.random.default_rng([seed, mask.flat.sum()]).integers(1, 21))

    scores = ScoreSet({group.name: np.arange(group.units) for group in plan.groups})
    try:
        mask = solve(scores, plan, Budget(peak_bytes=allowed), peak_bytes=jumpy)
    except InfeasibleBudgetError:
        mask = Mask({g.name: np.arange(g.units) == g.units - 1 for g in plan.groups})
        assert jumpy(mask) > allowed
    else:
        assert jumpy(mask) <= allowed


def test_a_measurement_that_drifts_is_taken_back(chain_plan):
    """A device that grows slower with every measurement: the last measurement decides."""
    plan = chain_plan([16, 16])
    seen = []

    def warming(mask):
        seen.append(mask)
        return mask.kept("l0") + mask.kept("l1") + len(seen) / 2

    scores = ScoreSet({group.name: np.arange(group.units) for group in plan.groups})
    mask = solve(scores, plan, Budget(latency_ms=20.0), latency_ms=warming)
    assert seen[-1] == mask
    assert mask.kept("l0") + mask.kept("l1") + len(seen) / 2 <= 20
    feverish = iter([1.0] * 2)
    with pytest.raises(InfeasibleBudgetError):
        solve(
            scores,
            plan,
            Budget(latency_ms=20.0),
            latency_ms=lambda mask: next(feverish, 30.0),
        )


def test_bad_arguments_are_refused(tiny_plan, chain_plan):
    scores = ScoreSet({"conv1": np.ones(4), "conv2": np.ones(6)})
    for floor in (-0.1, 1.1, math.nan):
        with pytest.raises(BudgetError, match="floor"):
            solve(scores, tiny_plan, Budget(), floor=floor)
    with pytest.raises(BudgetError, match="round_to"):
        solve(scores, tiny_plan, Budget(), round_to=0)
    with pytest.raises(BudgetError, match="collection"):
        solve(scores, tiny_plan, Budget(), protect="conv1")
    with pytest.raises(PlanError, match="cannot protect conv9"):
        solve(scores, tiny_plan, Budget(), protect=["conv9"])
    with pytest.raises(PlanError):
        solve(scores, chain_plan([4, 6]), Budget())
    solve(scores, tiny_plan, Budget(), protect=["heads"])


def test_the_exact_limits_are_met_to_the_last_unit(chain_plan):
    """One more unit of the order breaks a limit."""
    plan = chain_plan([64, 128, 256])
    rng = np.random.default_rng(5)
    scores = ScoreSet({group.name: rng.random(group.units) for group in plan.groups})
    budget = Budget.fraction(plan, macs=0.4, parameters=0.35)
    mask = solve(scores, plan, budget)
    assert 4 * plan_parameters(plan, mask) <= budget.weight_bytes
    assert plan_macs(plan, mask) <= budget.macs
    values = np.where(mask.flat, -1, scores.normalised().flat)
    following = mask.flat.copy()
    following[values.argmax()] = True
    larger = Mask(mask.layout.split(following))
    costs = PlanCosts(plan)
    kept = costs.kept(larger)
    assert 4 * costs.parameters(kept) > budget.weight_bytes or costs.macs(kept) > budget.macs
