"""Patterns: how tensors lie in rows, how much each loses, and which layers there are."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsprig.errors import BudgetError, PlanError, TrainingError, UnknownNameError
from fedsprig.graph import GroupPlan, trace_groups
from fedsprig.masks import WeightMask
from fedsprig.models import build
from fedsprig.pruning import PDP
from fedsprig.pruning.aap.thresholds import group_shares
from fedsprig.pruning.gates import gated
from fedsprig.pruning.sparse import Pattern
from fedsprig.pruning.sparse.course import Course, Ramping
from fedsprig.pruning.sparse.layers import WORDS, prunable_layers
from fedsprig.pruning.sparse.shares import global_drops, most_dropped, needed_drops
from fedsprig.pruning.sparse.soft import hard_mask
from fedsprig.pruning.sparse.subjects import SingleWeights, WholeUnits, unit_norms
from fedsprig.pruning.visual_prompt.hyper_network import weight_statistics
from fedsprig.scoring.magnitude import score_magnitude

seeds = st.integers(0, 2**32)


def test_patterns_are_read_as_they_are_written():
    assert Pattern.parse("2:4") == Pattern("n:m", 2, 4)
    assert Pattern.parse("1:16") == Pattern("n:m", 1, 16)
    assert not Pattern.parse("channels").single
    assert Pattern.parse("unstructured").single
    for text in ("", "2:", "2-4", "-1:4", "2:4:8", "2: 4", "Channels", "0.5", "1:99999999"):
        with pytest.raises(BudgetError, match="write unstructured"):
            Pattern.parse(text)
    for text in ("4:4", "0:4", "5:4", "1:1", "0:0"):
        with pytest.raises(BudgetError, match="keep 1 up to M - 1"):
            Pattern.parse(text)


def test_rows_of_a_convolution_run_along_its_inputs_at_one_position():
    weight = torch.arange(10.0).reshape(1, 5, 1, 2)  # [out, in, k, k]: w[in, position] = 2 in + p
    rows = Pattern.parse("1:2").rows(weight, 1)
    assert rows.tolist() == [[0, 2], [4, 6], [1, 3], [5, 7]]
    mask = Pattern.parse("1:2").spread(rows >= 4, (1, 5, 1, 2), 1)
    # The fifth input is beyond the last whole row, and stays.
    assert mask[0, :, 0, 0].tolist() == [False, False, True, True, True]
    assert mask[0, :, 0, 1].tolist() == [False, False, True, True, True]
    assert Pattern.parse("1:9").rows(weight, 1).shape == (0, 9)


@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple),
    axis=st.integers(0, 1),
    of=st.integers(2, 5),
    seed=seeds,
)
@settings(max_examples=100)
def test_of_every_m_inputs_n_stay_and_they_are_the_largest(shape, axis, of, seed):
    kept = 1 + seed % (of - 1)
    pattern = Pattern.parse(f"{kept}:{of}")
    weight = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))
    rows = pattern.rows(weight, axis)
    mask = pattern.spread(
        hard_mask(rows, torch.full((len(rows),), of - kept)) if len(rows) else rows.bool(),
        shape,
        axis,
    )
    assert mask.shape == shape
    places = [range(side) for i, side in enumerate(shape) if i != axis]
    for place in np.ndindex(*map(len, places)):
        at = (*place[:axis], slice(None), *place[axis:])
        line, stays = weight[at].abs().tolist(), mask[at].tolist()
        for first in range(0, shape[axis], of):
            part = line[first : first + of]
            if len(part) < of:
                assert all(stays[first:])
                continue
            largest = sorted(range(of), key=lambda i: -part[i])[:kept]
            assert [i in largest for i in range(of)] == stays[first : first + of]


@given(size=st.integers(1, 200), more=st.integers(0, 50), share=st.floats(0.01, 1.2))
@settings(max_examples=200)
def test_the_fewest_weights_go_that_make_it_fit(size, more, share):
    parameters = size + more
    limit = int(share * 4 * parameters)
    needed = needed_drops(size, parameters, limit)
    if needed > size:
        empty = 4 * more + math.ceil(size / 8)
        assert empty > limit
        return
    if needed == 0:
        assert 4 * parameters <= limit
        return
    for gone, fits in ((needed, True), (needed - 1, False)):
        flat = np.arange(size) >= gone
        assert (WeightMask({"w": flat}).stored_bytes(parameters) <= limit) == fits


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    cap=st.sampled_from([0.5, 0.8, 0.98]),
    share=st.floats(0, 1),
    seed=seeds,
)
@settings(max_examples=100)
def test_one_ranking_decides_what_each_tensor_loses(lengths, cap, share, seed):
    rng = np.random.default_rng(seed)
    for whole in (False, True):  # with whole numbers, ties are many
        drawn = [rng.standard_normal(n) * 3 for n in lengths]
        lines = [np.round(line) if whole else line for line in drawn]
        values = {str(i): torch.from_numpy(line)[None] for i, line in enumerate(lines)}
        most = [most_dropped(n, cap) for n in lengths]
        total = int(share * sum(most))
        found = global_drops(values, total, cap)
        ranked = []
        for i, line in enumerate(lines):
            ordered = sorted(range(len(line)), key=lambda j: (np.float32(abs(line[j])), j))
            ranked += [(np.float32(abs(line[j])), i, j) for j in ordered[: most[i]]]
        gone = [i for _, i, _ in sorted(ranked)[:total]]
        assert list(found.values()) == [gone.count(i) for i in range(len(lengths))]


def test_a_tensor_never_vanishes():
    assert [most_dropped(n, 0.98) for n in (1, 2, 10, 100, 1000)] == [0, 1, 9, 98, 980]


class Odd(nn.Module):
    """A first, a depthwise, a transposed and a grouped convolution, and two linear layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.deep = nn.Conv2d(4, 4, 3, groups=4)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.up = nn.ConvTranspose2d(4, 6, 2)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.body[0].weight
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        x = self.up(self.grouped(self.deep(self.stem(x)))).mean((2, 3))
        return self.fc(self.tied(self.body(x)))


