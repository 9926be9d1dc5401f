"""Gradual magnitude pruning: the smallest weights are masked, more and more of them.

Zhu and Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model
compression", arXiv 1710.01878. Masked weights get no gradient (decay and what momentum is left
still move them) and come back where others have become smaller, since masks are made anew at every
step, the published code's every hundred or so. Shares of layers are global, as PDP's: what differs
between the two is the softness, and the form of the ramp by default.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsprig.pruning.sparse.course import Ramp
from fedsprig.pruning.sparse.method import SparsePruner
from fedsprig.pruning.sparse.soft import hard_mask


@dataclass(frozen=True, kw_only=True)
class GradualMagnitude(SparsePruner):
    """Mask the smallest weights while training, more and more of them (GMP).

    Attributes:
        ramp: cubic, as published, or PDP's linear one.
    """

    ramp: Ramp = "cubic"

    @property
    def name(self) -> str:
        """The method's name."""
        return "gmp"

    @property
    def soft(self) -> bool:
        """They are not."""
        return False

    def mask(self, values: Tensor, drop: Tensor, hardening: float) -> Tensor:
        """1 for the largest, 0 for the others."""
        return hard_mask(values, drop)
