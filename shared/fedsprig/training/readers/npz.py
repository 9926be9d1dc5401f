"""Archives of numpy arrays, read without ever unpickling."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from typing import IO, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedsprig.errors import DataError, FedsprigError, MissingSplitError
from fedsprig.training.pictures import ImageSet
from fedsprig.training.readers.decode import fit_squares
from fedsprig.training.readers.source import Source

MAX_CLASSES: Final = 1_000_000

_DAMAGE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,  # an encrypted member or, as NotImplementedError, an unknown compression
)


def read_npz(source: Source) -> ImageSet:
    """Read an ``.npz`` file.

    It holds ``x_<split>`` and ``y_<split>`` for one or more splits, or ``x`` and ``y``, or
    ``images`` and ``labels``; ``classes`` (names) may be there. Pictures are ``uint8 [n, h, w]``,
    ``[n, h, w, 1]`` or ``[n, h, w, 3]``, labels integers ``[n]`` or ``[n, 1]``.

    Raises:
        DataError: No such file, damaged, or arrays of another kind; pickled arrays above all.
        LabelRangeError: A label that no class has.
        MissingSplitError: Names the splits that there are.
        LimitError: More bytes than ``max_bytes``.
    """
    if not source.path.is_file():
        raise DataError(f"there is no file {str(source.path)!r}: give the path of an .npz file")
    with source.path.open("rb") as stream:
        return read_archive(stream, source)


def read_archive(stream: IO[bytes], source: Source) -> ImageSet:
    """Read an open ``.npz``; see `read_npz`."""
    try:
        with zipfile.ZipFile(stream) as archive:
            return _read(archive, source)
    except FedsprigError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot read {str(source.path)!r} ({reason}): write it anew with "
            "numpy.savez_compressed"
        ) from error


def _read(archive: zipfile.ZipFile, source: Source) -> ImageSet:
    names = {name[:-4] for name in archive.namelist() if name.endswith(".npy")}
    pairs = {
        name[2:]: (name, f"y_{name[2:]}")
        for name in sorted(names)
        if name.startswith("x_") and f"y_{name[2:]}" in names
    }
    for pair in (("x", "y"), ("images", "labels")):
        if not pairs and names.issuperset(pair):
            pairs["all"] = pair
    if not pairs:
        raise MissingSplitError(
            f"{str(source.path)!r} holds {', '.join(sorted(names)) or 'nothing'}: "
            "store x_train and y_train, or x and y, or images and labels"
        )
    chosen = [pairs[split] for split in source.splits_to_read(list(pairs))]
    parts = [
        (
            fit_squares(_pictures(_array(archive, x, source), x, source), source.size),
            _labels(_array(archive, y, source), y),
        )
        for x, y in chosen
    ]
    if len({images.shape[1:] for images, _ in parts}) > 1:
        raise DataError(f"the splits of {str(source.path)!r} differ in size: read with a size")
    if "classes" in names:
        classes = _classes(archive, source)
    else:
        # Of all splits, so that a class has the same number of rivals in each.
        highest = max(
            int(_labels(_array(archive, y, source), y).max(initial=-1)) for _, y in pairs.values()
        )
        classes = tuple(str(number) for number in range(min(highest + 1, MAX_CLASSES)))
    if len(parts) == 1:
        return ImageSet(*parts[0], classes)
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ImageSet(images, labels, classes)


def _array(archive: zipfile.ZipFile, name: str, source: Source) -> NDArray[np.generic]:
    """One member, its claimed size checked before memory is taken for it."""
    with archive.open(f"{name}.npy") as member:
        version = npy.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = npy.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, _, dtype = npy.read_array_header_2_0(member)
        else:
            raise ValueError(f"{name} has the unknown format {version}")
        if dtype.hasobject:
            raise DataError(
                f"{name} in {str(source.path)!r} is pickled: store it as plain numbers or text"
            )
        count = 1
        for length in shape:
            count *= length
        source.check_bytes(count * dtype.itemsize)
    with archive.open(f"{name}.npy") as member:
        array: NDArray[np.generic] = npy.read_array(member, allow_pickle=False)
    return array


def _pictures(array: NDArray[np.generic], name: str, source: Source) -> NDArray[np.uint8]:
    grey = array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 1)
    if array.dtype != np.uint8 or not (grey or (array.ndim == 4 and array.shape[3] == 3)):
        raise DataError(
            f"{name} is {array.dtype} {list(array.shape)}: store uint8 [n, h, w] or [n, h, w, 3]"
        )
    pixels = array.astype(np.uint8, copy=False)
    if not grey:
        return pixels
    source.check_bytes(3 * pixels.size)
    return np.repeat(pixels.reshape(*pixels.shape[:3], 1), 3, axis=3)


def _labels(array: NDArray[np.generic], name: str) -> NDArray[np.int64]:
    flat = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise DataError(f"{name} is {array.dtype} {list(array.shape)}: store integers [n]")
    return flat.astype(np.int64)


def _classes(archive: zipfile.ZipFile, source: Source) -> tuple[str, ...]:
    array = _array(archive, "classes", source)
    if array.ndim != 1 or array.dtype.kind not in "USiu":
        raise DataError(
            f"classes is {array.dtype} {list(array.shape)}: store the names as text [classes]"
        )
    if array.dtype.kind == "S":
        return tuple(bytes(name).decode("utf-8", "replace") for name in array)
    return tuple(str(name) for name in array)
