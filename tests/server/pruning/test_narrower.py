"""Cuts of a cohort: those of central AAP where all have one network, nested where they have not."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import BudgetError, InfeasibleBudgetError
from fedsprig.graph import shrink_plan
from fedsprig.masks import Budget, Mask, ScoreSet, plan_macs, plan_parameters
from fedsprig.models.cifar_resnet import CifarResNet
from fedsprig.pruning.aap.attention import attention, attention_sums
from fedsprig.pruning.aap.thresholds import crossing, falling_thresholds, layer_count
from fedsprig.pruning.filling import filled
from fedsprig.pruning.nesting import lifted
from fedsprig_server.base import Base
from fedsprig_server.config import PruningConfig, SelectionConfig
from fedsprig_server.one_shot import cut
from fedsprig_server.pruning import Sizes
from fedsprig_server.pruning.narrower import Width, falls_of, narrow
from fedsprig_server.pruning.pool import Share

MODEL = "cifar_resnet20"


@pytest.fixture(scope="module")
def base():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Base.load(MODEL, None)


@pytest.fixture(scope="module")
def sizes(base):
    return Sizes(base, PruningConfig(), SelectionConfig(), num_classes=5)


def drawn(plan, rng):
    return {group.name: rng.gamma(2.0, size=group.units) for group in plan.groups}


def falls(base, strengths, widest):
    small = {name: values[widest.groups[name]] for name, values in strengths.items()}
    return falls_of(small, base.plan, widest, "macs", 3.0)


@pytest.mark.parametrize("form", ["mean", "max"])
@pytest.mark.parametrize("weighting", ["macs", "parameters"])
def test_devices_of_one_network_are_cut_as_aap_would_with_all_pictures_in_one_place(
    base, sizes, form, weighting
):
    """The slow way round: the network that is there, all pictures, the published thresholds."""
    network, plan = base.module.double(), base.plan
    images = torch.randn(
        9, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    full = Mask.full(plan)
    total = Share.total(
        Share.of(full, attention_sums(network, plan, part, form=form), len(part))
        for part in images.split([2, 6, 1])
    )
    pooled = total.attention(full)
    central = attention(network, plan, images, form=form)
    network.float()
    scale = layer_count(plan) * float(np.concatenate([*central.values()]).mean())
    order = falling_thresholds(central, plan, weighting, scale)
    for budget in (Budget(macs=plan_macs(plan, full) // 3), Budget(weight_bytes=400_000)):

        def fits(gone, budget=budget):
            mask = Mask({name: ~units for name, units in gone.items()})
            if budget.macs is not None:
                return plan_macs(sizes.plan, mask) <= budget.macs
            return 4 * plan_parameters(sizes.plan, mask) <= budget.weight_bytes

        gone = filled(order, crossing(order, sizes.least, fits), fits)
        own = falls_of(pooled, plan, full, weighting, scale)
        (found,) = narrow([Width(full, budget)], own, sizes)
        assert found.mask == lifted(full, Mask({name: ~units for name, units in gone.items()}))
        dropped = [order[name][units] for name, units in gone.items()]
        assert found.threshold == pytest.approx(np.concatenate(dropped).max())


def budgets_of(data, whole_macs, whole_bytes):
    ratio = st.floats(0.15, 0.6)
    kind = data.draw(st.sampled_from(["macs", "bytes", "both", "units"]))
    if kind == "units":
        return Budget(units=data.draw(ratio))
    limits = {}
    if kind != "bytes":
        limits["macs"] = int(data.draw(ratio) * whole_macs)
    if kind != "macs":
        limits["weight_bytes"] = int(data.draw(ratio) * whole_bytes)
    return Budget(**limits)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_masks_stay_nested_and_every_limit_holds_cut_after_cut(base, sizes, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    full = Mask.full(base.plan)
    whole = sizes.of(full)
    own = [
        budgets_of(data, whole.macs, 4 * whole.parameters)
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    # The first masks are those that the server solves for: prefixes of one order.
    scores = _scores(base, rng)
    masks = [
        cut(
            scores,
            base,
            sizes.limits(budget, 0),
            SelectionConfig(),
            num_classes=5,
        )
        for budget in own
    ]
    for done in (1, 2):
        limits = [sizes.limits(budget, done) for budget in own]
        widest = max(masks, key=lambda mask: mask.flat.sum())
        order = falls(base, drawn(base.plan, rng), widest)
        found = narrow([Width(*pair) for pair in zip(masks, limits, strict=True)], order, sizes)
        for before, budget, after in zip(masks, limits, found, strict=True):
            assert after.mask.is_subset_of(before)
            assert sizes.fits(after.mask, [budget])
            for name, least in sizes.least.items():
                assert after.mask.kept(name) >= least
        masks = [item.mask for item in found]
        chain = sorted(masks, key=lambda mask: mask.flat.sum())
        assert all(one.is_subset_of(other) for one, other in itertools.pairwise(chain))
    assert [sizes.limits(budget, 2) for budget in own] == own


def _scores(base, rng):
    return ScoreSet({name: v.astype(np.float32) for name, v in drawn(base.plan, rng).items()})


def test_nothing_more_goes_than_the_limit_asks_for(base, sizes):
    full = Mask.full(base.plan)
    budget = Budget(macs=sizes.of(full).macs // 2)
    order = falls(base, drawn(base.plan, np.random.default_rng(0)), full)
    (found,) = narrow([Width(full, budget)], order, sizes)
    for name, kept in found.mask.groups.items():
        for unit in np.flatnonzero(~kept):
            groups = dict(found.mask.groups) | {name: kept | (np.arange(len(kept)) == unit)}
            assert not sizes.fits(Mask(groups), [budget])


def test_a_network_that_fits_already_loses_nothing(base, sizes):
    full = Mask.full(base.plan)
    order = falls(base, drawn(base.plan, np.random.default_rng(0)), full)
    (found,) = narrow([Width(full, Budget(macs=sizes.of(full).macs))], order, sizes)
    assert (found.mask, found.threshold) == (full, 0.0)


def test_units_that_are_gone_have_no_place_in_the_order(base):
    rng = np.random.default_rng(0)
    widest = Mask.random(base.plan, 0.5, rng)
    order = falls(base, drawn(base.plan, rng), widest)
    small = shrink_plan(base.plan, widest)
    for group in small.groups:
        assert np.isfinite(order[group.name]).sum() == group.units
        assert np.isnan(order[group.name][~widest.groups[group.name]]).all()


def test_a_limit_that_no_network_meets_is_an_error(base, sizes):
    full = Mask.full(base.plan)
    order = falls(base, drawn(base.plan, np.random.default_rng(0)), full)
    with pytest.raises(InfeasibleBudgetError, match="lower floor"):
        narrow([Width(full, Budget(macs=1))], order, sizes)
    with pytest.raises(InfeasibleBudgetError, match=r"needs [\d,]+ macs, the limit is 1: raise it"):
        sizes.check(Budget(weight_bytes=sizes.of(full).parameters * 4, macs=1))
    sizes.check(Budget(macs=sizes.of(full).macs // 10))


def test_a_limit_that_shrinking_networks_cannot_be_held_to_is_refused(sizes):
    for ask in (sizes.check, lambda budget: sizes.limits(budget, 0)):
        with pytest.raises(BudgetError, match="cannot be held to latency_ms: limit weight_bytes"):
            ask(Budget(latency_ms=5.0))


def test_peak_bytes_are_measured_and_held(base, sizes):
    full = Mask.full(base.plan)
    budget = Budget(peak_bytes=int(0.8 * base.peak_bytes(full)))
    order = falls(base, drawn(base.plan, np.random.default_rng(0)), full)
    (found,) = narrow([Width(full, budget)], order, sizes)
    assert base.peak_bytes(found.mask) <= budget.peak_bytes < base.peak_bytes(full)


def test_limits_shrink_by_one_factor_from_the_start_to_the_budget(base):
    pruning = PruningConfig(cuts=3, start=4.0)
    sizes = Sizes(base, pruning, SelectionConfig(), num_classes=5)
    whole = sizes.of(Mask.full(base.plan))
    small, large = Budget(macs=whole.macs // 8, units=0.1), Budget(macs=whole.macs // 2, units=0.5)
    found = [sizes.limits(small, done) for done in range(4)]
    assert [limits.macs / small.macs for limits in found] == pytest.approx(
        [4, 4 ** (2 / 3), 4 ** (1 / 3), 1], rel=1e-4
    )
    assert [limits.units for limits in found] == pytest.approx(
        [0.4, 0.1 * 4 ** (2 / 3), 0.1 * 4 ** (1 / 3), 0.1]
    )
    # Never more than everything, and a larger budget's limits are larger at every moment.
    assert sizes.limits(large, 0) == Budget(macs=whole.macs, units=1.0)
    assert sizes.limits(large, 3) == large
    for done in range(4):
        assert sizes.limits(large, done).macs >= sizes.limits(small, done).macs
    beyond = Budget(macs=3 * whole.macs)
    assert {sizes.limits(beyond, done) for done in range(4)} == {beyond}


def test_the_classifier_of_the_task_counts(base):
    full = Mask.full(base.plan)
    few, many = (
        Sizes(base, PruningConfig(), SelectionConfig(), num_classes=classes) for classes in (2, 100)
    )
    assert many.of(full).parameters - few.of(full).parameters == 98 * 65
    budget = Budget(weight_bytes=4 * few.of(full).parameters)
    assert few.fits(full, [budget])
    assert not many.fits(full, [budget])
    assert many.of(full).parameters == sum(
        p.numel() for p in CifarResNet(20, num_classes=100).parameters()
    )
