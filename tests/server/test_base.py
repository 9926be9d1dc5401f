"""The base model, the plan that is stored for it, and its probe."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsprig.artifacts.digest import digest
from fedsprig.errors import PlanError
from fedsprig.graph import materialize
from fedsprig.masks import Budget, Mask, cost
from fedsprig.masks.costs import BYTES_PER_PARAMETER
from fedsprig.models import describe
from fedsprig.scoring import score
from fedsprig.subnetwork import build_subnetwork
from fedsprig_server import base as base_module
from fedsprig_server.base import PROBE_MACS_RATIO, Base
from fedsprig_server.config import SelectionConfig
from fedsprig_server.one_shot import cut

MODEL = "cifar_resnet20"


@pytest.fixture(scope="module")
def base():
    return Base.load(MODEL, None)


def pictures(seed, mean=0.0):
    return mean + torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def no_trace(*args, **options):
    raise AssertionError("the network was traced")


def test_a_stored_plan_takes_the_place_of_tracing(base, monkeypatch):
    asked = []

    def stored(wanted):
        asked.append(wanted)
        return base.plan.to_bytes()

    monkeypatch.setattr(base_module, "trace_groups", no_trace)
    again = Base.load(MODEL, None, stored_plan=stored)
    assert asked == [base.digest] == [again.digest]
    assert again.plan.digest == base.plan.digest


def test_the_stored_plan_is_used_as_it_is(base):
    """A plan with one group less is a plan of the network too, and the library is in its units."""
    shorter = replace(base.plan, groups=base.plan.groups[:-1], unit_macs={})
    again = Base.load(MODEL, None, stored_plan=lambda _: shorter.to_bytes())
    assert len(again.plan.groups) == len(base.plan.groups) - 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "cifar_resnet56"}, "of 'cifar_resnet56', the base is 'cifar_resnet20'"),
        ({"input_shape": (1, 3, 64, 64)}, r"pictures \(1, 3, 64, 64\)"),
        ({"head": "layer3"}, "classifier is 'layer3', that of 'cifar_resnet20' is 'linear'"),
        ({"head": ""}, "classifier is ''"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_in_one_line(base, changes, words):
    other = replace(base.plan, **changes)
    with pytest.raises(PlanError, match=words) as caught:
        Base.load(MODEL, None, stored_plan=lambda _: other.to_bytes())
    assert "\n" not in str(caught.value)


def test_a_plan_of_other_shapes_is_refused(base):
    more = replace(base.plan, shapes={**base.plan.shapes, "extra": (3,)})
    wider = base.plan.with_num_classes(5)
    for plan, name in ((more, "extra"), (wider, "linear.bias")):
        with pytest.raises(PlanError, match=f"^{name} is"):
            Base.load(MODEL, None, stored_plan=lambda _, plan=plan: plan.to_bytes())


def test_a_traced_plan_without_the_cards_classifier_is_refused(monkeypatch):
    card = replace(describe(MODEL), head="layer3.2.conv2")
    monkeypatch.setattr(base_module, "describe", lambda name: card)
    with pytest.raises(PlanError, match="classifier"):
        Base.load(MODEL, None)


def test_another_picture_size_is_another_plan(base):
    larger = Base.load(MODEL, None, image_size=40)
    assert larger.plan.input_shape == (1, 3, 40, 40)
    assert larger.digest == base.digest
    full = Mask.full(base.plan)
    assert larger.macs(full, num_classes=2) > base.macs(full, num_classes=2)
    assert larger.peak_bytes(full) > base.peak_bytes(full)


def test_costs_are_those_of_the_cut_network(base, monkeypatch):
    """Twice: the second answer comes from what the first one kept, of another mask."""
    built = []
    monkeypatch.setattr(
        base_module,
        "peak_of",
        lambda *args, own=base_module.peak_of: built.append(1) or own(*args),
    )
    fresh = Base.load(MODEL, None, stored_plan=lambda _: base.plan.to_bytes())
    for seed in (0, 1):
        mask = Mask.random(base.plan, 0.4, np.random.default_rng(seed))
        small = materialize(base.module, base.plan, mask)
        expected = cost(small, torch.zeros(1, 3, 32, 32))
        assert fresh.peak_bytes(mask) == expected.peak_bytes
        assert fresh.macs(mask, num_classes=2) == expected.macs
        assert fresh.parameters(mask, num_classes=2) == expected.parameters
    assert len(built) == 1


@pytest.mark.parametrize("num_classes", [2, 100])
def test_a_limit_of_bytes_holds_with_the_head_of_the_task(base, num_classes):
    full = base.parameters(Mask.full(base.plan), num_classes=num_classes)
    scores = score("magnitude", base.module, base.plan)
    budget = Budget(weight_bytes=full)  # a quarter
    mask = cut(scores, base, budget, SelectionConfig(), num_classes=num_classes)
    used = BYTES_PER_PARAMETER * base.parameters(mask, num_classes=num_classes)
    assert 0.9 * full < used <= full


def test_the_probe_is_small_and_the_same_every_time(base):
    package = base.probe(pictures(0))
    again = Base.load(MODEL, None, stored_plan=lambda _: base.plan.to_bytes())
    assert digest(again.probe(pictures(0))) == digest(package)
    built = build_subnetwork(package, plan_of=lambda _: None)
    full = Mask.full(base.plan)
    share = base.macs(built.mask, num_classes=2) / base.macs(full, num_classes=2)
    assert 0.5 * PROBE_MACS_RATIO < share <= PROBE_MACS_RATIO
    assert built.adapter is None
    assert sum(p.numel() for p in built.module.parameters()) < base.parameters(full, num_classes=2)


def test_the_probes_statistics_are_of_its_own_pictures(base):
    """Brighter pictures move the mean that the first layer's normalisation expects."""
    dark, bright = (
        build_subnetwork(base.probe(pictures(0, mean)), plan_of=lambda _: None).module
        for mean in (0.0, 3.0)
    )
    moved = (bright.bn1.running_mean - dark.bn1.running_mean).abs().max()
    assert moved > 0.5 * dark.bn1.running_var.sqrt().max()
    assert torch.equal(bright.conv1.weight, dark.conv1.weight)
    assert torch.equal(base.module.bn1.running_mean, torch.zeros(32)[: len(base.state["bn1.bias"])])
