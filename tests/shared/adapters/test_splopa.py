"""SPLoPA against the formula with Kronecker products, autograd, cutting, copies, and itself."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedsprig.adapters import adapter_state, attach, attach_report, load_adapter_state, merge
from fedsprig.adapters.layer import Site
from fedsprig.adapters.splopa import SPLoPA, SPLoPAConv2d, SPLoPALinear
from fedsprig.errors import AdapterError, PlanError
from fedsprig.graph import apply_mask, kept_index, materialize
from fedsprig.masks import cost
from fedsprig.masks.block_layout import BlockLayout
from fedsprig.masks.blocks import BlockMask

OPTIMISERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.05, weight_decay=0.1),
}


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_mask(shapes, block, keep=0.5, seed=0):
    """About ``keep`` of every weight's blocks, and at least one."""
    layout, rng = BlockLayout.of(shapes, block), np.random.default_rng(seed)
    flat = np.zeros(layout.blocks, bool)
    for blocks in layout.split(flat).values():
        blocks.ravel()[rng.permutation(blocks.size)[: max(1, round(keep * blocks.size))]] = True
    return BlockMask(layout.split(flat), layout)


def trained(model, kind, **options):
    """Attach to a model without a head and give B values, as training would."""
    attach(model, kind=kind, head="", **{"train_a": True, **options})
    with torch.no_grad():
        for number, layer in enumerate(layers_of(model)):
            blocks = layer.adapter_blocks
            blocks.copy_(noise(*blocks.shape, seed=number + 10))
    return model


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, SPLoPALinear | SPLoPAConv2d)]


def slow_weight(layer, kind, name="weight"):
    """The formula, with Kronecker products of whole matrices; then cropped."""
    out, inputs = layer.weight.shape[:2]
    (p, q), d = kind.block, kind.prototypes
    down, across = -(-out // p), -(-inputs // q)
    keep = torch.ones(down, across, dtype=torch.bool)
    if kind.masks is not None and name in kind.masks.layers:
        keep = torch.from_numpy(kind.masks.layers[name].copy())
    b = torch.zeros(d, down, across, dtype=layer.weight.dtype)
    b[:, keep] = layer.adapter_blocks
    whole = sum(
        torch.kron(b[i], layer.adapter_prototypes.p[i] @ layer.adapter_prototypes.q[i].T)
        for i in range(d)
    )
    elements = torch.kron(keep.to(b.dtype), torch.ones(p, q, dtype=b.dtype))
    weight = layer.weight.flatten(1)
    crop = (slice(out), slice(inputs))
    return (weight * elements[crop] + whole[crop]).view_as(layer.weight)


# The formula

LAYERS = {
    "whole blocks": lambda: nn.Linear(12, 8),
    "cropped": lambda: nn.Linear(11, 7),
    "smaller than a block": lambda: nn.Linear(2, 3, bias=False),
    "1x1": lambda: nn.Conv2d(11, 7, 1),
    "strided": lambda: nn.Conv2d(8, 12, 1, stride=(2, 3), bias=False),
    "padded": lambda: nn.Conv2d(8, 9, 1, padding=1),
    "reflected": lambda: nn.Conv2d(8, 9, 1, padding=(1, 0), padding_mode="reflect", stride=2),
}


def inputs_of(layer, dtype=torch.float64):
    if isinstance(layer, nn.Linear):
        return noise(3, 5, layer.in_features, seed=3, dtype=dtype)
    return noise(2, layer.in_channels, 5, 6, seed=3, dtype=dtype)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_the_merged_weight_is_the_sum_of_kronecker_products(name, rank, masked):
    layer = LAYERS[name]().double()
    masks = None
    if masked:
        masks = random_mask({"weight": layer.weight.shape}, (4, 3))
    kind = SPLoPA(block=(4, 3), prototypes=5, prototype_rank=rank, masks=masks)
    x, plain = inputs_of(layer), copy.deepcopy(layer)
    trained(layer, kind)
    expected = slow_weight(layer, kind)
    torch.testing.assert_close(layer.merged_weight(), expected)
    with torch.no_grad():
        plain.weight.copy_(expected)
    for mode in (True, False):
        layer.train(mode)
        torch.testing.assert_close(layer(x), plain(x))
        torch.testing.assert_close(layer(x[0]), plain(x[0]))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(x))
    merged = merge(layer)
    assert type(merged) is type(plain)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert repr(merged) == repr(plain)
    torch.testing.assert_close(merged(x), plain(x))
    if masked:
        pruned = torch.from_numpy(~masks.elements("weight"))
        assert not merged.weight.flatten(1)[pruned].any()
        assert merged.weight.flatten(1)[~pruned].all()


