"""Ratios on the wire against absolute limits, by hand."""

from __future__ import annotations

import pytest

from fedsprig.errors import BudgetError
from fedsprig.graph import GroupPlan
from fedsprig.masks import Budget
from fedsprig.wire.budgets import from_wire, to_wire

# 10 parameters of 4 bytes, 30 multiply-accumulates.
PLAN = GroupPlan(
    model="tiny",
    input_shape=(1, 5),
    head="a",
    groups=(),
    shapes={"a.weight": (2, 5)},
    macs_per_weight={"a.weight": 3},
    unit_macs={},
    frozen={},
)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, Budget()),
        ({"macs": 7, "latency_ms": 1.5}, Budget(macs=7, latency_ms=1.5)),
        ({"macs_ratio": 0.5}, Budget(macs=15)),
        ({"macs_ratio": 0.5, "macs": 14}, Budget(macs=14)),
        ({"macs_ratio": 0.5, "macs": 16}, Budget(macs=15)),
        ({"parameters_ratio": 0.26, "units": 0.5}, Budget(weight_bytes=10, units=0.5)),
    ],
)
def test_the_narrower_of_ratio_and_limit_holds(limits: dict[str, float], expected: Budget) -> None:
    assert from_wire(to_wire(limits), PLAN) == expected


@pytest.mark.parametrize(
    "limits", [{"macs": 0}, {"macs_ratio": -1.0}, {"units": float("nan")}, {"mac": 1}]
)
def test_what_is_no_limit_is_not_sent(limits: dict[str, float]) -> None:
    with pytest.raises(BudgetError):
        to_wire(limits)


@pytest.mark.parametrize("limits", [{"macs_ratio": 1.5}, {"units": 1.5}, {"macs_ratio": 0.001}])
def test_what_no_network_can_mean_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(BudgetError):
        from_wire(to_wire(limits), PLAN)
