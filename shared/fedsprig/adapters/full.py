"""No adapter: every parameter trains. The rival that adapters are measured against."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fedsprig.adapters.layer import Site


class Full:
    """The kind that wraps nothing and freezes nothing."""

    freezes = False
    factors = False

    def fits(self, module: nn.Module) -> bool:
        """No module needs an adapter."""
        return False

    def adapt_(self, layers: Mapping[str, tuple[nn.Module, Site]]) -> None:
        """Nothing to do."""