def test_a_case_by_hand():
    """Blocks of 1x2 of a 2x4 weight, two prototypes, one block pruned."""
    layout = BlockLayout.of({"weight": (2, 4)}, (1, 2))
    masks = BlockMask({"weight": np.array([[True, False], [True, True]])}, layout)
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    attach(layer, kind=SPLoPA(block=(1, 2), prototypes=2, masks=masks), head="")
    with torch.no_grad():
        layer.adapter_blocks.copy_(torch.tensor([[1.0, 2, 3], [10, 20, 30]]))  # (0,0) (1,0) (1,1)
        layer.adapter_prototypes.p.copy_(torch.tensor([1.0, 2]).view(2, 1, 1))
        layer.adapter_prototypes.q.copy_(torch.tensor([[1.0, -1], [0.5, 0]]).view(2, 2, 1))
    # Of block (0, 0) the change is 1 * 1 * (1, -1) + 10 * 2 * (0.5, 0) = (11, -1).
    assert layer.merged_weight().tolist() == [[12, 1, 0, 0], [27, 4, 40, 5]]


@pytest.mark.parametrize("shape", [(10, 10), (50, 70), (64, 96)])
def test_default_blocks_fit_any_shape(shape):
    layer = nn.Linear(*shape).double()
    kind = SPLoPA(prototypes=7)
    x = inputs_of(layer)
    before = layer(x)
    attach(layer, kind=kind, head="")
    assert torch.equal(layer(x), before)
    blocks = -(-shape[0] // 32) * -(-shape[1] // 32)
    assert layer.adapter_blocks.shape == (7, blocks)
    layer.adapter_blocks.data.normal_()
    torch.testing.assert_close(layer(x), F.linear(x, slow_weight(layer, kind), layer.bias))


def test_attaching_changes_nothing_but_pruned_blocks(net, pictures):
    masks = random_mask({"conv2.weight": (4, 6), "fc.weight": (5, 4)}, (2, 2))
    expected = net(pictures)
    pruned = copy.deepcopy(net)
    with torch.no_grad():
        for name in masks.layers:
            keep = torch.from_numpy(masks.elements(name))
            pruned.get_parameter(name).mul_(keep.view_as(pruned.get_parameter(name)))
    options = {"head": "head", "unadapted": "freeze"}
    torch.testing.assert_close(
        attach(copy.deepcopy(net), kind=SPLoPA(block=(2, 2)), **options)(pictures), expected
    )
    attach(net, kind=SPLoPA(block=(2, 2), masks=masks), **options)
    torch.testing.assert_close(net(pictures), pruned(pictures))
    assert not torch.allclose(net(pictures), expected)
    # The base's own weight is still there, for other masks.
    assert net.conv2.weight.ne(0).all()


# Gradients


@pytest.mark.parametrize(
    ("block", "prototypes", "rank"), [((3, 2), 1, 1), ((2, 3), 6, 2)], ids=["projected", "blocks"]
)
@pytest.mark.parametrize("geometry", ["linear", "conv", "masked", "trained weight"])
def test_gradcheck(block, prototypes, rank, geometry):
    layer = (nn.Conv2d(12, 9, 1) if geometry == "conv" else nn.Linear(12, 9)).double()
    masks = random_mask({"weight": (9, 12)}, block, 0.8) if geometry == "masked" else None
    kind = SPLoPA(block=block, prototypes=prototypes, prototype_rank=rank, masks=masks)
    trained(layer, kind)
    layer.weight.requires_grad_(geometry == "trained weight")
    x = noise(2, 12, 2, 2) if geometry == "conv" else noise(3, 12)
    parameters = {n: p for n, p in layer.named_parameters() if p.requires_grad}

    def f(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(f, (x.requires_grad_(), *parameters.values()))


def gradients(model, x, labels=None):
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    model(x).square().sum().backward()
    return {"x": x.grad} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


class Slow(nn.Module):
    """The same layer by autograd through Kronecker products."""

    def __init__(self, layer, kind):
        super().__init__()
        self.layer, self.kind = layer, kind

    def forward(self, x):
        weight, bias = slow_weight(self.layer, self.kind), self.layer.bias
        if weight.ndim == 2:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, self.layer.stride)


CASES = {
    "projections": (nn.Linear(96, 96), SPLoPA((32, 32), 3), 0.0),
    "projections, rank 2": (nn.Linear(70, 100), SPLoPA((32, 32), 2, 2), 0.0),
    "projections of more rows than one chunk": (nn.Linear(64, 64), SPLoPA((16, 32), 2), 0.3),
    "blocks": (nn.Linear(40, 30), SPLoPA((4, 4), 24), 0.5),
    "blocks, one by one": (nn.Linear(256, 256), SPLoPA((32, 32), 8), 0.98),
    "1x1": (nn.Conv2d(96, 70, 1), SPLoPA((32, 32), 3), 0.0),
    "1x1, strided": (nn.Conv2d(40, 64, 1, stride=2), SPLoPA((8, 32), 3), 0.5),
    "1x1, one by one": (nn.Conv2d(256, 256, 1, bias=False), SPLoPA((32, 32), 8), 0.98),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_autograd(name, train_a, layout):
    layer, kind, sparsity = copy.deepcopy(CASES[name])
    if sparsity:
        masks = random_mask({"weight": layer.weight.shape}, kind.block, 1 - sparsity)
        kind = SPLoPA(kind.block, kind.prototypes, kind.prototype_rank, masks)
    trained(layer.double(), kind, train_a=train_a)
    if isinstance(layer, nn.Conv2d):
        x = noise(3, layer.in_channels, 12, 11).contiguous(memory_format=layout)
    else:
        x = noise(5, 60, layer.in_features)
    found = gradients(layer, x)
    expected = gradients(Slow(layer, kind), x)
    assert "weight" not in found
    assert ("adapter_prototypes.p" in found) == train_a
    assert found.keys() == {key.removeprefix("layer.") for key in expected}
    for key, value in expected.items():
        torch.testing.assert_close(found[key.removeprefix("layer.")], value)


def test_outputs_and_merged_weights_are_contiguous():
    for keep in (0.02, 1):
        masks = random_mask({"weight": (300, 290)}, (32, 32), keep)
        layer = trained(nn.Linear(290, 300), SPLoPA(prototypes=2, masks=masks))
        assert layer(torch.ones(70, 290)).is_contiguous()
        weight = merge(layer).weight
        assert weight.is_contiguous()
        assert weight.untyped_storage().nbytes() == 4 * 300 * 290


def test_the_output_keeps_the_memory_format():
    layer = trained(
        nn.Conv2d(256, 256, 1), SPLoPA(masks=random_mask({"weight": (256, 256)}, (32, 32), 0.02))
    )
    assert "block-sparse from" in repr(layer)
    x = noise(2, 256, 9, 8, dtype=torch.float32)
    expected = F.conv2d(x, layer.merged_weight(), layer.bias)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = layer(x.contiguous(memory_format=layout))
        assert y.is_contiguous(memory_format=layout)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)


def test_no_merged_weight_is_kept_for_the_backward_pass():
    model = trained(nn.Sequential(nn.Linear(96, 64), nn.Linear(64, 96)), SPLoPA(prototypes=3))
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.ones(5, 96))
    assert kept == [(5, 96), (5, 64)]


