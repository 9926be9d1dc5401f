"""A network small enough to cut by hand, with every kind of layer that an adapter meets."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsprig.graph import AxisMap, Group, GroupPlan
from fedsprig.masks import Mask


class TinyNet(nn.Module):
    """A convolution, a depthwise one, a strided 1x1 one, a linear layer and a head."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.conv2 = nn.Conv2d(6, 4, 1, stride=2)
        self.bn2 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.depthwise(x))
        x = torch.relu(self.bn2(self.conv2(x))).mean((2, 3))
        return self.head(torch.relu(self.fc(x)))


def make_net(seed=0):
    """Return a net in evaluation mode in which nothing is zero or one by convention."""
    generator = torch.Generator().manual_seed(seed)
    net = TinyNet().eval()
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
        for norm in (net.bn1, net.bn2):
            norm.running_var.abs_().add_(0.5)
    return net


def by_unit(tensor, axis, units, role):
    return AxisMap(tensor, axis, np.arange(units, dtype=np.int32)[:, None], role)


def group(name, units, *axes):
    return Group(name, units, "inner", tuple(by_unit(t, a, units, r) for t, a, r in axes), ())


def norm_axes(name):
    return [(f"{name}.{s}", 0, "norm") for s in ("weight", "bias", "running_mean", "running_var")]


def make_plan(net):
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    return GroupPlan(
        model="tiny",
        input_shape=(1, 3, 8, 8),
        head="head",
        groups=(
            group(
                "conv1",
                6,
                ("conv1.weight", 0, "out"),
                *norm_axes("bn1"),
                ("depthwise.weight", 0, "out"),
                ("depthwise.bias", 0, "out"),
                ("conv2.weight", 1, "in"),
            ),
            group(
                "conv2",
                4,
                ("conv2.weight", 0, "out"),
                ("conv2.bias", 0, "out"),
                *norm_axes("bn2"),
                ("fc.weight", 1, "in"),
            ),
            group(
                "fc",
                5,
                ("fc.weight", 0, "out"),
                ("fc.bias", 0, "out"),
                ("head.weight", 1, "in"),
            ),
        ),
        shapes=shapes,
        macs_per_weight={},
        unit_macs={},
        frozen={},
    )


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def plan(net):
    return make_plan(net)


@pytest.fixture
def mask():
    return Mask(
        {
            "conv1": np.array([1, 0, 1, 1, 0, 1], bool),
            "conv2": np.array([0, 1, 1, 1], bool),
            "fc": np.array([1, 1, 0, 0, 1], bool),
        }
    )


@pytest.fixture
def pictures():
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
