"""Budgets: what is a limit, and limits from fractions."""

import pytest

from fedsprig.errors import BudgetError
from fedsprig.masks import Budget


def test_only_limits_that_are_set_count():
    assert Budget().limits() == {}
    assert Budget(macs=5, units=0.5).limits() == {"macs": 5, "units": 0.5}


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "many", True])
@pytest.mark.parametrize("name", ["weight_bytes", "macs", "peak_bytes", "latency_ms", "units"])
def test_what_is_no_limit_is_refused(name, value):
    with pytest.raises(BudgetError, match=f"limit {name} is"):
        Budget(**{name: value})


def test_a_ratio_over_one_is_refused():
    assert Budget(units=1).units == 1
    with pytest.raises(BudgetError, match="keep ratio"):
        Budget(units=1.01)


def test_fractions_of_the_tiny_plan_by_hand(tiny_plan):
    """317 parameters, 4,626 MACs, rounded down."""
    budget = Budget.fraction(tiny_plan, macs=0.25, parameters=0.3)
    assert budget == Budget(macs=1156, weight_bytes=380)
    assert Budget.fraction(tiny_plan, macs=1) == Budget(macs=4626)
    for wrong in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(BudgetError, match="fraction of macs"):
            Budget.fraction(tiny_plan, macs=wrong)
