"""Sums of Kronecker products with shared prototypes: merged, multiplied by, and their gradients.

A layer acts by ``W' = (W + D) * M``, where M keeps some blocks of p x q weights and the block of D
at row I and column J of blocks is ``sum_i B[i, IJ] P_i Q_i^T``. With the parts ``x_J`` of the input
and ``g_I`` of the output's gradient that lie at a block's column and row, and their projections
``v_i = x_J Q_i`` and ``u_i = g_I P_i`` on a prototype's factors, everything that D does and needs
can be had without D::

    (x D^T)_I  = sum_i (sum_J B[i, IJ] v_i) P_i^T       (g D)_J = sum_i (sum_I B[i, IJ] u_i) Q_i^T
    dB[i, IJ]  = sum over positions of u_i v_i
    dP_i       = sum_I g_I^T (sum_J B[i, IJ] v_i)       dQ_i    = sum_J x_J^T (sum_I B[i, IJ] u_i)

For 64 prototypes of rank 1 and blocks of 32x32 the gradients take about a quarter of the
multiplications of the dense gradient at a width of 768, half where P and Q train. Where few blocks
are kept, or blocks are small for the number of prototypes, the gradient of the kept blocks
``G = g_I^T x_J`` is less work: ``dB[i, IJ] = <G, P_i Q_i^T>``, ``dP_i = sum_IJ B[i, IJ] G Q_i``,
``dQ_i = sum_IJ B[i, IJ] G^T P_i``. Multiplications are counted to choose.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fedsprig.adapters.block_grid import BlockGrid
from fedsprig.adapters.block_product import correlate, correlate_cost

_CHUNK: Final = 256
"""Rows that are projected at a time: more leave the cache, fewer make products too small."""

# Measured, in multiplications of a wide product (docs/experiments.md).
_THIN: Final = 1.5
"""One multiplication of the projections' narrow products."""
_MOVE: Final = 25
"""To lay out one number of the input, output or its gradient block by block."""
_ADD: Final = 30
"""To add the change to one weight."""


