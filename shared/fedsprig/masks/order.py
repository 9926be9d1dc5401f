"""The order in which units enter a sub-network: scores and shape rules fix it, no budget does."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.graph.plan import Group, GroupPlan
from fedsprig.masks.mask import Mask
from fedsprig.masks.scores import ScoreSet

Ints = NDArray[np.int64]

# ratio * units may come out a hair beside the whole number that was meant
ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Rules:
    """What every mask must respect, whatever the budget."""

    floor: float
    round_to: int
    protect: frozenset[str]
    weights: Collection[str]

    def step(self, group: Group) -> int:
        """Units that enter together, so that widths of weights are multiples of ``round_to``.

        A unit may own several channels of every weight (a head owns its width), so fewer units make
        a multiple.
        """
        owned = [item.positions.shape[1] for item in group.axes if item.tensor in self.weights]
        return self.round_to // math.gcd(self.round_to, math.gcd(*owned) or 1)

    def least(self, group: Group) -> int:
        """Units that every mask keeps of the group."""
        if group.name in self.protect or group.kind in self.protect:
            return group.units
        least = max(1, math.ceil(self.floor * group.units - ROUNDING))
        step = self.step(group)
        return min(group.units, -(-least // step) * step)


class Order:
    """All units in the order in which they enter the network.

    First, always, every group's ``least`` best units. Then *chunks* of ``step`` units of one group,
    the best chunk (mean normalised score) of all groups first. Ties go to the earlier group of the
    plan, then to the earlier unit. Scores that are comparable as they are need no normalising.

    Attributes:
        least: int64 ``[groups]``, units of the empty prefix.
        chunks: number of chunks; a prefix holds 0 to ``chunks`` of them.
    """

    def __init__(
        self, scores: ScoreSet, plan: GroupPlan, rules: Rules, *, normalise: bool = True
    ) -> None:
        comparable = (scores.normalised() if normalise else scores).groups
        self._groups = plan.groups
        self._ranked: list[Ints] = []
        self.least: Ints = np.array([rules.least(group) for group in plan.groups], np.int64)
        owners: list[Ints] = []
        sizes: list[Ints] = []
        values: list[NDArray[np.float64]] = []
        for number, group in enumerate(plan.groups):
            score = comparable[group.name].astype(np.float64)
            ranked = np.argsort(-score, kind="stable")
            self._ranked.append(ranked)
            starts = np.arange(int(self.least[number]), group.units, rules.step(group))
            if not starts.size:
                continue
            size = np.diff(starts, append=group.units)
            value = np.add.reduceat(score[ranked], starts) / size
            # A mean of equal scores may differ in the last bit; within a group the order must hold.
            values.append(np.minimum.accumulate(value))
            sizes.append(size)
            owners.append(np.full(size.shape, number, np.int64))
        order = np.argsort(-np.concatenate([np.zeros(0), *values]), kind="stable")
        none = np.zeros(0, np.int64)
        self._owner = np.concatenate([none, *owners])[order]
        self._size = np.concatenate([none, *sizes])[order]
        self.chunks = len(order)

    def counts(self, prefix: int) -> Ints:
        """Kept units of every group, int64 ``[groups]``, after ``prefix`` chunks."""
        entered = np.bincount(
            self._owner[:prefix], weights=self._size[:prefix], minlength=len(self.least)
        )
        return self.least + entered.astype(np.int64)

    def mask(self, prefix: int) -> Mask:
        """The mask after ``prefix`` chunks."""
        groups: dict[str, NDArray[np.bool_]] = {}
        for group, ranked, count in zip(
            self._groups, self._ranked, self.counts(prefix), strict=True
        ):
            keep = np.zeros(group.units, np.bool_)
            keep[ranked[:count]] = True
            groups[group.name] = keep
        return Mask(groups)
