"""The library's classifiers as they travel to a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsprig.artifacts.container import pack, unpack
from fedsprig.errors import ArtifactError
from fedsprig.tasks.similarity.heads import Head

_DTYPES = {
    "weights": np.dtype(np.float16),
    "scales": np.dtype(np.float32),
    "biases": np.dtype(np.float32),
    "sizes": np.dtype(np.int64),
}


def pack_heads(heads: Sequence[Head], probe: bytes = b"") -> bytes:
    """Classifiers of one number of features, one below the other, as an artefact.

    Weights are rounded to 16 bits after each classifier is scaled to a largest weight of 1.

    Args:
        heads: At least one.
        probe: The package of the probe, where the device may have lost its features.
    """
    scales = [float(np.abs(head.weight).max()) or 1.0 for head in heads]
    weights = [head.weight / scale for head, scale in zip(heads, scales, strict=True)]
    arrays: dict[str, NDArray[Any]] = {
        "weights": np.concatenate(weights).astype(np.float16),
        "scales": np.array(scales, np.float32),
        "biases": np.concatenate([head.bias for head in heads]),
        "sizes": np.array([len(head.bias) for head in heads], np.int64),
    }
    if probe:
        arrays["probe"] = np.frombuffer(probe, np.uint8)
    return pack(arrays)


def unpack_heads(data: bytes) -> tuple[list[Head], bytes]:
    """What :func:`pack_heads` packed: the classifiers, and the probe or nothing.

    Raises:
        ArtifactError: No artefact, or one of other arrays or of numbers that are not finite.
    """
    arrays, _ = unpack(data)
    probe = arrays.pop("probe", np.zeros(0, np.uint8))
    if {name: value.dtype for name, value in arrays.items()} != _DTYPES or not _fit(arrays):
        raise ArtifactError("the classifiers to compare with are none: send them again")
    ends = np.cumsum(arrays["sizes"])[:-1]
    parts = zip(
        np.split(arrays["weights"].astype(np.float32), ends),
        arrays["scales"],
        np.split(arrays["biases"], ends),
        strict=True,
    )
    return [Head(weight * scale, bias) for weight, scale, bias in parts], probe.tobytes()


def _fit(arrays: dict[str, NDArray[Any]]) -> bool:
    weights, sizes = arrays["weights"], arrays["sizes"]
    return bool(
        weights.ndim == 2
        and 0 not in weights.shape
        and arrays["biases"].shape == (len(weights),)
        and sizes.shape == arrays["scales"].shape == (sizes.size,)
        and sizes.size > 0
        # Each one is bounded first: a sum of large ones overflows to a small one.
        and ((sizes > 0) & (sizes <= len(weights))).all()
        and sum(sizes.tolist()) == len(weights)
        and all(np.isfinite(arrays[name]).all() for name in ("weights", "scales", "biases"))
    )
