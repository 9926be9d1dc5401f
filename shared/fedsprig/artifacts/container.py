"""The one container for arrays: safetensors, every claim checked before it is believed.

Layout, from the format's specification (github.com/huggingface/safetensors, README): eight bytes,
the header's length ``N`` (little-endian, unsigned); ``N`` bytes of JSON, ``{name: {"dtype",
"shape", "data_offsets": [begin, end]}}`` with an optional ``"__metadata__": {str: str}``; then the
data, row-major and little-endian, without gaps or overlaps.

We write it ourselves, for one reason: equal content must give equal bytes, because artefacts are
named by their digest, and the reference implementation orders metadata at random. We read it
ourselves so that our limits hold *before* JSON is parsed or an array is allocated. The files are
ordinary safetensors files; a test reads each with the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.artifacts.files import read_bytes
from fedsprig.errors import ArtifactError, LimitError, TruncatedArtifactError

Array = NDArray[Any]

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_TAGS: Final = {dtype: tag for tag, dtype in DTYPES.items()}
_METADATA: Final = "__metadata__"
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a reader accepts; all of it is checked before anything of that size is allocated."""

    total_bytes: int = 2 << 30
    header_bytes: int = 4 << 20
    tensors: int = 1 << 14
    axes: int = 8
    name_bytes: int = 512


DEFAULT: Final = Limits()


def pack(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """Pack arrays and text into one safetensors file; equal content gives equal bytes.

    Args:
        arrays: Arrays by name, of the dtypes in ``DTYPES``; names are printable, the order does
            not matter.
        metadata: Text by name.

    Raises:
        ArtifactError: A name or dtype that the format does not hold.
    """
    header: dict[str, Any] = {}
    if metadata:
        for key, value in metadata.items():
            _check_text(key, value)
        header[_METADATA] = dict(sorted(metadata.items()))
    chunks: list[bytes] = []
    offset = 0
    # Widest dtype first, so that every array begins at a multiple of its item size, as the
    # reference writer does.
    for name in sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name)):
        array = arrays[name]
        _check_name(name, DEFAULT)
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _TAGS:
            raise ArtifactError(f"array {name!r} is {array.dtype}: convert it to {_dtype_names()}")
        chunk = np.ascontiguousarray(array, dtype=dtype).tobytes()
        header[name] = {
            "dtype": _TAGS[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(chunk)],
        }
        offset += len(chunk)
        chunks.append(chunk)
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return b"".join([len(encoded).to_bytes(_LENGTH_BYTES, "little"), encoded, *chunks])


def unpack(
    data: bytes | bytearray | memoryview, *, limits: Limits = DEFAULT
) -> tuple[dict[str, Array], dict[str, str]]:
    """Check a safetensors file and return its arrays (own, writable memory) and its metadata.

    Arrays come in the order of the data. Values are not looked at: who needs finite ones checks
    them.

    Raises:
        TruncatedArtifactError: The bytes end before the header or the data do.
        LimitError: A size, count or length is over ``limits``.
        ArtifactError: Any other breach of the format, such as a duplicate name, a gap, an overlap
            or an unknown dtype.
    """
    view = memoryview(data).cast("B")
    if len(view) > limits.total_bytes:
        raise LimitError(f"{len(view):,} bytes, {limits.total_bytes:,} are allowed: send less")
    if len(view) < _LENGTH_BYTES:
        raise TruncatedArtifactError(f"{len(view)} bytes hold no header: fetch the artefact again")
    length = int.from_bytes(view[:_LENGTH_BYTES], "little")
    if length > limits.header_bytes:
        raise LimitError(
            f"the header claims {length:,} bytes, {limits.header_bytes:,} are allowed: "
            "this is no artefact, or a damaged one; fetch it again"
        )
    start = _LENGTH_BYTES + length
    if len(view) < start:
        raise TruncatedArtifactError(
            f"the header needs {start:,} bytes, {len(view):,} are here: fetch the artefact again"
        )
    header = _parse_header(bytes(view[_LENGTH_BYTES:start]))
    metadata = _checked_metadata(header.pop(_METADATA, {}))
    if len(header) > limits.tensors:
        raise LimitError(f"{len(header):,} arrays, {limits.tensors:,} are allowed: send fewer")
    body = view[start:]
    entries = sorted(
        (_Entry.checked(name, value, limits) for name, value in header.items()),
        key=lambda entry: (entry.begin, entry.end),
    )
    _check_cover(entries, len(body))
    return {entry.name: entry.load(body) for entry in entries}, metadata


