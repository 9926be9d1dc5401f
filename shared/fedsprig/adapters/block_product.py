"""Products with a matrix of which only some blocks are there: block-sparse, or dense where faster.

A block-sparse product here is one small product of matrices for every kept block, on inputs and
outputs laid out block by block. Its time was measured on x86-64 CPUs (docs/experiments.md): about
that of a dense product for each weight of a kept block, times 1.3, and for each small product about
as long again as 100,000 multiplications take, with several threads three times that. A dense
product shares its work between threads; small ones gain nothing from them. What this comes to is
:func:`least_rows`. PyTorch's own sparse layout (BSR) was slower than dense everywhere.

On other devices, in half precision and under ``torch.compile`` products are dense.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from fedsprig.adapters.block_grid import BlockGrid

# All in multiplications of a dense product, one thread.
_START: Final = 500_000
_CALL: Final = 100_000
_SMALL: Final = 1.3
_MOVE: Final = 30
"""To lay out one number of the input or output block by block."""


def least_rows(grid: BlockGrid) -> int | None:
    """From how many rows of input on a block-sparse product is faster than a dense one.

    For the number of threads that PyTorch uses now; ``None`` if it never is.
    """
    threads = torch.get_num_threads()
    out, inputs = len(grid.rows), len(grid.columns)
    p, q = grid.block
    saved = out * inputs / threads - _SMALL * grid.kept * p * q - _MOVE * (out + inputs)
    if saved <= 0:
        return None
    return int(_overhead(grid) / saved) + 1


def is_sparse(x: Tensor, rows: int, grid: BlockGrid) -> bool:
    """Whether products of ``rows`` rows like ``x`` are computed block by block."""
    if torch.compiler.is_compiling() or not _is_measured(x):
        return False
    least = least_rows(grid)
    return least is not None and rows >= least


def describe(grid: BlockGrid) -> str:
    """One line on how a layer's products are computed on this CPU."""
    (p, q), (down, across) = grid.block, grid.size
    least = least_rows(grid)
    share = f"{grid.kept} of {down * across} blocks of {p}x{q}"
    if least is None:
        return f"{share}: dense, block-sparse would be slower"
    return f"{share}: block-sparse from {least} rows on, dense below"


def multiply(x: Tensor, blocks: Tensor, bias: Tensor | None, grid: BlockGrid) -> Tensor:
    """``x W^T + bias`` block by block; no gradients.

    Args:
        x: ``[n, in]``.
        blocks: kept blocks of W, ``[kept, p, q]``.
        bias: ``[out]`` or ``None``.
        grid: where they lie.

    Returns:
        ``[n, out]``.
    """
    total = x.new_zeros(grid.size[0], len(x), grid.block[0])
    _accumulate(total, grid.slabs_in(x), blocks.transpose(1, 2), grid.at.t().tolist())
    y = grid.from_slabs_out(total)
    return y if bias is None else y.add_(bias)


def multiply_back(g: Tensor, blocks: Tensor, grid: BlockGrid) -> Tensor:
    """``g W`` block by block: ``[n, out]`` -> ``[n, in]``; no gradients."""
    total = g.new_zeros(grid.size[1], len(g), grid.block[1])
    _accumulate(total, grid.slabs_out(g), blocks, grid.at.flip(0).t().tolist())
    return grid.from_slabs_in(total)


def correlate(g: Tensor, x: Tensor, grid: BlockGrid) -> Tensor:
    """The kept blocks of ``g^T x``: the gradient of W's blocks, ``[kept, p, q]``.

    Args:
        g: ``[n, out]``.
        x: ``[n, in]``.
        grid: which blocks.
    """
    if not is_sparse(x, len(x), grid):
        return grid.split((x.t() @ g).t())  # this order is the faster one
    left, right = grid.slabs_out(g).transpose(1, 2).unbind(0), grid.slabs_in(x).unbind(0)
    found = x.new_empty(grid.kept, *grid.block)
    for block, (row, column) in zip(found.unbind(0), grid.at.t().tolist(), strict=True):
        torch.mm(left[row], right[column], out=block)
    return found


def correlate_cost(x: Tensor, grid: BlockGrid) -> float:
    """What :func:`correlate` takes for ``x [n, in]``, in multiplications."""
    if not is_sparse(x, len(x), grid):
        return len(x) * len(grid.rows) * len(grid.columns)
    p, q = grid.block
    return _SMALL * len(x) * grid.kept * p * q + _overhead(grid)


def _is_measured(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in (torch.float32, torch.float64)


def _overhead(grid: BlockGrid) -> int:
    return _START + grid.kept * _CALL * (3 if torch.get_num_threads() > 1 else 1)


def _accumulate(total: Tensor, slabs: Tensor, blocks: Tensor, at: Iterable[list[int]]) -> None:
    """Add ``slabs[j] @ block`` to ``total[i]`` for every block at ``(i, j)``."""
    outs, ins = total.unbind(0), slabs.unbind(0)
    for block, (i, j) in zip(blocks.unbind(0), at, strict=True):
        outs[i].addmm_(ins[j], block)
