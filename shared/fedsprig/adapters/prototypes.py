"""Layers whose change is a sum of Kronecker products with shared prototypes.

A layer acts by ``W' = (W + D) * M``, where M keeps some blocks of p x q weights and the block of D
at row I and column J of blocks is ``sum_i B[i, IJ] P_i Q_i^T``. W is frozen, so the dense gradient
of ``W'`` is of no use by itself, and autograd alone would compute all of it. Here

* the input's gradient goes through ``W'``, which is merged again rather than kept;
* with ``u = g_I P_i`` and ``v = x_J Q_i``, the parts of the output's gradient and of the input that
  lie at a block's row and column, projected on a prototype's factors::

      dB[i, IJ] = sum over positions of u v^T
      dP_i      = sum_I g_I^T (sum_J B[i, IJ] v),   dQ_i = sum_J x_J^T (sum_I B[i, IJ] u)

  which for 64 prototypes of rank 1 and blocks of 32x32 takes about a quarter of the multiplications
  of the dense gradient at a width of 768 (half where P and Q train);
* where few blocks are kept, or the blocks are small for the number of prototypes, the gradient of
  the kept blocks ``G = g_I^T x_J`` is less work than that: ``dB[i, IJ] = <G, P_i Q_i^T>``,
  ``dP_i = sum_IJ B[i, IJ] G Q_i``, ``dQ_i = sum_IJ B[i, IJ] G^T P_i``.

Multiplications are counted to choose. What is kept for the backward pass is x; neither ``W'`` nor
a projection is. Gradients of gradients are refused.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fedsprig.adapters.block_grid import BlockGrid
from fedsprig.adapters.block_product import (
    correlate,
    correlate_cost,
    is_sparse,
    multiply,
    multiply_back,
)

_CHUNK: Final = 256
"""Rows that are projected at a time: more leave the cache, fewer make products too small."""

# Measured, in multiplications of a wide product (docs/experiments.md).
_THIN: Final = 1.5
"""One multiplication of the projections' narrow products."""
_MOVE: Final = 25
"""To lay out one number of the input or the output's gradient block by block."""


