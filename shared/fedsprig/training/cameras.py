"""Cameras: what a lens and a sensor make of pictures, so that tasks differ by more than classes.

A camera maps ``uint8 [n, h, w, 3]`` to ``uint8 [n, h', w', 3]`` and leaves its input alone. Names
joined by ``+`` are applied from left to right: ``"invert+blur"``. All randomness comes from the
generator that is passed, so the same seed takes the same pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.spelling import lookup
from fedsprig.training.pictures import check_images

Pictures = NDArray[np.uint8]
Camera = Callable[[Pictures, np.random.Generator], Pictures]

NOISE_LEVELS: Final = 20.0
"""Standard deviation of the sensor's noise, of 255 levels."""

DARK_GAIN: Final = 0.3
"""Share of the light that reaches the dark camera."""

BLUR_SHARE: Final = 1 / 24
"""Standard deviation of the blur as a share of the longer side."""

BLUR_PIXELS: Final = 0.6
"""Its least value; a narrower one changes nothing."""

_CHUNK_BYTES: Final = 1 << 22


def camera(name: str) -> Camera:
    """The camera of that name, or several joined by ``+``.

    Raises:
        UnknownNameError: Says which names there are.
    """
    parts = [lookup(CAMERAS, part.strip(), "camera") for part in name.split("+")]

    def take(images: Pictures, rng: np.random.Generator) -> Pictures:
        check_images(images)
        for part in parts:
            images = part(images, rng)
        return images

    return take


def _plain(images: Pictures, rng: np.random.Generator) -> Pictures:
    return images.copy()


def _rotate90(images: Pictures, rng: np.random.Generator) -> Pictures:
    """A quarter turn counter-clockwise; height and width change places."""
    return np.rot90(images, 1, axes=(1, 2)).copy()


def _rotate180(images: Pictures, rng: np.random.Generator) -> Pictures:
    return images[:, ::-1, ::-1].copy()


def _invert(images: Pictures, rng: np.random.Generator) -> Pictures:
    return 255 - images


def _noise(images: Pictures, rng: np.random.Generator) -> Pictures:
    """Gaussian noise of ``NOISE_LEVELS``, drawn for each pixel and colour."""
    out = np.empty_like(images)
    for part in _chunks(images):
        noise = rng.standard_normal(images[part].shape, dtype=np.float32)
        out[part] = _levels(images[part] + NOISE_LEVELS * noise)
    return out


def _blur(images: Pictures, rng: np.random.Generator) -> Pictures:
    """Gaussian blur, one axis after the other; beyond the border its pixels go on."""
    sigma = max(BLUR_PIXELS, BLUR_SHARE * max(images.shape[1:3]))
    radius = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    out = np.empty_like(images)
    for part in _chunks(images):
        pixels = images[part].astype(np.float32)
        for axis in (1, 2):
            size = pixels.shape[axis]
            edges = [(0, 0)] * 4
            edges[axis] = (radius, radius)
            padded = np.pad(pixels, edges, mode="edge")
            pixels = np.zeros_like(pixels)
            for tap, weight in enumerate(kernel):
                window = (slice(None),) * axis + (slice(tap, tap + size),)
                pixels += weight * padded[window]
        out[part] = _levels(pixels)
    return out


def _dark(images: Pictures, rng: np.random.Generator) -> Pictures:
    """``DARK_GAIN`` of the light, rounded to the sensor's levels, so shades are lost for good."""
    return _levels(np.arange(256, dtype=np.float32) * DARK_GAIN)[images]


def _lowres(images: Pictures, rng: np.random.Generator) -> Pictures:
    """Every 2x2 pixels become their mean; an odd last row or column pairs with itself."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    corners = [padded[:, i::2, j::2].astype(np.uint16) for i in (0, 1) for j in (0, 1)]
    means = ((sum(corners[1:], corners[0]) + 2) // 4).astype(np.uint8)
    return np.ascontiguousarray(means.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width])


def _levels(values: NDArray[np.float32]) -> Pictures:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _chunks(images: Pictures) -> Iterator[slice]:
    """Slices of pictures whose float copies stay small."""
    count = max(1, _CHUNK_BYTES // images[0].size) if len(images) else 1
    for first in range(0, len(images), count):
        yield slice(first, first + count)


CAMERAS: Final[Mapping[str, Camera]] = MappingProxyType(
    {
        "plain": _plain,
        "rotate90": _rotate90,
        "rotate180": _rotate180,
        "invert": _invert,
        "noise": _noise,
        "blur": _blur,
        "dark": _dark,
        "lowres": _lowres,
    }
)
