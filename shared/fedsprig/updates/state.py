"""Whole states, such as the weights of a cut network on their way to a device, in any codec.

Unlike an update, a state says what it holds: names and shapes travel as a table in the metadata.
Floating point tensors go through the codec and come back as float32; integers and booleans (such as
counters) travel as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from fedsprig.artifacts import DEFAULT, Limits, pack, unpack
from fedsprig.errors import ArtifactError
from fedsprig.updates.codecs import Array, Shape, get_codec
from fedsprig.updates.framing import join, split

FORMAT: Final = "fedsprig-state/1"
_RAW: Final = "raw:"


def encode_state(state: Mapping[str, Any], codec: str) -> bytes:
    """Encode a state dictionary; equal states give equal bytes.

    Args:
        state: Arrays, or CPU tensors, by name.
        codec: A name in ``CODECS``.

    Raises:
        NonFiniteUpdateError: A value is NaN, infinite or beyond float32.
        UpdateShapeError: No tensor is of floating point, or one has no values.
        UnknownNameError: There is no such codec.
    """
    arrays = {name: np.asarray(value) for name, value in state.items()}
    floats = {name: a for name, a in arrays.items() if np.issubdtype(a.dtype, np.floating)}
    raw = {_RAW + name: array for name, array in arrays.items() if name not in floats}
    table = [[name, list(floats[name].shape)] for name in sorted(floats)]
    metadata = {
        "format": FORMAT,
        "codec": codec,
        "tensors": json.dumps(table, separators=(",", ":")),
    }
    return pack(join(floats, get_codec(codec)) | raw, metadata)


def decode_state(
    data: bytes | bytearray | memoryview, limits: Limits = DEFAULT
) -> dict[str, Array]:
    """Check a state from outside and return its arrays by name.

    Raises:
        LimitError: It is larger than ``limits``.
        TruncatedArtifactError: It ends too early.
        ArtifactError: It is no container, no state, or its table is malformed.
        UpdateShapeError: The numbers are not as many as the table says.
        NonFiniteUpdateError: It holds NaN or an infinity.
        UnknownNameError: Its codec is not known here.
    """
    arrays, metadata = unpack(data, limits=limits)
    if metadata.get("format") != FORMAT:
        raise ArtifactError(
            f"format {metadata.get('format')!r:.40} where {FORMAT!r} is read: "
            "run the same version of fedsprig on server and device"
        )
    shapes = _parse_table(metadata.get("tensors", ""), limits)
    raw = {name: arrays.pop(name) for name in list(arrays) if name.startswith(_RAW)}
    state = split(arrays, shapes, get_codec(metadata.get("codec", "")))
    for name, array in raw.items():
        own = name.removeprefix(_RAW)
        if own in state or np.issubdtype(array.dtype, np.floating):
            raise ArtifactError(f"tensor {own!r:.80} is there twice, or unencoded: encode it once")
        state[own] = array
    return state


def _parse_table(text: str, limits: Limits) -> dict[str, Shape]:
    """Return shapes by name from ``[[name, [axis, ...]], ...]``, believing nothing."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, list):
        raise ArtifactError("the table of tensors is no JSON list: encode the state again")
    shapes: dict[str, Shape] = {}
    for row in table:
        match row:
            case [str() as name, [*shape]] if (
                name not in shapes
                and len(shape) <= limits.axes
                and all(type(length) is int and 0 < length <= 1 << 40 for length in shape)
            ):
                shapes[name] = tuple(shape)
            case _:
                raise ArtifactError(f"the table of tensors has a bad row {row!r:.60}")
    return shapes