def change(b: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """``sum_i b[i, k] P_i Q_i^T`` for every block k.

    Args:
        b: ``[d, kept]``.
        p: ``[d, p, rank]``.
        q: ``[d, q, rank]``.

    Returns:
        ``[kept, p, q]``; gradients flow to all three.
    """
    patterns = p @ q.transpose(1, 2)
    return (b.t() @ patterns.flatten(1)).view(-1, *patterns.shape[1:])


def merge_blocks(weight: Tensor, b: Tensor, p: Tensor, q: Tensor, grid: BlockGrid) -> Tensor:
    """The kept blocks of ``W'``, ``[kept, p, q]``; gradients flow to all."""
    return grid.split(weight) + change(b, p, q)


def adapted(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    b: Tensor,
    p: Tensor,
    q: Tensor,
    grid: BlockGrid,
    *,
    axis: int = -1,
) -> Tensor:
    """Multiply by the merged weight along one axis.

    Args:
        x: with inputs along ``axis``.
        weight: W ``[out, in]``.
        bias: ``[out]`` or ``None``.
        b: ``[d, kept]``.
        p: ``[d, p, rank]``.
        q: ``[d, q, rank]``.
        grid: which blocks are kept.
        axis: -1, or -3 for pictures.

    Returns:
        ``x`` with outputs along ``axis``. Every tensor gets the gradient that it would get from a
        product by the merged weight.
    """
    if autocasts(x):
        # Merging keeps the precision of the weights; what is multiplied is cast by hand.
        if x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            return adapted(x, weight, bias, b, p, q, grid, axis=axis)
    if torch.is_grad_enabled() and weight.requires_grad:
        merged = grid.join(merge_blocks(weight, b, p, q, grid)).to(x.dtype)
        return _dense(x, merged, None if bias is None else bias.to(x.dtype), axis)
    result: Tensor = _Adapted.apply(x, weight, bias, b, p, q, grid, axis)
    return result


def autocasts(x: Tensor) -> bool:
    """Whether products of ``x`` are cast now; false on devices that know no autocast (meta)."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


class _Adapted(torch.autograd.Function):
    """One adapted product."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        b: Tensor,
        p: Tensor,
        q: Tensor,
        grid: BlockGrid,
        axis: int,
    ) -> Tensor:
        ctx.grid, ctx.axis = grid, axis
        trains = any(ctx.needs_input_grad[3:6])
        ctx.save_for_backward(x if trains else None, weight, b, p, q)
        blocks = merge_blocks(weight, b, p, q, grid).to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        if is_sparse(x, x.numel() // x.shape[axis], grid):
            return _like(multiply(_rows(x, axis), blocks, bias, grid), x, axis)
        return _dense(x, grid.join(blocks), bias, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, b, p, q = ctx.saved_tensors
        grid = ctx.grid
        needs_x, _, needs_bias, needs_b, needs_p, needs_q, _, _ = ctx.needs_input_grad
        dx = db = dp = dq = None
        with torch.autocast(g.device.type, enabled=False) if autocasts(g) else nullcontext():
            rows = _rows(g, ctx.axis)
            if needs_x:
                blocks = merge_blocks(weight, b, p, q, grid).to(g.dtype)
                if is_sparse(g, len(rows), grid):
                    dx = _like(multiply_back(rows, blocks, grid), g, ctx.axis)
                else:
                    dx = _dense(g, grid.join(blocks).t(), None, ctx.axis)
            if needs_b or needs_p or needs_q:
                inputs, needs = _rows(x, ctx.axis), (needs_b, needs_p, needs_q)
                shorter = prefers_blocks(inputs, b, p, grid, needs)
                through = through_blocks if shorter else through_projections
                db, dp, dq = through(rows, inputs, b, p, q, grid, needs)
            dbias = rows.sum(0) if needs_bias else None
        return dx, None, dbias, db, dp, dq, None, None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
Needs = tuple[bool, bool, bool]


def prefers_blocks(x: Tensor, b: Tensor, p: Tensor, grid: BlockGrid, needs: Needs) -> bool:
    """Whether the gradient of the kept blocks is less work than projecting ``x [n, in]``."""
    trains = needs[1] or needs[2]
    thin = p.shape[0] * p.shape[2]
    (down, across), (high, wide) = grid.size, grid.block
    blocks = correlate_cost(x, grid) + b.numel() * high * wide * (1 + trains)
    sides = down * high + across * wide
    narrow = thin * (sides * (1 + trains) + down * across * (1 + 2 * trains))
    return blocks <= len(x) * (_THIN * narrow + _MOVE * sides)


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
    thin_p = p.transpose(1, 2).flatten(0, 1).to(g.dtype)  # [d rank, p]
    thin_q = q.transpose(1, 2).flatten(0, 1).to(g.dtype)
    trains = needs[1] or needs[2]
    spread = None
    if trains:
        spread = b.new_zeros(count, *grid.size)
        spread[:, grid.at[0], grid.at[1]] = b.detach()
        spread = spread.repeat_interleave(rank, 0).to(g.dtype)  # [d rank, rows, columns] of blocks
    pairs = b.new_zeros(count * rank, *grid.size)
    sum_p, sum_q = torch.zeros_like(thin_p, dtype=b.dtype), torch.zeros_like(thin_q, dtype=b.dtype)
    for start in range(0, len(g), _CHUNK):
        left = grid.slabs_out(g[start : start + _CHUNK]).flatten(0, 1)  # [rows of blocks n, p]
        right = grid.slabs_in(x[start : start + _CHUNK]).flatten(0, 1)
        u = (thin_p @ left.t()).view(len(thin_p), grid.size[0], -1)  # [d rank, rows of blocks, n]
        v = (thin_q @ right.t()).view(len(thin_q), grid.size[1], -1)
        if needs[0]:
            pairs += u @ v.transpose(1, 2)
        if spread is not None:
            if needs[1]:
                sum_p += (spread @ v).flatten(1) @ left
            if needs[2]:
                sum_q += (spread.transpose(1, 2) @ u).flatten(1) @ right
    dense = pairs.view(count, rank, *grid.size).sum(1)
    db = dense[:, grid.at[0], grid.at[1]] if needs[0] else None
    dp = sum_p.view(count, rank, -1).transpose(1, 2) if needs[1] else None
    return db, dp, sum_q.view(count, rank, -1).transpose(1, 2) if needs[2] else None


def _rows(x: Tensor, axis: int) -> Tensor:
    """``[..., c, ...]`` with c along ``axis`` -> ``[n, c]``."""
    return x.movedim(axis, -1).reshape(-1, x.shape[axis])


def _like(rows: Tensor, x: Tensor, axis: int) -> Tensor:
    """Undo :func:`_rows`, with the positions and the memory format of ``x``."""
    shape = x.movedim(axis, -1).shape[:-1]
    y = rows.view(*shape, rows.shape[1]).movedim(-1, axis)
    return y.contiguous() if x.is_contiguous() else y


def _dense(x: Tensor, matrix: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """``matrix [out, in]`` along an axis: a linear layer, or a 1x1 convolution."""
    if axis == -1:
        return F.linear(x, matrix, bias)
    return F.conv2d(x, matrix[:, :, None, None], bias)
