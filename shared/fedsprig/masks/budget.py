"""Budgets: the hard limits of a device."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from fedsprig.errors import BudgetError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.costs import BYTES_PER_PARAMETER, PlanCosts


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits that a sub-network meets all at once; ``None`` = no such limit.

    Attributes:
        weight_bytes: parameters at float32, in bytes.
        macs: multiply-accumulates of one forward pass of one picture.
        peak_bytes: the most activation memory at any moment of that pass.
        latency_ms: measured time of that pass.
        units: keep ratio of units, over 0 to 1.

    Raises:
        BudgetError: a limit that is no positive finite number, or ``units`` over 1.
    """

    weight_bytes: int | None = None
    macs: int | None = None
    peak_bytes: int | None = None
    latency_ms: float | None = None
    units: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.limits().items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BudgetError(f"the limit {name} is {value!r}: give a number above zero")
            if not math.isfinite(value) or value <= 0:
                raise BudgetError(f"the limit {name} is {value}: give a number above zero")
        if self.units is not None and self.units > 1:
            raise BudgetError(f"units is a keep ratio, at most 1, not {self.units}")

    def limits(self) -> dict[str, int | float]:
        """The limits that are set, by name."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None}

    @classmethod
    def fraction(
        cls, plan: GroupPlan, *, macs: float | None = None, parameters: float | None = None
    ) -> Budget:
        """Absolute limits as fractions of the whole base model.

        Args:
            plan: the base model's plan, with the head of the task
                (:meth:`GroupPlan.with_num_classes`).
            macs: fraction of its MACs.
            parameters: fraction of its parameters; becomes ``weight_bytes``.

        Raises:
            BudgetError: a fraction that is not over 0 and at most 1.
        """
        for name, value in (("macs", macs), ("parameters", parameters)):
            if value is not None and not 0 < value <= 1:
                raise BudgetError(
                    f"the fraction of {name} lies above 0 and up to 1, not at {value}"
                )
        costs = PlanCosts(plan)
        total = BYTES_PER_PARAMETER * costs.parameters(costs.units)
        return cls(
            macs=None if macs is None else math.floor(macs * costs.macs(costs.units)),
            weight_bytes=None if parameters is None else math.floor(parameters * total),
        )
