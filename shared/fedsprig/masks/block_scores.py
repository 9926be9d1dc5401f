"""Scores of blocks, and the solver that keeps the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import BudgetError, InfeasibleBudgetError, PlanError, ScoreError
from fedsprig.masks.block_layout import BlockLayout
from fedsprig.masks.blocks import BlockMask
from fedsprig.masks.order import ROUNDING

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class BlockScores:
    """How much each block matters; immutable, finite.

    Attributes:
        layers: weight name -> float32 ``[rows, columns]`` of blocks, read-only. Other real dtypes
            are converted when given.
        layout: the weights' shapes, and the blocks'.
        flat: float32 ``[all blocks]`` in the layout's order, read-only.

    Raises:
        ScoreError: a NaN or an infinity, or a number that float32 cannot hold.
        PlanError: weights or grids other than the layout's, or no real numbers.
    """

    layers: Mapping[str, Floats]
    layout: BlockLayout
    flat: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, values in self.layers.items():
            if values.dtype.kind not in "fiu":
                raise PlanError(f"the block scores of {name} are {values.dtype}: use float")
        with np.errstate(over="ignore"):
            flat = self.layout.join(self.layers, "the score set").astype(np.float32)
        views = self.layout.split(flat)
        for name, values in views.items():
            if not np.isfinite(values).all():
                row, column = map(int, np.argwhere(~np.isfinite(values))[0])
                raise ScoreError(
                    f"block ({row}, {column}) of {name} has the score {values[row, column]}: "
                    "score again with finite weights and pictures"
                )
        flat.setflags(write=False)
        object.__setattr__(self, "layers", self.layout.split(flat))
        object.__setattr__(self, "flat", flat)

    def normalised(self) -> BlockScores:
        """Every weight's scores divided by their root mean square, so that layers compare.

        As :meth:`fedsprig.masks.ScoreSet.normalised` does for units, and for its reason. A layer of
        zeros stays zero.
        """
        layers: dict[str, Floats] = {}
        for name, values in self.layers.items():
            scale = math.sqrt(float(np.mean(values.astype(np.float64) ** 2)))
            layers[name] = (values.astype(np.float64) / (scale or 1)).astype(np.float32)
        return BlockScores(layers, self.layout)


def solve_blocks(
    scores: BlockScores,
    keep: float,
    *,
    scope: Literal["global", "layer"] = "global",
    floor: float = 0.05,
) -> BlockMask:
    """Keep the best-scored share of blocks.

    Blocks enter in one order that ``keep`` does not change, so masks of equal scores and options
    are nested. Ties go to the earlier layer, then to the earlier block. Blocks count alike, whether
    the edge of a matrix crops them or not.

    Args:
        scores: of all blocks.
        keep: share of blocks that may stay, 0 to 1; rounded down.
        scope: ``"global"`` ranks the blocks of all layers together, each layer's scores divided by
            their root mean square; ``"layer"`` keeps the same share of every layer.
        floor: at least ``ceil(floor * blocks)`` blocks of every layer stay, and at least 1. In the
            scope of a layer it comes before ``keep``.

    Raises:
        BudgetError: a ratio out of range, or another scope.
        InfeasibleBudgetError: globally, the floors alone need more than ``keep``.
    """
    for name, value in (("keep", keep), ("floor", floor)):
        if not 0 <= value <= 1:
            raise BudgetError(f"{name} is a ratio of blocks between 0 and 1, not {value}")
    if scope not in ("global", "layer"):
        raise BudgetError(f"the scope is {scope!r:.20}: use 'global' or 'layer'")
    layout = scores.layout
    ranked = scores.normalised().flat.astype(np.float64)
    least = np.zeros(layout.blocks, np.bool_)
    chosen = layout.split(least)
    for name, values in layout.split(ranked).items():
        count = max(1, math.ceil(floor * values.size - ROUNDING))
        if scope == "layer":
            count = max(count, math.floor(keep * values.size + ROUNDING))
        chosen[name].ravel()[np.argsort(-values.ravel(), kind="stable")[:count]] = True
    if scope == "layer":
        return BlockMask(chosen, layout)
    allowed = math.floor(keep * layout.blocks + ROUNDING)
    needed = int(np.count_nonzero(least))
    if needed > allowed:
        raise InfeasibleBudgetError(
            f"the smallest mask has {needed:,} blocks, {needed - allowed:,} over the {allowed:,} "
            f"allowed: raise keep (now {keep:g}) or lower floor (now {floor:g})"
        )
    ranked[least] = math.inf
    flat = np.zeros(layout.blocks, np.bool_)
    flat[np.argsort(-ranked, kind="stable")[:allowed]] = True
    return BlockMask(layout.split(flat), layout)
