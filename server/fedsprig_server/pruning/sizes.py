"""Limits on their way from the first networks down to the budgets, and what meets them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import BudgetError, InfeasibleBudgetError
from fedsprig.graph import GroupPlan
from fedsprig.masks import Budget, Mask
from fedsprig.masks.costs import BYTES_PER_PARAMETER, PlanCosts
from fedsprig.masks.order import ROUNDING
from fedsprig.pruning.job import least_units
from fedsprig_server.base import Base
from fedsprig_server.config import PruningConfig, SelectionConfig


@dataclass(frozen=True, slots=True)
class Size:
    """What a network measures where budgets have limits."""

    units: int
    parameters: int
    macs: int


class Sizes:
    """Sizes and limits of a task's networks, its own classifier included.

    Attributes:
        plan: The base's, with the task's classifier.
        least: Units that every network keeps, by group.
    """

    def __init__(
        self, base: Base, pruning: PruningConfig, selection: SelectionConfig, *, num_classes: int
    ) -> None:
        self.plan: GroupPlan = base.plan.with_num_classes(num_classes)
        self.least = least_units(self.plan, selection.floor, selection.protect)
        self._base, self._pruning = base, pruning
        self._costs = PlanCosts(self.plan)

    def of(self, mask: Mask) -> Size:
        """The size of a mask's network."""
        kept = self._costs.kept(mask)
        return Size(int(kept.sum()), self._costs.parameters(kept), self._costs.macs(kept))

    def limits(self, budget: Budget, done: int) -> Budget:
        """What a device's network has to meet when some of the cuts are done.

        Every limit ``b`` shrinks by the same factor with every cut, from ``start * b`` (or the
        whole base model, where that is less) to ``b`` itself.

        Args:
            budget: The device's own limits.
            done: Cuts that are done: 0 for the first networks.

        Raises:
            BudgetError: A limit that networks cannot be held to.
        """
        left = 1 - done / self._pruning.cuts
        whole = Mask.full(self.plan)
        wider: dict[str, Any] = {}
        for name, limit in budget.limits().items():
            first = min(self._pruning.start * limit, self._measured(name, whole))
            value = limit * max(1.0, first / limit) ** left
            wider[name] = value if isinstance(limit, float) else math.floor(value)
        return Budget(**wider)

    def fits(self, mask: Mask, budgets: Iterable[Budget]) -> bool:
        """Whether a mask's network meets all limits of all budgets."""
        return self.fit(self._costs.kept(mask), budgets, lambda: mask)

    def fit(
        self, kept: NDArray[np.int64], budgets: Iterable[Budget], mask: Callable[[], Mask]
    ) -> bool:
        """The same from how many units are kept, in microseconds.

        Args:
            kept: int64 ``[groups]``, in the plan's order.
            budgets: All of their limits are to be met.
            mask: Gives the mask itself, which a limit of peak bytes is measured on.
        """
        peaks = []
        for budget in budgets:
            if budget.peak_bytes is not None:
                peaks.append(budget.peak_bytes)
            if budget.weight_bytes is not None:
                parameters = self._costs.parameters(kept)
                if BYTES_PER_PARAMETER * parameters > budget.weight_bytes:
                    return False
            if budget.macs is not None and self._costs.macs(kept) > budget.macs:
                return False
            if budget.units is not None:
                allowed = math.floor(budget.units * self.plan.units + ROUNDING)
                if int(kept.sum()) > allowed:
                    return False
        return not peaks or self._base.peak_bytes(mask()) <= min(peaks)

    def check(self, budget: Budget) -> None:
        """Refuse a budget that the smallest network does not meet, before anything is trained.

        Raises:
            InfeasibleBudgetError: It is below that network; says which limit, and by how much.
            BudgetError: A limit that networks cannot be held to.
        """
        smallest = Mask(
            {
                group.name: np.arange(group.units) < self.least[group.name]
                for group in self.plan.groups
            }
        )
        for name, limit in budget.limits().items():
            needs = self._measured(name, smallest)
            alone: dict[str, Any] = {name: limit}
            if not self.fits(smallest, [Budget(**alone)]):
                raise InfeasibleBudgetError(
                    f"the smallest network needs {needs:,g} {name}, the limit is {limit:,g}: raise "
                    "it, or lower floor"
                )

    def _measured(self, name: str, mask: Mask) -> float:
        """A mask's network in what the limit of that name counts."""
        size = self.of(mask)
        counts: Mapping[str, Callable[[], float]] = {
            "weight_bytes": lambda: BYTES_PER_PARAMETER * size.parameters,
            "macs": lambda: size.macs,
            "peak_bytes": lambda: self._base.peak_bytes(mask),
            "units": lambda: size.units / self.plan.units,
        }
        if name not in counts:
            raise BudgetError(
                f"networks that go on shrinking cannot be held to {name}: limit "
                f"{', '.join(counts)}, or leave [pruning] away"
            )
        return counts[name]()
