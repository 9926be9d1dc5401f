"""Masks at other budgets around the one that a pruner found, each within the next larger one."""

from __future__ import annotations

from typing import Final

import numpy as np

from fedsprig.errors import InfeasibleBudgetError
from fedsprig.graph import shrink_plan
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Budget, Mask, ScoreSet, plan_macs, solve

MACS_RATIOS: Final = (0.75, 0.5, 0.25, 0.1)
_FAR: Final = 1e-4
"""What the scores of dropped units are scaled by, so that kept ones stay ahead of all of them."""


def nested_masks(scores: ScoreSet, plan: GroupPlan, mask: Mask, *, floor: float) -> dict[str, Mask]:
    """``mask`` as ``"target"``, and a mask for each of ``MACS_RATIOS`` that can be met.

    Smaller masks are solved on the network that ``mask`` leaves; larger ones keep all of ``mask``
    and add the best of the dropped units. So all of them are nested.

    Args:
        scores: of all units.
        plan: of the whole network.
        mask: what was found.
        floor: share of a group's units that every mask keeps.
    """
    whole, own = plan_macs(plan, Mask.full(plan)), plan_macs(plan, mask)
    found = {"target": mask}
    for ratio in MACS_RATIOS:
        budget = Budget(macs=int(ratio * whole))
        try:
            if int(ratio * whole) >= own:
                larger = solve(_kept_first(scores, mask), plan, budget, floor=0)
                found[f"macs-{ratio:.0%}".rstrip("%")] = larger
            else:
                found[f"macs-{ratio:.0%}".rstrip("%")] = _within(scores, plan, mask, budget, floor)
        except InfeasibleBudgetError:
            continue
    return found


def _kept_first(scores: ScoreSet, mask: Mask) -> ScoreSet:
    """Scores in whose ranking over all groups every kept unit is ahead of every dropped one.

    The solver divides a group by its root mean square, which is about the root of its kept share
    here: multiplying the dropped units by it undoes that, so that they rank as before.
    """
    groups = {}
    for name, values in scores.normalised().groups.items():
        kept = mask.groups[name]
        share = np.sqrt(kept.mean())
        groups[name] = np.where(kept, 1.0, _FAR * share * values.astype(np.float64))
    return ScoreSet(groups)


def _within(scores: ScoreSet, plan: GroupPlan, mask: Mask, budget: Budget, floor: float) -> Mask:
    small = shrink_plan(plan, mask)
    own = ScoreSet({name: scores.groups[name][kept] for name, kept in mask.groups.items()})
    return lifted(mask, solve(own, small, budget, floor=floor))


def lifted(mask: Mask, inner: Mask) -> Mask:
    """What stays of the whole network where ``inner`` keeps some of what ``mask`` kept."""
    groups = {}
    for name, kept in mask.groups.items():
        units = np.zeros(len(kept), np.bool_)
        units[kept] = inner.groups[name]
        groups[name] = units
    return Mask(groups)
