"""Gates of 0 and 1 are a mask; gates between them are learnt; statistics follow as ever."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedsprig.errors import PlanError
from fedsprig.graph import apply_mask, trace_groups
from fedsprig.graph.verify import randomised
from fedsprig.masks import Mask
from fedsprig.models import build
from fedsprig.models.vit import SprigViT
from fedsprig.pruning.gates import Reparametrised, gated


def tiny_vit():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SprigViT(
            num_classes=3, image_size=16, embed_dim=16, depth=2, num_heads=4, mlp_dim=24
        )


FAMILIES = {
    "cifar_resnet20": lambda: build("cifar_resnet20", num_classes=3),
    "mobilenet_v2": lambda: build("torchvision/mobilenet_v2", num_classes=3),
    "vit": tiny_vit,
}


@pytest.fixture(scope="module", params=FAMILIES)
def found(request):
    model = FAMILIES[request.param]()
    plan = trace_groups(model, torch.zeros(1, 3, 16, 16), name=request.param)
    generator = torch.Generator().manual_seed(1)
    return randomised(model, seed=2).eval(), plan, torch.randn(4, 3, 16, 16, generator=generator)


def gates_of(mask):
    return {name: torch.from_numpy(units.astype("float32")) for name, units in mask.groups.items()}


@pytest.mark.parametrize("where", ["produced", "consumed"])
@pytest.mark.parametrize("keep", [0.1, 0.6])
def test_gates_of_zero_and_one_are_the_mask(found, keep, where):
    model, plan, pictures = found
    mask = Mask.random(plan, keep, np.random.default_rng(3))
    gates = gates_of(mask)
    network = Reparametrised(model, lambda parameters: gated(parameters, plan, gates, where=where))
    with torch.no_grad():
        expected, whole = apply_mask(model, plan, mask)(pictures), model(pictures)
        outputs = network(pictures)
    scale = float(expected.abs().max())
    assert float((outputs - expected).abs().max()) <= 1e-5 * scale
    assert float((outputs - whole).abs().max()) > 1e-3 * scale


def test_a_closed_gate_still_learns_where_the_unit_is_consumed(found):
    """Its gradient is what the loss would change by if it opened; a ReLU passes none elsewhere."""
    model, plan, pictures = found
    group = plan.groups[0]
    kinked = not isinstance(model, SprigViT)  # its GELU is not
    for where in ("produced", "consumed"):
        gate = torch.ones(group.units)
        gate[0] = 0
        gate.requires_grad_(True)
        transform = partial(gated, plan=plan, gates={group.name: gate}, where=where)
        loss = F.cross_entropy(Reparametrised(model, transform)(pictures), torch.arange(4) % 3)
        loss.backward()
        assert bool(gate.grad[0] != 0) == (where == "consumed" or not kinked)


def test_every_gate_is_learnt(found):
    """The gradient of each gate is the change of the loss when it alone is moved a little."""
    model, plan, pictures = found
    model = copy.deepcopy(model).double()
    pictures = pictures.double()
    labels = torch.tensor([0, 1, 2, 0])
    rng = np.random.default_rng(4)
    gates = {
        group.name: torch.from_numpy(rng.uniform(0.2, 0.9, group.units)).requires_grad_(True)
        for group in plan.groups
    }

    def loss():
        network = Reparametrised(model, lambda parameters: gated(parameters, plan, gates))
        return F.cross_entropy(network(pictures), labels)

    loss().backward()
    assert any(parameter.grad.any() for parameter in model.parameters())
    for group in (plan.groups[0], plan.groups[len(plan.groups) // 2], plan.groups[-1]):
        gate = gates[group.name]
        unit = int(gate.grad.abs().argmax())
        assert gate.grad[unit] != 0
        values = []
        for step in (-1e-6, 1e-6):
            with torch.no_grad():
                gate[unit] += step
                values.append(float(loss()))
                gate[unit] -= step
        assert float(gate.grad[unit]) == pytest.approx(
            (values[1] - values[0]) / 2e-6, rel=1e-3, abs=1e-9
        )


def test_statistics_follow_the_gated_network(found):
    model, plan, pictures = found
    model, twin = copy.deepcopy(model), copy.deepcopy(model)
    gates = {group.name: torch.full((group.units,), 0.5) for group in plan.groups}
    network = Reparametrised(model, lambda parameters: gated(parameters, plan, gates)).train()
    with torch.no_grad():
        for name, value in gated(dict(twin.named_parameters()), plan, gates).items():
            twin.get_parameter(name).copy_(value)
    before = {name: value.clone() for name, value in model.named_buffers()}
    network(pictures)
    twin.train()(pictures)
    buffers = dict(model.named_buffers())
    moved = [name for name, value in buffers.items() if not torch.equal(value, before[name])]
    normalised = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(moved) == 3 * len(normalised)
    for name, value in twin.named_buffers():
        torch.testing.assert_close(buffers[name], value)


def test_a_transform_that_is_a_module_is_trained_with_the_network(found):
    model, plan, pictures = found

    class Gates(nn.Module):
        def __init__(self):
            super().__init__()
            group = plan.groups[0]
            self.name = group.name
            self.logits = nn.Parameter(torch.zeros(group.units))

        def forward(self, parameters):
            return gated(parameters, plan, {self.name: self.logits.sigmoid()})

    network = Reparametrised(copy.deepcopy(model), Gates())
    names = dict(network.named_parameters()).keys()
    assert names == {f"network.{n}" for n, _ in model.named_parameters()} | {"transform.logits"}
    network(pictures).square().sum().backward()
    assert network.transform.logits.grad.any()


def test_gates_that_do_not_fit_are_refused(found):
    model, plan, _ = found
    parameters, group = dict(model.named_parameters()), plan.groups[0]
    with pytest.raises(PlanError, match=rf"give \[{group.units}\]"):
        gated(parameters, plan, {group.name: torch.ones(group.units + 1)})
    with pytest.raises(PlanError, match="no such group"):
        gated(parameters, plan, {"nothing": torch.ones(1)})
    with pytest.raises(PlanError, match="do not fit the plan"):
        gated({}, plan, {group.name: torch.ones(group.units)})