def read_file(
    path: str | Path, *, limits: Limits = DEFAULT
) -> tuple[dict[str, Array], dict[str, str]]:
    """Read and check a file; errors as in ``unpack``, with the path in front."""
    data = read_bytes(path, max_bytes=limits.total_bytes)
    try:
        return unpack(data, limits=limits)
    except ArtifactError as error:
        raise type(error)(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Entry:
    """One array's line of the header, checked."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def checked(cls, name: str, value: object, limits: Limits) -> _Entry:
        _check_name(name, limits)
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            raise ArtifactError(f"array {name!r} needs dtype, shape and data_offsets, no more")
        tag = value["dtype"]
        if not isinstance(tag, str) or tag not in DTYPES:
            raise ArtifactError(f"array {name!r} is {tag!r:.40}: convert it to {_dtype_names()}")
        shape, offsets = _counts(name, value["shape"]), _counts(name, value["data_offsets"])
        if len(shape) > limits.axes:
            raise LimitError(f"array {name!r} has {len(shape)} axes, {limits.axes} are allowed")
        if len(offsets) != 2:
            raise ArtifactError(f"array {name!r} needs two data offsets, has {len(offsets)}")
        begin, end = offsets
        dtype = DTYPES[tag]
        # Python's integers do not overflow. Axes of length 0 are left out here: beside them the
        # others could be of any length without needing a byte, but not within numpy.
        if math.prod(length or 1 for length in shape) * dtype.itemsize > limits.total_bytes:
            raise LimitError(f"array {name!r} is larger than {limits.total_bytes:,} bytes")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ArtifactError(f"array {name!r}: its offsets do not fit its shape and dtype")
        return cls(name, dtype, tuple(shape), begin, end)

    def load(self, body: memoryview) -> Array:
        chunk = body[self.begin : self.end]
        if self.dtype == np.bool_ and np.any(np.frombuffer(chunk, np.uint8) > 1):
            raise ArtifactError(f"array {self.name!r} is boolean but holds bytes over 1")
        values = np.frombuffer(chunk, self.dtype).reshape(self.shape)
        return values.astype(self.dtype.newbyteorder("="), order="C", copy=True)


def _parse_header(encoded: bytes) -> dict[str, Any]:
    if not encoded.startswith(b"{"):
        raise ArtifactError("the header does not begin with '{': this is no safetensors file")
    try:
        header = json.loads(
            encoded.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except RecursionError:
        raise ArtifactError(
            "the header is nested too deeply: this is no safetensors file"
        ) from None
    except ValueError as error:  # includes bad UTF-8, bad JSON and integers of absurd length
        raise ArtifactError(f"the header is no valid JSON: {str(error)[:80]}") from None
    if not isinstance(header, dict):
        raise ArtifactError("the header is no JSON object: this is no safetensors file")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse what ``json`` would silently resolve in favour of the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ArtifactError("the header names one key twice: write every name once")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _checked_metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ArtifactError("the metadata is no JSON object of texts")
    for key, text in value.items():
        _check_text(key, text)
    return value


def _check_text(key: object, value: object) -> None:
    for text in (key, value):
        if (
            not isinstance(text, str)
            or "\0" in text
            or any("\ud800" <= c <= "\udfff" for c in text)
        ):
            raise ArtifactError(f"metadata {key!r:.80} is no text that UTF-8 without NUL can hold")


def _check_name(name: object, limits: Limits) -> None:
    # isprintable excludes NUL, other control characters, line breaks and lone surrogates.
    if not isinstance(name, str) or not name or not name.isprintable() or name == _METADATA:
        raise ArtifactError(f"array name {name!r:.80} is refused: use printable characters")
    if len(name.encode()) > limits.name_bytes:
        raise LimitError(f"an array name has over {limits.name_bytes} bytes: {name[:40]!r}...")


def _counts(name: str, value: object) -> list[int]:
    """Return a list of integers from 0 up, refusing all else (a boolean is no integer here)."""
    if not isinstance(value, list) or any(type(v) is not int or v < 0 for v in value):
        raise ArtifactError(f"array {name!r}: shape and offsets are lists of integers from 0 up")
    return value


def _check_cover(entries: list[_Entry], body_bytes: int) -> None:
    """Check that the arrays tile the data exactly."""
    position = 0
    for entry in entries:
        if entry.begin != position:
            kind = "a gap before" if entry.begin > position else "an overlap at"
            raise ArtifactError(f"the data have {kind} array {entry.name!r}: they must be gapless")
        position = entry.end
    if position > body_bytes:
        raise TruncatedArtifactError(
            f"the arrays need {position:,} bytes, {body_bytes:,} are here: fetch the artefact again"
        )
    if position < body_bytes:
        raise ArtifactError(f"{body_bytes - position:,} bytes follow the last array: cut them off")


def _dtype_names() -> str:
    return ", ".join(dtype.name for dtype in DTYPES.values())
