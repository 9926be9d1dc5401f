"""A small network with every kind of tap, and its plan by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedsprig.graph import AxisMap, Group, GroupPlan, Tap


def rows(units, k=1):
    """Unit u owns the k positions from u * k on."""
    return np.arange(units * k, dtype=np.int32).reshape(units, k)


class TappedNet(nn.Module):
    """An inner group, a stream of two producers, and "heads" of two channels seen in windows.

    [n, 2, 4, 4] -> conv1 (inner, 3) -> conv2 + skip (stream, 4) -> windows of 4 tokens -> wide (2
    heads of 2 channels, at the input of out) -> out -> mean over tokens -> logits [n, 3].
    """

    def __init__(self, inplace=False):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(3, 4, 3, padding=1)
        self.skip = nn.Conv2d(2, 4, 1)
        self.wide = nn.Linear(4, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        y = self.act(self.bn1(self.conv1(x)))
        y = F.relu(self.conv2(y) + self.skip(x))
        tokens = y.flatten(2).transpose(1, 2).reshape(-1, 4, 4)  # 4 windows a picture
        seen = self.out(torch.tanh(self.wide(tokens)))
        return seen.reshape(len(x), 16, 3).mean(1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = TappedNet().double().eval()
    net.bn1.running_mean.uniform_(-0.2, 0.2)
    return net


@pytest.fixture
def inplace_net(net):
    other = TappedNet(inplace=True).double().eval()
    other.load_state_dict(net.state_dict())
    return other


@pytest.fixture
def batches():
    """5 pictures in 2 batches, in float64 so that the slow references agree closely."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(5, 2, 4, 4, generator=rng, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1, 0])
    return [(images[:2], labels[:2]), (images[2:], labels[2:])]


@pytest.fixture(scope="session")
def plan():
    shapes = {name: tuple(value.shape) for name, value in TappedNet().state_dict().items()}
    return GroupPlan(
        model="tapped",
        input_shape=(1, 2, 4, 4),
        head="",
        groups=(
            Group(
                "conv1",
                3,
                "inner",
                (
                    AxisMap("conv1.weight", 0, rows(3), "out"),
                    AxisMap("bn1.weight", 0, rows(3), "norm"),
                    AxisMap("conv2.weight", 1, rows(3), "in"),
                ),
                (Tap("bn1", "output", 1, rows(3)),),
            ),
            Group(
                "conv2",
                4,
                "stream",
                (
                    AxisMap("conv2.weight", 0, rows(4), "out"),
                    AxisMap("conv2.bias", 0, rows(4), "out"),
                    AxisMap("skip.weight", 0, rows(4), "out"),
                    AxisMap("wide.weight", 1, rows(4), "in"),
                ),
                (Tap("conv2", "output", 1, rows(4)), Tap("skip", "output", 1, rows(4))),
            ),
            Group(
                "wide",
                2,
                "heads",
                (
                    AxisMap("wide.weight", 0, rows(2, 2), "out"),
                    AxisMap("wide.bias", 0, rows(2, 2), "out"),
                    AxisMap("out.weight", 1, rows(2, 2), "in"),
                ),
                (Tap("out", "input", -1, rows(2, 2)),),
            ),
        ),
        shapes=shapes,
        macs_per_weight={"conv1.weight": 16, "conv2.weight": 16, "skip.weight": 16},
        unit_macs={},
        frozen={},
    )
