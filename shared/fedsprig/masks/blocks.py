"""Block masks: one bool per block of a weight matrix, True = keep.

Structured Pruning Adapters (Hedegaard et al., arXiv 2211.10155) prune linear layers in blocks of
32x32 weights: a layer keeps all its inputs and outputs, but not every connection between them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedsprig.artifacts.container import Limits, pack, unpack
from fedsprig.errors import ArtifactError, PlanError
from fedsprig.masks.bits import Bools, pack_bits, unpack_bits
from fedsprig.masks.block_layout import BlockLayout, Shape

_KIND: Final = "block mask"
_VERSION: Final = "1"
_LIMITS: Final = Limits(total_bytes=64 << 20, tensors=1)
_MAX_LAYERS: Final = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class BlockMask:
    """Which blocks of some weights stay; immutable, equal by value.

    Attributes:
        layers: weight name -> bool ``[rows, columns]`` of blocks, read-only.
        layout: the weights' shapes, and the blocks'.
        flat: bool ``[all blocks]`` in the layout's order, read-only.

    Raises:
        PlanError: weights or grids other than the layout's, or no bools.
    """

    layers: Mapping[str, Bools]
    layout: BlockLayout
    flat: Bools = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, blocks in self.layers.items():
            if blocks.dtype != np.bool_:
                raise PlanError(f"the block mask of {name} is {blocks.dtype}: use bool")
        flat = self.layout.join(self.layers, "the block mask").astype(np.bool_)
        flat.setflags(write=False)
        object.__setattr__(self, "layers", self.layout.split(flat))
        object.__setattr__(self, "flat", flat)

    @classmethod
    def full(cls, layout: BlockLayout) -> BlockMask:
        """Keep everything."""
        return cls(layout.split(np.ones(layout.blocks, np.bool_)), layout)

    @property
    def block(self) -> Shape:
        """``(p, q)``: outputs and inputs of a whole block."""
        return self.layout.block

    def elements(self, name: str) -> Bools:
        """One bool per weight, ``[out, in]``."""
        out, inputs = self.layout.shape(name)
        p, q = self.block
        return self.layers[name][np.arange(out)[:, None] // p, np.arange(inputs) // q]

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse a mask that does not fit weights, or leaves nothing of one.

        Args:
            shapes: of a model's weights by name; those that the mask does not name stay whole.

        Raises:
            PlanError: a weight is unknown or of another shape, or would vanish.
        """
        for name, out, inputs in self.layout.layers:
            shape = shapes.get(name)
            if shape is None:
                raise PlanError(
                    f"the block mask names {name}, which is no linear layer or 1x1 convolution "
                    "here: use the mask that was made for this model"
                )
            if tuple(shape[:2]) != (out, inputs) or any(length != 1 for length in shape[2:]):
                raise PlanError(
                    f"the block mask is of {name} [{out}, {inputs}], the model has {list(shape)}: "
                    "use the mask that was made for this model"
                )
            if not self.layers[name].any():
                raise PlanError(f"the block mask drops all of {name}: keep at least one block")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockMask):
            return NotImplemented
        return self.layout == other.layout and bool(np.array_equal(self.flat, other.flat))

    def __hash__(self) -> int:
        return hash((self.layout, self.flat.tobytes()))

    def to_bytes(self) -> bytes:
        """One safetensors artefact with one bit per block; equal masks give equal bytes.

        ``bits`` uint8: the flat array, eight blocks a byte, the first block in the lowest bit, the
        last byte padded with zeros.
        """
        metadata = {
            "kind": _KIND,
            "version": _VERSION,
            "block": json.dumps(self.block, separators=(",", ":")),
            "layers": json.dumps(self.layout.layers, separators=(",", ":"), ensure_ascii=False),
        }
        return pack({"bits": pack_bits(self.flat)}, metadata)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> BlockMask:
        """Read what :meth:`to_bytes` wrote; :meth:`check` says whether it fits a model.

        Raises:
            TruncatedArtifactError: the bytes end too early.
            LimitError: larger than any mask.
            ArtifactError: no artefact, another kind, a malformed table of layers, bits too many, or
                set ones in the padding.
        """
        arrays, metadata = unpack(data, limits=_LIMITS)
        if (metadata.get("kind"), metadata.get("version")) != (_KIND, _VERSION):
            raise ArtifactError(f"no block mask of version {_VERSION}: write it with this release")
        layout = _read_layout(metadata.get("block", ""), metadata.get("layers", ""))
        bits = unpack_bits(arrays.get("bits"), layout.blocks, "the block mask", "blocks")
        return cls(layout.split(bits), layout)


def _read_layout(block: str, layers: str) -> BlockLayout:
    """Return the layout from ``[p, q]`` and ``[[name, out, in], ...]``, believing nothing."""
    try:
        sides, rows = json.loads(block), json.loads(layers)
    except (ValueError, RecursionError):
        sides = rows = None
    if not isinstance(sides, list) or len(sides) != 2 or not isinstance(rows, list):
        raise ArtifactError("the block mask has no block shape or no list of layers: write it anew")
    if len(rows) > _MAX_LAYERS:
        raise ArtifactError(f"the block mask has {len(rows):,} layers, over {_MAX_LAYERS:,}")
    table: list[tuple[str, int, int]] = []
    for row in rows:
        match row:
            case [str() as name, int() as out, int() as inputs] if name and name.isprintable():
                table.append((name, out, inputs))
            case _:
                raise ArtifactError(f"the block mask has a bad layer {row!r:.60}: write it anew")
    try:
        layout = BlockLayout(tuple(table), (sides[0], sides[1]))
    except PlanError as error:
        raise ArtifactError(f"the block mask is malformed: {error}") from None
    if layout.layers != tuple(table):  # equal masks have equal bytes only in one order
        raise ArtifactError("the layers of the block mask are not in order: write it anew")
    return layout
