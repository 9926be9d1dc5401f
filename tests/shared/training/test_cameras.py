import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import DataError, UnknownNameError
from fedsprig.training import CAMERAS, camera, cameras
from fedsprig.training.cameras import BLUR_PIXELS, BLUR_SHARE, DARK_GAIN, NOISE_LEVELS


def pictures(n=3, height=8, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def take(name, images, seed=0):
    return camera(name)(images, np.random.default_rng(seed))


@pytest.mark.parametrize("name", sorted(CAMERAS))
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (8, 8)])
def test_gives_new_pictures_of_the_same_kind_and_leaves_its_input_alone(name, shape):
    images = pictures(3, *shape)
    before = images.copy()
    seen = take(name, images)
    assert seen.dtype == np.uint8
    assert seen.shape == ((3, *shape[::-1], 3) if name == "rotate90" else images.shape)
    assert seen.flags.c_contiguous
    assert not np.shares_memory(seen, images)
    assert (images == before).all()
    assert (take(name, images) == seen).all()
    assert take(name, images[:0]).shape[0] == 0


@pytest.mark.parametrize("name", sorted(set(CAMERAS) - {"plain"}))
def test_changes_what_it_sees(name):
    images = pictures(2, 28, 28)
    assert (take(name, images) != images).mean() > 0.5


def test_turns_counter_clockwise():
    images = np.zeros((1, 2, 3, 3), dtype=np.uint8)
    images[0, :, :, 0] = [[1, 2, 3], [4, 5, 6]]
    assert take("rotate90", images)[0, :, :, 0].tolist() == [[3, 6], [2, 5], [1, 4]]
    assert take("rotate180", images)[0, :, :, 0].tolist() == [[6, 5, 4], [3, 2, 1]]


def test_inverts_and_darkens_every_level():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert take("invert", levels)[0, :, :, 0].ravel().tolist() == list(range(255, -1, -1))
    dark = take("dark", levels)[0, :, :, 2].ravel().tolist()
    assert dark == [round(float(np.float32(v) * np.float32(DARK_GAIN))) for v in range(256)]


def test_low_resolution_averages_two_by_two():
    images = np.zeros((1, 3, 3, 3), dtype=np.uint8)
    images[0, :, :, 1] = [[0, 1, 10], [2, 3, 20], [100, 101, 255]]
    seen = take("lowres", images)[0, :, :, 1]
    # (0 + 1 + 2 + 3) / 4 = 1.5, rounded up; edges pair with themselves.
    assert seen.tolist() == [[2, 2, 15], [2, 2, 15], [101, 101, 255]]


def test_noise_has_its_strength_and_follows_the_generator():
    grey = np.full((40, 16, 16, 3), 128, dtype=np.uint8)
    seen = take("noise", grey).astype(np.float64) - 128
    # 30,720 draws: the standard error of the deviation is 0.4 % of it.
    assert abs(seen.std() / NOISE_LEVELS - 1) < 0.03
    assert abs(seen.mean()) < 1
    assert (take("noise", grey, seed=1) != take("noise", grey)).any()
    assert len({picture.tobytes() for picture in take("noise", grey)}) == 40


def slow_blur(image):
    height, width, _ = image.shape
    sigma = max(BLUR_PIXELS, BLUR_SHARE * max(height, width))
    radius = math.ceil(3 * sigma)
    weight = {t: math.exp(-0.5 * (t / sigma) ** 2) for t in range(-radius, radius + 1)}
    whole = sum(weight.values())
    out = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            for dy, wy in weight.items():
                for dx, wx in weight.items():
                    inside = image[min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                    out[y, x] += wy * wx / whole**2 * inside
    return out


def test_blur_equals_the_slow_convolution():
    image = pictures(1, 30, 26)[0]
    fast = take("blur", image[None])[0].astype(np.float64)
    assert np.abs(fast - slow_blur(image)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("name", sorted(set(CAMERAS) - {"noise"}))
def test_sees_each_picture_by_itself_whatever_the_chunks(name, monkeypatch):
    images = pictures(5)
    whole = take(name, images)
    assert all((take(name, images[i : i + 1])[0] == whole[i]).all() for i in range(5))
    monkeypatch.setattr(cameras, "_CHUNK_BYTES", 2 * images[0].size)
    assert (take(name, images) == whole).all()


def test_noise_is_the_same_whatever_the_chunks(monkeypatch):
    images = pictures(5)
    whole = take("noise", images)
    monkeypatch.setattr(cameras, "_CHUNK_BYTES", 2 * images[0].size)
    assert (take("noise", images) == whole).all()


@settings(max_examples=20)
@given(st.lists(st.sampled_from(sorted(CAMERAS)), min_size=1, max_size=3))
def test_joined_names_apply_from_left_to_right(names):
    images, rng = pictures(), np.random.default_rng(3)
    one_by_one = images
    for name in names:
        one_by_one = camera(name)(one_by_one, rng)
    assert (take(" + ".join(names), images, seed=3) == one_by_one).all()


@pytest.mark.parametrize("name", ["", "blurr", "invert+", "+", "invert+sepia"])
def test_refuses_unknown_names(name):
    hint = "did you mean 'blur'" if name == "blurr" else "there is plain, rotate90"
    with pytest.raises(UnknownNameError, match=f"unknown camera .*: {hint}"):
        camera(name)


def test_refuses_what_is_no_picture():
    with pytest.raises(DataError, match="uint8"):
        take("plain", np.zeros((1, 4, 4, 3)))
