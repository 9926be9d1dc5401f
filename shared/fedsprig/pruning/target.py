"""What a pruned network is to reach: one of three policies and its number."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from fedsprig.errors import BudgetError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Budget, PlanCosts
from fedsprig.masks.costs import BYTES_PER_PARAMETER

Policy = Literal["accuracy", "memory", "latency"]
Unit = Literal["loss", "bytes", "macs", "ms"]

UNITS: Final[dict[Policy, tuple[Unit, ...]]] = {
    "accuracy": ("loss",),
    "memory": ("bytes",),
    "latency": ("macs", "ms"),
}
_ROUNDING: Final = 1e-12
"""Of the difference of two accuracies."""
_FACTORS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_NUMBER: Final = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(?P<suffix>[A-Za-z%]*)")


@dataclass(frozen=True, slots=True)
class Target:
    """The three policies of AAP (arXiv 2201.10520, section 3.3), which every method takes.

    Attributes:
        policy: ``"accuracy"``, the smallest network within a loss of accuracy; ``"memory"``, the
            best accuracy within bytes of weights; ``"latency"``, the best within multiply-
            accumulates or within measured milliseconds.
        amount: the loss as a share of the validation pictures (0.01 is one point), or the hard
            limit.
        unit: what ``amount`` counts.

    Raises:
        BudgetError: an amount out of its range, or another unit than the policy's.
    """

    policy: Policy
    amount: float
    unit: Unit

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise BudgetError(
                f"the policy is {self.policy!r:.40}: use {', '.join(get_args(Policy))}"
            )
        if self.unit not in UNITS[self.policy]:
            raise BudgetError(
                f"the {self.policy} policy counts {' or '.join(UNITS[self.policy])}, "
                f"not {self.unit!r:.40}"
            )
        if self.policy == "accuracy":
            if not 0 <= self.amount < 1:
                raise BudgetError(
                    f"a loss of accuracy is a share from 0 to below 1, not {self.amount}"
                )
        elif not (math.isfinite(self.amount) and self.amount > 0):
            raise BudgetError(f"a limit is a number above zero, not {self.amount}")

    @property
    def budget(self) -> Budget | None:
        """The hard limit as a budget; ``None`` for the accuracy policy."""
        if self.unit == "bytes":
            return Budget(weight_bytes=math.floor(self.amount))
        if self.unit == "macs":
            return Budget(macs=math.floor(self.amount))
        return Budget(latency_ms=self.amount) if self.unit == "ms" else None

    def allows(self, loss: float) -> bool:
        """Whether a loss of accuracy, a share, is within that of the accuracy policy."""
        return loss <= self.amount + _ROUNDING

    @classmethod
    def parse(cls, policy: Policy, text: str, plan: GroupPlan) -> Target:
        """Read a target as an operator writes it.

        ``1%`` or ``0.01`` of accuracy; ``25%`` of the whole network's bytes, ``120kB``, ``70000``;
        ``30%`` of its multiply-accumulates, ``12M``, ``5ms``.

        Args:
            policy: one of the three.
            text: the number with its unit.
            plan: of the whole network, with the head of the task.

        Raises:
            BudgetError: a text that is none of these.
        """
        found = _NUMBER.fullmatch(text.strip())
        # What is no number at all is of no policy either.
        number, suffix = (float(found["number"]), found["suffix"]) if found else (math.nan, "?")
        if policy == "accuracy" and suffix in ("", "%"):
            return cls(policy, number / 100 if suffix else number, "loss")
        costs = PlanCosts(plan)
        if policy == "memory":
            if suffix == "%":
                whole = BYTES_PER_PARAMETER * costs.parameters(costs.units)
                return cls(policy, number / 100 * whole, "bytes")
            if suffix.removesuffix("B") in _FACTORS:
                return cls(policy, number * _FACTORS[suffix.removesuffix("B")], "bytes")
        if policy == "latency":
            if suffix == "%":
                return cls(policy, number / 100 * costs.macs(costs.units), "macs")
            if suffix == "ms":
                return cls(policy, number, "ms")
            if suffix in _FACTORS:
                return cls(policy, number * _FACTORS[suffix], "macs")
        raise BudgetError(
            f"the target {text!r:.40} is not of the {policy} policy: write 1% (accuracy), 25% or "
            "120kB (memory), 30%, 12M or 5ms (latency)"
        )
