"""Connection sensitivity against autograd on the network itself."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedsprig.errors import LabelRangeError, PlanError, ScoreError
from fedsprig.scoring import score


def sensitivities(net, batches):
    """|w dL/dw| of every weight, L the mean loss over all pictures at once."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loss = F.cross_entropy(net(images), labels)
    names = ["conv1.weight", "conv2.weight", "skip.weight", "wide.weight"]
    weights = [net.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(loss, weights)
    return {
        name: (weight * gradient).abs().detach().numpy()
        for name, weight, gradient in zip(names, weights, gradients, strict=True)
    }


def test_it_is_the_sum_over_the_weights_that_make_the_unit(net, plan, batches):
    expected = sensitivities(net, batches)
    scores = score("snip", net, plan, batches)
    inner = expected["conv1.weight"].sum((1, 2, 3))
    stream = expected["conv2.weight"].sum((1, 2, 3)) + expected["skip.weight"].sum((1, 2, 3))
    heads = expected["wide.weight"].sum(1).reshape(2, 2).sum(1)
    for name, value in (("conv1", inner), ("conv2", stream), ("wide", heads)):
        assert value.min() > 1e-6
        np.testing.assert_allclose(scores.groups[name], value, rtol=1e-5)


def test_batching_and_frozen_weights_change_nothing(net, plan, batches):
    expected = score("snip", net, plan, batches).flat
    whole = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    net.requires_grad_(False)
    with torch.no_grad():
        np.testing.assert_allclose(score("snip", net, plan, whole).flat, expected, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_bad_input_is_refused(net, plan, batches):
    images, _ = batches[0]
    with pytest.raises(ScoreError, match="needs pictures"):
        score("snip", net, plan, [])
    with pytest.raises(LabelRangeError, match="from 0 to 3, the head has classes 0 to 2"):
        score("snip", net, plan, [(images, torch.tensor([0, 3]))])
    with pytest.raises(PlanError, match=r"no conv1\.weight of full width"):
        score("snip", torch.nn.Linear(2, 2), plan, batches)
    with torch.no_grad():
        net.out.weight.zero_()
    with pytest.raises(ScoreError, match="a head that is not zero"):
        score("snip", net, plan, batches)
