"""Traced models, each built once, and masks of uneven widths."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from fedsprig.graph import GroupPlan, trace_groups
from fedsprig.graph.verify import randomised
from fedsprig.masks import Mask
from fedsprig.models import build


@dataclass(frozen=True)
class Traced:
    """A model with random parameters (no zero or tiny scale hides a fault) and its plan."""

    model: nn.Module
    plan: GroupPlan
    pictures: torch.Tensor


def traced(name, size, *, num_classes=5, fixed_size=False, seed=7):
    model = build(name, num_classes=num_classes, image_size=size if fixed_size else None)
    plan = trace_groups(model, torch.zeros(1, 3, size, size), name=name)
    pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return Traced(randomised(model, seed=seed), plan, pictures)


def uneven_mask(plan, seed):
    """Another keep ratio for every group, from a single unit to nearly all."""
    rng = np.random.default_rng(seed)
    groups = {}
    for group in plan.groups:
        kept = max(1, round(group.units * rng.uniform(0, 0.95)))
        units = np.zeros(group.units, bool)
        units[rng.permutation(group.units)[:kept]] = True
        groups[group.name] = units
    return Mask(groups)


@pytest.fixture(scope="session")
def padded():
    """CifarResNet-20 with padded shortcuts: its three streams are coupled with an offset."""
    return traced("cifar_resnet20", 32)


@pytest.fixture(scope="session")
def sprig20():
    return traced("sprig20", 32)


@pytest.fixture(scope="session")
def sprig_vit():
    return traced("sprig_vit", 32)


@pytest.fixture(scope="session")
def make_mask():
    return uneven_mask


@pytest.fixture(scope="session")
def make_traced():
    return traced
