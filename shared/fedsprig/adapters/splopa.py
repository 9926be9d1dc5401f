"""SPLoPA, the block adapter of Structured Pruning Adapters (Hedegaard et al., arXiv 2211.10155).

For a weight ``W [out, in]`` in blocks of p x q with a block mask ``M [out / p, in / q]``, d
prototypes of rank rho, and ``(x)`` the Kronecker product::

    W' = (W * (M (x) 1))  +  sum_i (B_i * M) (x) (P_i Q_i^T),
    B [d, out / p, in / q],  P [d, p, rho],  Q [d, q, rho]

P and Q are shared by all layers of a model, B belongs to a layer. Only linear layers and ungrouped
1x1 convolutions have such a weight.

Where we differ from the paper's library, and why:

* Only what M keeps of B is there at all: ``[d, kept blocks]``. A pruned block has nothing that an
  optimiser could move, and d times the kept blocks is what is trained, stored and sent. W itself
  stays whole beside it, so that another mask can be put on the same base; ``W'`` is exactly zero
  in pruned blocks.
* Prototypes are shared within a model and never between two: a copy of a model has its own.
* Any size fits any block: what reaches over the edge of a matrix is cropped.
* Of a layer that channel masks have cut, the blocks are those of the uncut weight, of which the
  kept rows and columns are taken; so it does not matter whether a network is cut before or after.
  A block without any kept row or column stays among B, gets no gradient and is sent all the same:
  for networks that are cut by units, SPLoRA is the smaller adapter.
* B starts at zero: attaching changes no output, apart from the pruned blocks. P and Q are drawn so
  that the prototypes are about orthogonal and of length one (variance ``1 / p`` and
  ``1 / (q rho)``): a step on B moves W' like one of the same size on W, projected on them, as with
  SPLoRA's A. They train, as in the paper, if the site says that the inner factor trains; else they
  never travel.
* Training does not form the gradient of W where that is waste
  (:mod:`fedsprig.adapters.prototype_product`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from fedsprig.adapters.block_grid import BlockGrid
from fedsprig.adapters.block_product import describe
from fedsprig.adapters.layer import AdapterLayer, Site
from fedsprig.adapters.prototype_product import adapted
from fedsprig.adapters.prototypes import change, merge
from fedsprig.errors import AdapterError
from fedsprig.masks.bits import Bools
from fedsprig.masks.block_layers import takes_blocks
from fedsprig.masks.blocks import BlockMask
from fedsprig.seeds import derive_seed


class Prototypes(nn.Module):
    """P and Q: one module, which is a part of every adapted layer of a model.

    A parameter that several modules hold comes apart where parameters are put in by name
    (``load_state_dict(assign=True)``) or one by one (``to_empty``). A module does not: whatever is
    put in is in the one place that all layers read.

    Attributes:
        p: P ``[d, p, rho]``.
        q: Q ``[d, q, rho]``.
    """

    def __init__(self, p: Tensor, q: Tensor, *, trains: bool) -> None:
        super().__init__()
        self.p = nn.Parameter(p, requires_grad=trains)
        self.q = nn.Parameter(q, requires_grad=trains)

    def extra_repr(self) -> str:
        """Shapes of both."""
        return f"p={list(self.p.shape)}, q={list(self.q.shape)}"


class SPLoPALayer(AdapterLayer):
    """What linear layers and 1x1 convolutions share.

    Attributes:
        weight: W, frozen, as in the plain layer.
        adapter_blocks: what is kept of B, ``[d, kept blocks]``, zero at first.
        adapter_prototypes: P and Q, the same module in all layers of a model.
        adapter_at: int64 ``[2, kept blocks]``, row and column of every kept block.
        adapter_rows: int64 ``[out]``, where each output lies in the uncut weight.
        adapter_columns: int64 ``[in]``, where each input lies there.
        adapter_shape: ``(out, in)`` of the uncut weight.
    """

    adapter_blocks: nn.Parameter
    adapter_prototypes: Prototypes
    adapter_at: Tensor
    adapter_rows: Tensor
    adapter_columns: Tensor
    adapter_shape: tuple[int, int]

    @classmethod
    def adopt_(cls, source: nn.Module, site: Site, keep: Tensor, prototypes: Prototypes) -> None:
        """Make an adapted layer of a plain one, in place; B has its dtype and device.

        Args:
            source: a layer that takes blocks.
            site: where it is.
            keep: M, bool ``[rows, columns]`` of blocks of the uncut weight.
            prototypes: P and Q, shared.
        """
        weight = source.get_parameter("weight")
        at = keep.nonzero().t().contiguous()
        source.__class__ = cls
        source.register_parameter(
            "adapter_blocks", nn.Parameter(weight.new_zeros(len(prototypes.p), at.shape[1]))
        )
        source.register_module("adapter_prototypes", prototypes)
        source.register_buffer("adapter_at", at.to(weight.device))
        for axis, name in enumerate(("adapter_rows", "adapter_columns")):
            positions = site.kept.get(axis, np.arange(site.shape[axis]))
            source.register_buffer(name, torch.tensor(positions, device=weight.device))
        source.adapter_shape = site.shape[:2]  # type: ignore[assignment]

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is kept of B; P; Q."""
        return self.adapter_blocks, self.adapter_prototypes.p, self.adapter_prototypes.q

    @property
    def grid(self) -> BlockGrid:
        """Where the kept blocks lie."""
        _, p, q = self.factors
        return BlockGrid(
            (p.shape[1], q.shape[1]),
            self.adapter_shape,
            self.adapter_at,
            self.adapter_rows,
            self.adapter_columns,
        )

    def merged_weight(self) -> Tensor:
        """Return ``W'``, of the shape of W, exactly zero in pruned blocks."""
        matrix, factors, grid = self.weight.flatten(1), self.factors, self.grid
        if not parametrize.is_parametrized(self, "weight"):
            return merge(matrix, *factors, grid).view_as(self.weight)
        # The full-size reference masks units of W; they are to be absent from D too.
        masked = grid.join(change(*factors)).view_as(self.weight)
        for keep in self.parametrizations["weight"]:  # type: ignore[index]
            masked = keep(masked)
        return grid.mask(matrix).view_as(self.weight) + masked

    def multiply(self, x: Tensor, bias: Tensor | None, axis: int) -> Tensor:
        """``W'`` along an axis of ``x``, plus the bias."""
        if parametrize.is_parametrized(self, "weight"):
            return (F.linear if axis == -1 else F.conv2d)(x, self.merged_weight(), bias)
        return adapted(x, self.weight.flatten(1), bias, *self.factors, self.grid, axis=axis)

    def extra_repr(self) -> str:
        """Add the prototypes, and how products are computed, to the plain layer's line."""
        count, _, rank = self.adapter_prototypes.p.shape
        return f"{super().extra_repr()}, {count} prototypes of rank {rank}, {describe(self.grid)}"