def change(b: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """``sum_i b[i, k] P_i Q_i^T`` for every block k.

    Args:
        b: ``[d, blocks]``.
        p: ``[d, p, rank]``.
        q: ``[d, q, rank]``.

    Returns:
        ``[blocks, p, q]``; gradients flow to all three.
    """
    patterns = p @ q.transpose(1, 2)
    return (b.t() @ patterns.flatten(1)).view(-1, *patterns.shape[1:])


def merge_blocks(weight: Tensor, b: Tensor, p: Tensor, q: Tensor, grid: BlockGrid) -> Tensor:
    """The kept blocks of ``W'``, ``[kept, p, q]``; gradients flow to all."""
    return grid.split(weight) + change(b, p, q)


def merge(weight: Tensor, b: Tensor, p: Tensor, q: Tensor, grid: BlockGrid) -> Tensor:
    """``W'``, ``[out, in]``, exactly zero in pruned blocks; gradients flow to all."""
    # All blocks, of zeros where pruned: more work, but half the time of putting them in place.
    return grid.add(grid.mask(weight), change(grid.spread(b).flatten(1), p, q))


def beside(x: Tensor, b: Tensor, p: Tensor, q: Tensor, grid: BlockGrid) -> Tensor:
    """``x D^T`` without D: ``[n, in]`` -> ``[n, out]``; no gradients."""
    flat_p, flat_q = _flat(p).to(x.dtype), _flat(q).to(x.dtype)
    v = _project(grid.slabs_in(x), flat_q)
    weighted = _repeated(b, p, grid).to(x.dtype) @ v
    return grid.from_slabs_out(_spread(weighted, flat_p))


def beside_back(g: Tensor, b: Tensor, p: Tensor, q: Tensor, grid: BlockGrid) -> Tensor:
    """``g D`` without D: ``[n, out]`` -> ``[n, in]``; no gradients."""
    flat_p, flat_q = _flat(p).to(g.dtype), _flat(q).to(g.dtype)
    u = _project(grid.slabs_out(g), flat_p)
    weighted = _repeated(b, p, grid).to(g.dtype).transpose(1, 2) @ u
    return grid.from_slabs_in(_spread(weighted, flat_q))


def prefers_merging(rows: int, p: Tensor, grid: BlockGrid) -> bool:
    """Whether a product of ``rows`` rows is less work by ``W'`` than by W with D beside."""
    (down, across), (high, wide) = grid.size, grid.block
    weights = down * high * across * wide
    return weights * (p.shape[0] + _ADD) <= rows * _narrow(p, grid, 1, 1)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
Needs = tuple[bool, bool, bool]


def prefers_blocks(x: Tensor, b: Tensor, p: Tensor, grid: BlockGrid, needs: Needs) -> bool:
    """Whether the gradient of the kept blocks is less work than projecting ``x [n, in]``."""
    trains = needs[1] or needs[2]
    blocks = correlate_cost(x, grid) + b.numel() * grid.block[0] * grid.block[1] * (1 + trains)
    return blocks <= len(x) * _narrow(p, grid, 1 + trains, 1 + 2 * trains)


def through_blocks(
    g: Tensor, x: Tensor, b: Tensor, p: Tensor, q: Tensor, grid: BlockGrid, needs: Needs
) -> Gradients:
    """Gradients of B, P and Q from that of the kept blocks.

    Args:
        g: ``[n, out]``.
        x: ``[n, in]``.
        b: ``[d, kept]``.
        p: ``[d, p, rank]``.
        q: ``[d, q, rank]``.
        grid: which blocks are kept.
        needs: which of the three.
    """
    blocks = correlate(g, x, grid).to(b.dtype).flatten(1)
    db = (p @ q.transpose(1, 2)).flatten(1) @ blocks.t() if needs[0] else None
    if not (needs[1] or needs[2]):
        return db, None, None
    patterns = (b @ blocks).view(len(b), *grid.block)
    dp = patterns @ q if needs[1] else None
    return db, dp, patterns.transpose(1, 2) @ p if needs[2] else None


def through_projections(
    g: Tensor, x: Tensor, b: Tensor, p: Tensor, q: Tensor, grid: BlockGrid, needs: Needs
) -> Gradients:
    """The same as :func:`through_blocks` without the gradient of any block."""
    count, _, rank = p.shape
    flat_p, flat_q = _flat(p).to(g.dtype), _flat(q).to(g.dtype)
    weights = _repeated(b, p, grid).to(g.dtype) if needs[1] or needs[2] else None
    pairs = b.new_zeros(count * rank, *grid.size)
    sum_p, sum_q = torch.zeros_like(flat_p, dtype=b.dtype), torch.zeros_like(flat_q, dtype=b.dtype)
    for start in range(0, len(g), _CHUNK):
        left = grid.slabs_out(g[start : start + _CHUNK])
        right = grid.slabs_in(x[start : start + _CHUNK])
        u, v = _project(left, flat_p), _project(right, flat_q)
        if needs[0]:
            pairs += u @ v.transpose(1, 2)
        if weights is not None and needs[1]:
            sum_p += (weights @ v).flatten(1) @ left.flatten(0, 1)
        if weights is not None and needs[2]:
            sum_q += (weights.transpose(1, 2) @ u).flatten(1) @ right.flatten(0, 1)
    db = pairs.view(count, rank, *grid.size).sum(1)[:, grid.at[0], grid.at[1]] if needs[0] else None
    dp = sum_p.view(count, rank, -1).transpose(1, 2) if needs[1] else None
    return db, dp, sum_q.view(count, rank, -1).transpose(1, 2) if needs[2] else None


def _narrow(p: Tensor, grid: BlockGrid, sides: int, pairs: int) -> float:
    """What a row takes, in multiplications of a wide product.

    Args:
        p: ``[d, p, rank]``.
        grid: the blocks.
        sides: how often input and output are multiplied by the prototypes' factors.
        pairs: how often projections are multiplied for all pairs of a block's row and column.
    """
    (down, across), (high, wide) = grid.size, grid.block
    ends = down * high + across * wide
    narrow = p.shape[0] * p.shape[2] * (sides * ends + pairs * down * across)
    return _THIN * narrow + _MOVE * ends


def _flat(factor: Tensor) -> Tensor:
    """``[d, length, rank]`` -> ``[d rank, length]``."""
    return factor.transpose(1, 2).flatten(0, 1)


def _project(slabs: Tensor, flat: Tensor) -> Tensor:
    """Slabs ``[blocks, n, length]`` on a factor ``[d rank, length]``: ``[d rank, blocks, n]``."""
    return (flat @ slabs.flatten(0, 1).t()).view(len(flat), *slabs.shape[:2])


def _spread(weighted: Tensor, flat: Tensor) -> Tensor:
    """``[d rank, blocks, n]`` by a factor ``[d rank, length]``: slabs ``[blocks, n, length]``."""
    return (weighted.flatten(1).t() @ flat).view(*weighted.shape[1:], flat.shape[1])


def _repeated(b: Tensor, p: Tensor, grid: BlockGrid) -> Tensor:
    """B of all blocks, once for each rank: ``[d rank, rows, columns]`` of blocks."""
    return grid.spread(b).repeat_interleave(p.shape[2], 0)
