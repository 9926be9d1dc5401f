"""AAP's layer-aware thresholds, by group.

Zhao, Jain and Zhao 2022, arXiv 2201.10520, section 3.2: layer ``i`` loses every unit whose
attention is at most ``tau_i = T * q_i``, with ``q_i`` the layer's share of all parameters, or of
all multiply-accumulates, of the prunable layers: costly layers are pruned harder.

Two resolutions of ours. **Units of T:** attention has the scale of the activations and ``q`` falls
with the number of layers, so we take ``tau_i = T * q_i * L * mean(F)`` with ``L`` layers and the
mean attention of the whole network before pruning, both fixed for the run: the published rule with
``T`` counted in a unit that does not depend on the network. **Groups:** units that several layers
produce together (a residual stream) have the mean of their layers' attentions and the mean of their
layers' thresholds, so that a stream is not pruned harder for having many producers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.bits import Bools
from fedsprig.pruning.aap.attention import Strengths

Weighting = Literal["parameters", "macs"]
Fits = Callable[[dict[str, Bools]], bool]


def layer_count(plan: GroupPlan) -> int:
    """L: the layers that produce units of the plan's groups."""
    return len({item.tensor for group in plan.groups for item in plan.producers(group)})


def group_shares(plan: GroupPlan, weighting: Weighting) -> dict[str, float]:
    """The share q of every group: the mean of its layers' shares, which sum to 1 over all layers.

    Args:
        plan: of the network as it is now: the shares move while it is pruned.
        weighting: ``"parameters"`` or ``"macs"``.
    """
    costs: dict[str, float] = {}
    for group in plan.groups:
        for item in plan.producers(group):
            elements = float(np.prod(plan.shapes[item.tensor], dtype=np.float64))
            each = 1 if weighting == "parameters" else plan.macs_per_weight.get(item.tensor, 0)
            costs[item.tensor] = elements * each
    total = sum(costs.values()) or 1.0
    return {
        group.name: float(
            np.mean([costs[item.tensor] / total for item in plan.producers(group)] or [0.0])
        )
        for group in plan.groups
    }


def falling_thresholds(
    strengths: Strengths, plan: GroupPlan, weighting: Weighting, scale: float
) -> Strengths:
    """The least T at which each unit is dropped: ``F / (q * scale)``, ``scale = L * mean(F)``.

    A unit without attention falls at 0; one of a layer without cost never does (infinity).
    """
    shares = group_shares(plan, weighting)
    found: Strengths = {}
    for name, values in strengths.items():
        unit = shares[name] * scale
        never = np.where(values > 0, np.inf, 0.0)
        found[name] = values / unit if unit > 0 else never
    return found


def dropped_at(falls: Strengths, threshold: float, least: Mapping[str, int]) -> dict[str, Bools]:
    """Which units a threshold drops: those that fall at it or before, weakest first.

    Args:
        falls: from :func:`falling_thresholds`.
        threshold: T.
        least: units that stay in each group whatever T is.
    """
    found = {}
    for name, values in falls.items():
        order = np.argsort(values, kind="stable")[: max(0, len(values) - least[name])]
        drop = np.zeros(len(values), np.bool_)
        drop[order[values[order] <= threshold]] = True
        found[name] = drop
    return found


def next_fall(falls: Strengths, least: Mapping[str, int]) -> float:
    """The least T that drops a unit; infinity where every group is at its least."""
    return min(
        (float(values.min()) for name, values in falls.items() if len(values) > least[name]),
        default=float("inf"),
    )


def share_threshold(falls: Strengths, least: Mapping[str, int], share: float) -> float:
    """The T at which about ``share`` of the units that may fall, and still respond, are dropped."""
    values = np.concatenate(
        [np.sort(v)[: max(0, len(v) - least[name])] for name, v in falls.items()] or [np.zeros(0)]
    )
    values = np.sort(values[(values > 0) & np.isfinite(values)])
    if not values.size:
        return 1.0
    return float(values[min(values.size - 1, max(0, int(np.ceil(share * values.size)) - 1))])


def crossing_threshold(falls: Strengths, least: Mapping[str, int], fits: Fits) -> float:
    """The least T whose drop makes the network fit; the largest there is where none does.

    Args:
        falls: from :func:`falling_thresholds`.
        least: units that stay in each group whatever T is.
        fits: whether the network without these units fits; monotone in them.
    """
    values = np.unique(np.concatenate(list(falls.values())))
    low, high = -1, len(values) - 1  # low does not fit (or is untried), high is tried last
    while high - low > 1:
        middle = (low + high) // 2
        if fits(dropped_at(falls, float(values[middle]), least)):
            high = middle
        else:
            low = middle
    return float(values[high])


def crossing(falls: Strengths, least: Mapping[str, int], fits: Fits) -> dict[str, Bools]:
    """The fewest units, in the order in which they fall, whose loss makes the network fit."""
    return dropped_at(falls, crossing_threshold(falls, least, fits), least)
