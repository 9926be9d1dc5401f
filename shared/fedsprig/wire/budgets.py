"""Budgets on the wire: ratios are of the base and become absolute where the plan is known."""

from __future__ import annotations

import math
from typing import Any

from fedsprig.errors import BudgetError
from fedsprig.graph import GroupPlan
from fedsprig.masks import Budget
from fedsprig.wire import device_pb2 as pb

ABSOLUTE = ("weight_bytes", "macs", "peak_bytes", "latency_ms", "units")
RATIOS = ("macs_ratio", "parameters_ratio")


def to_wire(limits: dict[str, Any]) -> pb.Budget:
    """Turn limits by name (``ABSOLUTE`` and ``RATIOS``) into a message.

    Raises:
        BudgetError: An unknown name, or a value that is no positive number.
    """
    for name, value in limits.items():
        if name not in ABSOLUTE + RATIOS:
            raise BudgetError(f"no limit is called {name!r}: use {', '.join(ABSOLUTE + RATIOS)}")
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise BudgetError(f"the limit {name} is {value!r}: give a number above zero")
    return pb.Budget(**limits)


def from_wire(message: pb.Budget, plan: GroupPlan) -> Budget:
    """The limits in absolute numbers for the base model of ``plan``.

    Raises:
        BudgetError: A limit that is no positive number, or a ratio above 1.
    """
    limits: dict[str, Any] = {name.name: value for name, value in message.ListFields()}
    to_wire(limits)
    macs, parameters = (limits.pop(name, None) for name in RATIOS)
    for name, value in Budget.fraction(plan, macs=macs, parameters=parameters).limits().items():
        limits[name] = min(limits.get(name, math.inf), value)
    return Budget(**limits)
