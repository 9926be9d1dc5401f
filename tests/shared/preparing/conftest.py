"""A residual network and pictures that are small enough to prepare in a moment."""

import pytest
import torch

from fedsprig.graph import trace_groups
from fedsprig.models.cifar_resnet import CifarResNet
from fedsprig.training import recalibrate


@pytest.fixture
def tiny(pictures):
    """A fresh network of 8 layers with the pictures' statistics, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CifarResNet(8, num_classes=2, width=4, shortcut="conv")
    recalibrate(network, pictures[0])
    return network.eval()


@pytest.fixture(scope="session")
def tiny_plan():
    network = CifarResNet(8, num_classes=2, width=4, shortcut="conv").eval()
    return trace_groups(network, torch.zeros(1, 3, 8, 8), name="tiny")


@pytest.fixture(scope="session")
def pictures():
    """24 pictures of noise around one mean for each of three classes."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(24) % 3
    means = torch.randn(3, 3, 8, 8, generator=generator)
    return means[labels] + 0.3 * torch.randn(24, 3, 8, 8, generator=generator), labels
