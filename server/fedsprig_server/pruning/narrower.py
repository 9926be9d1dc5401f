"""The next masks of a cohort: one order of falling thresholds for all, a cut for every width.

Which unit falls when is decided once for the cohort, on the attention of all its devices and the
costs of its widest network (:mod:`fedsprig.pruning.aap.thresholds`). Every width then loses the
fewest units, in that order, that its own limits ask for. As widths begin at different sizes, the
order alone would not keep their masks nested; so what a narrower network keeps, the wider ones keep
too. With one width this is a cut of AAP's as ``fedsprig library build`` makes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import InfeasibleBudgetError
from fedsprig.graph import GroupPlan, shrink_plan
from fedsprig.masks import Budget, Mask
from fedsprig.masks.bits import Bools
from fedsprig.pruning.aap.attention import Strengths
from fedsprig.pruning.aap.thresholds import Weighting, crossing, falling_thresholds
from fedsprig.pruning.filling import filled
from fedsprig.pruning.nesting import lifted
from fedsprig_server.pruning.sizes import Sizes

_NEVER: Final = 1e300
"""Where a unit of a layer without cost falls: after all others that may fall."""


@dataclass(frozen=True, slots=True)
class Width:
    """Devices with one network and one set of limits.

    Attributes:
        mask: What the network keeps of the base now.
        limits: What the next one has to meet.
    """

    mask: Mask
    limits: Budget


@dataclass(frozen=True, slots=True)
class Narrower:
    """What becomes of a width.

    Attributes:
        mask: What the next network keeps.
        threshold: The largest T at which one of the dropped units falls; 0 where none is dropped.
    """

    mask: Mask
    threshold: float


def falls_of(
    attention: Strengths, plan: GroupPlan, widest: Mask, weighting: Weighting, scale: float
) -> Strengths:
    """When each unit falls, in the base's coordinates.

    Args:
        attention: Of the units of ``widest``.
        plan: The base's.
        widest: What the widest network keeps.
        weighting: See :func:`fedsprig.pruning.aap.thresholds.group_shares`.
        scale: The unit of thresholds, fixed for a run.

    Returns:
        Group -> float64 ``[units]``; NaN for units that are gone.
    """
    found = {}
    small = falling_thresholds(attention, shrink_plan(plan, widest), weighting, scale)
    for name, kept in widest.groups.items():
        found[name] = np.full(len(kept), np.nan)
        found[name][kept] = np.minimum(small[name], _NEVER)
    return found


def narrow(widths: Sequence[Width], falls: Strengths, sizes: Sizes) -> list[Narrower]:
    """The next masks, one for every width in the order that they are given in; nested.

    Args:
        widths: Their present masks are nested.
        falls: From :func:`falls_of`.
        sizes: What limits are measured by.

    Raises:
        InfeasibleBudgetError: The smallest network does not meet a limit.
    """
    alone = [_cut(width.mask, [width.limits], None, falls, sizes) for width in widths]
    order = sorted(
        range(len(widths)), key=lambda i: (_units(widths[i].mask), _units(alone[i].mask))
    )
    found: dict[int, Narrower] = {}
    inner: Mask | None = None
    for place, number in enumerate(order):
        # What a narrower network keeps must leave room for the limits of all wider ones.
        limits = [widths[other].limits for other in order[place:]]
        found[number] = _cut(widths[number].mask, limits, inner, falls, sizes)
        inner = found[number].mask
    return [found[number] for number in range(len(widths))]


def _cut(
    mask: Mask,
    limits: Collection[Budget],
    inner: Mask | None,
    falls: Strengths,
    sizes: Sizes,
) -> Narrower:
    """One width's cut; it keeps what ``inner`` keeps."""
    names = [group.name for group in sizes.plan.groups]
    own: dict[str, NDArray[np.float64]] = {}
    for name in names:
        kept = mask.groups[name]
        own[name] = falls[name][kept]
        if inner is not None:
            own[name] = np.where(inner.groups[name][kept], np.inf, own[name])
    present = np.array([len(own[name]) for name in names], np.int64)

    def without(drop: Mapping[str, Bools]) -> Mask:
        return lifted(mask, Mask({name: ~gone for name, gone in drop.items()}))

    def fits(drop: dict[str, Bools]) -> bool:
        kept = present - np.array([drop[name].sum() for name in names], np.int64)
        return sizes.fit(kept, limits, lambda: without(drop))

    if fits({name: np.zeros(len(values), np.bool_) for name, values in own.items()}):
        return Narrower(mask, 0.0)
    drop = crossing(own, sizes.least, fits)
    if not fits(drop):
        raise InfeasibleBudgetError(
            "no network of this cohort meets its limits any more: raise them, or lower floor"
        )
    if all(budget.peak_bytes is None for budget in limits):  # too slow to ask for unit by unit
        drop = filled(own, drop, fits)
    threshold = max(float(own[name][gone].max(initial=0.0)) for name, gone in drop.items())
    return Narrower(without(drop), threshold)


def _units(mask: Mask) -> int:
    return int(np.count_nonzero(mask.flat))
