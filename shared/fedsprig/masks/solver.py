"""The budget solver: from scores to the largest sub-network that meets every limit.

Units enter the network in one fixed order that depends on the scores and the shape rules alone
(floor, widths, protection), never on the budget. A mask is a prefix of that order, and the solver
finds the longest prefix within all limits. That is what makes the masks of a cohort nested: a
device with smaller limits gets a shorter prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from fedsprig.errors import BudgetError, InfeasibleBudgetError, PlanError
from fedsprig.graph.plan import KINDS, GroupPlan
from fedsprig.masks.budget import Budget
from fedsprig.masks.costs import BYTES_PER_PARAMETER, PlanCosts
from fedsprig.masks.mask import Mask
from fedsprig.masks.order import ROUNDING, Order, Rules
from fedsprig.masks.scores import ScoreSet


@dataclass(frozen=True, slots=True)
class _Limit:
    """One limit of the budget and how to evaluate it for a prefix."""

    name: str
    allowed: int | float
    needs: Callable[[int], int | float]

    def holds(self, prefix: int) -> bool:
        # "not over" would let a NaN pass
        return self.needs(prefix) <= self.allowed


def solve(
    scores: ScoreSet,
    plan: GroupPlan,
    budget: Budget,
    *,
    floor: float = 0.05,
    round_to: int = 1,
    protect: Collection[str] = (),
    peak_bytes: Callable[[Mask], int] | None = None,
    latency_ms: Callable[[Mask], float] | None = None,
    normalise: bool = True,
) -> Mask:
    """Keep the best-scored units that fit into all limits of a budget at once.

    Scores are divided by their group's root mean square (:meth:`ScoreSet.normalised`) and ranked
    over all groups; Molchanov et al. 2017 divide by the L2 norm there. With equal scores and
    options, a budget that is nowhere larger gives a mask that is nowhere larger. The result depends
    on nothing but the arguments; ties go to the earlier group, then to the earlier unit.

    Parameters, MACs and units are exact functions of the kept counts (:class:`PlanCosts`) that
    never decrease when a unit is added, so a bisection finds the longest prefix: O(units log units)
    for the order and O(log units) evaluations of microseconds. Measured limits are bisected after
    the exact ones, on what those leave, under the same assumption; as a measurement may break it,
    the final mask is measured once more and taken back step by step until every limit holds.

    Args:
        scores: finite scores for every group of the plan.
        plan: the base model's groups; channels it calls frozen are always whole.
        budget: the limits; one without any gives the full mask.
        floor: at least ``ceil(floor * units)`` units of every group stay, and at least 1.
        round_to: widths (channels, not units) are multiples of it, the group's full width excepted.
        protect: names of groups or kinds (``"inner"``, ``"stream"``, ``"heads"``) that stay whole.
        peak_bytes: measures a mask, as :func:`fedsprig.masks.peak_of`; needed where the budget
            limits it.
        latency_ms: measures a mask in milliseconds; needed where the budget limits it.
        normalise: divide scores as said; else they are compared over all groups as they are.

    Raises:
        InfeasibleBudgetError: even the smallest mask that the rules allow breaks a limit; says
            which and by how much.
        BudgetError: an option out of range, or a measured limit without its measurement.
        PlanError: scores of other groups, or a protected name that the plan does not have.
    """
    rules = _checked_rules(plan, floor, round_to, protect)
    scores.check(plan)
    order = Order(scores, plan, rules, normalise=normalise)
    exact = list(_exact_limits(budget, plan, order))
    measured = list(_measured_limits(budget, order, peak_bytes, latency_ms))
    _check_feasible([*exact, *measured], rules, plan)

    prefix = order.chunks
    for limit in (*exact, *measured):
        prefix = _longest(limit, prefix)
    step = 1
    while measured and not all(limit.holds(prefix) for limit in measured):
        if prefix == 0:
            _check_feasible(measured, rules, plan)
            break
        prefix = max(0, prefix - step)
        step *= 2
    return order.mask(prefix)


def _longest(limit: _Limit, longest: int) -> int:
    """The longest prefix up to ``longest`` that a monotone limit allows; it allows prefix 0."""
    if limit.holds(longest):
        return longest
    low, high = 0, longest  # low holds, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if limit.holds(middle):
            low = middle
        else:
            high = middle
    return low


def _exact_limits(budget: Budget, plan: GroupPlan, order: Order) -> Iterator[_Limit]:
    costs = PlanCosts(plan)
    if budget.weight_bytes is not None:
        yield _Limit(
            "weight_bytes",
            budget.weight_bytes,
            lambda prefix: BYTES_PER_PARAMETER * costs.parameters(order.counts(prefix)),
        )
    if budget.macs is not None:
        yield _Limit("macs", budget.macs, lambda prefix: costs.macs(order.counts(prefix)))
    if budget.units is not None:
        allowed = math.floor(budget.units * plan.units + ROUNDING)
        yield _Limit("units", allowed, lambda prefix: int(order.counts(prefix).sum()))


def _measured_limits(
    budget: Budget,
    order: Order,
    peak_bytes: Callable[[Mask], int] | None,
    latency_ms: Callable[[Mask], float] | None,
) -> Iterator[_Limit]:
    for name, allowed, measure in (
        ("peak_bytes", budget.peak_bytes, peak_bytes),
        ("latency_ms", budget.latency_ms, latency_ms),
    ):
        if allowed is None:
            continue
        if measure is None:
            raise BudgetError(
                f"the budget limits {name}: pass {name}= to solve, a function that measures a mask"
            )
        yield _Limit(name, allowed, _measuring(measure, order))


def _measuring(
    measure: Callable[[Mask], int | float], order: Order
) -> Callable[[int], int | float]:
    return lambda prefix: measure(order.mask(prefix))


def _check_feasible(limits: list[_Limit], rules: Rules, plan: GroupPlan) -> None:
    """Refuse a budget that the smallest mask breaks: every broken limit, and what mends it."""
    broken: list[str] = []
    mends: list[str] = []
    for limit in limits:
        needs = limit.needs(0)
        if not needs <= limit.allowed:
            over = _number(needs - limit.allowed)
            broken.append(
                f"{_number(needs)} {limit.name}, {over} over the {_number(limit.allowed)} allowed"
            )
            mends.append(f"raise {limit.name}")
    if not broken:
        return
    if rules.protect:
        mends.append("protect fewer groups")
    if rules.round_to > 1:
        mends.append(f"lower round_to (now {rules.round_to})")
    if any(group.units * rules.floor > 1 for group in plan.groups):
        mends.append(f"lower floor (now {rules.floor:g})")
    mends.append("take a smaller base model")
    raise InfeasibleBudgetError(
        f"the smallest network needs {' and '.join(broken)}: {', '.join(mends[:-1])} or {mends[-1]}"
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _checked_rules(plan: GroupPlan, floor: float, round_to: int, protect: Collection[str]) -> Rules:
    if not 0 <= floor <= 1:
        raise BudgetError(f"floor is a ratio of units between 0 and 1, not {floor}")
    if round_to < 1:
        raise BudgetError(f"round_to is a whole number of channels from 1 up, not {round_to}")
    check_protected(protect, plan)
    return Rules(floor, round_to, frozenset(protect), plan.macs_per_weight)


def check_protected(protect: Collection[str], plan: GroupPlan) -> None:
    """Refuse what is to stay whole and is not there.

    Raises:
        BudgetError: one text in the place of a collection.
        PlanError: neither a kind nor a group of the plan.
    """
    if isinstance(protect, str):
        raise BudgetError(f"protect is a collection of names: write ({protect!r},)")
    for name in protect:
        if name not in KINDS:
            try:
                plan.group(name)
            except PlanError as error:
                raise PlanError(f"cannot protect {name}: {error}") from None
