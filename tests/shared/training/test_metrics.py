import math

import pytest
import torch
from torch import nn

from fedsprig.errors import DataError, LabelRangeError, PlanError
from fedsprig.training import evaluate, features


class FirstPixels(nn.Module):
    """Logits are the first pixel's channels; in training mode they are useless."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(1.0)

    def forward(self, x):
        return self.drop(x[:, :, 0, 0])


def pictures(logits):
    return torch.tensor(logits)[:, :, None, None].expand(-1, -1, 2, 2)


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_evaluates_by_hand(batch_size):
    ln2, ln3 = math.log(2), math.log(3)
    images = pictures([[ln2, 0.0, 0.0], [0.0, 0.0, ln2], [ln3, ln3, 0.0], [0.0, ln2, 0.0]])
    model = FirstPixels().train()
    result = evaluate(model, images, torch.tensor([0, 2, 2, 0]), batch_size=batch_size)
    # Softmax: 2/4, 2/4, 1/7 and 1/4 for the labels.
    loss = (2 * math.log(2) + math.log(7) + math.log(4)) / 4
    assert result.accuracy == 0.5
    assert result.loss == pytest.approx(loss, rel=1e-6)
    assert result.pictures == 4
    assert result.per_class == (0.5, None, 0.5)
    assert model.training
    assert model.drop.training


def test_evaluation_refuses_no_pictures_and_labels_that_do_not_fit():
    images = pictures([[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(DataError, match="one picture at least"):
        evaluate(FirstPixels(), images[:0], torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="one label each"):
        evaluate(FirstPixels(), images, torch.zeros(3, dtype=torch.int64))
    for label in (-1, 2):
        with pytest.raises(LabelRangeError, match="the model has 2"):
            evaluate(FirstPixels(), images, torch.tensor([0, label]))


class Net(nn.Module):
    def __init__(self, *, convolutional):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5))
        self.top = nn.ModuleDict({"head": nn.Conv2d(5, 2, 1) if convolutional else nn.Linear(5, 2)})
        self.unused = nn.Linear(1, 1)
        self.convolutional = convolutional

    def forward(self, x):
        x = self.body(x)
        if self.convolutional:
            return self.top["head"](x).mean((2, 3))
        return self.top["head"](x.mean((2, 3)))


@pytest.mark.parametrize("convolutional", [False, True])
def test_features_are_what_the_head_sees(convolutional):
    torch.manual_seed(0)
    model = Net(convolutional=convolutional).train()
    images = torch.randn(7, 3, 6, 6)
    seen = features(model, "top.head", images, batch_size=3)
    assert model.body.training
    assert not seen.requires_grad
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(seen, model.body(images).mean((2, 3)))
    assert not model.top["head"]._forward_pre_hooks


def test_features_can_train_a_head():
    """They are no inference tensors: autograd takes them as inputs."""
    seen = features(Net(convolutional=False), "top.head", torch.randn(4, 3, 6, 6))
    head = nn.Linear(5, 2)
    head(seen).sum().backward()
    assert head.weight.grad is not None


def test_features_refuse_heads_that_are_none():
    model, images = Net(convolutional=False), torch.randn(4, 3, 6, 6)
    for head, message in (
        ("", "need a head"),
        ("fc", "no module 'fc'"),
        ("unused", "name the one classifier"),
        ("body.1", "name the one classifier"),
    ):
        if head == "body.1":
            model.body.append(model.body[1])  # called twice per forward
        with pytest.raises(PlanError, match=message):
            features(model, head, images)
    with pytest.raises(DataError, match="no picture"):
        features(model, "top.head", images[:0])
