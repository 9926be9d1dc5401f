"""Scoring by name: what every criterion owes its caller."""

import copy

import numpy as np
import pytest
import torch

from fedsprig.errors import UnknownNameError
from fedsprig.masks import Budget, solve
from fedsprig.scoring import SCORERS, score


@pytest.mark.parametrize("name", SCORERS)
def test_the_model_is_left_as_it_was(net, plan, batches, name):
    net.train()
    net.act.eval()
    modes = [module.training for module in net.modules()]
    before = copy.deepcopy(net.state_dict())
    scores = score(name, net, plan, iter(batches))
    assert [module.training for module in net.modules()] == modes
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(p.grad is None for p in net.parameters())
    assert scores == score(name, net.eval(), plan, batches)
    solve(scores, plan, Budget(units=0.5)).check(plan)


@pytest.mark.parametrize("name", ["taylor", "attention"])
def test_hooks_are_removed_when_a_pass_fails(net, plan, batches, name):
    images, labels = batches[0]
    with pytest.raises(RuntimeError):
        score(name, net, plan, [(images[:, :1], labels)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_random_scores_follow_the_seed_alone(net, plan):
    one, again = (score("random", net, plan, seed=3) for _ in range(2))
    assert one == again
    assert one != score("random", net, plan, seed=4)
    assert (one.flat >= 0).all()
    assert len(np.unique(one.flat)) == plan.units


def test_unknown_names_are_refused_with_a_hint(net, plan):
    with pytest.raises(UnknownNameError, match="criterion 'tailor': did you mean 'taylor'"):
        score("tailor", net, plan)
    with pytest.raises(UnknownNameError, match=r"option of random 'sede': did you mean 'seed'\?"):
        score("random", net, plan, sede=1)