class Head:
    """What the layers ask of a plan."""

    head = "fc"


@pytest.mark.parametrize(
    ("dense", "expected"),
    [
        (WORDS, ["grouped.weight", "up.weight", "body.0.weight"]),
        ((), ["stem", "deep", "grouped", "up", "body.0", "fc"]),
        (("body", "up"), ["stem", "deep", "grouped", "fc"]),
        (("first", "body.0"), ["deep", "grouped", "up", "fc"]),
    ],
)
def test_which_layers_are_pruned(dense, expected):
    found = prunable_layers(Odd(), Head(), dense)
    assert [layer.tensor.removesuffix(".weight") for layer in found] == [
        name.removesuffix(".weight") for name in expected
    ]
    axes = {layer.tensor: layer.axis for layer in found}
    assert all(axis == (name == "up.weight") * -1 + 1 for name, axis in axes.items())


def test_layers_that_are_none_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'depthwise'"):
        prunable_layers(Odd(), Head(), ("depthwize",))
    with pytest.raises(UnknownNameError, match="did you mean 'grouped'"):
        prunable_layers(Odd(), Head(), ("groupd",))
    with pytest.raises(PlanError, match="name fewer in dense="):
        prunable_layers(nn.Sequential(nn.Linear(3, 2)), Head(), ("first",))


def test_attention_and_its_projections_are_pruned():
    model = build("sprig_vit", num_classes=3)
    plan = trace_groups(model, torch.zeros(1, 3, 32, 32), name="vit")
    names = {layer.tensor for layer in prunable_layers(model, plan, WORDS)}
    assert {"blocks.0.attention.qkv.weight", "blocks.0.attention.proj.weight"} <= names
    assert {"blocks.5.expand.weight", "blocks.5.project.weight"} <= names
    assert not {"patches.weight", "head.weight"} & names


