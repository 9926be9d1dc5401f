"""AAP's attention: by hand on the network's own maps."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedsprig.errors import ScoreError
from fedsprig.scoring import score


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_it_is_the_mean_magnitude_of_the_maps(net, plan, batches, p):
    images = torch.cat([images for images, _ in batches])
    with torch.no_grad():
        inner = net.bn1(net.conv1(images))
        y = F.relu(inner)
        first, second = net.conv2(y), net.skip(images)
        tokens = F.relu(first + second).flatten(2).transpose(1, 2)
        heads = torch.tanh(net.wide(tokens))
    expected = {
        "conv1": y.pow(p).mean((0, 2, 3)),
        "conv2": (first.abs().pow(p).mean((0, 2, 3)) + second.abs().pow(p).mean((0, 2, 3))) / 2,
        "wide": heads.abs().pow(p).mean((0, 1)).view(2, 2).mean(1),
    }
    scores = score("attention", net, plan, batches, p=p)
    for name, value in expected.items():
        np.testing.assert_allclose(scores.groups[name], value.numpy(), rtol=1e-6)


def test_a_dead_unit_scores_zero(net, plan, batches):
    with torch.no_grad():
        net.bn1.weight[1], net.bn1.bias[1] = 0, -1
    scores = score("attention", net, plan, batches)
    assert scores.groups["conv1"][1] == 0
    assert scores.groups["conv1"][[0, 2]].min() > 0


def test_bad_input_is_refused(net, plan, batches):
    with pytest.raises(ScoreError, match="needs pictures"):
        score("attention", net, plan, [])
    with pytest.raises(ScoreError, match="power above 0"):
        score("attention", net, plan, batches, p=0)
