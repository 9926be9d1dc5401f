"""Joining the parts of many tensors into few arrays, and splitting them again.

Names and shapes cost more than the numbers of a small tensor (some 70 bytes of header each), so
they do not travel where both sides know them: tensors follow each other in the order of their
names.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsprig.errors import NonFiniteUpdateError, UpdateShapeError
from fedsprig.updates.codecs import Array, Codec, Shape


def layout_digest(shapes: Mapping[str, Shape]) -> str:
    """Return the SHA-256 that stands for names and shapes where they do not travel."""
    listed = [[name, list(shapes[name])] for name in sorted(shapes)]
    return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()


def join(arrays: Mapping[str, Any], codec: Codec) -> dict[str, Array]:
    """Encode tensors and join equal parts end to end, in the order of the names.

    Args:
        arrays: Floating point arrays, or CPU tensors, by name.
        codec: What encodes each.

    Raises:
        UpdateShapeError: There is no tensor, or one without values or not of floating point.
        NonFiniteUpdateError: A value is NaN, infinite or beyond float32.
    """
    check_shapes({name: tuple(array.shape) for name, array in arrays.items()})
    parts: dict[str, list[Array]] = {}
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if not np.issubdtype(array.dtype, np.floating):
            raise UpdateShapeError(f"tensor {name!r} is {array.dtype}: send floating point only")
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise NonFiniteUpdateError(
                f"tensor {name!r} holds NaN or an infinity: lower the learning rate and train again"
            )
        for part, values in codec.encode(array).items():
            parts.setdefault(part, []).append(values)
    return {part: np.concatenate(values) for part, values in parts.items()}


def split(
    parts: Mapping[str, Array], shapes: Mapping[str, Shape], codec: Codec
) -> dict[str, Array]:
    """Undo ``join``; names, dtypes and lengths are checked before the first tensor is decoded.

    Raises:
        UpdateShapeError: The parts are not those of tensors of these shapes.
        NonFiniteUpdateError: A tensor holds NaN, an infinity or a scale out of range.
    """
    check_shapes(shapes)
    layouts = {name: codec.layout(shapes[name]) for name in sorted(shapes)}
    expected: dict[str, tuple[str, int]] = {}
    for layout in layouts.values():
        for part, (dtype, length) in layout.items():
            expected[part] = (dtype.name, expected.get(part, ("", 0))[1] + length)
    found = {part: (values.dtype.name, values.size) for part, values in parts.items()}
    if found != expected or any(values.ndim != 1 for values in parts.values()):
        raise UpdateShapeError(
            f"the bytes hold {_listed(found)} where these tensors need {_listed(expected)}: "
            "encode it again with the same version"
        )
    position = dict.fromkeys(expected, 0)
    tensors = {}
    for name, layout in layouts.items():
        own = {}
        for part, (_, length) in layout.items():
            own[part] = parts[part][position[part] : position[part] + length]
            position[part] += length
        try:
            tensors[name] = codec.decode(own, shapes[name])
        except NonFiniteUpdateError as error:
            raise NonFiniteUpdateError(
                f"tensor {name!r} {error}: leave it out and train again"
            ) from None
    return tensors


def check_shapes(shapes: Mapping[str, Shape]) -> None:
    """Refuse a set of tensors that holds none, or one without values."""
    if not shapes:
        raise UpdateShapeError("there is no tensor to send: attach an adapter first")
    for name, shape in shapes.items():
        if math.prod(shape) == 0:
            raise UpdateShapeError(f"tensor {name!r} of shape {shape} has no values: leave it out")


def _listed(parts: Mapping[str, tuple[str, int]]) -> str:
    entries = (f"{part} {dtype}[{size}]" for part, (dtype, size) in sorted(parts.items())[:8])
    return ", ".join(entries) or "nothing"
