"""PDP: masks that follow from the weights, soft while they train.

Cho, Adya and Naik 2023, "PDP: Parameter-free Differentiable Pruning is All You Need", NeurIPS 2023,
arXiv 2305.11203. Formulas: :mod:`fedsprig.pruning.sparse.soft`; what is ours: docs/pruning.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsprig.pruning.sparse.course import Ramping
from fedsprig.pruning.sparse.method import SparsePruner
from fedsprig.pruning.sparse.soft import Softness, soft_mask


@dataclass(frozen=True, kw_only=True)
class PDP(SparsePruner):
    """Soft masks, a ratio that grows linearly, and all weights learning to the end.

    Attributes:
        kappa: how soft: tau as a share of t^2.
        tau: the paper's fixed tau instead (0.0001); ``None`` for kappa's.

    Raises:
        BudgetError: a setting out of its range.
    """

    kappa: float = 0.05
    tau: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._softness()

    @property
    def name(self) -> str:
        """The method's name."""
        return "pdp"

    @property
    def soft(self) -> bool:
        """They are."""
        return True

    def ramping(self) -> Ramping:
        """Linear."""
        return Ramping(start=self.start, full=self.full, ramp="linear")

    def mask(self, values: Tensor, drop: Tensor) -> Tensor:
        """``m``."""
        return soft_mask(values, drop, self._softness())

    def _softness(self) -> Softness:
        return Softness(kappa=self.kappa, tau=self.tau)
