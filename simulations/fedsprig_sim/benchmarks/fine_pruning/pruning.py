"""One pruning step: the worst filters of the whole network go, for good or only in name.

All arms prune the same groups of coupled channels to the same number of filters, each by its own
scores. An exact network is cut. A leaking one stays whole: the weights of a pruned filter are set
to zero once, and nothing keeps them there. Its normalisation, its adapter's row and whoever reads
it are left as they are; this is what the published experiments do (there is a filter zeroed, its
mask dropped, and an adapter never masked), with groups in the place of single filters.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsprig.graph import GroupPlan, materialize, shrink_plan
from fedsprig.masks import Budget, Mask, ScoreSet, solve
from fedsprig.scoring import score


@dataclass(slots=True)
class Network:
    """A network on its way down.

    Attributes:
        module: Cut where it is exact, whole where it leaks.
        plan: Of the uncut network.
        mask: What is left of the plan, in name at least.
        leaks: Whether what the mask drops is still there.
    """

    module: nn.Module
    plan: GroupPlan
    mask: Mask
    leaks: bool

    def cut(self) -> nn.Module:
        """What the mask says is left, without the rest."""
        return materialize(self.module, self.plan, self.mask) if self.leaks else self.module


def filters_per_unit(plan: GroupPlan) -> dict[str, int]:
    """How many filters (outputs of convolutions and linear layers) a unit of each group is.

    A channel of a residual stream is one filter of every layer that writes to the stream.
    """
    return {
        group.name: sum(
            axis.positions.shape[1]
            for axis in group.axes
            if axis.role == "out" and axis.tensor in plan.macs_per_weight
        )
        for group in plan.groups
    }


def count_filters(plan: GroupPlan, mask: Mask) -> int:
    """Filters that a mask keeps."""
    each = filters_per_unit(plan)
    return sum(each[name] * int(units.sum()) for name, units in mask.groups.items())


def best_filters(scores: ScoreSet, plan: GroupPlan, allowed: int) -> Mask:
    """Keep the units that score best over all groups, as many as ``allowed`` filters let in.

    At least one unit of every group stays, whatever is allowed.
    """

    def best(units: int) -> Mask:
        return solve(scores, plan, Budget(units=units / plan.units), floor=0.0)

    counts = range(len(plan.groups), plan.units + 1)
    fitting = bisect_right(counts, allowed, key=lambda units: count_filters(plan, best(units)))
    return best(counts[max(0, fitting - 1)])


def prune(network: Network, density: float, batches: Iterable[tuple[Tensor, Tensor]]) -> Network:
    """Score what is left by the Taylor criterion and keep ``density`` of the original filters.

    Args:
        network: Left as it is where it is exact; changed in place where it leaks.
        density: Share of the uncut network's filters.
        batches: Pictures and labels to score by.
    """
    plan, mask = network.plan, network.mask
    left = shrink_plan(plan, mask)
    raw = score("taylor", network.module, plan if network.leaks else left, batches)
    # What was pruned in name is no candidate again, and does not count in the normalisation.
    own = {n: v[mask.groups[n]] for n, v in raw.groups.items()} if network.leaks else raw.groups
    allowed = int(density * count_filters(plan, Mask.full(plan)) + 0.5)
    chosen = best_filters(ScoreSet(own), left, allowed)
    smaller: dict[str, np.ndarray] = {}
    for name, units in mask.groups.items():
        smaller[name] = units.copy()
        smaller[name][units] = chosen.groups[name]
    after = Mask(smaller)
    if network.leaks:
        _zero_filters_(network.module, plan, mask, after)
        return Network(network.module, plan, after, leaks=True)
    return Network(materialize(network.module, left, chosen), plan, after, leaks=False)


@torch.no_grad()
def _zero_filters_(module: nn.Module, plan: GroupPlan, before: Mask, after: Mask) -> None:
    """Set the weights of the filters between two masks to zero, and nothing else."""
    for group in plan.groups:
        gone = before.groups[group.name] & ~after.groups[group.name]
        for axis in group.axes:
            if axis.role == "out" and axis.tensor in plan.macs_per_weight:
                positions = torch.from_numpy(axis.positions[gone].ravel().astype(np.int64))
                module.get_parameter(axis.tensor).index_fill_(axis.axis, positions, 0.0)
