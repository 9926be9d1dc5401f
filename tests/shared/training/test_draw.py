from itertools import islice

import pytest
import torch
from torch.nn import functional as F

from fedsprig.training.draw import Drawer, endless_batches


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_augment(images, index, augment, rng):
    """Flip and shift one picture after the other, by padding and cropping."""
    count, (height, width) = len(index), images.shape[2:]
    dy, dx, flip = [0] * count, [0] * count, [False] * count
    if "shift" in augment:
        dy, dx = (
            torch.randint(-(s // 8), s // 8 + 1, (count, 1), generator=rng).flatten().tolist()
            for s in (height, width)
        )
    if "flip" in augment:
        flip = (torch.rand((count, 1), generator=rng) < 0.5).flatten().tolist()
    out = []
    for i, picture in enumerate(images[index]):
        pad = (width // 8, width // 8, height // 8, height // 8)
        padded = F.pad((picture.flip(-1) if flip[i] else picture)[None], pad, mode="reflect")[0]
        top, left = height // 8 + dy[i], width // 8 + dx[i]
        out.append(padded[:, top : top + height, left : left + width])
    return torch.stack(out)


@pytest.mark.parametrize("augment", ["none", "flip", "shift", "flip+shift"])
@pytest.mark.parametrize("shape", [(32, 32), (16, 24), (5, 9)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_equals_padding_and_cropping_one_by_one(augment, shape, channels_last):
    images = torch.randn(20, 3, *shape, generator=generator(1))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    index = torch.tensor([3, 3, 19, 0, 7, 11, 2, 5])
    drawn = Drawer(images, augment).draw(index, generator())
    assert torch.equal(drawn, slow_augment(images, index, augment, generator()))
    assert drawn.is_contiguous(memory_format=torch.channels_last)


def test_every_shift_and_both_mirrors_come_up():
    images = torch.arange(32 * 32.0).view(1, 1, 32, 32)
    drawn = Drawer(images, "flip+shift").draw(torch.zeros(3000, dtype=torch.int64), generator())
    # 9 x 9 shifts, mirrored or not, each with a chance of 1/162: one is missed once in a million.
    assert len({picture.numpy().tobytes() for picture in drawn}) == 162


def test_passes_are_shuffled_anew_and_whole():
    batches = list(islice(endless_batches(33, 8, generator()), 8))
    assert [len(batch) for batch in batches] == [8, 8, 8, 9] * 2
    first, second = torch.cat(batches[:4]), torch.cat(batches[4:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(33))
    assert first.tolist() != second.tolist()