def test_gradients_of_gradients_are_refused():
    layer = trained(nn.Linear(6, 6), SPLoPA((2, 2), 2))
    y = layer(torch.ones(1, 6)).square().sum()
    (g,) = torch.autograd.grad(y, layer.adapter_blocks, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_no_rows_are_no_error():
    layer = trained(nn.Linear(40, 30), SPLoPA(prototypes=2))
    y = layer(torch.ones(0, 40, requires_grad=True))
    assert y.shape == (0, 30)
    y.sum().backward()
    assert not layer.adapter_blocks.grad.any()


def test_autocast_is_that_of_the_merged_layer():
    layer = trained(nn.Linear(96, 64), SPLoPA(prototypes=3))
    x = noise(50, 96, dtype=torch.float32)
    plain = merge(layer)
    exact = gradients(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(layer(x), plain(x))
        rough = gradients(layer, x)
    assert rough.keys() == exact.keys()
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        assert float((rough[name] - value).norm() / value.norm()) < 0.02


@pytest.mark.parametrize("keep", [0.05, 1])
def test_compiling_changes_nothing(keep):
    masks = random_mask({"0.weight": (256, 256), "2.weight": (40, 256)}, (32, 32), keep)
    model = trained(
        nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 40)), SPLoPA(masks=masks)
    )
    x = noise(20, 256, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = gradients(model, x)
    model.zero_grad()
    y = x.clone().requires_grad_()
    compiled(y).square().sum().backward()
    found = {"x": y.grad} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=1e-3 * float(value.abs().max())
        )


