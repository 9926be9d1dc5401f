"""The backward pass without the frozen weight's gradient, against autograd by a plain merge."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedsprig.adapters import attach
from fedsprig.adapters.frozen import adapted_linear, merge_delta

GEOMETRIES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "strided 1x1": {"kernel_size": 1, "stride": 2},
    "strided, uneven": {"kernel_size": 3, "stride": (3, 1), "padding": (0, 2)},
    "strided, not padded": {"kernel_size": 3, "stride": 2},
    "wide padding": {"kernel_size": 3, "padding": 3},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 1, "stride": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 20, "out": 40, "stride": 2},
    "even": {"kernel_size": 2, "padding": 1},
    "patches": {"kernel_size": 4, "stride": 4},
    "not square": {"kernel_size": (1, 4), "padding": (0, 1)},
    "same size, even": {"kernel_size": (2, 4), "padding": "same"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular, strided": {"kernel_size": 3, "padding": 1, "stride": 2, "padding_mode": "circular"},
}
INPUTS = 20  # at rank 3 the projection pays, at rank 12 the change's own gradient does


def conv(geometry, dims=2, **options):
    options = {"out": 6, **geometry, **options}
    if dims == 1:
        options = {k: v[1] if isinstance(v, tuple) else v for k, v in options.items()}
    kind = nn.Conv2d if dims == 2 else nn.Conv1d
    torch.manual_seed(0)
    return kind(INPUTS, options.pop("out"), **options)


def adapted(layer, kind="splora", **options):
    attach(layer, kind=kind, head="", **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in ("adapter_b", "adapter_d"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    return layer


def by_autograd(layer, x):
    """The slow reference: merge in the graph, then the plain operation."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, merge_delta(layer.weight, *layer.delta()), layer.bias)
    return layer._conv_forward(x, merge_delta(layer.weight, *layer.delta()), layer.bias)


def gradients(layer, x, forward):
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    out = forward(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out)
    (out * weights).sum().backward()
    found = {n: p.grad.clone() for n, p in layer.named_parameters() if p.requires_grad}
    return out.detach(), {**found, "x": x.grad}


def same_gradients(layer, x, tolerance):
    out, found = gradients(layer, x, layer)
    expected_out, expected = gradients(layer, x, lambda x: by_autograd(layer, x))
    assert layer.weight.grad is None
    torch.testing.assert_close(out, expected_out, rtol=tolerance, atol=tolerance)
    assert found.keys() == expected.keys()
    for name in found:
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(
            found[name], expected[name], rtol=0, atol=tolerance * scale, msg=name
        )


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(
    ("kind", "rank", "train_a"),
    [
        ("splora", 3, False),
        ("splora", 3, True),
        ("splora", 12, False),
        ("splora", 12, True),
        ("sppara", 1, False),
    ],
)
def test_convolutions_have_the_gradients_of_autograd(geometry, dims, kind, rank, train_a):
    space = (2, INPUTS, 9, 10) if dims == 2 else (2, INPUTS, 10)
    x = torch.randn(space, generator=torch.Generator().manual_seed(3))
    layer = adapted(conv(GEOMETRIES[geometry], dims), kind, rank=rank, train_a=train_a)
    same_gradients(layer, x, 1e-4)
    if dims == 2:
        same_gradients(layer, x.contiguous(memory_format=torch.channels_last), 1e-4)
        same_gradients(layer.to(memory_format=torch.channels_last), x, 1e-4)


@pytest.mark.parametrize("size", [6, 60])  # few positions and many go through other kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("train_a", [False, True])
def test_few_and_many_positions_alike(size, dtype, train_a):
    x = torch.randn(2, INPUTS, size, size, dtype=dtype).to(memory_format=torch.channels_last)
    layer = adapted(conv(GEOMETRIES["3x3"]).to(dtype), rank=3, train_a=train_a)
    same_gradients(layer, x, 1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("geometry", ["3x3", "1x1", "strided", "even", "reflected"])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("train_a", [False, True])
def test_many_weights_and_few_positions(geometry, dims, train_a):
    # Here merging is not worth it; the product is computed beside where it can be.
    space = (2, INPUTS, 3, 2) if dims == 2 else (2, INPUTS, 4)
    x = torch.randn(space, generator=torch.Generator().manual_seed(3))
    layer = adapted(conv(GEOMETRIES[geometry], dims, out=60), rank=3, train_a=train_a)
    same_gradients(layer, x, 1e-4)
    for name in ("adapter_b", "bias"):
        layer.get_parameter(name).requires_grad_(False)
    if train_a:
        same_gradients(layer, x, 1e-4)
    layer.requires_grad_(True).weight.requires_grad_(False)
    if dims == 2:
        same_gradients(layer, x.contiguous(memory_format=torch.channels_last), 1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [1, 3, 200])  # few rows are not worth merging
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "rank", "train_a"),
    [("splora", 2, False), ("splora", 2, True), ("splora", 9, True), ("sppara", 1, False)],
)
def test_linear_layers_have_the_gradients_of_autograd(rows, bias, kind, rank, train_a):
    x = torch.randn(2, rows, INPUTS)
    layer = adapted(nn.Linear(INPUTS, 30, bias=bias), kind, rank=rank, train_a=train_a)
    same_gradients(layer, x, 1e-4)


