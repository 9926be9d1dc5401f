"""What a head sees, one forward pass after the other."""

import pytest
import torch
from torch import nn

from fedsprig.errors import PlanError
from fedsprig.training.head_input import HeadInput


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_each_forward_pass_is_taken_once_and_gradients_flow():
    model = network()
    with HeadInput(model, "1") as seen:
        for _ in range(2):
            pictures = torch.randn(5, 3)
            model(pictures)
            found = seen.take()
            torch.testing.assert_close(found, model[0](pictures))
            assert found.requires_grad
    model(pictures)
    with pytest.raises(PlanError, match="sees nothing"):
        seen.take()


def test_a_map_is_seen_as_the_mean_of_its_pixels():
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    pictures = torch.randn(5, 3, 4, 4)
    with HeadInput(model, "0") as seen:
        model(pictures)
    torch.testing.assert_close(seen.take(), pictures.mean((2, 3)))


@pytest.mark.parametrize("shape", [(3,), (5, 6, 3)])
def test_what_is_no_features_is_refused(shape):
    model = network()
    with HeadInput(model, "1") as seen:
        model(torch.randn(shape))
    with pytest.raises(PlanError, match="name the one classifier"):
        seen.take()


def test_a_head_that_is_called_twice_is_refused():
    model = network()
    with HeadInput(model, "1") as seen:
        model(torch.randn(5, 3))
        model(torch.randn(5, 3))
    with pytest.raises(PlanError, match="name the one classifier"):
        seen.take()


@pytest.mark.parametrize(("head", "message"), [("", "need a head"), ("fc", "no module 'fc'")])
def test_a_head_that_is_not_there_is_refused(head, message):
    with pytest.raises(PlanError, match=message):
        HeadInput(network(), head)
