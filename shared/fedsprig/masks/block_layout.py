"""Blocks of weight matrices in one line: the order in which block masks and block scores lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import PlanError

T = TypeVar("T", bound=np.generic)
Shape = tuple[int, int]

LONGEST: Final = (1 << 31) - 1
"""Of an axis, so that counts of blocks and weights stay within int64."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Weight matrices and how they are cut into blocks of one shape.

    A matrix ``[out, in]`` has ``ceil(out / p)`` rows and ``ceil(in / q)`` columns of blocks; the
    blocks at its lower and right edge are cropped where the sizes do not divide.

    Attributes:
        layers: ``(weight name, out, in)`` in the order of the names.
        block: ``(p, q)``: outputs and inputs of a whole block.

    Raises:
        PlanError: a name twice, an axis or block without length, or too long.
    """

    layers: tuple[tuple[str, int, int], ...]
    block: Shape = (32, 32)
    _grids: dict[str, Shape] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for length in (*self.block, *(side for _, *sides in self.layers for side in sides)):
            if type(length) is not int or not 1 <= length <= LONGEST:
                raise PlanError(f"an axis of {length!r:.20}: use lengths from 1 to {LONGEST:,}")
        p, q = self.block
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))
        grids = {name: (-(-out // p), -(-inputs // q)) for name, out, inputs in self.layers}
        if len(grids) != len(self.layers):
            raise PlanError("a weight is named twice: name every weight once")
        object.__setattr__(self, "_grids", grids)

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]], block: Shape = (32, 32)) -> BlockLayout:
        """The layout of weights by name.

        Args:
            shapes: ``(out, in)``, or ``(out, in, 1, 1)`` of a 1x1 convolution.
            block: ``(p, q)``.

        Raises:
            PlanError: a weight that is no matrix.
        """
        for name, shape in shapes.items():
            if len(shape) < 2 or any(length != 1 for length in shape[2:]):
                raise PlanError(
                    f"{name} has shape {list(shape)}: blocks need linear layers or 1x1 convolutions"
                )
        return cls(tuple((name, shape[0], shape[1]) for name, shape in shapes.items()), block)

    @property
    def names(self) -> tuple[str, ...]:
        """Weight names, sorted."""
        return tuple(self._grids)

    @property
    def blocks(self) -> int:
        """Number of all blocks: the length of the flat array."""
        return sum(down * across for down, across in self._grids.values())

    def shape(self, name: str) -> Shape:
        """``(out, in)`` of a weight."""
        self.grid(name)
        return next((out, inputs) for known, out, inputs in self.layers if known == name)

    def grid(self, name: str) -> Shape:
        """Rows and columns of blocks of a weight.

        Raises:
            PlanError: no such weight.
        """
        if name not in self._grids:
            raise PlanError(f"there are no blocks of {name}: there is {', '.join(self.names)}")
        return self._grids[name]

    def weights(self, name: str) -> NDArray[np.int64]:
        """How many weights each block holds, int64 ``[rows, columns]`` of blocks."""
        out, inputs = self.shape(name)
        p, q = self.block
        down, across = self.grid(name)
        high = np.minimum(p, out - p * np.arange(down))
        wide = np.minimum(q, inputs - q * np.arange(across))
        return np.asarray(np.outer(high, wide), np.int64)

    def join(self, layers: Mapping[str, NDArray[T]], what: str) -> NDArray[T]:
        """Arrays ``[rows, columns]`` by weight -> one ``[blocks]``, row by row.

        Args:
            layers: one array for every weight.
            what: whose they are, for the message: ``"the block mask"``.

        Raises:
            PlanError: a weight is missing, unknown, or of another grid.
        """
        for name in sorted(layers.keys() | self._grids.keys()):
            found = layers[name].shape if name in layers else None
            if found != self._grids.get(name):
                raise PlanError(
                    f"{what} has blocks {_size(found)} for {name}, its layout has "
                    f"{_size(self._grids.get(name))}: use the layout that {what} was made with"
                )
        parts = [layers[name].ravel() for name in self.names]
        flat: NDArray[Any] = np.concatenate(parts) if parts else np.zeros(0)
        return flat

    def split(self, flat: NDArray[T]) -> dict[str, NDArray[T]]:
        """``[blocks]`` -> views ``[rows, columns]`` by weight."""
        views: dict[str, NDArray[T]] = {}
        start = 0
        for name, (down, across) in self._grids.items():
            views[name] = flat[start : start + down * across].reshape(down, across)
            start += down * across
        return views


def _size(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape))
