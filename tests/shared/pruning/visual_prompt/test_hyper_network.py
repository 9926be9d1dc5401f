"""Formulas by hand, what scores begin with, and what they follow."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsprig.errors import BudgetError, PlanError
from fedsprig.graph import trace_groups
from fedsprig.masks import Budget
from fedsprig.models.vit import SprigViT
from fedsprig.pruning.visual_prompt.hyper_network import (
    WIDEST,
    HyperNetwork,
    standardised,
    weight_statistics,
)
from fedsprig.pruning.visual_prompt.prompt import Prompt, PromptEncoder
from fedsprig.pruning.visual_prompt.selection import Selection
from fedsprig.scoring import score


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Summed(nn.Module):
    """Two layers produce the same two units."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2, bias=False)
        self.reader = nn.Linear(2, 3)

    def forward(self, x):
        flat = x.flatten(1)
        return self.reader((self.first(flat) + self.second(flat)).relu())


def test_statistics_by_hand():
    network = Summed()
    with torch.no_grad():
        network.first.weight.copy_(torch.tensor([[1.0, -3.0], [0.0, 2.0]]))
        network.second.weight.copy_(torch.tensor([[5.0, 1.0], [-2.0, 4.0]]))
    plan = trace_groups(network, torch.zeros(1, 1, 1, 2))
    (found,) = weight_statistics(dict(network.named_parameters()), plan, ("mean", "std", "l2"))
    for unit, weights in enumerate(([1.0, -3.0, 5.0, 1.0], [0.0, 2.0, -2.0, 4.0])):
        values = np.array(weights)  # without the bias of the first
        expected = [np.abs(values).mean(), values.std(), np.sqrt((values**2).mean())]
        assert found[unit].tolist() == pytest.approx(expected)


def test_standardised_by_hand():
    values = torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    spread = float(np.sqrt(2 / 3))
    expected = torch.tensor([[-1 / spread, 0.0], [0.0, 0.0], [1 / spread, 0.0]])
    torch.testing.assert_close(standardised(values), expected)


@pytest.mark.parametrize("kinds", [(), ("mean", "median")])
def test_unknown_statistics_are_refused(small_net, small_plan, kinds):
    with pytest.raises(BudgetError, match="mean, std, l2"):
        weight_statistics(dict(small_net.named_parameters()), small_plan, kinds)


def test_other_networks_are_refused(small_plan):
    with pytest.raises(PlanError, match="full width"):
        weight_statistics({}, small_plan)


def drawn(network, plan, **options):
    statistics = weight_statistics(dict(network.named_parameters()), plan)
    return HyperNetwork(statistics, 16, generator(), **options)


@pytest.mark.parametrize("recurrent", [True, False])
def test_untrained_scores_follow_magnitudes(small_net, small_plan, recurrent):
    """Without its heads, the hyper-network selects as magnitude pruning does; with them, nearly."""
    network = drawn(small_net, small_plan, recurrent=recurrent)
    selection = Selection(plan=small_plan, floor=0.05)
    budget = Budget.fraction(small_plan, macs=0.5)
    magnitude = score("magnitude", small_net, small_plan).normalised()
    expected = selection.mask(magnitude, budget)
    near = selection.mask(selection.score_set(network(torch.zeros(32))), budget)
    assert (near.flat == expected.flat).mean() > 0.8
    for parameter in network.heads.parameters():
        nn.init.zeros_(parameter)
    assert selection.mask(selection.score_set(network(torch.zeros(32))), budget) == expected


def influences(network, plan):
    """Which groups' scores move with the statistics of which: bool ``[groups, groups]``."""
    units = [group.units for group in plan.groups]
    code = torch.zeros(32)
    before = network(code)
    rows = []
    for number in range(len(units)):
        standard = network.standard.clone()
        network.standard.split(units)[number].add_(1)
        rows.append([not torch.equal(a, b) for a, b in zip(before, network(code), strict=True)])
        network.standard.copy_(standard)
    return np.array(rows)


def test_a_group_hears_of_those_before_it_only_through_the_recurrence(small_net, small_plan):
    count = len(small_plan.groups)
    recurrent = influences(drawn(small_net, small_plan), small_plan)
    assert (recurrent == np.triu(np.ones((count, count), bool))).all()
    alone = influences(drawn(small_net, small_plan, recurrent=False), small_plan)
    assert (alone == np.eye(count, dtype=bool)).all()


def test_earlier_scores_are_read_as_soft_ones(small_net, small_plan):
    """A group's score moves with a slope that only the group before has."""
    network = drawn(small_net, small_plan)
    scores = network(torch.zeros(32))
    scores[-1].sum().backward()
    assert (network.slopes.grad != 0).all()
    assert all(s.min().item() > 0 and s.max().item() < 1 for s in scores)


def test_wide_groups_are_read_through_a_bounded_layer():
    statistics = [torch.rand(n, 2, generator=generator()) for n in (5, 3000)]
    network = HyperNetwork(statistics, 8, generator())
    assert network.reading.in_features == 3 * WIDEST
    assert [len(s) for s in network(torch.zeros(16))] == [5, 3000]
    values = torch.arange(2.0 * WIDEST)
    assert torch.equal(network._binned(values), values.view(WIDEST, 2).mean(1))
    narrow = network._binned(torch.ones(5))
    assert narrow.tolist() == [1.0] * 5 + [0.0] * (WIDEST - 5)


def test_attention_heads_are_scored_too():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SprigViT(
            num_classes=3, image_size=8, embed_dim=16, depth=2, num_heads=4, mlp_dim=24
        )
    plan = trace_groups(model, torch.zeros(1, 3, 8, 8))
    assert {group.kind for group in plan.groups} == {"heads", "inner"}
    statistics = weight_statistics(dict(model.named_parameters()), plan)
    for group, values in zip(plan.groups, statistics, strict=True):
        rows = [
            dict(model.named_parameters())[a.tensor][torch.tensor(a.positions).long()]
            for a in group.axes
            if a.role == "out" and a.tensor.endswith("weight")
        ]
        whole = torch.cat([r.flatten(1) for r in rows], 1)
        torch.testing.assert_close(values[:, 0], whole.abs().mean(1).detach())


def test_a_prompt_lies_on_the_border_alone():
    prompt = Prompt((3, 28, 42))
    with torch.no_grad():
        prompt.values.fill_(1)
    frame = prompt()
    assert (frame[:, 2:-2, 2:-2] == 0).all()
    assert (frame != 0).sum() == 3 * (28 * 42 - 24 * 38)
    assert Prompt((1, 224, 224)).border.sum() == 224**2 - 192**2
    assert Prompt((1, 8, 8), 4).border.all()
    assert not Prompt((3, 8, 8))().any()
    with pytest.raises(BudgetError, match="choose 1 or more"):
        Prompt((3, 8, 8), 0)


def test_the_same_seed_draws_the_same_and_nothing_is_drawn_from_torch(small_net, small_plan):
    def made():
        torch.manual_seed(int(torch.randint(1 << 30, ())))
        own = generator(5)
        statistics = weight_statistics(dict(small_net.named_parameters()), small_plan)
        hyper = HyperNetwork(statistics, 8, own)
        return {**hyper.state_dict(), **PromptEncoder(3, 8, own).state_dict()}

    first, second = made(), made()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
