"""Which units stay: an exact budget forward, the gradient straight through backward.

Scores of the hyper-network are compared over all groups as they are. Elsewhere scores are divided
by their group's root mean square, because criteria come in another scale for every group; here a
group's level is what the hyper-network says of the group (a layer's share of the budget is learnt,
METHODS "global pruning decides layer-wise sparsity"), and dividing would undo it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Budget, Mask, PlanCosts, ScoreSet, solve
from fedsprig.masks.costs import BYTES_PER_PARAMETER


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """From soft scores to masks within a budget.

    Attributes:
        plan: the groups.
        floor: share of every group's units that stays.
        protect: groups or kinds that stay whole.
    """

    plan: GroupPlan
    floor: float
    protect: Collection[str] = ()
    _whole: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        costs = PlanCosts(self.plan)
        whole = {
            "weight_bytes": BYTES_PER_PARAMETER * costs.parameters(costs.units),
            "macs": costs.macs(costs.units),
        }
        object.__setattr__(self, "_whole", whole)

    def score_set(self, scores: Sequence[Tensor]) -> ScoreSet:
        """Soft scores of every group, in the plan's order, as a score set."""
        pairs = zip(self.plan.groups, scores, strict=True)
        return ScoreSet({group.name: s.detach().float().cpu().numpy() for group, s in pairs})

    def mask(
        self,
        scores: ScoreSet,
        budget: Budget,
        latency_ms: Callable[[Mask], float] | None = None,
    ) -> Mask:
        """The best units that fit; see :func:`fedsprig.masks.solve`.

        Takes a millisecond or so for a thousand units: little beside a step of training.

        Raises:
            InfeasibleBudgetError: no mask fits.
        """
        return solve(
            scores,
            self.plan,
            budget,
            floor=self.floor,
            protect=self.protect,
            latency_ms=latency_ms,
            normalise=False,
        )

    def gates(self, scores: Sequence[Tensor], budget: Budget) -> dict[str, Tensor]:
        """1 for every unit that stays and 0 for the others, by group; dM/ds = 1.

        The straight-through estimator of Bengio, Leonard and Courville 2013 (arXiv 1308.3432).

        Args:
            scores: of every group, in the plan's order, ``[units]``.
            budget: analytic limits.

        Raises:
            InfeasibleBudgetError: no mask fits.
        """
        kept = self.mask(self.score_set(scores), budget).groups
        gates = {}
        for group, soft in zip(self.plan.groups, scores, strict=True):
            hard = torch.from_numpy(kept[group.name].copy()).to(soft)
            gates[group.name] = _StraightThrough.apply(soft, hard)
        return gates

    def between(self, budget: Budget, progress: float) -> Budget:
        """The budget on the way from the whole network to ``budget``.

        Linear over the first half of the search, then ``budget`` itself: all at once, the search
        would begin with a network that says nothing.

        Args:
            budget: ``weight_bytes`` or ``macs``.
            progress: share of the search that is done, 0 to 1.
        """
        left = max(0.0, 1 - 2 * progress)
        return Budget(
            **{
                name: max(int(limit), int(limit + left * (self._whole[name] - limit)))
                for name, limit in budget.limits().items()
            }
        )


class _StraightThrough(torch.autograd.Function):
    """The hard values, with the soft ones' gradient; a sum would round."""

    @staticmethod
    def forward(_: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