# Training


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("train_a", [False, True])
def test_pruned_blocks_stay_absent_while_training(optimiser, train_a):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 6), nn.Linear(6, 3))
    masks = random_mask({"0.weight": (9, 7), "2.weight": (6, 9)}, (2, 3), 0.4)
    attach(model, kind=SPLoPA((2, 3), 4, masks=masks), train_a=train_a)
    steps = OPTIMISERS[optimiser]([p for p in model.parameters() if p.requires_grad])
    before = copy.deepcopy(model)
    for seed in range(5):
        steps.zero_grad()
        model(noise(8, 7, seed=seed, dtype=torch.float32)).square().sum().backward()
        steps.step()
    for number in (0, 2):
        layer, old = model[number], before[number]
        pruned = torch.from_numpy(~masks.elements(f"{number}.weight"))
        for weight in (layer.merged_weight(), merge(model)[number].weight):
            assert torch.equal(weight[pruned], torch.zeros(int(pruned.sum())))
            assert not torch.equal(weight[~pruned], old.merged_weight()[~pruned])
        assert torch.equal(layer.weight, old.weight)
        assert layer.adapter_blocks.shape == (4, masks.layers[f"{number}.weight"].sum())
        assert torch.equal(layer.adapter_prototypes.p, old.adapter_prototypes.p) == (not train_a)


def test_what_trains_and_how_many(net):
    masks = random_mask({"conv2.weight": (4, 6), "fc.weight": (5, 4)}, (2, 2))
    kind = SPLoPA(block=(2, 2), prototypes=3, prototype_rank=2, masks=masks)
    for train_a in (False, True):
        model = attach(
            copy.deepcopy(net), kind=kind, head="head", train_a=train_a, unadapted="freeze"
        )
        names = {n for n, p in model.named_parameters() if p.requires_grad and "adapter" in n}
        shared = {"conv2.adapter_prototypes.p", "conv2.adapter_prototypes.q"} if train_a else set()
        assert names == {"conv2.adapter_blocks", "fc.adapter_blocks"} | shared
        count = sum(model.get_parameter(name).numel() for name in names)
        assert count == 3 * masks.flat.sum() + (3 * 2 * (2 + 2) if train_a else 0)
        assert attach_report(model) == ("conv1.weight", "depthwise.weight")


# Sharing


def chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))


