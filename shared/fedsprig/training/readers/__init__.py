"""Readers of labelled pictures. A new kind is one file and one line in ``READERS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fedsprig.errors import TooFewClassesError
from fedsprig.spelling import lookup
from fedsprig.training.pictures import ImageSet
from fedsprig.training.readers.embedded import read_embedded
from fedsprig.training.readers.folder import read_folder
from fedsprig.training.readers.npz import read_npz
from fedsprig.training.readers.source import DEFAULT_MAX_BYTES, Source
from fedsprig.training.readers.torchvision_sets import read_torchvision

__all__ = ["DEFAULT_MAX_BYTES", "READERS", "Reader", "Source", "read"]

Reader = Callable[[Source], ImageSet]

READERS: Final[Mapping[str, Reader]] = MappingProxyType(
    {
        "folder": read_folder,
        "npz": read_npz,
        "torchvision": read_torchvision,
        "embedded": read_embedded,
    }
)


def read(
    kind: str,
    path: str | Path = "",
    *,
    split: str = "train",
    size: int | None = None,
    name: str = "",
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> ImageSet:
    """Read labelled pictures into memory.

    Args:
        kind: ``folder``, ``npz``, ``torchvision`` or ``embedded``.
        path: The folder or file; the name of an embedded set.
        split: Which part; ``"all"`` is everything. A source that is not divided has ``"train"``
            alone (and `fedsprig.training.hold_out` divides it).
        size: Fit every picture to a square of this side: its largest central square, resized
            (bilinear, antialiased).
        name: The data set, for ``torchvision`` and ``embedded``.
        max_bytes: More bytes of pixels than this are refused before memory is taken.

    Raises:
        UnknownNameError: No reader or data set of that name.
        DataError: The data cannot be used; a subclass says why.
        TooFewClassesError: Fewer than two classes.
        LimitError: The pictures take more than ``max_bytes``.
    """
    image_set = lookup(READERS, kind, "reader")(
        Source(Path(path), split=split, size=size, name=name, max_bytes=max_bytes)
    )
    if len(image_set.classes) < 2:
        raise TooFewClassesError(
            f"{name or path} has {len(image_set.classes)} class(es): give two classes at least"
        )
    return image_set
