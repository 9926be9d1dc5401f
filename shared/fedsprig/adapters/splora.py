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
* The forward pass always adds ``B A`` to ``W``, so training, evaluation and merging agree.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.adapters.layer import AdapterLayer, Site
from fedsprig.seeds import derive_seed


def layer_rank(rank: int, shape: tuple[int, ...]) -> int:
    """Return the rank that a layer gets when ``rank`` is asked for.

    ``B A`` cannot have a rank above ``min(in, out)``, so more is waste, with two sides:

    * Where A and B would have more numbers than the layer itself (the break-even of the paper,
      ``r (in + out) > height width in out``), or where there is one input (depthwise convolutions),
      the rank is capped at ``min(in, out)``.
    * Elsewhere it is as asked for, even above ``min(in, out)``. That is so for the three-channel
      first convolution of a network, at a price of some hundred numbers, and it makes the count of
      parameters that of the paper (Table 1).

    Args:
        rank: At least 1.
        shape: Of the layer's weight in the uncut model, ``[out, in / groups, *kernel]``; so a cut
            changes no rank.
    """
    out, inputs = shape[:2]
    if inputs == 1 or rank * (inputs + out) > math.prod(shape):
        return min(rank, inputs, out)
    return rank


def draw_a(site: Site) -> Tensor:
    """Draw A for a site, ``[r, kept inputs]``, float32 on the CPU.

    A is drawn for the full width and then sliced, so that it does not matter whether a network is
    cut before or after. It is uniform, by multiplication and subtraction alone, so that every
    machine draws the same bits: where A is fixed it never travels.
    """
    inputs = site.shape[1]
    generator = torch.Generator().manual_seed(derive_seed(site.seed, site.path))
    drawn = torch.rand(layer_rank(site.rank, site.shape), inputs, generator=generator)
    full = (2 * drawn - 1) * math.sqrt(3 / inputs)
    return full[:, torch.from_numpy(site.kept[1])] if 1 in site.kept else full


class SPLoRALayer(AdapterLayer):
    """What the convolution and the linear layer share.

    Attributes:
        weight: W, frozen, as in the plain layer.
        adapter_a: A ``[r, in / groups]``; trains only if the site says so.
        adapter_b: B ``[out, r]``, zero at first.
    """

    plain: ClassVar[type[nn.Module]]
    adapter_a: nn.Parameter
    adapter_b: nn.Parameter

    @classmethod
    def adopt_(cls, source: nn.Module, site: Site) -> None:
        """Make an adapted layer of a plain one, in place.

        The module stays the same object, with its hooks, its mode and whoever holds it; A and B
        have its dtype and device. On the meta device they are shapes, like the rest.
        """
        weight = source.get_parameter("weight")
        a = draw_a(site).to(weight)
        source.__class__ = cls
        source.register_parameter("adapter_a", nn.Parameter(a, requires_grad=site.train_a))
        b = weight.new_zeros(weight.shape[0], a.shape[0])
        source.register_parameter("adapter_b", nn.Parameter(b))

    def to_plain_(self) -> None:
        """Fold ``B A`` into the weight and become the plain layer again, in place."""
        merged = self.merged_weight().detach()
        del self.adapter_a, self.adapter_b
        self.weight = nn.Parameter(merged)
        self.__class__ = self.plain  # type: ignore[assignment]

    def extra_repr(self) -> str:
        """Add the rank to the plain layer's line."""
        return f"{super().extra_repr()}, rank={self.adapter_b.shape[1]}"


class SPLoRAConv2d(SPLoRALayer, nn.Conv2d):
    """A 2-D convolution of any stride, padding, dilation and grouping with SPLoRA."""

    plain = nn.Conv2d
    weight: Tensor

    def merged_weight(self) -> Tensor:
        """Return ``W + B A`` at the centre tap, ``[out, in / groups, height, width]``."""
        height, width = self.weight.shape[2:]
        top, left = height // 2, width // 2
        product = (self.adapter_b @ self.adapter_a)[:, :, None, None]
        return self.weight + F.pad(product, (left, width - 1 - left, top, height - 1 - top))

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[n, in, h, w]`` to ``[n, out, h', w']`` as the plain layer does."""
        out: Tensor = self._conv_forward(input, self.merged_weight(), self.bias)
        return out


class SPLoRALinear(SPLoRALayer, nn.Linear):
    """A linear layer with SPLoRA."""

    plain = nn.Linear
    weight: Tensor

    def merged_weight(self) -> Tensor:
        """Return ``W + B A``, ``[out, in]``."""
        return self.weight + self.adapter_b @ self.adapter_a

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        return F.linear(input, self.merged_weight(), self.bias)


class SPLoRA:
    """The kind: plain 2-D convolutions and linear layers are adapted.

    A subclass may compute something else by its weight or be read by another module (the output
    projection of ``nn.MultiheadAttention`` is), so only the exact types are taken.
    """

    freezes = True
    _layers: ClassVar[dict[type[nn.Module], type[SPLoRALayer]]] = {
        nn.Conv2d: SPLoRAConv2d,
        nn.Linear: SPLoRALinear,
    }

    def fits(self, module: nn.Module) -> bool:
        """Whether the module is a plain convolution or linear layer."""
        return type(module) in self._layers

    def adapt_(self, module: nn.Module, site: Site) -> None:
        """Attach A and B."""
        self._layers[type(module)].adopt_(module, site)
