"""SPPaRA, the parallel channel adapter: a matrix of full rank at the centre tap.

The parallel residual adapter (Rebuffi et al. 2018, "Efficient parametrization of multi-domain deep
neural networks") with the masks of Structured Pruning Adapters (Hedegaard et al., arXiv
2211.10155)::

    W' = W * (m_out m_in^T) + D * (m_out m_in^T),    D [out, in]

D lies at one tap of a kernel, the centre ``(height // 2, width // 2)``. As with SPLoRA the masks
are not multiplied in: a sub-network is cut, and D with it. D starts at zero. A linear layer and a
1x1 convolution have one tap: there SPPaRA trains as much as full fine-tuning does, apart from W,
which stays what the other tasks share.
"""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor, nn

from fedsprig.adapters.layer import Site
from fedsprig.adapters.merged import MergedConv, MergedKind, MergedLayer, MergedLinear


class SPPaRALayer(MergedLayer):
    """What convolutions and linear layers share.

    Attributes:
        weight: W, frozen, as in the plain layer.
        adapter_d: D ``[out, in / groups]``, zero at first.
    """

    adapter_d: nn.Parameter

    @classmethod
    def adopt_(cls, source: nn.Module, site: Site) -> None:
        """Make an adapted layer of a plain one, in place; of the site D needs nothing."""
        weight = source.get_parameter("weight")
        source.__class__ = cls
        source.register_parameter("adapter_d", nn.Parameter(weight.new_zeros(weight.shape[:2])))

    def delta(self) -> tuple[Tensor, None]:
        """Return D."""
        return self.adapter_d, None


class SPPaRAConv1d(SPPaRALayer, MergedConv, nn.Conv1d):
    """A 1-D convolution with SPPaRA."""

    plain = nn.Conv1d
    weight: Tensor


class SPPaRAConv2d(SPPaRALayer, MergedConv, nn.Conv2d):
    """A 2-D convolution with SPPaRA."""

    plain = nn.Conv2d
    weight: Tensor


class SPPaRALinear(SPPaRALayer, MergedLinear, nn.Linear):
    """A linear layer with SPPaRA."""

    plain = nn.Linear
    weight: Tensor


class SPPaRA(MergedKind):
    """The kind: D beside plain convolutions and linear layers."""

    factors = False
    layers = MappingProxyType(
        {nn.Conv1d: SPPaRAConv1d, nn.Conv2d: SPPaRAConv2d, nn.Linear: SPPaRALinear}
    )
