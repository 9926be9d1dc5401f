"""What a sub-network costs, exactly, from the plan alone: nothing is built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.mask import Mask

Ints = NDArray[np.int64]

BYTES_PER_PARAMETER: Final = 4


@dataclass(frozen=True, slots=True)
class Cost:
    """What one forward pass of a network needs.

    Attributes:
        parameters: elements of all parameters; buffers (running statistics) are not counted.
        macs: multiply-accumulates of convolutions and matrix products.
        peak_bytes: the most activation memory alive at any moment.
    """

    parameters: int
    macs: int
    peak_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters at float32."""
        return BYTES_PER_PARAMETER * self.parameters


class PlanCosts:
    """Parameters and MACs of every sub-network of a plan, as functions of the kept counts alone.

    A pruned axis has ``fixed + sum_g k_g * kept_g`` positions, linear in the kept counts; a tensor
    has the product of its axes. So the lengths of all axes are one small matrix product, and an
    evaluation takes microseconds where building the network takes many milliseconds. Both functions
    never decrease when a unit is added, which is what the solver's bisection stands on.

    Attributes:
        names: group names, in the plan's order.
        units: int64 ``[groups]``, all units of each group.
    """

    def __init__(self, plan: GroupPlan) -> None:
        self.names: tuple[str, ...] = tuple(group.name for group in plan.groups)
        self.units: Ints = np.array([group.units for group in plan.groups], np.int64)
        owned: dict[str, dict[int, Ints]] = {}  # tensor -> axis -> positions per unit, [groups]
        for number, group in enumerate(plan.groups):
            for item in group.axes:
                axes = owned.setdefault(item.tensor, {})
                per_unit = axes.setdefault(item.axis, np.zeros(len(self.names), np.int64))
                per_unit[number] += item.positions.shape[1]

        lengths = [(1, np.zeros(len(self.names), np.int64))]  # row 0: an axis that is not pruned
        rows: list[list[int]] = []
        weights: list[tuple[int, int]] = []
        self._fixed = [0, 0]
        for tensor, shape in plan.shapes.items():
            counts = (int(tensor not in plan.buffers), plan.macs_per_weight.get(tensor, 0))
            axes = owned.get(tensor, {})
            rest = math.prod(size for axis, size in enumerate(shape) if axis not in axes)
            if not axes:
                self._fixed = [
                    all_ + rest * one for all_, one in zip(self._fixed, counts, strict=True)
                ]
                continue
            row: list[int] = []
            for axis, per_unit in axes.items():
                row.append(len(lengths))
                lengths.append((shape[axis] - int(per_unit @ self.units), per_unit))
            rows.append(row)
            weights.append((rest * counts[0], rest * counts[1]))
        width = max((len(row) for row in rows), default=0)
        self._base: Ints = np.array([fixed for fixed, _ in lengths], np.int64)
        self._per_unit: Ints = np.stack([per_unit for _, per_unit in lengths])
        self._rows: Ints = np.array(
            [row + [0] * (width - len(row)) for row in rows], np.int64
        ).reshape(len(rows), width)
        self._weights: Ints = np.array(weights, np.int64).reshape(len(rows), 2)
        self._unit_macs: Ints = np.array(
            [plan.unit_macs.get(name, 0) for name in self.names], np.int64
        )

    def kept(self, mask: Mask) -> Ints:
        """Kept counts of a mask, int64 ``[groups]``."""
        return np.array([mask.kept(name) for name in self.names], np.int64)

    def parameters(self, kept: Ints) -> int:
        """Parameters of the sub-network with ``kept`` int64 ``[groups]`` units."""
        return self._fixed[0] + int(self._sizes(kept) @ self._weights[:, 0])

    def macs(self, kept: Ints) -> int:
        """MACs for one picture of the plan's input shape with ``kept`` int64 ``[groups]`` units."""
        layers = int(self._sizes(kept) @ self._weights[:, 1])
        return self._fixed[1] + layers + int(self._unit_macs @ kept)

    def _sizes(self, kept: Ints) -> Ints:
        """Product of the pruned axes' lengths of every pruned tensor, int64 ``[tensors]``."""
        lengths = self._base + self._per_unit @ kept
        sizes: Ints = lengths[self._rows].prod(axis=1)
        return sizes


def plan_parameters(plan: GroupPlan, mask: Mask) -> int:
    """Parameters of the sub-network that ``mask`` cuts: those of ``cost(materialize(...))``.

    Raises:
        PlanError: the mask does not fit the plan.
    """
    mask.check(plan)
    costs = PlanCosts(plan)
    return costs.parameters(costs.kept(mask))


def plan_macs(plan: GroupPlan, mask: Mask) -> int:
    """MACs for one picture of ``plan.input_shape``: those of ``cost(materialize(...))``.

    Raises:
        PlanError: the mask does not fit the plan.
    """
    mask.check(plan)
    costs = PlanCosts(plan)
    return costs.macs(costs.kept(mask))
