from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedsprig.errors import DataError
from fedsprig.training import preprocess, to_tensor


@dataclass(frozen=True)
class Card:
    input_size: int
    mean: tuple[float, ...] = (0.5, 0.25, 0.0)
    std: tuple[float, ...] = (0.5, 0.25, 2.0)


def pictures(n, height, width):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_standardises_each_colour():
    images = np.zeros((1, 1, 2, 3), dtype=np.uint8)
    images[0, 0, 1] = 255
    images = np.concatenate([images, images[:, :, ::-1]], axis=1)
    seen = to_tensor(images, Card(2))
    assert seen[0, 0].tolist() == [[-1, 1], [1, -1]]
    assert seen[0, 1].tolist() == [[-1, 3], [3, -1]]
    assert seen[0, 2].tolist() == [[0, 0.5], [0.5, 0]]


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (64, 64), (20, 12)])
@pytest.mark.parametrize("chunk", [1, 3000, 1 << 22])
def test_equals_one_picture_at_a_time(shape, chunk, monkeypatch):
    monkeypatch.setattr(preprocess, "_CHUNK_PIXELS", chunk)
    images, card = pictures(5, *shape), Card(16)
    seen = to_tensor(images, card)
    assert seen.shape == (5, 3, 16, 16)
    assert seen.dtype == torch.float32
    assert seen.is_contiguous()
    for image, tensor in zip(images, seen, strict=True):
        planes = torch.tensor(image).double().permute(2, 0, 1)[None]
        planes = F.interpolate(planes, (16, 16), mode="bilinear", antialias=True)[0]
        for colour in range(3):
            slow = (planes[colour] / 255 - card.mean[colour]) / card.std[colour]
            torch.testing.assert_close(tensor[colour].double(), slow, atol=1e-5, rtol=1e-5)


def test_keeps_pixels_whose_size_fits():
    images = pictures(2, 16, 16)
    card = Card(16, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert (to_tensor(images, card) * 255).round().permute(0, 2, 3, 1).numpy().astype(
        np.uint8
    ).tolist() == images.tolist()


@pytest.mark.filterwarnings("error")
def test_takes_arrays_that_torch_does_not_like():
    images = pictures(2, 16, 16)
    expected = to_tensor(images[:, ::-1].copy(), Card(16))
    images.flags.writeable = False
    assert torch.equal(to_tensor(images[:, ::-1], Card(16)), expected)


def test_no_pictures_make_no_rows():
    assert to_tensor(pictures(0, 8, 8), Card(16)).shape == (0, 3, 16, 16)


def test_refuses_other_dtypes():
    with pytest.raises(DataError, match="uint8"):
        to_tensor(pictures(2, 8, 8).astype(np.float32), Card(16))
