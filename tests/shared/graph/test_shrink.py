"""The plan of a cut network says of it what tracing it would say."""

import numpy as np
import pytest
import torch

from fedsprig.graph import kept_index, materialize, shrink_plan, trace_groups
from fedsprig.masks import Mask
from fedsprig.models import build


@pytest.mark.parametrize("name", ["sprig20", "torchvision/mobilenet_v2", "sprig_vit"])
def test_it_is_the_plan_that_tracing_the_cut_network_gives(name):
    base = build(name, num_classes=3)
    size = 32 if name != "sprig_vit" else None
    from fedsprig.models import describe

    example = torch.zeros(
        1, 3, size or describe(name).input_size, size or describe(name).input_size
    )
    plan = trace_groups(base, example, name=name)
    mask = Mask.random(plan, 0.5, np.random.default_rng(3))
    small = materialize(base, plan, mask)
    shrunk, traced = shrink_plan(plan, mask), trace_groups(small, example, name=name)
    assert dict(shrunk.shapes) == dict(traced.shapes)
    assert [(g.name, g.units) for g in shrunk.groups] == [(g.name, g.units) for g in traced.groups]
    for ours, theirs in zip(shrunk.groups, traced.groups, strict=True):
        expected = {(a.tensor, a.axis): a.positions.tolist() for a in theirs.axes}
        assert {(a.tensor, a.axis): a.positions.tolist() for a in ours.axes} == expected
        taps = {(t.module, t.where): t.positions.tolist() for t in theirs.taps}
        assert {(t.module, t.where): t.positions.tolist() for t in ours.taps} == taps


def test_a_mask_of_the_shrunk_plan_cuts_the_cut_network_further():
    base = build("cifar_resnet20", num_classes=3)
    plan = trace_groups(base, torch.zeros(1, 3, 32, 32))
    rng = np.random.default_rng(4)
    first = Mask.random(plan, 0.6, rng)
    shrunk = shrink_plan(plan, first)
    second = Mask.random(shrunk, 0.5, rng)
    both = {}
    for name, kept in first.groups.items():
        both[name] = kept.copy()
        both[name][kept] = second.groups[name]
    twice = materialize(materialize(base, plan, first), shrunk, second)
    once = materialize(base, plan, Mask(both))
    assert kept_index(plan, Mask(both))
    for (name, a), (_, b) in zip(
        twice.state_dict().items(), once.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
