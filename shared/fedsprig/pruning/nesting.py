"""Masks at other budgets around the one that a pruner found, each within the next larger one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np

from fedsprig.errors import InfeasibleBudgetError
from fedsprig.graph import shrink_plan
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Budget, Mask, ScoreSet, plan_macs, solve

MACS_RATIOS: Final = (0.75, 0.5, 0.25, 0.1)


def nested_masks(
    scores: ScoreSet,
    plan: GroupPlan,
    mask: Mask,
    *,
    floor: float,
    protect: Collection[str] = (),
    normalise: bool = True,
) -> dict[str, Mask]:
    """``mask`` as ``"target"``, and a mask for each of ``MACS_RATIOS`` that can be met.

    Smaller masks are solved on the network that ``mask`` leaves; larger ones keep all of ``mask``
    and add the best of the dropped units. So all of them are nested.

    Args:
        scores: of all units.
        plan: of the whole network.
        mask: what was found.
        floor: share of a group's units that every mask keeps.
        protect: groups or kinds that every mask keeps whole.
        normalise: whether scores are divided by their group's root mean square.
    """
    whole, own = plan_macs(plan, Mask.full(plan)), plan_macs(plan, mask)
    ranked = scores.normalised() if normalise else scores
    found = {"target": mask}
    for ratio in MACS_RATIOS:
        budget = Budget(macs=int(ratio * whole))
        try:
            if int(ratio * whole) >= own:
                larger = solve(_kept_first(ranked, mask), plan, budget, floor=0, normalise=False)
                found[f"macs-{ratio:.0%}".rstrip("%")] = larger
            else:
                small = shrink_plan(plan, mask)
                left = ScoreSet({name: scores.groups[name][k] for name, k in mask.groups.items()})
                inner = solve(
                    left, small, budget, floor=floor, protect=protect, normalise=normalise
                )
                found[f"macs-{ratio:.0%}".rstrip("%")] = lifted(mask, inner)
        except InfeasibleBudgetError:
            continue
    return found


def _kept_first(scores: ScoreSet, mask: Mask) -> ScoreSet:
    """Scores in whose ranking over all groups every kept unit is ahead of every dropped one."""
    top = max(float(values.max()) for values in scores.groups.values())
    ahead = top + max(1.0, abs(top))
    return ScoreSet(
        {n: np.where(mask.groups[n], ahead, values) for n, values in scores.groups.items()}
    )


def lifted(mask: Mask, inner: Mask) -> Mask:
    """What stays of the whole network where ``inner`` keeps some of what ``mask`` kept."""
    groups = {}
    for name, kept in mask.groups.items():
        units = np.zeros(len(kept), np.bool_)
        units[kept] = inner.groups[name]
        groups[name] = units
    return Mask(groups)
