"""The operator's pictures in memory: how many, from where, and in what order of bytes."""

import numpy as np
import pytest
import torch

from fedsprig.models import describe
from fedsprig.training import ImageSet, to_tensor
from fedsprig.training.draw import Drawer
from fedsprig_server.picture_memory import drawn, joined, most_pictures

CARD = describe("cifar_resnet20")


def numbered(*counts):
    """Sets of pictures of 8 pixels, each of one grey that no other has."""
    first, sets = 0, []
    for count in counts:
        greys = np.arange(first, first + count, dtype=np.uint8)
        images = np.broadcast_to(greys[:, None, None, None], (count, 8, 8, 3)).copy()
        sets.append(ImageSet(images, np.arange(count) % 2, ("a", "b")))
        first += count
    return sets


def greys(given):
    return given.images[:, 0, 0, 0].tolist()


def test_large_pictures_are_fewer():
    # 32 x 32 x 3 float32 are 12288 bytes.
    assert most_pictures(CARD, 10 * 12288 + 5) == 10
    assert most_pictures(CARD, 1) == 2


def test_what_fits_is_kept_and_what_does_not_is_drawn_evenly():
    sets = numbered(40, 80)
    assert [greys(part) for part in drawn(sets, 120, seed=1)] == [greys(part) for part in sets]
    some = drawn(sets, 12, seed=1)
    assert [len(part) for part in some] == [4, 8]
    for part, whole in zip(some, sets, strict=True):
        assert greys(part) == sorted(set(greys(part)))
        assert set(greys(part)) < set(greys(whole))
        assert all(
            (grey - greys(whole)[0]) % 2 == label
            for grey, label in zip(greys(part), part.labels, strict=True)
        )
    assert [greys(part) for part in drawn(sets, 12, seed=1)] == [greys(part) for part in some]
    assert [greys(part) for part in drawn(sets, 12, seed=2)] != [greys(part) for part in some]


def test_a_set_that_is_small_beside_another_keeps_a_picture():
    assert [len(part) for part in drawn(numbered(1, 200), 20, seed=0)] == [1, 19]


@pytest.mark.parametrize("augment", ["none", "flip+shift"])
def test_pictures_are_joined_once_and_batches_are_drawn_from_that_one_tensor(augment):
    sets = numbered(3, 4)
    images = joined(sets, CARD)
    assert torch.equal(images, torch.cat([to_tensor(part.images, CARD) for part in sets]))
    drawer = Drawer(images, augment)
    images.fill_(7.0)  # a copy would not know
    assert bool((drawer.draw(torch.arange(7), torch.Generator()) == 7.0).all())
