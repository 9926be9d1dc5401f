"""Masks, score sets, budgets and costs: which units, blocks of weights or single weights stay.

Everything but :func:`cost`, :func:`peak_of` and :func:`blocks_of` is numpy; those import torch
when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedsprig.masks.block_layout import BlockLayout
from fedsprig.masks.block_scores import BlockScores, solve_blocks
from fedsprig.masks.blocks import BlockMask
from fedsprig.masks.budget import Budget
from fedsprig.masks.costs import Cost, PlanCosts, plan_macs, plan_parameters
from fedsprig.masks.mask import Mask
from fedsprig.masks.scores import ScoreSet, weighted_sum
from fedsprig.masks.solver import solve
from fedsprig.masks.weights import WeightMask

if TYPE_CHECKING:
    from fedsprig.masks.block_layers import blocks_of
    from fedsprig.masks.walk import cost, peak_of

_LAZY = {
    "blocks_of": "fedsprig.masks.block_layers",
    "cost": "fedsprig.masks.walk",
    "peak_of": "fedsprig.masks.walk",
}

__all__ = [
    "BlockLayout",
    "BlockMask",
    "BlockScores",
    "Budget",
    "Cost",
    "Mask",
    "PlanCosts",
    "ScoreSet",
    "WeightMask",
    "blocks_of",
    "cost",
    "peak_of",
    "plan_macs",
    "plan_parameters",
    "solve",
    "solve_blocks",
    "weighted_sum",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