def test_prototypes_are_shared_within_a_model_and_never_between_two():
    kind = SPLoPA((2, 2), 3)
    one, two = trained(chain(), kind), trained(chain(), kind)
    other = copy.deepcopy(one)
    for model in (one, two, other):
        assert len({id(layer.adapter_prototypes.p) for layer in layers_of(model)}) == 1
        assert len({id(layer.adapter_prototypes.q) for layer in layers_of(model)}) == 1
    models = (one, two, other)
    assert len({model[0].adapter_prototypes.p.data_ptr() for model in models}) == 3
    assert len({model[0].adapter_prototypes.q.data_ptr() for model in models}) == 3
    x = noise(4, 5, dtype=torch.float32)
    expected = one(x)
    for model in (two, other):
        steps = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).sum().backward()
        steps.step()
        assert len({id(layer.adapter_prototypes.p) for layer in layers_of(model)}) == 1
    assert torch.equal(one(x), expected)
    assert all(parameter.grad is None for parameter in one.parameters())


def test_prototypes_stay_shared_when_the_model_moves():
    model = trained(chain(), SPLoPA((2, 2), 3)).double()
    first, second, _ = layers_of(model)
    assert first.adapter_prototypes.p is second.adapter_prototypes.p
    assert first.adapter_prototypes.p.dtype == torch.float64


