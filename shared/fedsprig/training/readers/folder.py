"""Folders of pictures: ``path/<class>/*.png`` or ``path/<split>/<class>/*.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsprig.errors import DataError, TooFewClassesError
from fedsprig.training.pictures import ImageSet
from fedsprig.training.readers.decode import EXTENSIONS, decode
from fedsprig.training.readers.source import Source


def read_folder(source: Source) -> ImageSet:
    """Read an ImageFolder, classes and pictures in the order of their names.

    Where the pictures lie two folders deep, the outer folders are splits, and the classes are those
    of all splits together, so that a label means the same in each. Hidden files and files that are
    no pictures by their extension are passed over.

    Raises:
        DataError: No such folder, an empty class, or pictures of several sizes.
        TooFewClassesError: No class folder, or a single one.
        UnreadablePictureError: Names the file.
        MissingSplitError: Names the splits that there are.
        LimitError: More pixels than ``max_bytes``.
    """
    root = source.path
    if not root.is_dir():
        raise DataError(f"there is no folder {str(root)!r}: give the folder that holds the classes")
    outer = _folders(root)
    if any(_pictures(folder) for folder in outer):
        splits = {"all": outer}
    else:
        splits = {folder.name: inner for folder in outer if (inner := _folders(folder))}
    classes = sorted({folder.name for folders in splits.values() for folder in folders})
    if len(classes) < 2:
        found = f"one class ({classes[0]!r})" if classes else "no class"
        raise TooFewClassesError(
            f"the folder {str(root)!r} holds {found}: give one folder of pictures per class, "
            "two at least"
        )
    number = {name: index for index, name in enumerate(classes)}
    files: list[Path] = []
    labels: list[int] = []
    for split in source.splits_to_read(sorted(splits)):
        for folder in splits[split]:
            pictures = _pictures(folder)
            if not pictures:
                raise DataError(
                    f"the class folder {str(folder)!r} holds no picture: add some or remove it"
                )
            files += pictures
            labels += [number[folder.name]] * len(pictures)
    return ImageSet(_read(files, source), np.array(labels, dtype=np.int64), tuple(classes))


def _read(files: list[Path], source: Source) -> np.ndarray:
    first = decode(files[0], source.size)
    source.check_bytes(first.size * len(files))
    images = np.empty((len(files), *first.shape), dtype=np.uint8)
    for target, file in zip(images, files, strict=True):
        pixels = decode(file, source.size)
        if pixels.shape != first.shape:
            raise DataError(
                f"{str(file)!r} has {pixels.shape[1]}x{pixels.shape[0]} pixels, "
                f"{str(files[0])!r} {first.shape[1]}x{first.shape[0]}: read them with a size"
            )
        target[...] = pixels
    return images


def _folders(path: Path) -> list[Path]:
    return sorted(
        entry
        for entry in path.iterdir()
        if not entry.name.startswith((".", "__MACOSX")) and entry.is_dir()
    )


def _pictures(path: Path) -> list[Path]:
    return sorted(
        entry
        for entry in path.iterdir()
        if entry.suffix.lower() in EXTENSIONS and not entry.name.startswith(".") and entry.is_file()
    )
