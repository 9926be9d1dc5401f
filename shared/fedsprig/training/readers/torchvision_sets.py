"""Classification sets of torchvision, already downloaded.

Note that torchvision itself unpickles CIFAR's original files, after checking them against their
published digests. Archives of unknown origin belong in the ``npz`` reader.
"""

from __future__ import annotations

import inspect
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedsprig.errors import DataError, MissingSplitError, UnreadablePictureError
from fedsprig.spelling import lookup
from fedsprig.training.pictures import ImageSet
from fedsprig.training.readers.decode import fit_square, to_rgb
from fedsprig.training.readers.source import Source

MAX_PICTURES: Final = 10_000_000


def read_torchvision(source: Source) -> ImageSet:
    """Read ``torchvision.datasets.<name>(path)``; nothing is downloaded.

    ``split`` is what the data set calls its splits. ``"all"`` is its only part, or ``train`` and
    ``test``.

    Raises:
        UnknownNameError: No data set of pictures has that name.
        MissingSplitError: The data set has other splits.
        DataError: Not downloaded, or its labels are no class numbers.
        UnreadablePictureError: Names the picture by its number.
        LimitError: More pixels than ``max_bytes``.
    """
    kind = _kind(source.name)
    parameters = inspect.signature(kind).parameters
    parts: list[Any]
    if "train" in parameters:
        splits = source.splits_to_read(("train", "test"))
        parts = [_open(kind, source, train=split == "train") for split in splits]
    elif "split" in parameters:
        splits = ("train", "test") if source.split == "all" else (source.split,)
        parts = [_open(kind, source, split=split) for split in splits]
    else:
        source.splits_to_read(("all",))
        parts = [_open(kind, source)]
    images, labels = _read(parts, source)
    named = getattr(parts[0], "classes", None)
    if named:
        classes = tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in named)
    else:
        classes = tuple(str(number) for number in range(int(labels.max(initial=-1)) + 1))
    return ImageSet(images, labels, classes)


def _kind(name: str) -> Any:
    from torchvision import datasets  # takes about a second

    kinds = {
        known: kind
        for known in datasets.__all__
        if inspect.isclass(kind := getattr(datasets, known))
        and issubclass(kind, datasets.VisionDataset)
        and "root" in inspect.signature(kind).parameters
    }
    return lookup(kinds, name, "data set of torchvision")


def _open(kind: Any, source: Source, **part: bool | str) -> Any:
    offline = {"download": False} if "download" in inspect.signature(kind).parameters else {}
    try:
        return kind(str(source.path), **part, **offline)
    except ValueError as error:
        raise MissingSplitError(
            f"torchvision's {source.name} has no split {source.split!r} ({_line(error)}): "
            "name one of its own"
        ) from error
    except (RuntimeError, OSError, ImportError, TypeError) as error:
        raise DataError(
            f"torchvision cannot open {source.name} in {str(source.path)!r} ({_line(error)}): "
            "download it into that folder first"
        ) from error


def _read(parts: list[Any], source: Source) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    total = sum(len(part) for part in parts)
    if not 0 < total <= MAX_PICTURES:
        raise DataError(f"torchvision's {source.name} holds {total} pictures: download it anew")
    labels = np.empty(total, dtype=np.int64)
    images: NDArray[np.uint8] | None = None
    places = [(part, number) for part in parts for number in range(len(part))]
    for index, (part, number) in enumerate(places):
        pixels, labels[index] = _sample(part, number, source)
        if images is None:
            source.check_bytes(pixels.size * total)
            images = np.empty((total, *pixels.shape), dtype=np.uint8)
        elif pixels.shape != images.shape[1:]:
            raise DataError(f"the pictures of {source.name} differ in size: read them with a size")
        images[index] = pixels
    if images is None:
        raise DataError(f"torchvision's {source.name} holds no picture: download it anew")
    return images, labels


def _sample(part: Any, number: int, source: Source) -> tuple[NDArray[np.uint8], int]:
    try:
        picture, label = part[number]
        pixels = np.asarray(fit_square(to_rgb(picture), source.size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadablePictureError(
            f"cannot read picture {number} of torchvision's {source.name} ({_line(error)}): "
            "download the data set anew"
        ) from error
    except (AttributeError, TypeError) as error:
        raise DataError(f"torchvision's {source.name} is no set of labelled pictures") from error
    try:
        return pixels, int(label)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"torchvision's {source.name} has a {type(label).__name__} for a label, no class "
            "number: write the pictures to an ImageFolder"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
