"""PDP: masks that follow from the weights, soft while they train.

Cho, Adya and Naik 2023, "PDP: Parameter-free Differentiable Pruning is All You Need", NeurIPS 2023,
arXiv 2305.11203. Formulas: :mod:`fedsprig.pruning.sparse.soft`; what is ours: docs/pruning.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsprig.errors import BudgetError
from fedsprig.pruning.sparse.method import SparsePruner
from fedsprig.pruning.sparse.soft import Softness, soft_mask


@dataclass(frozen=True, kw_only=True)
class PDP(SparsePruner):
    """Mask softly while training, more and more, all weights learning to the end (PDP).

    Attributes:
        kappa: how soft: tau as a share of the mean distance from t^2.
        tau: the paper's fixed tau instead (0.0001); ``None`` for kappa's.
        hardening: what tau is multiplied by on the way from ``full`` to the end, geometrically; 1
            keeps it, as published. Masks that are soft to the end are not what the cut leaves.

    Raises:
        BudgetError: a setting out of its range.
    """

    kappa: float = 0.05
    tau: float | None = None
    hardening: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.hardening <= 1:
            raise BudgetError(f"hardening is a factor above 0 and up to 1, not {self.hardening}")
        for factor in (1, self.hardening):
            self._softness(factor)

    @property
    def name(self) -> str:
        """The method's name."""
        return "pdp"

    @property
    def soft(self) -> bool:
        """They are."""
        return True

    def mask(self, values: Tensor, drop: Tensor, hardening: float) -> Tensor:
        """``m``."""
        return soft_mask(values, drop, self._softness(self.hardening**hardening))

    def _softness(self, factor: float) -> Softness:
        tau = None if self.tau is None else factor * self.tau
        return Softness(kappa=factor * self.kappa, tau=tau)
