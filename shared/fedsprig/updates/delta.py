"""An update: the change of a device's adapter against a state that both sides name by its digest.

One container holds it: the joined parts of a codec, and as metadata the format, the codec, the
digest of the state that was changed, and a digest of the tensors' names and shapes. Some 600 bytes
are not numbers, however many tensors there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from fedsprig.artifacts import Limits, pack, unpack
from fedsprig.errors import StaleUpdateError, UpdateError, UpdateShapeError
from fedsprig.updates.codecs import Array, Shape, get_codec
from fedsprig.updates.framing import check_shapes, join, layout_digest, split

FORMAT: Final = "fedsprig-update/1"
_HEADER_BYTES: Final = 1 << 14


def encode_update(delta: Mapping[str, Any], *, base_digest: str, codec: str = "int8") -> bytes:
    """Encode the change of an adapter; equal changes give equal bytes.

    Args:
        delta: New minus old, floating point arrays (or CPU tensors) by name.
        base_digest: Names the old state (``artifacts.state_digest`` of it).
        codec: A name in ``CODECS``; each states its error bound.

    Raises:
        NonFiniteUpdateError: A value is NaN, infinite or beyond float32; nothing is sent.
        UpdateShapeError: There is no tensor, or one without values or not of floating point.
        UnknownNameError: There is no such codec.
    """
    parts = join(delta, get_codec(codec))
    shapes = {name: tuple(array.shape) for name, array in delta.items()}
    metadata = {
        "format": FORMAT,
        "codec": codec,
        "base": base_digest,
        "layout": layout_digest(shapes),
    }
    return pack(parts, metadata)


def decode_update(
    data: bytes | bytearray | memoryview, *, shapes: Mapping[str, Shape], base_digest: str
) -> dict[str, Array]:
    """Check an update from outside and return the change, float32 arrays by name.

    Args:
        data: What a device sent.
        shapes: Names and shapes of the adapter's tensors at that device's width.
        base_digest: The state that the device was told to start from.

    Raises:
        StaleUpdateError: The update is against another state.
        UpdateShapeError: It changes other tensors than these.
        NonFiniteUpdateError: It holds NaN or an infinity.
        LimitError: It is larger than any codec makes it; nothing was allocated for it.
        TruncatedArtifactError: It ends too early.
        ArtifactError: It is no container.
        UpdateError: It is no update, or one of another format.
        UnknownNameError: Its codec is not known here.
    """
    check_shapes(shapes)
    arrays, metadata = unpack(data, limits=_limits(shapes))
    if metadata.get("format") != FORMAT:
        raise UpdateError(
            f"format {metadata.get('format')!r:.40} where {FORMAT!r} is read: "
            "run the same version of fedsprig on server and device"
        )
    base = metadata.get("base", "")
    if base != base_digest:
        raise StaleUpdateError(
            f"the update is against {base[:12]!r}, the current state is {base_digest[:12]!r}: "
            "send the device the current adapter and let it train again"
        )
    if metadata.get("layout") != layout_digest(shapes):
        raise UpdateShapeError(
            f"the update changes other tensors than the adapter's {len(shapes)}: "
            "cut the network by the same mask and attach with the same options on both sides"
        )
    return split(arrays, shapes, get_codec(metadata.get("codec", "")))


def _limits(shapes: Mapping[str, Shape]) -> Limits:
    """Allow what the widest codec needs: four bytes a value, and some per row and per tensor."""
    values = sum(math.prod(shape) for shape in shapes.values())
    rows = sum(shape[0] for shape in shapes.values() if shape)
    total = 4 * values + 4 * rows + 16 * len(shapes) + _HEADER_BYTES
    return Limits(total_bytes=total, header_bytes=_HEADER_BYTES, tensors=16)
