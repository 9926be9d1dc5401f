"""Tracing small networks whose groups are known by hand."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedsprig.errors import PlanError
from fedsprig.graph import apply_mask, materialize, trace_groups
from fedsprig.graph.verify import randomised
from fedsprig.models.attention import SelfAttention


class Net(nn.Module):
    """Layers by name and a forward pass given as a function of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv(a, b, k=3, **options):
    return nn.Conv2d(a, b, k, padding=k // 2, **options)


def pool(x):
    return x.mean((2, 3))


PICTURE = torch.zeros(1, 3, 8, 8)


def axes(plan, group):
    return {(a.tensor, a.axis): a.positions.tolist() for a in plan.group(group).axes}


def taps(plan, group):
    return [(t.module, t.where, t.axis, t.positions.tolist()) for t in plan.group(group).taps]


def column(*positions):
    return [[i] for i in positions]


def assert_masked_is_cut(model, plan, make_mask, example=PICTURE):
    probe = randomised(model, seed=3)
    x = torch.randn(2, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        mask = make_mask(plan, seed)
        with torch.no_grad():
            expected = apply_mask(probe, plan, mask)(x)
            found = materialize(probe, plan, mask)(x)
        assert float((expected - found).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_a_flatten_gives_a_channel_its_pixels(make_mask):
    model = Net(
        lambda m, x: m.fc(F.max_pool2d(torch.relu(m.bn(m.a(x))), 4).flatten(1)),
        a=conv(3, 4),
        bn=nn.BatchNorm2d(4),
        fc=nn.Linear(16, 5),
    )
    plan = trace_groups(model, PICTURE, name="flat")
    four = column(0, 1, 2, 3)
    assert [g.name for g in plan.groups] == ["a"]
    assert axes(plan, "a") == {
        ("a.weight", 0): four,
        ("a.bias", 0): four,
        ("bn.weight", 0): four,
        ("bn.bias", 0): four,
        ("bn.running_mean", 0): four,
        ("bn.running_var", 0): four,
        ("fc.weight", 1): [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]],
    }
    roles = {a.tensor: a.role for a in plan.group("a").axes}
    assert (roles["a.weight"], roles["fc.weight"], roles["bn.running_var"]) == (
        "out",
        "in",
        "norm",
    )
    assert taps(plan, "a") == [("bn", "output", 1, four)]
    assert plan.group("a").kind == "inner"
    assert (plan.model, plan.head, plan.input_shape) == ("flat", "fc", (1, 3, 8, 8))
    assert dict(plan.frozen) == {"fc": "outputs of the model (classes)"}
    assert plan.buffers == {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}
    # 64 output pixels use every weight of a, one output vector every weight of fc.
    assert dict(plan.macs_per_weight) == {"a.weight": 64, "fc.weight": 1}
    assert_masked_is_cut(model, plan, make_mask)


def test_a_concatenation_gives_offsets(make_mask):
    model = Net(
        lambda m, x: m.fc(pool(m.c(torch.cat([m.a(x), m.b(x)], 1).relu()))),
        a=conv(3, 2),
        b=conv(3, 3),
        c=conv(5, 4, bias=False),
        fc=nn.Linear(4, 2),
    )
    plan = trace_groups(model, PICTURE)
    assert axes(plan, "a")["c.weight", 1] == column(0, 1)
    assert axes(plan, "b")["c.weight", 1] == column(2, 3, 4)
    assert taps(plan, "b") == [("b", "output", 1, column(0, 1, 2))]
    assert_masked_is_cut(model, plan, make_mask)


def test_a_sum_is_a_stream_and_a_product_is_not(make_mask):
    def forward(m, x):
        x = m.stem(x)
        x = x + m.b(m.a(x).relu())
        gate = m.up(m.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return m.fc(pool(m.c(x).relu() * gate))

    model = Net(
        forward,
        stem=conv(3, 4),
        a=conv(4, 6),
        b=conv(6, 4),
        down=conv(4, 2, 1),
        up=conv(2, 5, 1),
        c=conv(4, 5),
        fc=nn.Linear(5, 3),
    )
    plan = trace_groups(model, PICTURE)
    assert {g.name: g.kind for g in plan.groups} == {
        "stem": "stream",
        "a": "inner",
        "down": "inner",
        "up": "inner",
    }
    assert axes(plan, "stem").keys() == {
        ("stem.weight", 0),
        ("stem.bias", 0),
        ("a.weight", 1),
        ("b.weight", 0),
        ("b.bias", 0),
        ("down.weight", 1),
        ("c.weight", 1),
    }
    assert_masked_is_cut(model, plan, make_mask)


def test_a_depthwise_convolution_loses_channels_with_its_input(make_mask):
    model = Net(
        lambda m, x: m.fc(pool(m.dbn(m.d(m.abn(m.a(x)).relu())))),
        a=conv(3, 4, bias=False),
        abn=nn.BatchNorm2d(4),
        d=conv(4, 4, groups=4),
        dbn=nn.BatchNorm2d(4),
        fc=nn.Linear(4, 2),
    )
    plan = trace_groups(model, PICTURE)
    assert [g.name for g in plan.groups] == ["a"]
    assert axes(plan, "a")["d.weight", 0] == column(0, 1, 2, 3)
    assert ("d.weight", 1) not in axes(plan, "a")
    assert [t[0] for t in taps(plan, "a")] == ["abn", "dbn"]
    small = materialize(model, plan, make_mask(plan, 0))
    assert small.d.groups == small.d.in_channels == small.d.out_channels == len(small.d.weight)
    assert_masked_is_cut(model, plan, make_mask)


def test_a_grouped_convolution_loses_whole_groups(make_mask):
    model = Net(
        lambda m, x: m.fc(pool(m.g(m.a(x).relu()).relu())),
        a=conv(3, 4),
        g=conv(4, 6, groups=2),
        fc=nn.Linear(6, 2),
    )
    plan = trace_groups(model, PICTURE)
    assert [(g.name, g.units) for g in plan.groups] == [("a", 2)]
    assert axes(plan, "a") == {
        ("a.weight", 0): [[0, 1], [2, 3]],
        ("a.bias", 0): [[0, 1], [2, 3]],
        ("g.weight", 0): [[0, 1, 2], [3, 4, 5]],
        ("g.bias", 0): [[0, 1, 2], [3, 4, 5]],
        ("fc.weight", 1): [[0, 1, 2], [3, 4, 5]],
    }
    small = materialize(model, plan, make_mask(plan, 1))
    assert (small.g.groups, small.g.in_channels, small.g.out_channels) == (1, 2, 3)
    assert_masked_is_cut(model, plan, make_mask)


def test_a_depth_multiplier_gives_a_channel_several_outputs(make_mask):
    model = Net(
        lambda m, x: m.fc(pool(m.d(m.a(x).relu()))),
        a=conv(3, 3),
        d=conv(3, 6, groups=3),
        fc=nn.Linear(6, 2),
    )
    plan = trace_groups(model, PICTURE)
    assert axes(plan, "a")["d.weight", 0] == [[0, 1], [2, 3], [4, 5]]
    assert_masked_is_cut(model, plan, make_mask)


def test_the_pictures_channels_are_no_units():
    model = Net(
        lambda m, x: m.fc(pool(m.d(x).relu())),
        d=conv(3, 6, groups=3),
        fc=nn.Linear(6, 2),
    )
    plan = trace_groups(model, PICTURE)
    assert plan.groups == ()
    assert "nothing produces" in plan.frozen["d"]


def test_transposed_convolutions_shrink_on_swapped_axes(make_mask):
    model = Net(
        lambda m, x: m.fc(pool(m.t(m.a(x).relu()).relu())),
        a=conv(3, 4),
        t=nn.ConvTranspose2d(4, 5, 2, 2),
        fc=nn.Linear(5, 2),
    )
    plan = trace_groups(model, PICTURE)
    assert axes(plan, "a")["t.weight", 0] == column(0, 1, 2, 3)
    assert axes(plan, "t")["t.weight", 1] == column(0, 1, 2, 3, 4)
    assert plan.macs_per_weight["t.weight"] == 64  # once per input pixel
    assert_masked_is_cut(model, plan, make_mask)


def test_per_channel_slopes_and_instance_norms_shrink_too(make_mask):
    model = Net(
        lambda m, x: m.fc(pool(m.slope(m.norm(m.a(x))))),
        a=conv(3, 4),
        norm=nn.InstanceNorm2d(4, affine=True),
        slope=nn.PReLU(4),
        fc=nn.Linear(4, 2),
    )
    plan = trace_groups(model, PICTURE)
    assert {("norm.weight", 0), ("norm.bias", 0), ("slope.weight", 0)} <= axes(plan, "a").keys()
    assert materialize(model, plan, make_mask(plan, 0)).slope.num_parameters < 4
    assert_masked_is_cut(model, plan, make_mask)


def test_batch_norm_without_parameters_is_masked_by_its_readers(make_mask):
    model = Net(
        lambda m, x: m.fc(pool(m.norm(m.a(x)).sigmoid())),
        a=conv(3, 4),
        norm=nn.BatchNorm2d(4, affine=False),
        fc=nn.Linear(4, 2),
    )
    assert_masked_is_cut(model, trace_groups(model, PICTURE), make_mask)


@pytest.mark.parametrize(
    ("forward", "layers", "reason"),
    [
        pytest.param(
            lambda m, x: m.fc(pool(m.norm(m.a(x)))),
            {"norm": nn.GroupNorm(2, 4)},
            "GroupNorm",
            id="group normalisation",
        ),
        pytest.param(
            lambda m, x: m.fc(m.norm(pool(m.a(x)))),
            {"norm": nn.LayerNorm(4)},
            "layer normalisation",
            id="layer normalisation",
        ),
        pytest.param(
            lambda m, x: m.fc(pool(m.b(m.b(m.a(x)).relu()))),
            {"b": conv(4, 4)},
            "more than once",
            id="a layer used twice",
        ),
        pytest.param(
            lambda m, x: m.fc((lambda y: y - y.mean(1, keepdim=True))(pool(m.a(x)))),
            {},
            "mixes",
            id="a mean over the channels",
        ),
        pytest.param(
            lambda m, x: m.fc(F.pixel_shuffle(m.a(x), 2).flatten(2).mean(2).expand(-1, 4)),
            {},
            "mixes|lost count|failed",
            id="channels made pixels",
        ),
        pytest.param(
            lambda m, x: m.fc(pool(m.a(x).view(1, 2, 2, 8, 8).transpose(1, 2).reshape(1, 4, 8, 8))),
            {},
            "mixes|lost count|failed",
            id="a channel shuffle",
        ),
    ],
)
def test_what_mixes_channels_is_frozen_with_a_reason(forward, layers, reason):
    model = Net(forward, a=conv(3, 4), fc=nn.Linear(4, 2), **layers)
    plan = trace_groups(model, PICTURE)
    assert plan.groups == ()
    assert re.search(reason, plan.frozen["a"])


def test_a_length_over_the_channels_is_no_fault(make_mask):
    """A dropped channel adds nothing to a sum of squares: masked and cut agree."""
    model = Net(lambda m, x: m.fc(F.normalize(pool(m.a(x)))), a=conv(3, 4), fc=nn.Linear(4, 2))
    plan = trace_groups(model, PICTURE)
    assert [g.name for g in plan.groups] == ["a"]
    assert_masked_is_cut(model, plan, make_mask)


def test_a_fault_freezes_its_own_group_only(make_mask):
    model = Net(
        lambda m, x: m.fc(pool(torch.softmax(m.b(m.a(x).relu()), 1))),
        a=conv(3, 4),
        b=conv(4, 5),
        fc=nn.Linear(5, 2),
    )
    plan = trace_groups(model, PICTURE)
    assert [g.name for g in plan.groups] == ["a"]
    assert "mixes" in plan.frozen["b"]
    assert_masked_is_cut(model, plan, make_mask)


def test_tied_weights_are_frozen():
    model = Net(
        lambda m, x: m.fc(pool(m.b(m.a(x).relu()).relu())),
        a=conv(4, 4, bias=False),
        b=conv(4, 4, bias=False),
        fc=nn.Linear(4, 2),
    )
    model.b.weight = model.a.weight
    plan = trace_groups(model, torch.zeros(1, 4, 8, 8))
    assert plan.groups == ()
    assert plan.frozen["a"] == "a.weight and b.weight are one tensor"


def test_attention_heads_and_products_by_hand():
    model = Net(
        lambda m, x: m.fc(m.attend(m.a(x).flatten(2).transpose(1, 2)).mean(1)),
        a=conv(3, 6),
        attend=SelfAttention(6, 3),
        fc=nn.Linear(6, 2),
    )
    plan = trace_groups(model, PICTURE)
    heads = [[0, 1], [2, 3], [4, 5]]
    packed = [[i, i + 1, i + 6, i + 7, i + 12, i + 13] for i in (0, 2, 4)]
    assert axes(plan, "attend") == {
        ("attend.qkv.weight", 0): packed,
        ("attend.qkv.bias", 0): packed,
        ("attend.proj.weight", 1): heads,
    }
    assert taps(plan, "attend") == [("attend.proj", "input", -1, heads)]
    assert (plan.group("attend").kind, plan.group("attend").units) == ("heads", 3)
    # 64 tokens: q k^T and a v take 64 * 64 * 2 each, in every head.
    assert dict(plan.unit_macs) == {"attend": 2 * 64 * 64 * 2}
    assert plan.macs_per_weight["attend.qkv.weight"] == 64
    # Attention mixes its features: what it reads and what it writes are groups of their own.
    assert axes(plan, "a") == {
        ("a.weight", 0): column(*range(6)),
        ("a.bias", 0): column(*range(6)),
        ("attend.qkv.weight", 1): column(*range(6)),
    }
    assert axes(plan, "attend.proj") == {
        ("attend.proj.weight", 0): column(*range(6)),
        ("attend.proj.bias", 0): column(*range(6)),
        ("fc.weight", 1): column(*range(6)),
    }


def test_heads_of_unknown_attention_stay_and_say_why():
    model = Net(
        lambda m, x: m.fc(_attend(m, x).mean(1)),
        a=conv(3, 6),
        attend=nn.MultiheadAttention(6, 3, batch_first=True),
        fc=nn.Linear(6, 2),
    )
    plan = trace_groups(model, PICTURE)
    assert "fewer heads" in plan.frozen["attend"]
    assert plan.unit_macs == {}


def _attend(model, x):
    tokens = model.a(x).flatten(2).transpose(1, 2)
    return model.attend(tokens, tokens, tokens, need_weights=False)[0]


def test_padded_shortcuts_couple_three_streams_with_offsets(padded):
    plan = padded.plan
    streams = [g for g in plan.groups if g.kind == "stream"]
    assert [(g.name, g.units) for g in streams] == [
        ("conv1", 16),
        ("layer2.0.conv2", 16),
        ("layer3.0.conv2", 32),
    ]
    first, second, third = streams
    assert axes(plan, "conv1")["conv1.weight", 0] == column(*range(16))
    assert axes(plan, "conv1")["layer2.0.conv2.weight", 0] == column(*range(8, 24))
    assert axes(plan, "conv1")["linear.weight", 1] == column(*range(24, 40))
    own = [*range(8), *range(24, 32)]
    assert axes(plan, second.name)["layer2.0.conv2.weight", 0] == column(*own)
    assert axes(plan, second.name)["layer3.0.conv2.weight", 0] == column(*(i + 16 for i in own))
    own = [*range(16), *range(48, 64)]
    assert axes(plan, third.name)["linear.weight", 1] == column(*own)
    assert not any("shortcut" in a.tensor for g in plan.groups for a in g.axes)
    assert first.taps[0].module == "bn1"


def test_the_plan_speaks_of_the_architecture_not_of_the_weights():
    def make(seed):
        torch.manual_seed(seed)
        return Net(
            lambda m, x: m.fc(pool(m.norm(m.a(x)))),
            a=conv(3, 4),
            norm=nn.BatchNorm2d(4),
            fc=nn.Linear(4, 2),
        )

    first, second = make(0), make(1)
    nn.init.zeros_(second.norm.weight)
    assert trace_groups(first, PICTURE).digest == trace_groups(second, PICTURE).digest


def test_tracing_leaves_the_model_as_it_is():
    model = Net(
        lambda m, x: m.fc(pool(m.norm(m.a(x)))),
        a=conv(3, 4),
        norm=nn.BatchNorm2d(4),
        fc=nn.Linear(4, 2),
    ).train()
    model.norm.eval()
    model.a.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace_groups(model, torch.ones(1, 3, 8, 8))
    assert model.training
    assert not model.norm.training
    assert not model.a.weight.requires_grad
    assert model.fc.weight.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Linear(3, 2), torch.zeros(2, 3), "batch of 1"),
        (nn.Linear(3, 2), torch.zeros(1, 4), "cannot run"),
        (nn.Linear(3, 2, device="meta"), torch.zeros(1, 3), "meta"),
        (Net(lambda m, x: {"logits": m.a(x)}, a=nn.Linear(3, 2)), torch.zeros(1, 3), "one tensor"),
    ],
)
def test_what_cannot_be_traced_is_a_named_error(model, example, message):
    with pytest.raises(PlanError, match=message):
        trace_groups(model, example)


def test_a_model_of_one_layer_has_nothing_to_prune():
    plan = trace_groups(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2))
    assert plan.groups == ()
    assert plan.head == "1"
    assert np.prod(plan.shapes["1.weight"]) == 24


def test_a_group_without_end_is_cut_short_and_frozen(monkeypatch):
    """Some attention written with reshapes makes the tracer walk in circles."""
    monkeypatch.setattr("fedsprig.graph.dependencies._MAX_ITEMS", 3)
    model = Net(
        lambda m, x: m.fc(pool(m.b(m.a(x)).relu().sigmoid().tanh())),
        a=conv(3, 4),
        b=conv(4, 5),
        fc=nn.Linear(5, 2),
    )
    plan = trace_groups(model, PICTURE)
    assert [g.name for g in plan.groups] == ["a"]
    assert "tracer failed" in plan.frozen["b"]
