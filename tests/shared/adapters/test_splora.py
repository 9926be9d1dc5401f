"""SPLoRA layers against the formula computed another way, for every geometry of a layer."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedsprig.adapters import attach, merge
from fedsprig.adapters.layer import Site
from fedsprig.adapters.splora import SPLoRAConv2d, SPLoRALinear, draw_a

GEOMETRIES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 5, "padding": 2, "groups": 4, "out": 4},
    "depthwise, two outputs each": {"kernel_size": 3, "padding": 1, "groups": 4, "out": 8},
    "even": {"kernel_size": 2},
    "patches": {"kernel_size": 4, "stride": 4},
    "not square": {"kernel_size": (1, 3), "padding": (0, 1)},
    "not square, even": {"kernel_size": (2, 5), "padding": (1, 2)},
    "same size": {"kernel_size": (3, 5), "padding": "same"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "no bias": {"kernel_size": 3, "bias": False},
}


def make_layer(geometry, dtype=torch.float64):
    options = {"out": 6, **geometry}
    return nn.Conv2d(4, options.pop("out"), **options).to(dtype)


def trained(layer, rank=3):
    """Attach to a single layer and give B values, as training would."""
    attach(layer, rank=rank, head="")
    with torch.no_grad():
        layer.adapter_b.normal_(generator=torch.Generator().manual_seed(2))
    return layer


def picture(dtype=torch.float64):
    return torch.randn(2, 4, 8, 9, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conv_is_the_base_plus_the_product_at_one_tap(name, dtype):
    layer = trained(make_layer(GEOMETRIES[name], dtype))
    x = picture(dtype)
    # The slow reference: tap by tap, group by group, without a merged weight.
    kernel = torch.zeros_like(layer.weight)
    row, column = (size // 2 for size in layer.kernel_size)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            kernel[i, j, row, column] = layer.adapter_b[i] @ layer.adapter_a[:, j]
    expected = nn.Conv2d.forward(layer, x) + layer._conv_forward(x, kernel, None)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=tolerance)
    plain = merge(layer)
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), layer(x), rtol=0, atol=tolerance)
    layer.train()
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=tolerance)


@pytest.mark.parametrize("stride", [1, 2])
def test_an_odd_kernel_is_a_parallel_low_rank_1x1_convolution(stride):
    layer = trained(make_layer({"kernel_size": 5, "padding": 2, "stride": stride}))
    x = picture()
    low = F.conv2d(x, layer.adapter_a[:, :, None, None], stride=stride)
    beside = F.conv2d(low, layer.adapter_b[:, :, None, None])
    torch.testing.assert_close(layer(x), nn.Conv2d.forward(layer, x) + beside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_base_plus_the_product(dtype, bias):
    layer = trained(nn.Linear(7, 5, bias=bias, dtype=dtype))
    x = torch.randn(2, 3, 7, dtype=dtype)
    expected = nn.Linear.forward(layer, x) + x @ layer.adapter_a.T @ layer.adapter_b.T
    torch.testing.assert_close(layer(x), expected)
    plain = merge(layer)
    assert type(plain) is nn.Linear
    torch.testing.assert_close(plain(x), layer(x))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_fresh_adapter_changes_no_bit(name):
    layer = make_layer(GEOMETRIES[name], torch.float32)
    x = picture(torch.float32)
    expected = layer(x)
    attach(layer, head="")
    assert isinstance(layer, SPLoRAConv2d)
    assert torch.equal(layer(x), expected)
    assert torch.equal(merge(layer)(x), expected)


@pytest.mark.parametrize(("rank", "published"), [(32, 1_644_522), (8, 466_338)])
def test_resnet50_has_the_papers_number_of_parameters(rank, published):
    # Table 1 of arXiv 2211.10155: 1,644.5 K and 466.3 K, ten classes.
    from torchvision.models import resnet50

    with torch.device("meta"):
        model = attach(resnet50(num_classes=10), rank=rank, train_a=True, head="fc")
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == published
    assert type(model.fc) is nn.Linear


def site(**changes):
    fields = {"path": "x", "shape": (8, 6, 3, 3), "kept": {}, "rank": 4, "seed": 0}
    return Site(**(fields | {"train_a": False} | changes))


def test_a_follows_from_seed_and_path_alone():
    torch.manual_seed(1)
    first = draw_a(site())
    state = torch.get_rng_state()
    assert torch.equal(draw_a(site()), first)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched
    assert not torch.equal(draw_a(site(seed=1)), first)
    assert not torch.equal(draw_a(site(path="y")), first)


def test_a_is_the_same_on_every_machine_and_version():
    # Golden: a fixed A never travels, so another draw would silently break every stored adapter.
    golden = [
        [-0.2830897569656372, 0.1317129135131836, 0.10296773910522461],
        [0.16905105113983154, -0.9708822965621948, -0.9040601253509521],
    ]
    assert draw_a(site(shape=(2, 3), rank=2, path="layer1.0.conv1", seed=7)).tolist() == golden


def test_rows_of_a_have_length_one_on_average():
    a = draw_a(site(shape=(512, 400), rank=300))
    np.testing.assert_allclose(a.square().sum(1).mean().item(), 1, rtol=0.02)
    assert a.abs().max() <= math.sqrt(3 / 400)
    off_diagonal = a @ a.T - torch.diag((a @ a.T).diagonal())
    assert off_diagonal.square().mean().sqrt() < 1.2 / math.sqrt(400)


def test_a_of_a_cut_layer_is_a_slice():
    kept = {1: np.array([0, 3, 5])}
    assert torch.equal(draw_a(site(kept=kept)), draw_a(site())[:, [0, 3, 5]])


def test_a_lower_rank_has_the_first_rows_of_a_higher_one():
    # What devices of different widths share under a rule that gives narrower layers less.
    assert torch.equal(draw_a(site(rank=3)), draw_a(site(rank=40))[:3])


def test_the_layer_stays_the_same_object_with_its_hooks_and_mode():
    layer = nn.Linear(3, 2).train()
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    weight = layer.weight
    assert attach(layer, head="") is layer
    assert isinstance(layer, SPLoRALinear)
    assert layer.weight is weight
    assert layer.training
    layer(torch.zeros(1, 3))
    assert seen == [1]
    assert "rank=2" in repr(layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_adapters_have_the_dtype_of_their_layer(dtype):
    layer = attach(nn.Linear(6, 5, dtype=dtype), rank=2, head="")
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(torch.zeros(1, 6, dtype=dtype)).dtype == dtype


def test_adapters_of_meta_layers_are_shapes():
    layer = attach(nn.Linear(6, 5, device="meta"), rank=2, head="")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert layer.adapter_a.shape == (2, 6)


def test_layers_survive_copying_and_state_dictionaries():
    layer = trained(make_layer(GEOMETRIES["grouped"]))
    twin = copy.deepcopy(layer)
    fresh = attach(make_layer(GEOMETRIES["grouped"]), rank=3, seed=9, head="")
    fresh.load_state_dict(layer.state_dict())
    x = picture()
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(fresh(x), layer(x))
