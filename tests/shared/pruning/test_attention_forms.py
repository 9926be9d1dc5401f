"""The three forms of attention on maps that a convolution makes."""

import numpy as np
import pytest
import torch

from fedsprig.errors import ScoreError
from fedsprig.pruning.aap.attention import attention


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("form", ["mean", "sum", "max"])
def test_it_is_taken_over_the_pixels_of_the_rectified_map(
    small_net, small_plan, digits, form, power
):
    images = digits[0].images[:7]
    with torch.no_grad():
        out = torch.relu(small_net.bn1(small_net.conv1(images)))
        block = small_net.layer1[0]
        inner = torch.relu(block.bn1(block.conv1(out))).pow(power).flatten(2).double()
    pixels = {"mean": inner.mean(2), "sum": inner.sum(2), "max": inner.amax(2)}[form]
    found = attention(small_net, small_plan, images, power=power, form=form)
    np.testing.assert_allclose(found["layer1.0.conv1"], pixels.mean(0).numpy(), rtol=1e-5)


def test_a_stream_counts_by_magnitude_in_the_mean_over_its_taps(small_net, small_plan, digits):
    group = max(small_plan.groups, key=lambda group: len(group.taps))
    assert len(group.taps) > 1
    images = digits[0].images[:5]
    seen = {}
    handles = [
        small_net.get_submodule(tap.module).register_forward_hook(
            lambda module, args, out, name=tap.module: seen.update({name: out.double()})
        )
        for tap in group.taps
    ]
    with torch.no_grad():
        small_net(images)
    for handle in handles:
        handle.remove()
    for form in ("sum", "max"):
        expected = np.zeros(group.units)
        for tap in group.taps:
            flat = seen[tap.module].abs().flatten(2)
            pixels = (flat.sum(2) if form == "sum" else flat.amax(2)).mean(0).numpy()
            expected += pixels[tap.positions[:, 0]] / len(group.taps)
        found = attention(small_net, small_plan, images, form=form)
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-5)


@pytest.mark.parametrize("form", ["mean", "sum", "max"])
def test_bad_input_is_refused(small_net, small_plan, digits, form):
    with pytest.raises(ScoreError):
        attention(small_net, small_plan, digits[0].images[:0], form=form)
    with pytest.raises(ScoreError):
        attention(small_net, small_plan, digits[0].images[:2], form=form, power=0)
    with pytest.raises(ScoreError):
        attention(small_net, small_plan, digits[0].images[:2] * torch.nan, form=form)