@pytest.mark.parametrize("name", ["cifar_resnet20", "sprig_vit", "torchvision/mobilenet_v2"])
def test_norms_of_units_are_those_of_all_their_weights(name):
    model = build(name, num_classes=3)
    plan = trace_groups(model, torch.zeros(1, 3, 32, 32), name=name)
    parameters = dict(model.named_parameters())
    found = {name: v.detach() for name, v in unit_norms(parameters, plan).items()}
    kinds = {m: type(module) for m, module in model.named_modules()}
    for group in (plan.groups[0], plan.groups[len(plan.groups) // 2], plan.groups[-1]):
        for unit in (0, group.units - 1):
            own = []
            for item in group.axes:
                path, _, kind = item.tensor.rpartition(".")
                layer = issubclass(kinds[path], nn.Conv2d | nn.Linear)
                if item.role == "out" and kind == "weight" and layer:
                    for position in item.positions[unit]:
                        own += (
                            parameters[item.tensor].select(item.axis, position).flatten().tolist()
                        )
            assert len(own) > 1
            expected = math.sqrt(sum(w * w for w in own) / len(own))
            assert float(found[group.name][unit]) == pytest.approx(expected, rel=1e-5)


def test_masks_of_units_settle_while_they_harden_and_those_of_weights_learn_on():
    model = build("cifar_resnet20", num_classes=3)
    plan = trace_groups(model, torch.zeros(1, 3, 32, 32), name="r")
    layers = prunable_layers(model, plan, WORDS)
    weights = SingleWeights(layers, Pattern.parse("unstructured"), cap=0.98, parameters=10**6)
    pruner = PDP(start=0.2, full=0.6)
    for subject, expected in ((WholeUnits(plan), [True, False]), (weights, [True, True])):
        rows = subject.rows(dict(model.named_parameters()))
        course = Course(
            subject,
            pruner.ramping(),
            10,
            mask=pruner.mask,
            decide=lambda parameters: {},
            drops={name: values.shape[1] // 2 for name, values in rows.items()},
        )
        learns = []
        for course.done in (1, 4, 7):
            masks = course.masks(dict(model.named_parameters()))
            learns.append(masks and {mask.requires_grad for mask in masks.values()})
        assert learns == [None, *({flag} for flag in expected)]


def test_masks_of_units_reach_vectors_as_constants():
    model = build("cifar_resnet20", num_classes=3)
    plan = trace_groups(model, torch.zeros(1, 3, 32, 32), name="r")
    subject, parameters = WholeUnits(plan), dict(model.named_parameters())
    masks = {name: values / 2 for name, values in subject.rows(parameters).items()}
    found = subject.masked(parameters, masks)
    expected = gated(parameters, plan, {name: mask[0] for name, mask in masks.items()})
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    scale, weight = found["layer1.0.bn1.weight"], found["layer1.0.conv1.weight"]
    conv = parameters["layer1.0.conv1.weight"]
    assert torch.autograd.grad(scale.sum(), [conv], allow_unused=True) == (None,)
    direct = masks["layer1.0.conv1"][0].detach()[:, None, None, None].expand_as(conv)
    assert not torch.allclose(torch.autograd.grad(weight.sum(), [conv])[0], direct)


def test_a_group_without_weights_has_norms_of_zero():
    model = build("cifar_resnet20", num_classes=3)
    plan = trace_groups(model, torch.zeros(1, 3, 32, 32), name="r")
    first, *rest = plan.groups
    bare = replace(first, axes=tuple(item for item in first.axes if item.role != "out"))
    plan = replace(plan, groups=(bare, *rest))
    parameters = dict(model.named_parameters())
    assert not unit_norms(parameters, plan)[first.name].any()
    assert not weight_statistics(parameters, plan)[0].any()
    assert not score_magnitude(model, plan).groups[first.name].any()
    assert group_shares(plan, "parameters")[first.name] == 0
    assert sum(bool(plan.producers(group)) for group in plan.groups) == len(rest)


@pytest.mark.parametrize("apart", [False, True])
def test_projections_of_torchs_own_attention_are_layers(apart):
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2, kdim=4 if apart else 8))
    plan = GroupPlan("attention", (1, 8), "", (), {}, {}, {}, {})
    found = {layer.tensor: layer.axis for layer in prunable_layers(model, plan, ("first",))}
    names = {n for n, value in model.named_parameters() if value.ndim > 1} - {"0.weight"}
    assert found == dict.fromkeys(names, 1)
    assert len(names) == (4 if apart else 2)
    with pytest.raises(PlanError, match="nothing is left"):
        prunable_layers(model, plan, ("0", "1"))


def test_a_unit_of_zeros_has_a_gradient_that_is_a_number():
    model = build("cifar_resnet20", num_classes=3)
    plan = trace_groups(model, torch.zeros(1, 3, 32, 32), name="r")
    with torch.no_grad():
        model.layer1[0].conv1.weight[0] = 0
    norms = unit_norms(dict(model.named_parameters()), plan)
    assert norms["layer1.0.conv1"][0] == 0
    torch.cat(list(norms.values())).sum().backward()
    assert not model.layer1[0].conv1.weight.grad[0].any()
    assert torch.isfinite(model.layer1[0].conv1.weight.grad).all()
    assert model.layer1[0].conv1.weight.grad[1:].any()


def test_courses_by_hand():
    linear = Ramping(start=0.2, full=0.8, ramp="linear")
    # After steps 1 to 10 of 10: 0.1, 0.2 are dense; 0.5 is half of the way; from 0.8 on it is full.
    found = [linear.progress(done, 10) for done in range(11)]
    expected = [0, 0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1, 1]
    assert found == pytest.approx(expected)
    assert [linear.factor(x) for x in found] == found
    # Two steps are left after full; masks are hard at the end of the last.
    hardening = [linear.hardening(done, 10) for done in range(11)]
    assert hardening == pytest.approx([0] * 8 + [0.5, 1, 1])
    cubic = Ramping(start=0.2, full=0.8, ramp="cubic")
    assert [cubic.progress(done, 10) for done in range(11)] == found
    assert [cubic.factor(x) for x in (0, 0.5, 0.75, 1)] == [0, 1 - 1 / 8, 1 - 1 / 64, 1]
    at_once = Ramping(start=0, full=1, ramp="linear")
    assert [at_once.progress(done, 4) for done in range(4)] == [0.25, 0.5, 0.75, 1]
    assert at_once.progress(0, 0) == at_once.hardening(0, 0) == 1
    assert [at_once.hardening(done, 4) for done in range(4)] == [0, 0, 0, 0]
    for start, full in ((0.5, 0.5), (-0.1, 1), (0, 1.1), (0.9, 0.1), (math.nan, 1)):
        with pytest.raises(TrainingError, match="start < full"):
            Ramping(start=start, full=full, ramp="linear")
