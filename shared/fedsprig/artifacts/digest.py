"""Digests: what artefacts and states are named by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def digest(data: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of the bytes as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def state_digest(state: Mapping[str, Any]) -> str:
    """Return one SHA-256 over names, dtypes, shapes and bytes, in the order of the names.

    Every field is length-prefixed, so no two different states share one encoding. Neither the
    order of the mapping nor the memory layout or byte order of an array matters; the sign of a
    zero and the bits of a NaN do.

    Args:
        state: Arrays by name, or anything that ``numpy.asarray`` takes (tensors on the CPU).
    """
    whole = hashlib.sha256()
    for name in sorted(state):
        array = np.asarray(state[name])
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        encoded = name.encode()
        fields = f"{len(encoded)} {little.dtype.str} {array.ndim} {array.shape}\n"
        whole.update(fields.encode())
        whole.update(encoded)
        whole.update(little.tobytes())
    return whole.hexdigest()