def moved_to_nothing_and_filled_again(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.to("meta").to_empty(device="cpu")
    model.load_state_dict(state)


def given_other_tensors_by_name(model):
    model.load_state_dict({n: v.clone() for n, v in model.state_dict().items()}, assign=True)


def given_values_by_name(model):
    model.load_state_dict({n: v.clone() for n, v in model.state_dict().items()})


def replaced_one_by_one(model):
    try:
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        model.double().float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize(
    "replace",
    [
        moved_to_nothing_and_filled_again,
        given_other_tensors_by_name,
        given_values_by_name,
        replaced_one_by_one,
    ],
)
def test_prototypes_stay_shared_however_parameters_are_replaced(replace, train_a):
    kind = SPLoPA((2, 2), 3)
    model, twin = (trained(chain(), kind, train_a=train_a) for _ in range(2))
    replace(model)
    assert len({id(layer.adapter_prototypes.p) for layer in layers_of(model)}) == 1
    assert len({id(layer.adapter_prototypes.q) for layer in layers_of(model)}) == 1
    x = noise(4, 5, dtype=torch.float32)
    for network in (model, twin):  # they train alike, too
        steps = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
        network(x).square().sum().backward()
        steps.step()
    left, right = model.state_dict(), twin.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert left["0.adapter_prototypes.p"].data_ptr() == left["3.adapter_prototypes.p"].data_ptr()


def test_a_shared_prototype_gets_the_gradients_of_all_layers():
    kind = SPLoPA((2, 2), 3)
    model = trained(chain().double(), kind)
    x = noise(4, 5)
    slow = copy.deepcopy(model)
    for index in (0, 2, 3):
        slow[index] = Slow(slow[index], kind)
    found, expected = gradients(model, x), gradients(slow, x)
    torch.testing.assert_close(
        found["0.adapter_prototypes.p"], expected["0.layer.adapter_prototypes.p"]
    )
    torch.testing.assert_close(
        found["0.adapter_prototypes.q"], expected["0.layer.adapter_prototypes.q"]
    )


def test_every_machine_draws_the_same():
    kind = SPLoPA((4, 3), 2, prototype_rank=2)
    p, q = kind.draw(7)
    assert p.shape == (2, 4, 2)
    assert q.shape == (2, 3, 2)
    golden_p = [-0.08501888066530228, 0.051311690360307693, -0.7334417700767517]
    golden_q = [0.605070948600769, -0.49332210421562195, -0.17049629986286163]
    assert p.flatten()[:3].tolist() == golden_p
    assert q.flatten()[:3].tolist() == golden_q
    more = SPLoPA((4, 3), 5, prototype_rank=2).draw(7)
    assert torch.equal(more[0][:2], p)
    assert torch.equal(more[1][:2], q)
    assert not torch.equal(kind.draw(8)[0], p)
    square = SPLoPA((4, 4), 2).draw(7)
    assert not torch.equal(square[0], square[1])


@pytest.mark.parametrize("rank", [1, 4])
def test_prototypes_are_about_orthonormal(rank):
    p, q = SPLoPA(prototype_rank=rank).draw(0)
    patterns = (p @ q.transpose(1, 2)).flatten(1)
    products = patterns @ patterns.T
    assert float(products.diagonal().mean()) == pytest.approx(1, abs=0.1)
    apart = products[~torch.eye(64, dtype=torch.bool)]
    assert float(apart.square().mean()) < 4 / 1024


def test_prototypes_do_not_depend_on_the_other_layers():
    alone = trained(nn.Sequential(nn.Linear(8, 8)), SPLoPA((2, 2), 3), seed=5)
    among = trained(chain(), SPLoPA((2, 2), 3), seed=5)
    assert torch.equal(alone[0].adapter_prototypes.p, among[2].adapter_prototypes.p)


# State


def test_a_state_survives_the_round_trip():
    masks = random_mask({"0.weight": (8, 5), "2.weight": (8, 8)}, (2, 3))
    kind = SPLoPA((2, 3), 3, masks=masks)
    source = trained(chain(), kind, seed=1)
    with torch.no_grad():
        source[0].adapter_prototypes.p.normal_()
        source[0].bias.normal_()
    state = adapter_state(source)
    assert {n for n in state if "adapter" in n} == {
        "0.adapter_blocks",
        "0.adapter_prototypes.p",
        "0.adapter_prototypes.q",
        "2.adapter_blocks",
        "3.adapter_blocks",
    }
    target = attach(chain(), kind=kind, head="", train_a=True, seed=2)
    x = noise(4, 5, dtype=torch.float32)
    assert not torch.equal(target(x), source(x))
    load_adapter_state(target, state)
    assert torch.equal(target(x), source(x))
    assert target[0].adapter_prototypes.p is target[2].adapter_prototypes.p
    assert all(
        torch.equal(a, b)
        for a, b in zip(state.values(), adapter_state(target).values(), strict=True)
    )
    other = random_mask({"0.weight": (8, 5), "2.weight": (8, 8)}, (2, 3), 0.9)
    with pytest.raises(AdapterError, match=r"0\.adapter_blocks has shape"):
        load_adapter_state(
            attach(chain(), kind=SPLoPA((2, 3), 3, masks=other), head="", train_a=True), state
        )


def test_a_state_dict_holds_the_mask():
    one = random_mask({"0.weight": (8, 5)}, (2, 3), 0.5, seed=1)
    two = random_mask({"0.weight": (8, 5)}, (2, 3), 0.5, seed=2)
    assert one != two
    models = [trained(chain(), SPLoPA((2, 3), 3, masks=masks)) for masks in (one, two)]
    models[1].load_state_dict(models[0].state_dict())
    x = noise(4, 5, dtype=torch.float32)
    assert torch.equal(models[0](x), models[1](x))


# Cutting


def options(plan, mask=None):
    kept = kept_index(plan, mask) if mask is not None else {}
    return {
        "seed": 3,
        "head": "head",
        "kept": kept,
        "shapes": plan.shapes,
        "unadapted": "freeze",
    }


KINDS = {
    "whole": SPLoPA((2, 3), 4),
    "masked": SPLoPA(
        (2, 3), 4, masks=random_mask({"conv2.weight": (4, 6), "fc.weight": (5, 4)}, (2, 3), 0.7, 2)
    ),
    "one block": SPLoPA(prototypes=4, prototype_rank=2),
}


def fill(model):
    with torch.no_grad():
        for number, layer in enumerate(layers_of(model)):
            layer.adapter_blocks.copy_(noise(*layer.adapter_blocks.shape, seed=number) / 2)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train_a", [False, True])
def test_attach_then_cut_is_cut_then_attach(net, plan, mask, pictures, kind, train_a):
    shared = {"kind": KINDS[kind], "train_a": train_a}
    whole = fill(attach(copy.deepcopy(net), **options(plan), **shared))
    first = materialize(whole, plan, mask)
    second = fill(attach(materialize(net, plan, mask), **options(plan, mask), **shared))
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    needs = [{n: p.requires_grad for n, p in m.named_parameters()} for m in (first, second)]
    assert needs[0] == needs[1]
    assert torch.equal(first(pictures), second(pictures))
    for model in (first, second):
        assert model.conv2.adapter_prototypes.p is model.fc.adapter_prototypes.p
        assert model.conv2.adapter_prototypes.p is not whole.conv2.adapter_prototypes.p
        assert model.fc.merged_weight().shape == (3, 3)
    # The cut layer's weight is the kept rows and columns of the whole one's.
    rows, columns = np.flatnonzero(mask.groups["fc"]), np.flatnonzero(mask.groups["conv2"])
    expected = whole.fc.merged_weight()[rows][:, columns]
    torch.testing.assert_close(first.fc.merged_weight(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_is_small_is_merged(net, plan, mask, pictures, kind):
    full = fill(attach(net, **options(plan), kind=KINDS[kind]))
    masked, small = apply_mask(full, plan, mask), materialize(full, plan, mask)
    expected = masked(pictures)
    assert not torch.allclose(expected, full(pictures))
    for other in (small, merge(small), merge(masked), materialize(merge(full), plan, mask)):
        torch.testing.assert_close(other(pictures), expected, rtol=0, atol=1e-5)
    gone = np.flatnonzero(~mask.groups["conv2"])
    for weight in (masked.conv2.merged_weight(), merge(masked).conv2.weight):
        assert not weight[gone].any()
    assert not any("parametrizations" in name for name in merge(masked).state_dict())


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_masked_and_small_train_alike(net, plan, mask, pictures, optimiser):
    full = fill(attach(net, **options(plan), kind=KINDS["masked"], train_a=True)).double()
    masked, small = apply_mask(full, plan, mask), materialize(full, plan, mask)
    labels = torch.tensor([0, 1, 2, 1, 0])
    for model in (masked, small):
        model.train()
        steps = OPTIMISERS[optimiser]([p for p in model.parameters() if p.requires_grad])
        for _ in range(4):
            steps.zero_grad()
            F.cross_entropy(model(pictures.double()), labels).backward()
            steps.step()
        model.eval()
    torch.testing.assert_close(masked(pictures.double()), small(pictures.double()))
    torch.testing.assert_close(masked.fc.adapter_blocks, small.fc.adapter_blocks)
    torch.testing.assert_close(masked.fc.adapter_prototypes.p, small.fc.adapter_prototypes.p)


def test_a_cut_layer_has_the_gradients_of_the_formula(net, plan, mask):
    model = attach(
        materialize(net.double(), plan, mask),
        **options(plan, mask),
        kind=KINDS["whole"],
        train_a=True,
    )
    layer = fill(model).fc
    x = noise(6, 3)

    def f(blocks, p, q, x):
        named = {"adapter_blocks": blocks, "adapter_prototypes.p": p, "adapter_prototypes.q": q}
        return torch.func.functional_call(layer, named, (x,))

    tensors = (
        layer.adapter_blocks,
        layer.adapter_prototypes.p,
        layer.adapter_prototypes.q,
        x.requires_grad_(),
    )
    assert torch.autograd.gradcheck(f, tensors)


def test_shapes_alone_are_enough(net, plan, mask, pictures):
    skeleton = materialize(attach(net, **options(plan), kind=KINDS["whole"]).to("meta"), plan, mask)
    assert skeleton.fc.adapter_rows.shape == (3,)
    assert skeleton(pictures.to("meta")).shape == (5, 3)
    layer = nn.Sequential(nn.Linear(64, 64))
    attach(layer, kind=SPLoPA(), head="")
    assert cost(layer, torch.ones(2, 64)).macs >= 2 * 64 * 64


# What is refused, and what is said


def test_kinds_that_make_no_sense_are_refused():
    for wrong in (
        {"block": (0, 2)},
        {"block": (2.0, 2)},
        {"prototypes": 0},
        {"prototype_rank": True},
    ):
        with pytest.raises(AdapterError, match="no integer of at least 1"):
            SPLoPA(**wrong)
    with pytest.raises(AdapterError, match="rank of at most 2, not 3"):
        SPLoPA(block=(2, 8), prototype_rank=3)
    masks = random_mask({"0.weight": (8, 5)}, (2, 3))
    with pytest.raises(AdapterError, match=r"blocks \(2, 3\), the adapter \(32, 32\)"):
        SPLoPA(masks=masks)


def site(path, module):
    return module, Site(path, tuple(module.weight.shape), {}, 8, 0, False)


def test_layers_that_cannot_take_part_are_refused_and_left_as_they_are():
    layers = {"a": site("a", nn.Linear(4, 4)), "b": site("b", nn.Linear(4, 4).double())}
    before = copy.deepcopy(layers)
    with pytest.raises(AdapterError, match="differ in dtype or device"):
        SPLoPA().adapt_(layers)
    for shapes, why in (
        ({"c.weight": (4, 4)}, r"names c\.weight"),
        ({"a.weight": (4, 5)}, r"\[4, 5\], the model has \[4, 4\]"),
    ):
        kind = SPLoPA((2, 2), masks=random_mask(shapes, (2, 2)))
        with pytest.raises(PlanError, match=why):
            kind.adapt_({"a": layers["a"]})
    for path, (module, _) in layers.items():
        assert type(module) is nn.Linear
        assert module.state_dict().keys() == before[path][0].state_dict().keys()
    SPLoPA().adapt_({})
    model = chain().requires_grad_(False)
    with pytest.raises(PlanError):
        attach(model, kind=SPLoPA((2, 2), masks=random_mask({"9.weight": (4, 4)}, (2, 2))))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    attach(model, kind=SPLoPA((2, 2)))


def test_which_layers_fit():
    kind = SPLoPA()
    assert kind.fits(nn.Linear(2, 2))
    assert kind.fits(nn.Conv2d(2, 2, 1, stride=2, padding=1))
    for module in (
        nn.Conv2d(2, 2, 3),
        nn.Conv2d(2, 2, 1, groups=2),
        nn.Conv1d(2, 2, 1),
        nn.ConvTranspose2d(2, 2, 1),
        nn.Bilinear(2, 2, 2),
        nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2),
        nn.BatchNorm2d(2),
    ):
        assert not kind.fits(module)


def test_layers_that_the_mask_does_not_name_stay_whole():
    masks = random_mask({"0.weight": (8, 5)}, (2, 3), 0.5)
    model = attach(chain(), kind=SPLoPA((2, 3), 3, masks=masks), head="")
    assert model[0].adapter_blocks.shape[1] == masks.flat.sum()
    assert model[2].adapter_blocks.shape[1] == 4 * 3


def test_the_representation_says_how_products_are_computed():
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 40))
    masks = random_mask({"0.weight": (256, 256)}, (32, 32), 0.05)
    attach(model, kind=SPLoPA(masks=masks), head="")
    assert "64 prototypes of rank 1, 3 of 64 blocks of 32x32: block-sparse from" in repr(model[0])
    assert "16 of 16 blocks of 32x32: dense, block-sparse would be slower" in repr(model[1])


@given(
    out=st.integers(1, 20),
    inputs=st.integers(1, 20),
    block=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    keep=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40)
def test_any_geometry(out, inputs, block, keep, seed):
    kind = SPLoPA(block, 2, masks=random_mask({"weight": (out, inputs)}, block, keep, seed=seed))
    layer = trained(nn.Linear(inputs, out).double(), kind)
    x = noise(3, inputs, seed=seed)
    found, expected = gradients(layer, x), gradients(Slow(layer, kind), x)
    torch.testing.assert_close(layer(x), Slow(layer, kind)(x))
    for key, value in expected.items():
        torch.testing.assert_close(found[key.removeprefix("layer.")], value)
