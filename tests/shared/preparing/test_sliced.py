"""Networks of slices: equal to the materialised ones, and gradients that reach the base."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.modules.batchnorm import _BatchNorm

from fedsprig.graph import kept_axes, kept_index, materialize, trace_groups
from fedsprig.masks import Mask
from fedsprig.models import build
from fedsprig.models.cifar_resnet import CifarResNet
from fedsprig.preparing import SlicedNetwork, skeleton_of
from fedsprig.training.head_input import HeadInput


def scattered(gradient, shape, kept):
    """A cut parameter's gradient at its places in the whole, zero elsewhere."""
    full = torch.zeros(shape, dtype=gradient.dtype)
    index = np.ix_(*[kept.get(axis, np.arange(size)) for axis, size in enumerate(shape)])
    full[index] = gradient
    return full


def compare(base, plan, mask, images, *, training):
    base, images = base.double(), images.double()
    before = copy.deepcopy(base.state_dict())
    sliced = SlicedNetwork(base, plan, mask, batch_statistics=training)
    cut = materialize(base, plan, mask).eval()
    for module in cut.modules():
        if training and isinstance(module, _BatchNorm):
            module.train()
    said, wanted = sliced(images), cut(images)
    torch.testing.assert_close(said, wanted, rtol=1e-10, atol=1e-10)
    weights = torch.randn(said.shape, generator=torch.Generator().manual_seed(2)).double()
    (said * weights).sum().backward()
    (wanted * weights).sum().backward()
    index = kept_index(plan, mask)
    gradients = dict(cut.named_parameters())
    for name, parameter in base.named_parameters():
        own = gradients[name].grad
        full = scattered(own, parameter.shape, kept_axes(name, index))
        torch.testing.assert_close(parameter.grad, full, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), keep=st.floats(0.1, 1))
def test_output_and_gradients_are_those_of_the_materialised_network(
    training, seed, keep, tiny_plan, pictures
):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = CifarResNet(8, num_classes=2, width=4, shortcut="conv").eval()
    mask = Mask.random(tiny_plan, keep, np.random.default_rng(seed))
    compare(base, tiny_plan, mask, pictures[0][:6], training=training)


def test_so_it_is_for_depthwise_convolutions_and_what_they_squeeze():
    base = build("efficientnet_lite0", num_classes=2, image_size=32)
    plan = trace_groups(base, torch.zeros(1, 3, 32, 32), name="efficientnet_lite0")
    mask = Mask.random(plan, 0.3, np.random.default_rng(0))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    compare(base.eval(), plan, mask, images, training=True)


def test_features_are_what_the_head_of_the_cut_network_sees(tiny, tiny_plan, pictures):
    mask = Mask.random(tiny_plan, 0.5, np.random.default_rng(4))
    sliced = SlicedNetwork(tiny, tiny_plan, mask, skeleton=skeleton_of(tiny))
    cut = materialize(tiny, tiny_plan, mask)
    with HeadInput(cut, "linear") as seen:
        cut(pictures[0])
    wanted = seen.take()
    torch.testing.assert_close(sliced.features(pictures[0]), wanted)
    kept = sliced.kept_features
    assert len(kept) == wanted.shape[1] < tiny.linear.in_features
    with HeadInput(tiny, "linear") as whole:
        tiny(pictures[0])
    full = SlicedNetwork(tiny, tiny_plan, Mask.full(tiny_plan))
    assert full.kept_features is None
    torch.testing.assert_close(full.features(pictures[0]), whole.take())


def test_a_change_of_the_base_is_seen_at_the_next_call(tiny, tiny_plan, pictures):
    sliced = SlicedNetwork(tiny, tiny_plan, Mask.full(tiny_plan))
    before = sliced(pictures[0])
    with torch.no_grad():
        tiny.conv1.weight.mul_(2)
    assert not torch.equal(sliced(pictures[0]), before)
    torch.testing.assert_close(sliced(pictures[0]), tiny(pictures[0]))