@pytest.mark.parametrize("geometry", ["strided", "dilated", "grouped", "even", "1x1"])
@pytest.mark.parametrize("rank", [2, 12])
def test_gradcheck_of_convolutions(geometry, rank):
    layer = adapted(conv(GEOMETRIES[geometry], out=4).double(), rank=rank, train_a=True)
    x = torch.randn(1, INPUTS, 4, 5, dtype=torch.float64, requires_grad=True)

    def function(x, bias, b, a):
        values = {"bias": bias, "adapter_b": b, "adapter_a": a}
        return torch.func.functional_call(layer, values, (x,))

    assert torch.autograd.gradcheck(function, (x, layer.bias, layer.adapter_b, layer.adapter_a))


@pytest.mark.parametrize("rows", [1, 40])
def test_gradcheck_of_linear_layers(rows):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    weight, values = draw(5, 7), (draw(rows, 7), draw(5), draw(5, 2), draw(2, 7))

    def function(x, bias, b, a):
        return adapted_linear(x, weight, bias, b, a)

    assert torch.autograd.gradcheck(function, tuple(v.requires_grad_() for v in values))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("geometry", ["3x3", "strided 1x1", "depthwise"])
def test_autocast_computes_in_bfloat16_and_keeps_the_parameters_precision(geometry, channels_last):
    layer = adapted(conv(GEOMETRIES[geometry]), rank=3, train_a=True)
    x = torch.randn(4, INPUTS, 12, 12)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    with torch.autocast("cpu", torch.bfloat16):
        out, found = gradients(layer, x, layer)
    assert out.dtype == torch.bfloat16
    assert {g.dtype for g in found.values()} == {torch.float32}
    _, expected = gradients(layer, x, layer)
    for name in found:
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0.03 * scale)
    line = adapted(nn.Linear(INPUTS, 6), rank=3)
    with torch.autocast("cpu", torch.bfloat16):
        assert line(torch.randn(50, INPUTS)).dtype == torch.bfloat16
    # A change of B far below bfloat16's resolution of the weight is not lost in merging.
    small = adapted(nn.Linear(INPUTS, 6), "sppara")
    with torch.no_grad():
        small.weight.fill_(256.0)
        small.adapter_d.fill_(1.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert (small(torch.ones(1, INPUTS) / INPUTS) - small.bias).mean().item() >= 257


@pytest.mark.parametrize("kind", ["splora", "sppara"])
@pytest.mark.parametrize("trains", [True, False])
def test_autocast_passes_from_layer_to_layer(kind, trains):
    # A plain network computes all of this in bfloat16, whether it trains or not.
    model = nn.Sequential(
        nn.Conv2d(3, INPUTS, 3, padding=1), nn.Conv2d(INPUTS, 4, 1), nn.Flatten(), nn.Linear(64, 5)
    )
    attach(model, kind=kind, head="")
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(trains):
        assert model(torch.randn(2, 3, 4, 4)).dtype == torch.bfloat16


def test_adapted_networks_run_on_the_meta_device():
    for kind in ("splora", "sppara", "splopa"):
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(128, 5)).to("meta")
        attach(model, kind=kind, head="")
        assert model(torch.empty(2, 3, 4, 4, device="meta")).shape == (2, 5)


