"""Plans traced from real networks: what the plan says a sub-network costs is what it costs."""

import numpy as np
import pytest
import torch

from fedsprig.graph import materialize, trace_groups
from fedsprig.masks import Budget, Mask, cost, peak_of, plan_macs, plan_parameters, solve
from fedsprig.models import build
from fedsprig.scoring import SCORERS, score

NETWORKS = [
    ("sprig20", 32),
    ("sprig_vit", 32),
    ("torchvision/mobilenet_v3_small", 32),
    *(
        pytest.param(name, size, marks=pytest.mark.slow)
        for name, size in (
            ("cifar_resnet20", 32),
            ("efficientnet_lite0", 64),
            ("torchvision/resnet50", 64),
            ("torchvision/densenet121", 64),
            ("torchvision/convnext_tiny", 64),
            ("torchvision/vit_b_16", 224),
            ("torchvision/swin_t", 224),
        )
    ),
]


@pytest.fixture(scope="module")
def traced():
    """Builds and traces every network once."""
    known = {}

    def trace(name, size):
        if name not in known:
            model = build(name, num_classes=5)
            if name == "torchvision/vit_b_16":  # torchvision starts its head at zero
                torch.nn.init.normal_(model.heads.head.weight, std=0.02)
            known[name] = (model, trace_groups(model, torch.zeros(1, 3, size, size), name=name))
        return known[name]

    return trace


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_the_plan_predicts_the_cost_of_what_is_cut(traced, name, size):
    model, plan = traced(name, size)
    x = torch.zeros(1, 3, size, size)
    rng = np.random.default_rng(0)
    for mask in (Mask.full(plan), *(Mask.random(plan, keep, rng) for keep in (0.7, 0.3, 0.0))):
        measured = cost(materialize(model, plan, mask), x)
        assert plan_parameters(plan, mask) == measured.parameters
        assert plan_macs(plan, mask) == measured.macs


@pytest.mark.parametrize(("name", "size"), NETWORKS[:2])
def test_every_limit_holds_on_the_network_itself(traced, name, size):
    model, plan = traced(name, size)
    x = torch.zeros(1, 3, size, size)
    full = cost(model, x)
    peak = peak_of(model, plan, x)
    assert peak(Mask.full(plan)) == full.peak_bytes
    scores = score("random", model, plan, seed=1)
    masks = []
    for share in (0.4, 0.6):
        budget = Budget.fraction(plan, macs=share, parameters=share)
        limit = int((share + 0.1) * full.peak_bytes)
        budget = Budget(**budget.limits(), peak_bytes=limit)
        masks.append(solve(scores, plan, budget, round_to=4, peak_bytes=peak))
        found = cost(materialize(model, plan, masks[-1]), x)
        assert found.macs <= budget.macs
        assert found.weight_bytes <= budget.weight_bytes
        assert found.peak_bytes <= budget.peak_bytes
        assert 0 < masks[-1].unit_ratio < 1
    assert masks[0].is_subset_of(masks[1])


SMALL = {"fpgm", "snip"}
"""A small network of either sort suffices for them: fpgm's distances between all filters of a large
one take minutes, and snip asks nothing of a network that taylor does not ask."""


@pytest.mark.parametrize("criterion", sorted(SCORERS.keys() - SMALL))
@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_every_criterion_scores_every_unit(traced, name, size, criterion):
    scores_every_unit(traced, name, size, criterion)


@pytest.mark.parametrize("criterion", sorted(SMALL))
@pytest.mark.parametrize(("name", "size"), NETWORKS[:2])
def test_criteria_score_every_unit_of_small_networks(traced, name, size, criterion):
    scores_every_unit(traced, name, size, criterion)


def scores_every_unit(traced, name, size, criterion):
    model, plan = traced(name, size)
    rng = torch.Generator().manual_seed(0)
    batch = (torch.randn(3, 3, size, size, generator=rng), torch.tensor([0, 4, 2]))
    scores = score(criterion, model, plan, [batch])
    scores.check(plan)
    for group in plan.groups:
        assert np.ptp(scores.groups[group.name]) > 0
