"""Codecs: how the numbers of a tensor travel, and how far what arrives may be from what was sent.

A codec turns one float32 tensor into *parts*, flat arrays whose dtypes and lengths follow from the
tensor's shape alone. So the parts of all tensors can be joined end to end (``framing``), nothing
but numbers travels, and a reader knows every length before it allocates anything.

Adding a codec: a class with these four methods and one line in ``CODECS``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import NonFiniteUpdateError
from fedsprig.spelling import lookup

Array = NDArray[Any]
Shape = tuple[int, ...]
Part = tuple[np.dtype[Any], int]
"""The dtype and the length of one part of one tensor."""

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
# Rounding a float64 to float32: half a unit in the last place, or half the smallest denormal.
_CAST_RELATIVE: Final = 2.0**-24
_CAST_ABSOLUTE: Final = 2.0**-150


class Codec(Protocol):
    """One way to write float32 tensors of any shape with at least one value."""

    def layout(self, shape: Shape) -> Mapping[str, Part]:
        """Return dtype and length of each part of a tensor of this shape."""
        ...

    def encode(self, array: Array) -> Mapping[str, Array]:
        """Return the parts of a finite float32 tensor, each flat and as ``layout`` says."""
        ...

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Array:
        """Return the float32 tensor that parts of the right layout hold, always finite.

        Raises:
            NonFiniteUpdateError: The parts hold NaN, an infinity or a scale out of range.
        """
        ...

    def error_bound(self, array: Array) -> Array:
        """Return a true bound on ``|decoded - array|`` for each value, float64, same shape."""
        ...


class Float32:
    """Four bytes a value, exact down to the bits."""

    def layout(self, shape: Shape) -> Mapping[str, Part]:
        """One part: the values."""
        return {"floats": (np.dtype(np.float32), math.prod(shape))}

    def encode(self, array: Array) -> Mapping[str, Array]:
        """Flatten."""
        return {"floats": array.ravel()}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Array:
        """Check for finite values and shape."""
        if not np.isfinite(parts["floats"]).all():
            raise NonFiniteUpdateError("holds NaN or an infinity")
        return parts["floats"].reshape(shape).astype(np.float32, copy=True)

    def error_bound(self, array: Array) -> Array:
        """Zero."""
        return np.zeros(array.shape, np.float64)


class Float16:
    """Two bytes a value, and a power of two per tensor that keeps float16 from overflowing.

    The largest magnitude goes to ``[2^14, 2^15)``. The error of a value ``x`` beside a largest
    magnitude ``m`` is at most ``max(2^-11 |x|, 2^-39 m)``, so small values beside large ones keep
    their relative precision over seven decades.
    """

    _LOWEST: Final = -126
    """Of the exponents: scales stay normal float32 numbers and fit a signed byte."""

    def layout(self, shape: Shape) -> Mapping[str, Part]:
        """The values, and the exponent of the scale."""
        return {
            "halves": (np.dtype(np.float16), math.prod(shape)),
            "exponents": (np.dtype(np.int8), 1),
        }

    def encode(self, array: Array) -> Mapping[str, Array]:
        """Scale by a power of two (exact) and round to float16."""
        exponent = self._exponent(array)
        halves = _as(np.float16, array.ravel() * self._scale(-exponent))
        return {"halves": halves, "exponents": np.array([exponent], np.int8)}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Array:
        """Scale back."""
        values = _as(np.float32, parts["halves"])
        if not np.isfinite(values).all():
            raise NonFiniteUpdateError("holds NaN or an infinity")
        with np.errstate(over="ignore"):
            values *= self._scale(int(parts["exponents"][0]))
        return np.clip(values, -_FLOAT32_MAX, _FLOAT32_MAX, out=values).reshape(shape)

    def error_bound(self, array: Array) -> Array:
        """Half a unit in the last place of float16, and the cast back to float32."""
        smallest = math.ldexp(1.0, self._exponent(array) - 25)
        magnitude = np.abs(array.astype(np.float64))
        rounding: Array = np.maximum(magnitude * 2.0**-11, smallest)
        return rounding + _cast_error(magnitude + rounding)

    def _scale(self, exponent: int) -> np.float32:
        """A power of two that is exact in float32, so that products by it are rounded once."""
        return np.float32(math.ldexp(1.0, exponent))

    def _exponent(self, array: Array) -> int:
        largest = float(max(array.max(), -array.min()))
        if largest == 0.0:
            return self._LOWEST
        return max(math.frexp(largest)[1] - 15, self._LOWEST)


class Int8:
    """One byte a value and one a row for tensors of two or more axes; ``Float16`` for the others.

    Row ``i`` (along axis 0: an output channel) is ``step_i * q`` with ``q`` in -127..127 and
    ``step_i = 2^((base - code_i) / 8)``, ``base`` an int16 per tensor and ``code_i`` one unsigned
    byte. The step is the row's largest magnitude over 127, rounded up to the next eighth of a power
    of two, so at most ``2^(1/8)``, nine per cent, coarser than a scale that took four bytes; those
    would be half the payload of an adapter's rows of eight. The error is at most ``step_i / 2``.

    Vectors (normalisation, biases) stay in half precision: beside a large value an integer loses
    the small ones, and a variance that was rounded to below zero ruins a network.
    """

    _CODES: Final = 255
    _EIGHTHS: Final = np.array(
        # 2^(k/8), written out: every machine must decode to the same bits.
        [
            1.0,
            1.0905077326652577,
            1.189207115002721,
            1.2968395546510096,
            1.4142135623730951,
            1.5422108254079407,
            1.681792830507429,
            1.8340080864093424,
        ]
    )
    _HIGHEST: Final = 8 * 122
    """Of the base: float32's largest value over 127 is just over ``2^121``."""

    _LOWEST: Final = -8 * 156
    """Of the base: float32's smallest value over 127 is just over ``2^-156``."""

    def __init__(self) -> None:
        self._vectors = Float16()

    def layout(self, shape: Shape) -> Mapping[str, Part]:
        """The integers, a code per row and a base; a vector's parts are those of ``Float16``."""
        if len(shape) < 2:
            return self._vectors.layout(shape)
        return {
            "integers": (np.dtype(np.int8), math.prod(shape)),
            "codes": (np.dtype(np.uint8), shape[0]),
            "bases": (np.dtype(np.int16), 1),
        }

    def encode(self, array: Array) -> Mapping[str, Array]:
        """Round every row to multiples of its step."""
        if array.ndim < 2:
            return self._vectors.encode(array)
        base, codes = self._scales(array)
        steps = self._steps(base, codes)[:, None]
        rows = array.reshape(len(array), -1).astype(np.float64)
        integers = np.clip(np.rint(rows / steps), -127, 127).astype(np.int8)
        return {
            "integers": integers.ravel(),
            "codes": codes,
            "bases": np.array([base], np.int16),
        }

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Array:
        """Multiply every row by its step."""
        if len(shape) < 2:
            return self._vectors.decode(parts, shape)
        base = int(parts["bases"][0])
        if base > self._HIGHEST:
            raise NonFiniteUpdateError("has a scale that no finite number needs")
        steps = self._steps(base, parts["codes"])[:, None]
        rows = parts["integers"].reshape(shape[0], -1).astype(np.float64)
        return _to_float32(rows * steps).reshape(shape)

    def error_bound(self, array: Array) -> Array:
        """Half the row's step, and the cast back to float32."""
        if array.ndim < 2:
            return self._vectors.error_bound(array)
        half = self._steps(*self._scales(array)) / 2
        half = half.reshape((-1,) + (1,) * (array.ndim - 1))
        magnitude = np.abs(array.astype(np.float64)) + half
        # The quotient and the product are themselves rounded, to float64.
        return half + magnitude * 2.0**-50 + _cast_error(magnitude)

    def _scales(self, array: Array) -> tuple[int, NDArray[np.uint8]]:
        """Return the base and a code per row: the smallest steps that cover every row."""
        needed = np.abs(array.reshape(len(array), -1)).max(axis=1).astype(np.float64) / 127
        if not needed.any():
            return self._LOWEST, np.zeros(len(array), np.uint8)
        live = needed > 0
        eighths = np.zeros(len(array), np.int64)
        eighths[live] = np.ceil(8 * np.log2(needed[live])).astype(np.int64)
        # A logarithm may be off by a rounding; a step that is too small would cut the row's peak.
        eighths[live & (self._power(eighths) < needed)] += 1
        base = int(eighths[live].max())
        codes = np.where(live, np.minimum(base - eighths, self._CODES), self._CODES)
        return base, codes.astype(np.uint8)

    def _steps(self, base: int, codes: Array) -> NDArray[np.float64]:
        return self._power(base - codes.astype(np.int64))

    def _power(self, eighths: Array) -> NDArray[np.float64]:
        """Return ``2^(eighths / 8)``, the same bits everywhere."""
        result: NDArray[np.float64] = np.ldexp(
            self._EIGHTHS[eighths % 8], (eighths // 8).astype(np.int32)
        )
        return result


CODECS: Final[Mapping[str, Codec]] = {
    "float32": Float32(),
    "float16": Float16(),
    "int8": Int8(),
}


def get_codec(name: str) -> Codec:
    """Return the codec of this name.

    Raises:
        UnknownNameError: There is none.
    """
    return lookup(CODECS, name, "codec")


def _as(dtype: type[np.floating[Any]], values: Array) -> Array:
    """A copy in another precision: numpy converts half precision in software, torch does not."""
    import torch

    kept = torch.from_numpy(values if values.flags.writeable else values.copy())
    converted: Array = kept.to(torch.float16 if dtype is np.float16 else torch.float32).numpy()
    return converted


def _to_float32(values: Array) -> Array:
    """Cast, stopping at the largest finite value: rounding up may have passed it by a hair."""
    return np.clip(values, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)


def _cast_error(magnitude: Array) -> Array:
    return magnitude * _CAST_RELATIVE + _CAST_ABSOLUTE
