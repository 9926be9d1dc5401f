"""SPLoRA, the channel adapter of Structured Pruning Adapters (Hedegaard et al., arXiv 2211.10155).

For a weight ``W [out, in]`` with input mask ``m_in`` and output mask ``m_out`` (Figure 1 there; the
orientation is torch's)::

    W' = W * (m_out m_in^T) + (B * m_out) (A * m_in^T),    A [r, in],  B [out, r]

A convolution gets ``B A`` at one tap of its kernel, the centre ``(height // 2, width // 2)``, which
for odd kernels is a low-rank 1x1 convolution beside it. A grouped convolution has ``in / groups``
inputs. There is no scaling factor.

Where we differ from the paper's library, and why:

* The masks are not multiplied in. A sub-network is cut, so that masked rows and columns do not
  exist; the full-size reference (``graph.apply_mask``) masks A and B as it masks W. A pruned unit
  can neither answer nor train.
* B starts at zero, not near it: attaching an adapter changes no output at all.
* A's entries have variance ``1 / in`` instead of ``1 / (3 r in)``, so that the rows of A have
  length one on average and ``A A^T`` is near the identity. A step of size ``s`` on B then moves
  ``W'`` by what a step of the same size on W would, projected on A's rows: the weights, the head
  and the normalisation can share a learning rate, at any rank and width. At the paper's scale the
  same step moves it ``3 r`` times less.
* The forward pass always adds ``B A`` to ``W``, so training, evaluation and merging agree, and the
  backward pass never forms the gradient of ``W`` (:mod:`fedsprig.adapters.frozen`).
"""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fedsprig.adapters.layer import Site
from fedsprig.adapters.merged import MergedConv, MergedKind, MergedLayer, MergedLinear
from fedsprig.seeds import derive_seed


def draw_a(site: Site) -> Tensor:
    """Draw A for a site, ``[r, kept inputs]``, float32 on the CPU.

    A is drawn for the full width and then sliced, so that it does not matter whether a network is
    cut before or after, and row by row, so that a lower rank has the first rows of a higher one. It
    is uniform, by multiplication and subtraction alone, so that every machine draws the same bits:
    where A is fixed it never travels.
    """
    inputs = site.shape[1]
    generator = torch.Generator().manual_seed(derive_seed(site.seed, site.path))
    drawn = torch.rand(site.rank, inputs, generator=generator)
    full = (2 * drawn - 1) * math.sqrt(3 / inputs)
    return full[:, torch.from_numpy(site.kept[1])] if 1 in site.kept else full


class SPLoRALayer(MergedLayer):
    """What convolutions and linear layers share.

    Attributes:
        weight: W, frozen, as in the plain layer.
        adapter_a: A ``[r, in / groups]``; trains only if the site says so.
        adapter_b: B ``[out, r]``, zero at first.
    """

    adapter_a: nn.Parameter
    adapter_b: nn.Parameter

    @classmethod
    def adopt_(cls, source: nn.Module, site: Site) -> None:
        """Make an adapted layer of a plain one, in place, with the site's A and a B of zeros."""
        weight = source.get_parameter("weight")
        a = draw_a(site).to(weight)
        source.__class__ = cls
        source.register_parameter("adapter_a", nn.Parameter(a, requires_grad=site.train_a))
        b = weight.new_zeros(weight.shape[0], a.shape[0])
        source.register_parameter("adapter_b", nn.Parameter(b))

    def delta(self) -> tuple[Tensor, Tensor]:
        """Return B and A."""
        return self.adapter_b, self.adapter_a

    def extra_repr(self) -> str:
        """Add the rank to the plain layer's line."""
        return f"{super().extra_repr()}, rank={self.adapter_b.shape[1]}"


class SPLoRAConv1d(SPLoRALayer, MergedConv, nn.Conv1d):
    """A 1-D convolution with SPLoRA."""

    plain = nn.Conv1d
    weight: Tensor


class SPLoRAConv2d(SPLoRALayer, MergedConv, nn.Conv2d):
    """A 2-D convolution with SPLoRA."""

    plain = nn.Conv2d
    weight: Tensor


class SPLoRALinear(SPLoRALayer, MergedLinear, nn.Linear):
    """A linear layer with SPLoRA."""

    plain = nn.Linear
    weight: Tensor


class SPLoRA(MergedKind):
    """The kind: ``B A`` beside plain convolutions and linear layers."""

    factors = True
    layers = MappingProxyType(
        {nn.Conv1d: SPLoRAConv1d, nn.Conv2d: SPLoRAConv2d, nn.Linear: SPLoRALinear}
    )
