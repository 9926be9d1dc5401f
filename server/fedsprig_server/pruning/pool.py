"""The attention of a cohort's units, from what each device summed over its own pictures.

A device's share is two vectors over all units of the base model: sums of attention, and numbers of
pictures, both zero where it lacks the unit. The cohort's is the sum of the shares, and nothing else
is asked of it: a secure sum would do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsprig.masks import Mask
from fedsprig.pruning.aap.attention import Strengths


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What one device adds, or several together; shares add up in any order.

    Attributes:
        sums: Group -> float64 ``[units]`` of the base model.
        counts: Group -> int64 ``[units]``, pictures.
    """

    sums: Mapping[str, NDArray[np.float64]]
    counts: Mapping[str, NDArray[np.int64]]

    @classmethod
    def of(cls, mask: Mask, sums: Strengths, pictures: int) -> Share:
        """The share of a device.

        Args:
            mask: What its network keeps of the base.
            sums: Of the units of that network.
            pictures: That were summed over.
        """
        wide, counts = {}, {}
        for name, kept in mask.groups.items():
            wide[name] = np.zeros(len(kept))
            wide[name][kept] = sums[name]
            counts[name] = kept * np.int64(pictures)
        return cls(wide, counts)

    @classmethod
    def total(cls, shares: Iterable[Share]) -> Share:
        """The sum of one share or more."""
        first, *others = shares
        sums = {name: values.copy() for name, values in first.sums.items()}
        counts = {name: values.copy() for name, values in first.counts.items()}
        for share in others:
            for name in sums:
                sums[name] += share.sums[name]
                counts[name] += share.counts[name]
        return cls(sums, counts)

    def attention(self, mask: Mask) -> Strengths:
        """Mean over the pictures of the devices that have a unit, for the units of ``mask``.

        A unit that nobody measured, because the only devices that have it said nothing, has the
        mean of its group.
        """
        found = {}
        for name, kept in mask.groups.items():
            sums, counts = self.sums[name][kept], self.counts[name][kept]
            known = counts > 0
            mean = sums / np.maximum(counts, 1)
            found[name] = np.where(known, mean, mean[known].mean() if known.any() else 0.0)
        return found
