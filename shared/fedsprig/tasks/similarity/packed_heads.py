"""The library's classifiers as they travel to a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.artifacts.container import Limits, pack, unpack
from fedsprig.errors import ArtifactError, LimitError
from fedsprig.tasks.similarity.heads import Head

MAX_CLASSES: Final = 1000
"""Of a classifier: the H-score takes ``[classes, classes]`` and the time of its inverse."""
MAX_CLASSES_IN_ALL: Final = 20_000
"""Of all classifiers that travel together."""
MAX_HEADS: Final = 1000
_NONE: Final = "the classifiers to compare with are none: send them again"
_DTYPES = {
    "weights": np.dtype(np.float16),
    "scales": np.dtype(np.float32),
    "biases": np.dtype(np.float32),
    "sizes": np.dtype(np.int64),
}
_LIMITS: Final = Limits(tensors=len(_DTYPES) + 1)  # and the probe


def that_travel(sizes: Sequence[int]) -> list[int]:
    """Which classifiers of so many classes travel together: where they are, from the first on.

    One that is too large, alone or with those before it, is left out.
    """
    chosen: list[int] = []
    total = 0
    for place, size in enumerate(sizes):
        if size <= min(MAX_CLASSES, MAX_CLASSES_IN_ALL - total) and len(chosen) < MAX_HEADS:
            chosen.append(place)
            total += size
    return chosen


def pack_heads(heads: Sequence[Head], probe: bytes = b"") -> bytes:
    """Classifiers of one number of features, one below the other, as an artefact.

    Weights are rounded to 16 bits after each classifier is scaled to a largest weight of 1.

    Args:
        heads: At least one.
        probe: The package of the probe, where the device may have lost its features.

    Raises:
        LimitError: More of them, or larger ones, than :func:`that_travel`.
    """
    sizes = [len(head.bias) for head in heads]
    _check_sizes(sizes)
    scales = [float(np.abs(head.weight).max()) or 1.0 for head in heads]
    weights = [head.weight / scale for head, scale in zip(heads, scales, strict=True)]
    arrays: dict[str, NDArray[Any]] = {
        "weights": np.concatenate(weights).astype(np.float16),
        "scales": np.array(scales, np.float32),
        "biases": np.concatenate([head.bias for head in heads]),
        "sizes": np.array(sizes, np.int64),
    }
    if probe:
        arrays["probe"] = np.frombuffer(probe, np.uint8)
    return pack(arrays)


def unpack_heads(data: bytes) -> tuple[list[Head], bytes]:
    """What :func:`pack_heads` packed: the classifiers, and the probe or nothing.

    Raises:
        LimitError: More of them, or larger ones, than a device can compare with.
        ArtifactError: No artefact, or one of other arrays or of numbers that are not finite.
    """
    arrays, _ = unpack(data, limits=_LIMITS)
    probe = arrays.pop("probe", np.zeros(0, np.uint8))
    if {name: value.dtype for name, value in arrays.items()} != _DTYPES or not _fit(arrays):
        raise ArtifactError(_NONE)
    _check_sizes(arrays["sizes"].tolist())
    ends = np.cumsum(arrays["sizes"])[:-1]
    parts = zip(
        np.split(arrays["weights"].astype(np.float32), ends),
        arrays["scales"],
        np.split(arrays["biases"], ends),
        strict=True,
    )
    with np.errstate(over="ignore"):
        heads = [Head(weight * scale, bias) for weight, scale, bias in parts]
    if not all(np.isfinite(head.weight).all() for head in heads):
        raise ArtifactError(_NONE)
    return heads, probe.tobytes()


def _check_sizes(sizes: Sequence[int]) -> None:
    if len(sizes) > MAX_HEADS:
        raise LimitError(f"{len(sizes):,} classifiers, {MAX_HEADS:,} are allowed: send fewer")
    if max(sizes) > MAX_CLASSES:
        raise LimitError(
            f"a classifier of {max(sizes):,} classes, {MAX_CLASSES:,} are allowed: leave it out"
        )
    if sum(sizes) > MAX_CLASSES_IN_ALL:
        raise LimitError(
            f"classifiers of {sum(sizes):,} classes in all, {MAX_CLASSES_IN_ALL:,} are allowed: "
            "send fewer"
        )


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
