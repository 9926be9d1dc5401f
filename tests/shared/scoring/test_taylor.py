"""The Taylor criterion against finite differences and against stored activations and gradients."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedsprig.errors import LabelRangeError, PlanError, ScoreError, UnknownNameError
from fedsprig.graph import AxisMap, Group, GroupPlan, Tap
from fedsprig.masks import ScoreSet
from fedsprig.scoring import score, score_taylor_with_error


def forward(net, x, scale):
    """TappedNet again, with every unit's activation scaled: scale maps a group to [units]."""
    y = F.relu(net.bn1(net.conv1(x)) * scale["conv1"].view(1, -1, 1, 1))
    stream = scale["conv2"].view(1, -1, 1, 1)
    y = F.relu(net.conv2(y) * stream + net.skip(x) * stream)
    tokens = y.flatten(2).transpose(1, 2)
    heads = scale["wide"].repeat_interleave(2)
    return net.out(torch.tanh(net.wide(tokens)) * heads).mean(1)


def slopes(net, plan, images, labels, step=1e-6):
    """d loss / d scale of every unit, for every picture alone, by central differences."""
    result = {group.name: np.zeros((len(images), group.units)) for group in plan.groups}
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        for group in plan.groups:
            for unit in range(group.units):
                losses = []
                for sign in (1, -1):
                    scale = {g.name: torch.ones(g.units).double() for g in plan.groups}
                    scale[group.name][unit] += sign * step
                    with torch.no_grad():
                        logits = forward(net, image[None], scale)
                        losses.append(F.cross_entropy(logits, label[None]).item())
                result[group.name][n, unit] = (losses[0] - losses[1]) / (2 * step)
    return result


@pytest.mark.parametrize("form", ["sum", "paper"])
def test_it_is_the_slope_of_the_loss_when_a_unit_fades(net, plan, batches, form):
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = slopes(net, plan, images, labels)
    scores = score("taylor", net, plan, batches, form=form)
    for name, slope in expected.items():
        value = np.abs(slope).mean(0) if form == "sum" else np.abs(slope.mean(0))
        assert value.max() > 1e-4
        np.testing.assert_allclose(scores.groups[name], value, rtol=1e-4, atol=1e-7)


def test_it_is_the_activation_times_its_gradient(net, plan, batches):
    """The definition, for the inner group: |sum over pixels of a * g|, mean over pictures."""
    total = np.zeros(3)
    for images, labels in batches:
        kept = []
        handle = net.bn1.register_forward_hook(lambda m, a, out, kept=kept: kept.append(out))
        loss = F.cross_entropy(net(images), labels, reduction="sum")
        handle.remove()
        (gradient,) = torch.autograd.grad(loss, kept)
        total += (kept[0] * gradient).sum((2, 3)).abs().sum(0).detach().numpy()
    scores = score("taylor", net, plan, batches)
    np.testing.assert_allclose(scores.groups["conv1"], total / 5, rtol=1e-5)


def test_batching_in_place_layers_and_frozen_weights_change_nothing(
    net, inplace_net, plan, batches
):
    expected = score("taylor", net, plan, batches).flat
    whole = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    net.requires_grad_(False)
    with torch.no_grad():
        results = [score("taylor", net, plan, whole), score("taylor", inplace_net, plan, batches)]
    for result in results:
        np.testing.assert_allclose(result.flat, expected, rtol=1e-5, atol=1e-9)


def test_a_unit_that_changes_nothing_scores_zero(net, plan, batches):
    with torch.no_grad():
        net.out.weight[:, 2:] = 0
    scores = score("taylor", net, plan, batches)
    assert scores.groups["wide"][1] == 0 < scores.groups["wide"][0]


def test_positions_that_no_unit_owns_are_left_alone(net, plan, batches):
    """Frozen channels beside prunable ones (a padded shortcut, a concatenation)."""
    at = np.array([[2], [0]], np.int32)
    part = GroupPlan(
        model="part",
        input_shape=plan.input_shape,
        head="",
        groups=(
            Group(
                "conv1",
                2,
                "inner",
                (AxisMap("conv1.weight", 0, at, "out"),),
                (Tap("bn1", "output", 1, at),),
            ),
        ),
        shapes=plan.shapes,
        macs_per_weight={},
        unit_macs={},
        frozen={},
    )
    whole = score("taylor", net, plan, batches).groups["conv1"]
    np.testing.assert_allclose(
        score("taylor", net, part, batches).groups["conv1"], whole[[2, 0]], rtol=1e-5
    )


@pytest.mark.parametrize("form", ["sum", "paper"])
def test_its_error_is_that_of_a_mean_over_pictures(net, plan, batches, form):
    """From the pictures one by one: each one's score alone is its value (its size in "paper")."""
    pictures = [
        (image[None], label[None])
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    ]
    net.eval()
    scores, errors = score_taylor_with_error(net, plan, iter(batches), form=form)
    assert scores == score("taylor", net, plan, batches, form=form)
    alone = [score_taylor_with_error(net, plan, [picture]) for picture in pictures]
    assert not any(error.flat.any() for _, error in alone)
    sizes = np.stack([value.flat for value, _ in alone]).astype(np.float64)
    count = len(pictures)
    if form == "sum":
        expected = sizes.std(axis=0, ddof=1) / np.sqrt(count)
    else:  # the signs are gone, but the mean and the mean square are known
        deviations = np.square(sizes).sum(0) - count * scores.flat.astype(np.float64) ** 2
        expected = np.sqrt(deviations / (count - 1) / count)
    np.testing.assert_allclose(errors.flat, expected, rtol=1e-4, atol=1e-8)
    assert errors.flat.max() > 1e-4


def test_bad_input_is_refused(net, plan, batches):
    images, labels = batches[0]
    with pytest.raises(ScoreError, match="needs pictures"):
        score("taylor", net, plan, [])
    with pytest.raises(LabelRangeError, match="from 0 to 3, the head has classes 0 to 2"):
        score("taylor", net, plan, [(images, torch.tensor([0, 3]))])
    with pytest.raises(LabelRangeError):
        score("taylor", net, plan, [(images, torch.tensor([0, -1]))])
    with pytest.raises(ScoreError, match="one label"):
        score("taylor", net, plan, [(images, labels[:1])])
    with pytest.raises(ScoreError, match="unit 0 of group conv1 has the score nan"):
        score("taylor", net, plan, [(images * torch.nan, labels)])
    with pytest.raises(UnknownNameError, match="sum or paper"):
        score("taylor", net, plan, batches, form="mean")
    with pytest.raises(PlanError, match="no module bn1"):
        score("taylor", net.out, plan, batches)


def test_a_head_of_zeros_is_refused(net, plan, batches):
    """All scores would be zero, and a mask from them arbitrary."""
    with torch.no_grad():
        net.out.weight.zero_()
    with pytest.raises(ScoreError, match="a head that is not zero"):
        score("taylor", net, plan, batches)


def test_a_network_that_was_cut_is_refused(net, plan, batches):
    net.bn1 = torch.nn.BatchNorm2d(2).double()
    net.conv1 = torch.nn.Conv2d(2, 2, 3, padding=1).double()
    with pytest.raises(ScoreError, match="at full width"):
        score("taylor", net, plan, batches)


def test_the_result_is_a_score_set_of_the_plan(net, plan, batches):
    scores = score("taylor", net, plan, batches)
    assert isinstance(scores, ScoreSet)
    scores.check(plan)
