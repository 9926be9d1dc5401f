"""Describing pictures: class means and fingerprints against a computation picture by picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsprig.errors import LabelRangeError, SketchError
from fedsprig.graph import AxisMap, Group, GroupPlan, Tap
from fedsprig.tasks import TaskSketch, class_means, observe, projected_variance

CLASSES = ("a", "", "c", "d")
PROBE = "e" * 64


def sketch(*args: Any, **options: Any) -> TaskSketch:
    return observe(*args, probe=PROBE, **options).sketch


class Net(nn.Module):
    """Convolution, normalisation, activation, mean, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU()
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    made.norm.running_mean.uniform_(-1, 1)
    return made


def plan_of(net: Net, *, where: Any = "output", module: str = "norm") -> GroupPlan:
    """Three units of two channels each, so that a unit is not simply a channel."""
    positions = np.array([[0, 3], [1, 4], [2, 5]], np.int32)
    return GroupPlan(
        model="net",
        input_shape=(1, 3, 8, 8),
        head="head",
        groups=(
            Group(
                name="conv",
                units=3,
                kind="inner",
                axes=(AxisMap("conv.weight", 0, positions, "out"),),
                taps=(Tap(module, where, 1, positions), Tap("act", "output", -3, positions)),
            ),
        ),
        shapes={name: tuple(value.shape) for name, value in net.state_dict().items()},
        macs_per_weight={},
        unit_macs={},
        frozen={},
    )


def pictures(n: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return (
        torch.randn(n, 3, 8, 8, generator=generator),
        torch.randint(0, classes, (n,), generator=generator),
    )


def features(net: Net, image: Tensor) -> np.ndarray:
    with torch.no_grad():
        return net.act(net.norm(net.conv(image[None]))).mean((2, 3))[0].numpy()


# 300 pictures are three batches, the last one smaller.
@pytest.mark.parametrize("count", [1, 7, 300])
def test_prototypes_are_the_class_means_of_the_heads_inputs(net: Net, count: int) -> None:
    images, labels = pictures(count)
    made = sketch(net, None, "head", images, labels, CLASSES)
    assert made.probe == PROBE
    net.eval()
    each = np.array([features(net, image) for image in images])
    for c in range(4):
        of_class = each[labels.numpy() == c]
        assert made.counts[c] == len(of_class)
        expected = of_class.mean(0) if len(of_class) else np.zeros(6)
        np.testing.assert_allclose(made.prototypes[c], expected, atol=1e-5)
    assert made.counts[3] == 0
    assert made.classes == CLASSES
    assert made.fingerprint.size == 0


def test_what_was_observed_is_kept_picture_by_picture(net: Net) -> None:
    images, labels = pictures(300)
    seen = observe(net, plan_of(net), "head", images, labels, CLASSES, probe=PROBE)
    made = sketch(net, plan_of(net), "head", images, labels, CLASSES)
    assert seen.sketch.to_bytes() == made.to_bytes()
    assert made.groups == (3,)
    assert seen.features is not None
    net.eval()
    each = np.array([features(net, image) for image in images])
    np.testing.assert_allclose(seen.features.array, each, atol=1e-5)
    np.testing.assert_array_equal(seen.features.labels, labels)
    means, _ = class_means(each.astype(np.float64), labels.numpy(), 4)
    assert made.spread == pytest.approx(projected_variance(each, labels.numpy(), means), rel=1e-4)


@pytest.mark.parametrize(("where", "module"), [("output", "norm"), ("input", "act")])
def test_the_fingerprint_is_the_mean_activation_of_each_unit(
    net: Net, where: str, module: str
) -> None:
    images, labels = pictures(140)
    made = sketch(net, plan_of(net, where=where, module=module), "head", images, labels, CLASSES)
    net.eval()
    with torch.no_grad():
        before = net.norm(net.conv(images))
        channels = (before.abs().mean((0, 2, 3)) + net.act(before).mean((0, 2, 3))) / 2
    expected = [(channels[u] + channels[u + 3]) / 2 for u in range(3)]
    np.testing.assert_allclose(made.fingerprint, expected, rtol=1e-5)


def test_the_model_is_handed_back_as_it_came(net: Net) -> None:
    images, labels = pictures(5)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sketch(net, plan_of(net), "head", images, labels, CLASSES)
    assert net.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    net.norm.eval()  # as where statistics are frozen
    with pytest.raises(SketchError):
        sketch(net, plan_of(net, module="gone"), "head", images, labels, CLASSES)
    assert net.training
    assert not net.norm.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_a_plan_of_a_wider_network_is_refused(net: Net) -> None:
    images, labels = pictures(5)
    plan = plan_of(net)
    net.norm, net.conv, net.head = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
    with pytest.raises(SketchError, match="wider norm"):
        sketch(net, plan, "head", images, labels, CLASSES)


def test_noise_is_drawn_from_rng_and_scaled(net: Net) -> None:
    images, labels = pictures(200)

    def made(noise: float, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return sketch(net, plan_of(net), "head", images, labels, CLASSES, noise=noise, rng=rng)

    clean = made(0.0, 0)
    assert made(0.0, 1).to_bytes() == clean.to_bytes()
    assert made(0.1, 1).to_bytes() == made(0.1, 1).to_bytes()
    assert made(0.1, 1).to_bytes() != made(0.1, 2).to_bytes()
    present = clean.present
    off = np.array([made(0.1, seed).present - present for seed in range(40)])
    assert off.std() == pytest.approx(0.1 * np.sqrt((present**2).mean()), rel=0.15)
    noisy = made(5.0, 3)
    np.testing.assert_array_equal(noisy.counts, clean.counts)
    np.testing.assert_array_equal(noisy.prototypes[3], np.zeros(6))  # a class without pictures
    assert (noisy.fingerprint >= 0).all()
    assert not np.array_equal(noisy.fingerprint, clean.fingerprint)
    assert noisy.spread > 0
    assert noisy.spread != clean.spread
    with pytest.raises(SketchError, match="pass rng"):
        sketch(net, None, "head", images, labels, CLASSES, noise=0.1)


def test_bad_input_is_refused_by_name(net: Net) -> None:
    images, labels = pictures(6)
    with pytest.raises(LabelRangeError, match="from 0 to 1"):
        sketch(net, None, "head", images, torch.full((6,), 2), CLASSES[:2])
    with pytest.raises(LabelRangeError):
        sketch(net, None, "head", images, labels - 1, CLASSES)
    with pytest.raises(SketchError, match="one label"):
        sketch(net, None, "head", images, labels[1:], CLASSES)
    with pytest.raises(SketchError, match="at least one picture"):
        sketch(net, None, "head", images[:0], labels[:0], CLASSES)
    for head in ("", "conv", "gone"):
        with pytest.raises(SketchError):
            sketch(net, None, head, images, labels, CLASSES)
    images[0] = float("nan")
    with pytest.raises(SketchError, match="not finite"):
        sketch(net, None, "head", images, labels, CLASSES)