def kept_bytes(model, x):
    """Bytes that the backward pass keeps, each memory counted once, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so no address returns
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x)
    return sum(size for size, _ in seen.values())


def test_the_backward_pass_keeps_what_a_frozen_network_keeps_and_the_projections():
    frozen = nn.Sequential(
        *(
            nn.Sequential(
                conv({"kernel_size": 3, "padding": 1}, out=INPUTS), nn.BatchNorm2d(INPUTS)
            )
            for _ in range(4)
        )
    )
    small = attach(copy.deepcopy(frozen), rank=3, head="")
    for module in frozen:
        module[0].weight.requires_grad_(False)
    x = torch.randn(8, INPUTS, 10, 10)
    picture, projection = 8 * 10 * 10 * INPUTS * 4, 8 * 10 * 10 * 3 * 4
    statistics = 4 * 4 * INPUTS * 4  # of every normalisation: the batch's two and the running two
    merged = 4 * INPUTS * INPUTS * 9 * 4
    # Normalisation keeps its input, we the projection; a plain convolution keeps its input too.
    assert kept_bytes(small, x) == 4 * (picture + projection) + statistics + merged
    assert kept_bytes(frozen, x) >= 4 * 2 * picture


def test_a_merged_weight_larger_than_the_input_is_not_kept():
    line = attach(nn.Linear(INPUTS, 400, bias=False), rank=3, head="")
    few, many = torch.randn(60, INPUTS), torch.randn(600, INPUTS)
    assert kept_bytes(line, few) == 60 * 3 * 4
    assert kept_bytes(line, many) == 600 * 3 * 4 + INPUTS * 400 * 4
    same_gradients(line, few, 1e-4)


def test_a_projection_is_kept_only_where_its_factor_trains():
    layer = adapted(conv(GEOMETRIES["3x3"], bias=False), rank=3, train_a=True)
    layer.adapter_b.requires_grad_(False)
    x = torch.randn(8, INPUTS, 10, 10)
    merged = 6 * INPUTS * 9 * 4
    assert kept_bytes(layer, x) == x.nbytes + merged


@pytest.mark.parametrize("kind", ["splora", "sppara", "splopa"])
def test_outputs_may_be_written_in_place(kind):
    model = nn.Sequential(
        nn.Conv2d(3, 40, 1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(160, 40),
        nn.ReLU(inplace=True),
        nn.Linear(40, 2),
    )
    attach(model, kind=kind)
    model(torch.randn(3, 3, 2, 2)).sum().backward()
    tokens = attach(nn.Linear(40, 40), kind=kind, head="")(torch.randn(2, 3, 40))
    tokens += 1
    tokens.sum().backward()


def test_padding_and_dilation_that_were_changed_later_count():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    layer.padding = layer.dilation = (2, 2)
    x = torch.randn(1, 4, 9, 9)
    expected = layer(x)
    assert torch.equal(attach(layer, head="")(x), expected)


def test_gradients_of_gradients_are_refused():
    layer = adapted(conv(GEOMETRIES["3x3"]), rank=3)
    x = torch.randn(1, INPUTS, 4, 4, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("layer", [conv(GEOMETRIES["3x3"]), nn.Linear(INPUTS, 6)])
def test_a_weight_that_somebody_lets_train_gets_its_gradient(layer):
    layer = adapted(copy.deepcopy(layer), rank=3)
    layer.weight.requires_grad_(True)
    shape = (2, INPUTS, 5, 5) if isinstance(layer, nn.Conv2d) else (2, INPUTS)
    x = torch.randn(shape)
    _, found = gradients(layer, x, layer)
    _, expected = gradients(layer, x, lambda x: by_autograd(layer, x))
    assert found["weight"].abs().max() > 0
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_only_what_trains_is_computed():
    layer = adapted(conv(GEOMETRIES["3x3"]), rank=3, train_a=True)
    x = torch.randn(2, INPUTS, 5, 5)
    for names in (["bias"], ["adapter_a"], ["adapter_b"], ["adapter_b", "bias"]):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name in names)
        layer.zero_grad()
        layer(x).sum().backward()
        assert [n for n, p in layer.named_parameters() if p.grad is not None] == sorted(
            names, key=[n for n, _ in layer.named_parameters()].index
        )


def test_single_pictures_and_signals():
    for layer, shape in (
        (conv(GEOMETRIES["3x3"]), (INPUTS, 6, 7)),
        (conv(GEOMETRIES["3x3"], 1), (INPUTS, 7)),
    ):
        same_gradients(adapted(layer, rank=3), torch.randn(shape), 1e-4)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["splora", "sppara"])
def test_compiled_networks_compute_the_same(low, layout, kind):
    model = nn.Sequential(
        conv(GEOMETRIES["3x3"], out=INPUTS),
        nn.ReLU(),
        conv(GEOMETRIES["strided"]),
        nn.Flatten(),
        nn.Linear(54, 7),
    )
    adapted(model.to(memory_format=layout), kind, rank=3, train_a=True)
    x = torch.randn(2, INPUTS, 6, 6).contiguous(memory_format=layout)
    # Without a C++ compiler the graph is captured, differentiated and run all the same.
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    def run(function):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = function(x)
        out.float().square().sum().backward()
        return out.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    out, found = run(compiled)
    expected_out, expected = run(model)
    tolerance = 0.03 if low else 1e-4
    torch.testing.assert_close(out, expected_out, rtol=tolerance, atol=tolerance)
    for name in expected:
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance * scale)