class SPLoPALinear(SPLoPALayer, nn.Linear):
    """A linear layer with SPLoPA."""

    plain = nn.Linear
    weight: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        return self.multiply(input, self.bias, -1)


class SPLoPAConv2d(SPLoPALayer, nn.Conv2d):
    """A 1x1 convolution of any stride and padding with SPLoPA."""

    plain = nn.Conv2d
    weight: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[n, in, h, w]`` (or ``[in, h, w]``) as the plain layer does."""
        # By name no padding is needed: with one tap "same" and "valid" are alike.
        if not isinstance(self.padding, str) and any(self.padding):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            pads = [size for size in reversed(self.padding) for _ in range(2)]
            input = F.pad(input, pads, mode=mode)
        # One tap sees every stride-th position: what is left is a product along the channels.
        return self.multiply(input[..., :: self.stride[0], :: self.stride[1]], self.bias, -3)


@dataclass(frozen=True, slots=True)
class SPLoPA:
    """The kind: linear layers and ungrouped 1x1 convolutions of exactly these types.

    Attributes:
        block: ``(p, q)``: outputs and inputs of a block.
        prototypes: d.
        prototype_rank: rho, at most the shorter side of a block.
        masks: which blocks stay; layers that it does not name, and all without it, stay whole.

    Raises:
        AdapterError: a number that is no positive integer, a rank that is waste, or masks with
            blocks of another shape.
    """

    block: tuple[int, int] = (32, 32)
    prototypes: int = 64
    prototype_rank: int = 1
    masks: BlockMask | None = None
    freezes = True
    factors = False

    def __post_init__(self) -> None:
        for value in (*self.block, self.prototypes, self.prototype_rank):
            if type(value) is not int or value < 1:
                raise AdapterError(f"{value!r:.20} is no integer of at least 1: see SPLoPA's docs")
        if self.prototype_rank > min(self.block):
            raise AdapterError(
                f"prototypes of {self.block[0]}x{self.block[1]} have a rank of at most "
                f"{min(self.block)}, not {self.prototype_rank}"
            )
        if self.masks is not None and self.masks.block != self.block:
            raise AdapterError(
                f"the block mask has blocks {self.masks.block}, the adapter {self.block}: "
                "use one shape for both"
            )

    def fits(self, module: nn.Module) -> bool:
        """Whether the module is a plain linear layer or an ungrouped 1x1 convolution."""
        return takes_blocks(module)

    def adapt_(self, layers: Mapping[str, tuple[nn.Module, Site]]) -> None:
        """Attach B to every layer, and the prototypes to all of them.

        Raises:
            AdapterError: the layers do not share one dtype and device, as prototypes need.
            PlanError: the block mask does not fit the layers.
        """
        if self.masks is not None:
            self.masks.check({_weight_name(p): site.shape for p, (_, site) in layers.items()})
        if not layers:
            return
        weights = [module.get_parameter("weight") for module, _ in layers.values()]
        if len({(weight.dtype, weight.device) for weight in weights}) > 1:
            raise AdapterError(
                "the layers differ in dtype or device and cannot share prototypes: "
                "move the model to one before attaching"
            )
        # Site and seed are those of the call: every site has the same seed and train_a.
        site = next(iter(layers.values()))[1]
        p, q = (factor.to(weights[0]) for factor in self.draw(site.seed))
        prototypes = Prototypes(p, q, trains=site.train_a)
        for path, (module, here) in layers.items():
            keep = torch.from_numpy(self._keep(path, here.shape))
            kind = SPLoPALinear if type(module) is nn.Linear else SPLoPAConv2d
            kind.adopt_(module, here, keep, prototypes)

    def draw(self, seed: int) -> tuple[Tensor, Tensor]:
        """Draw ``P [d, p, rho]`` and ``Q [d, q, rho]``, float32 on the CPU.

        They are uniform, by multiplication and subtraction alone, so that every machine draws the
        same bits, and prototype by prototype, so that more prototypes begin with the same ones.
        """
        (p, q), rank = self.block, self.prototype_rank
        return self._uniform(seed, "p", p, 1 / p), self._uniform(seed, "q", q, 1 / (q * rank))

    def _uniform(self, seed: int, name: str, length: int, variance: float) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, "prototypes", name))
        drawn = torch.rand(self.prototypes, length, self.prototype_rank, generator=generator)
        return (2 * drawn - 1) * math.sqrt(3 * variance)

    def _keep(self, path: str, shape: tuple[int, ...]) -> Bools:
        """M of a layer, bool ``[rows, columns]`` of blocks."""
        name = _weight_name(path)
        if self.masks is not None and name in self.masks.layers:
            return self.masks.layers[name].copy()
        p, q = self.block
        return np.ones((-(-shape[0] // p), -(-shape[1] // q)), np.bool_)


def _weight_name(path: str) -> str:
    return f"{path}.weight" if path else "weight"
