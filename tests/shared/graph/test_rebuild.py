"""A rebuilt module is what ``copy.deepcopy`` would give, but for the tensors that were replaced."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from fedsprig.adapters import attach
from fedsprig.graph.rebuild import rebuild
from fedsprig.models import build


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return 2 * weight


class Owner(nn.Module):
    """Keeps what modules may keep beside parameters, buffers and children."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)
        self.tied = nn.Linear(3, 4, bias=False)
        self.tied.weight = self.first.weight
        self.order = [self.second, self.first]  # read in forward, as some detectors do
        self.table = {"first": self.first, "sizes": [3, 4]}
        self.second.shared = self.first.shared = {"calls": 0}
        self.empty = self.first.empty = []
        self.attention = nn.MultiheadAttention(4, 2)  # has a __setstate__ of its own
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("absent", None)
        self.first.register_forward_hook(lambda module, inputs, output: output + 1)

    def forward(self, x):
        for module in reversed(self.order):
            x = module(x)
        return self.scale * x


def assert_same_tree(found, expected, original):
    """Types, settings and values agree; nothing that can change is the original's."""
    for old, new, twin in zip(original.modules(), found.modules(), expected.modules(), strict=True):
        assert type(new) is type(twin)
        assert new is not old
        assert list(vars(new)) == list(vars(twin))
        for name, value in vars(new).items():
            assert type(value) is type(vars(twin)[name]), name
            if isinstance(value, dict | list | set):
                assert value is not vars(old)[name], name
                assert len(value) == len(vars(twin)[name])
    memory = {tensor.data_ptr() for tensor in original.state_dict().values()}
    state, wanted = found.state_dict(), expected.state_dict()
    assert list(state) == list(wanted)
    for name, tensor in state.items():
        assert torch.equal(tensor, wanted[name]), name
        assert tensor.data_ptr() not in memory, name
    assert [(n, p.requires_grad) for n, p in found.named_parameters()] == [
        (n, p.requires_grad) for n, p in expected.named_parameters()
    ]


def test_what_a_module_keeps_stays_connected_as_it_was():
    owner = Owner()
    owner.second.bias.requires_grad_(False)
    found = rebuild(owner, {})
    assert_same_tree(found, copy.deepcopy(owner), owner)
    assert found.order[0] is found.second
    assert found.order[1] is found.table["first"] is found.first
    assert found.tied.weight is found.first.weight
    assert found.first.shared is found.second.shared
    assert found.first.shared is not owner.first.shared
    assert found.empty is found.first.empty
    assert found.empty is not owner.empty
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(x), owner(x))


def test_replaced_tensors_are_taken_as_they_are():
    owner = Owner()
    weight, scale = torch.randn(4, 3), torch.zeros(3)
    found = rebuild(owner, {"first.weight": weight, "scale": scale})
    assert found.first.weight.data_ptr() == weight.data_ptr()
    assert found.tied.weight is found.first.weight
    assert found.first.weight.requires_grad
    assert found.scale is scale
    owner.first.weight.requires_grad_(False)
    assert not rebuild(owner, {"first.weight": weight}).first.weight.requires_grad


def test_parametrised_modules_are_copied_too():
    owner = Owner()
    parametrize.register_parametrization(owner.first, "weight", Doubled())
    found = rebuild(owner, {})
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(x), owner(x))
    with torch.no_grad():
        found.first.parametrizations.weight.original.zero_()
    assert not torch.equal(found(x), owner(x))


@pytest.mark.parametrize("name", ["sprig20", "sprig_vit", "torchvision/swin_t"])
def test_real_networks_with_adapters(name):
    model = build(name, num_classes=3, image_size=64 if "swin" in name else None)
    attach(model, rank=2, unadapted="freeze")
    assert_same_tree(rebuild(model, {}), copy.deepcopy(model), model)
