"""Masks as bits: eight to a byte, the first in the lowest bit, the last byte padded with zeros."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import ArtifactError, TruncatedArtifactError

Bools = NDArray[np.bool_]
"""One bool for each of several things; which True stands for, the name says."""


def pack_bits(flat: Bools) -> NDArray[np.uint8]:
    """``[n]`` bools as ``[ceil(n / 8)]`` bytes."""
    return np.packbits(flat, bitorder="little")


def unpack_bits(packed: NDArray[np.uint8] | None, count: int, mask: str, things: str) -> Bools:
    """What :func:`pack_bits` made; no array is made before the bytes are seen to hold its bits.

    Args:
        packed: the bytes, as they came.
        count: how many bools they ought to hold.
        mask: what they are of, for messages: ``"the block mask"``.
        things: what it masks: ``"blocks"``.

    Raises:
        TruncatedArtifactError: too few bytes.
        ArtifactError: no bytes, bytes too many, or set bits in the padding.
    """
    if packed is None or packed.dtype != np.uint8 or packed.ndim != 1:
        raise ArtifactError(f"{mask} holds no uint8 [bytes] of bits: fetch it again")
    expected = -(-count // 8)
    if len(packed) < expected:
        raise TruncatedArtifactError(
            f"{mask} has {len(packed)} of {expected} bytes of {things}: fetch it again"
        )
    more = ArtifactError(f"{mask} has more bits than {things}: fetch it again")
    if len(packed) > expected:
        raise more
    bits = np.unpackbits(packed, bitorder="little").astype(np.bool_)
    if bits[count:].any():
        raise more
    return bits[:count]
