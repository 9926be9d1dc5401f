"""Merged layers that hold their kept blocks alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fedsprig.adapters import attach, merge
from fedsprig.adapters.block_linear import BlockLinear, use_blocks_
from fedsprig.adapters.splopa import SPLoPA
from fedsprig.errors import AdapterError, PlanError
from fedsprig.masks.block_layers import blocks_of
from fedsprig.masks.block_scores import BlockScores, solve_blocks


class Net(nn.Module):
    """One wide layer that gains, one small one that does not, a 1x1 convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 300, 1)
        self.inner = nn.Sequential(nn.Linear(300, 280), nn.ReLU())
        self.small = nn.Linear(280, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        return self.head(self.small(self.inner(x)))


@pytest.fixture
def masks():
    layout, rng = blocks_of(Net(), head="head"), np.random.default_rng(0)
    return solve_blocks(
        BlockScores(layout.split(rng.random(layout.blocks)), layout), 0.04, scope="layer"
    )


@pytest.fixture
def merged(masks):
    torch.manual_seed(0)
    net = attach(Net().eval(), kind=SPLoPA(prototypes=4, masks=masks), head="head")
    with torch.no_grad():
        net.inner[0].adapter_blocks.normal_()
    return merge(net)


def pictures(rows=5):
    return torch.randn(rows, 3, 4, 5, generator=torch.Generator().manual_seed(1))


def test_block_layers_compute_what_the_merged_layers_did(merged, masks):
    x = pictures()
    with torch.no_grad():
        expected = merged(x)
    weight = merged.inner[0].weight.detach().clone()
    report = use_blocks_(merged, masks)
    layer = merged.inner[0]
    assert type(layer) is BlockLinear
    assert not layer.training
    assert type(merged.small) is nn.Linear
    assert torch.equal(layer.weight, weight)
    with torch.no_grad():
        torch.testing.assert_close(merged(x), expected)
        torch.testing.assert_close(merged(x[:1, :, :1, :1]), expected[:1, :1])
    kept = int(masks.layers["inner.0.weight"].sum())
    assert layer.blocks.numel() == kept * 32 * 32 < weight.numel() / 10
    assert report == (
        "conv.weight: dense, only linear layers inside a model are multiplied sparse",
        f"inner.0.weight: {kept} of 90 blocks of 32x32: block-sparse from "
        f"{repr(layer).split('block-sparse from ')[1].split(' ')[0]} rows on, dense below",
        "small.weight: 1 of 9 blocks of 32x32: dense, block-sparse would be slower",
    )
    assert report[1].split(": ", 1)[1] in repr(layer)


def test_gradients_flow_where_they_are_asked_for(merged, masks):
    x = pictures()
    plain = copy.deepcopy(merged)
    use_blocks_(merged, masks)
    merged.inner[0].requires_grad_()
    for model in (plain, merged):
        model(x).square().sum().backward()
    blocks, bias = merged.inner[0].blocks, merged.inner[0].bias
    torch.testing.assert_close(
        blocks.grad, merged.inner[0].grid.split(plain.inner[0].weight.grad), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(bias.grad, plain.inner[0].bias.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged.conv.weight.grad, plain.conv.weight.grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert merged.inner(torch.ones(50, 300)).dtype == torch.bfloat16


def test_a_layer_without_bias_and_a_single_row():
    linear = nn.Linear(300, 280, bias=False)
    keep = torch.zeros(9, 10, dtype=torch.bool)
    keep[3, 4] = keep[8, 9] = True
    layer = BlockLinear(linear, keep, (32, 32))
    elements = keep.repeat_interleave(32, 0)[:280].repeat_interleave(32, 1)[:, :300]
    x = torch.randn(300, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), (linear.weight * elements) @ x)
    many = x.expand(64, 300)
    torch.testing.assert_close(layer(many), many @ (linear.weight * elements).T)
    assert linear.weight.all()


def test_weights_that_the_mask_did_not_prune_are_refused(merged, masks):
    with pytest.raises(AdapterError, match=r"conv\.weight is not zero where the block mask drops"):
        use_blocks_(Net(), masks)
    with torch.no_grad():
        merged.inner[0].weight[-1, -1] = 1
    before = repr(merged)
    with pytest.raises(AdapterError, match=r"inner\.0\.weight is not zero"):
        use_blocks_(merged, masks)
    assert repr(merged) == before
    with pytest.raises(PlanError, match=r"names conv\.weight"):
        use_blocks_(nn.Linear(3, 3), masks)
