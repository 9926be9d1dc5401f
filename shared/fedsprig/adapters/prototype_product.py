"""Layers beside frozen weights whose change is made of prototypes: products and their gradients.

W is frozen, so the dense gradient of ``W'`` is of no use by itself, and autograd alone would
compute all of it. Here the gradients of the factors go by the shorter of two ways without it
(:mod:`fedsprig.adapters.prototypes`). The input's gradient goes through ``W'``, which is merged
again rather than kept, or with few rows through W with the change beside it. Where few blocks are
kept, products are block-sparse (:mod:`fedsprig.adapters.block_product`).

What is kept for the backward pass is x; neither ``W'`` nor a projection is. Gradients of gradients
are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fedsprig.adapters.block_grid import BlockGrid
from fedsprig.adapters.block_product import is_sparse, multiply, multiply_back
from fedsprig.adapters.precision import autocasts, cast, exact
from fedsprig.adapters.prototypes import (
    beside,
    beside_back,
    merge,
    merge_blocks,
    prefers_blocks,
    prefers_merging,
    through_blocks,
    through_projections,
)


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
        with exact(x):
            return adapted(cast(x), weight, bias, b, p, q, grid, axis=axis)
    if torch.is_grad_enabled() and weight.requires_grad:
        merged = merge(weight, b, p, q, grid).to(x.dtype)
        return _dense(x, merged, None if bias is None else bias.to(x.dtype), axis)
    result: Tensor = _Adapted.apply(x, weight, bias, b, p, q, grid, axis)
    return result


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
        bias = None if bias is None else bias.to(x.dtype)
        count = x.numel() // x.shape[axis]
        if is_sparse(x, count, grid):
            blocks = merge_blocks(weight, b, p, q, grid).to(x.dtype)
            return _own(_like(multiply(_rows(x, axis), blocks, bias, grid), x, axis))
        if prefers_merging(count, p, grid):
            return _own(_dense(x, merge(weight, b, p, q, grid).to(x.dtype), bias, axis))
        y = _dense(x, grid.mask(weight).to(x.dtype), bias, axis)
        return _own(y.add_(_like(beside(_rows(x, axis), b, p, q, grid), x, axis)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, b, p, q = ctx.saved_tensors
        grid = ctx.grid
        needs_x, _, needs_bias, needs_b, needs_p, needs_q, _, _ = ctx.needs_input_grad
        dx = db = dp = dq = None
        with exact(g):
            rows = _rows(g, ctx.axis)
            if needs_x and is_sparse(g, len(rows), grid):
                blocks = merge_blocks(weight, b, p, q, grid).to(g.dtype)
                dx = _like(multiply_back(rows, blocks, grid), g, ctx.axis)
            elif needs_x and prefers_merging(len(rows), p, grid):
                dx = _dense(g, merge(weight, b, p, q, grid).to(g.dtype).t(), None, ctx.axis)
            elif needs_x:
                dx = _dense(g, grid.mask(weight).to(g.dtype).t(), None, ctx.axis)
                dx += _like(beside_back(rows, b, p, q, grid), g, ctx.axis)
            if needs_b or needs_p or needs_q:
                inputs, needs = _rows(x, ctx.axis), (needs_b, needs_p, needs_q)
                shorter = prefers_blocks(inputs, b, p, grid, needs)
                through = through_blocks if shorter else through_projections
                db, dp, dq = through(rows, inputs, b, p, q, grid, needs)
            dbias = rows.sum(0) if needs_bias else None
        return dx, None, dbias, db, dp, dq, None, None


def _own(y: Tensor) -> Tensor:
    """``y``, and no view of it: to a view that a function returns nobody can write in place."""
    return y.clone() if torch.compiler.is_compiling() or y._is_view() else y


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
