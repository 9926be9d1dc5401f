"""Merged linear layers that hold and multiply only the blocks that a block mask keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.adapters.block_grid import BlockGrid
from fedsprig.adapters.block_product import describe, is_sparse, least_rows, multiply
from fedsprig.adapters.precision import autocasts
from fedsprig.errors import AdapterError
from fedsprig.masks.blocks import BlockMask


class BlockLinear(nn.Module):
    """A linear layer whose weight is zero outside some blocks, made for inference.

    Products are block-sparse where that was measured to be faster (see
    :mod:`fedsprig.adapters.block_product`), and dense elsewhere and wherever gradients are asked
    for. The representation says from how many rows on.

    Attributes:
        blocks: kept blocks of the weight, ``[kept, p, q]``; needs no gradient, unless asked to.
        bias: ``[out]`` or ``None``, likewise.
        at: int64 ``[2, kept]``, row and column of every kept block.
    """

    at: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, linear: nn.Linear, keep: Tensor, block: tuple[int, int]) -> None:
        """Take the kept blocks of a layer.

        Args:
            linear: left as it is.
            keep: bool ``[rows, columns]`` of blocks.
            block: ``(p, q)``.
        """
        super().__init__()
        device = linear.weight.device
        self.block, self.shape = block, (linear.out_features, linear.in_features)
        self.register_buffer("at", keep.nonzero().t().contiguous().to(device))
        self.register_buffer("rows", torch.arange(linear.out_features, device=device))
        self.register_buffer("columns", torch.arange(linear.in_features, device=device))
        blocks = self.grid.split(linear.weight.detach()).clone()
        self.blocks = nn.Parameter(blocks, requires_grad=False)
        self.bias = linear.bias
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        self.training = linear.training

    @property
    def grid(self) -> BlockGrid:
        """Where the kept blocks lie."""
        return BlockGrid(self.block, self.shape, self.at, self.rows, self.columns)

    @property
    def weight(self) -> Tensor:
        """The dense weight ``[out, in]``, made anew at every call."""
        return self.grid.join(self.blocks)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        rows = input.reshape(-1, input.shape[-1])
        grid = self.grid
        tensors = (input, *self.parameters())
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if learns or autocasts(input) or not is_sparse(rows, len(rows), grid):
            return F.linear(input, self.weight, self.bias)
        return multiply(rows, self.blocks, self.bias, grid).view(*input.shape[:-1], len(grid.rows))

    def extra_repr(self) -> str:
        """Shape, and how products are computed."""
        sizes = f"in_features={len(self.columns)}, out_features={len(self.rows)}"
        return f"{sizes}, bias={self.bias is not None}, {describe(self.grid)}"


def use_blocks_(model: nn.Module, masks: BlockMask) -> tuple[str, ...]:
    """Turn masked linear layers of a merged model into block-sparse ones, where any size gains.

    Others stay the plain dense layers that they are. The choice is for as many threads as PyTorch
    uses now; it costs nothing but time to be wrong about that.

    Args:
        model: merged, or plain with pruned blocks of zeros; changed in place.
        masks: which blocks are zero.

    Returns:
        A line for every weight of the mask, in the order of their names: what became of it.

    Raises:
        PlanError: the mask does not fit the model.
        AdapterError: a weight is not zero where the mask drops it. The model is as it was.
    """
    weights = dict(model.named_parameters())
    masks.check({name: tuple(w.shape) for name, w in weights.items() if w.ndim > 1})
    for name in masks.layers:
        dropped = torch.from_numpy(~masks.elements(name)).to(weights[name].device)
        if bool(weights[name].detach().flatten(1)[dropped].any()):
            raise AdapterError(
                f"{name} is not zero where the block mask drops it: merge the adapter that was "
                "attached with this mask first"
            )
    report: list[str] = []
    for name, keep in masks.layers.items():
        path = name.rpartition(".")[0]
        module = model.get_submodule(path)
        if not path or type(module) is not nn.Linear:
            report.append(f"{name}: dense, only linear layers inside a model are multiplied sparse")
            continue
        layer = BlockLinear(module, torch.from_numpy(keep.copy()), masks.block)
        report.append(f"{name}: {describe(layer.grid)}")
        if least_rows(layer.grid) is not None:
            model.set_submodule(path, layer)
    return tuple(report)
