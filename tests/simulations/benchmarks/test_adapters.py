"""The benchmark trains every contender that is installed, and its figures are what they say."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from fedsprig_sim.benchmarks import adapters
from fedsprig_sim.benchmarks.adapters.contenders import (
    CONTENDERS,
    FROZEN,
    FULL,
    OURS,
    difference_to_library,
)
from fedsprig_sim.benchmarks.adapters.memory import held_by, peak_bytes
from fedsprig_sim.benchmarks.adapters.networks import NETWORKS


def test_it_reports_every_contender_with_its_ratio():
    lines: list[str] = []
    figures = adapters.run(
        networks=["resnet18-w16"], ranks=[8], batch_size=2, repeats=1, progress=lines.append
    )
    assert json.loads(json.dumps(figures)) == figures
    (case,) = figures["cases"]
    found = case["contenders"]
    assert {FROZEN, FULL, OURS} <= found.keys() <= CONTENDERS.keys()
    for own, ratios in case["ratios"].items():
        for name, ratio in ratios.items():
            assert ratio == found[own]["seconds"] / found[name]["seconds"]
    assert found[FROZEN]["trained"] < found[OURS]["trained"] < found[FULL]["trained"] / 50
    text = adapters.table(figures)
    assert all(name in text for name in found)
    assert lines == ["resnet18-w16, rank 8"]


@pytest.mark.parametrize(("name", "width"), [("resnet18-w20", 20), ("resnet18-w64", 64)])
def test_networks_are_cut_to_their_width(name, width):
    model = NETWORKS[name].make()
    widths = {m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {width, 2 * width, 4 * width, 8 * width}
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_contenders_share_nothing_with_the_network_they_were_made_of():
    model = NETWORKS["resnet18-w16"].make()
    before = copy.deepcopy(model.state_dict())
    for make in (CONTENDERS[FROZEN], CONTENDERS[FULL], CONTENDERS[OURS]):
        other = make(model, 4).train()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_peak_memory_counts_what_is_held_and_what_a_step_needs():
    layer = nn.Linear(1000, 10)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(500, 1000)

    def step():
        optimiser.zero_grad()
        layer(x).sum().backward()
        optimiser.step()

    step()
    optimiser.zero_grad()
    held, weights = held_by(layer, optimiser), 4 * (1000 * 10 + 10)
    assert sum(t.nbytes for t in held) == 2 * weights  # weights and momentum
    # At its worst: weights, momentum and gradients, beside the output or something as small.
    assert 3 * weights <= peak_bytes(step, held) <= 3 * weights + 3 * 4 * 500 * 10


def test_the_forward_pass_is_that_of_the_papers_library():
    pytest.importorskip("sp_adapters", reason="structured-pruning-adapters is not installed")
    model = NETWORKS["resnet18-w16"].make()
    assert difference_to_library(model, 8, torch.randn(2, 3, 32, 32)) <= 1e-5
