"""The attention modules compute what they replace, head by head."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from fedsprig.models.attention import (
    PackedAttention,
    SelfAttention,
    WindowAttention,
    install_prunable_heads,
    own_names,
)


def assert_close(found, expected):
    assert float((found - expected).abs().max()) <= 2e-6 * float(expected.abs().max())


def draw(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_packed_attention_is_multihead_attention(bias):
    source = draw(nn.MultiheadAttention(12, 3, bias=bias, batch_first=True))
    ours = PackedAttention(source)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, _ = source(x, x, x, need_weights=False)
        found, weights = ours(x, x, x, need_weights=False)
    assert weights is None
    assert_close(found, expected)
    assert own_names(ours, source.state_dict()).keys() == ours.state_dict().keys()
    assert ours.in_proj.weight is source.in_proj_weight  # shared, not copied


def test_packed_attention_refuses_what_it_cannot_do():
    ours = PackedAttention(nn.MultiheadAttention(12, 3, batch_first=True))
    x, y = torch.zeros(1, 2, 12), torch.zeros(1, 2, 12)
    with pytest.raises(ValueError, match="self-attention"):
        ours(x, y, y)
    with pytest.raises(ValueError, match="weights"):
        ours(x, x, x, need_weights=True)
    assert not PackedAttention.fits(nn.MultiheadAttention(12, 3))
    assert not PackedAttention.fits(nn.MultiheadAttention(12, 3, kdim=4, batch_first=True))
    assert not PackedAttention.fits(
        nn.MultiheadAttention(12, 3, add_bias_kv=True, batch_first=True)
    )


@pytest.mark.parametrize("shift", [[0, 0], [2, 1]])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (4, 9), (3, 3)])
def test_window_attention_is_torchvisions(shift, size):
    """Sizes that divide into windows, that need padding, and that are one window or less."""
    source = draw(ShiftedWindowAttention(12, [4, 4], shift, 3))
    ours = WindowAttention(source).eval()
    x = torch.randn(2, *size, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(ours(x), source(x))
    assert own_names(ours, source.state_dict()).keys() == ours.state_dict().keys()


def test_self_attention_by_the_formula():
    module = draw(SelfAttention(6, 2))
    x = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1))
    query, key, value = module.qkv(x)[0].split(6, dim=1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        scores = query[:, head] @ key[:, head].T / 3**0.5
        heads.append(scores.softmax(1) @ value[:, head])
    expected = module.proj(torch.cat(heads, 1))
    assert torch.allclose(module(x)[0], expected, atol=1e-6)


def test_a_head_may_go_and_the_others_stay():
    """Dropping a head is leaving its term out of the sum over heads."""
    module = draw(SelfAttention(6, 3))
    keep = [0, 1, 4, 5]  # heads 0 and 2 of width 2
    small = copy.deepcopy(module)
    rows = [part * 6 + i for part in range(3) for i in keep]
    small.qkv.weight = nn.Parameter(module.qkv.weight[rows])
    small.qkv.bias = nn.Parameter(module.qkv.bias[rows])
    small.proj.weight = nn.Parameter(module.proj.weight[:, keep])
    small.follow_shapes()
    assert (small.num_heads, small.head_dim) == (2, 2)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    silenced = copy.deepcopy(module)
    with torch.no_grad():
        silenced.proj.weight[:, 2:4] = 0
        assert_close(small(x), silenced(x))


def test_products_are_counted_by_hand():
    module = SelfAttention(6, 3)
    assert module.head_macs((2, 5, 6)) == 2 * (5 * 5 * 2) * 2
    window = WindowAttention(ShiftedWindowAttention(12, [4, 4], [0, 0], 3))
    # 7 x 10 pixels need 2 x 3 windows of 16 tokens; heads are 4 wide.
    assert window.head_macs((1, 7, 10, 12)) == 2 * 6 * (16 * 16 * 4)


def test_installing_replaces_every_fitting_module_and_nothing_else():
    other = nn.MultiheadAttention(12, 3)  # not batch first: no stand-in
    model = nn.Sequential(
        nn.ModuleList([nn.MultiheadAttention(12, 3, batch_first=True)]),
        ShiftedWindowAttention(12, [4, 4], [0, 0], 3),
        other,
    )
    before = {name: value.data_ptr() for name, value in model.named_parameters()}
    assert install_prunable_heads(model.eval()) is model
    assert [type(m) for m in (model[0][0], model[1], model[2])] == [
        PackedAttention,
        WindowAttention,
        nn.MultiheadAttention,
    ]
    after = {name: value.data_ptr() for name, value in model.named_parameters()}
    assert after == own_names(model, before)
    assert "0.0.in_proj.weight" in after
    assert not any(module.training for module in model.modules())


def test_heads_must_divide_the_features():
    with pytest.raises(ValueError, match="5 heads"):
        SelfAttention(6, 5)
