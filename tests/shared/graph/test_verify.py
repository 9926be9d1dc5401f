"""The trial that every traced plan goes through."""

import dataclasses

import torch
from torch import nn

from fedsprig.graph import trace_groups
from fedsprig.graph.verify import freeze_what_fails, randomised
from fedsprig.models import build

PICTURE = torch.zeros(1, 3, 32, 32)


def test_a_wrong_map_is_found_and_frozen_alone():
    """As if the tracer had confused two inputs: the plan is well formed, but wrong."""
    model = build("sprig20", num_classes=3)
    plan = trace_groups(model, PICTURE)
    wrong = plan.groups[2]
    last = wrong.axes[-1]
    assert last.role == "in"
    turned = dataclasses.replace(last, positions=last.positions[::-1])
    faulty = dataclasses.replace(wrong, axes=(*wrong.axes[:-1], turned))
    broken = dataclasses.replace(
        plan, groups=(*plan.groups[:2], faulty, *plan.groups[3:]), frozen=plan.frozen
    )
    mended = freeze_what_fails(model, broken, PICTURE)
    assert [g.name for g in mended.groups] == [g.name for g in plan.groups if g is not wrong]
    assert "differs" in mended.frozen[wrong.name]


def test_a_missing_map_is_found():
    model = build("sprig20", num_classes=3)
    plan = trace_groups(model, PICTURE)
    first = plan.groups[1]
    partial = dataclasses.replace(first, axes=first.axes[:-1])
    broken = dataclasses.replace(plan, groups=(plan.groups[0], partial, *plan.groups[2:]))
    mended = freeze_what_fails(model, broken, PICTURE)
    assert first.name in mended.frozen


def test_a_right_plan_passes_unchanged():
    model = build("sprig20", num_classes=3)
    plan = trace_groups(model, PICTURE)
    assert freeze_what_fails(model, plan, PICTURE) is plan


def test_random_parameters_leave_the_model_and_differ_from_it():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    nn.init.zeros_(model[1].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = randomised(model, seed=1).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        if value.is_floating_point():
            assert not torch.equal(value, drawn[name])
    assert (drawn["1.weight"] > 0.5).all()
    assert (drawn["1.running_var"] > 0.5).all()
    again = randomised(model, seed=1).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in drawn.items())
