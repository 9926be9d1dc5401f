"""Layers beside frozen weights: forward by the merged weight, backward without its gradient.

A layer acts by ``W' = W + D``, where W is frozen and the change D lies at the centre of the kernel
and is either a product ``B A`` of rank r or a matrix. Autograd alone would compute the gradient of
the whole of ``W'`` (as much work as training W) and then throw most of it away. Here

* the input's gradient goes through ``W'``;
* the gradients of the factors go through the projection ``z = A x``, kept from the forward pass:
  ``dB = g z^T``, and ``dA = (B^T g) x^T`` where A trains. That is ``r (in + out)`` multiplications
  a position instead of ``height width in out``;
* where W has more numbers than the activations (the last stages of a network, few rows), merging
  would be the larger part of the work: ``y = W x + B z``, ``dx = W^T g + A^T (B^T g)``;
* where the projection saves nothing (few inputs for the rank, grouped convolutions, D a matrix)
  ``dD = g x^T`` is computed, a 1x1 convolution's weight gradient, and ``dB = dD A^T``,
  ``dA = B^T dD``.

What is kept for the backward pass is z, or x where dA or dD needs it, and W' where it is no larger
than x; a larger one is merged again. A plain frozen convolution keeps x always.

Gradients of gradients are refused, and so are the transforms of ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fedsprig.adapters.pointwise import (
    Geometry,
    add_pointwise_,
    correlate,
    outer,
    pointwise,
    seen_by_centre,
)
from fedsprig.adapters.precision import autocasts, cast, exact


def merge_delta(weight: Tensor, b: Tensor, a: Tensor | None) -> Tensor:
    """``W + B A`` (or ``W + B`` without A) at the centre of a kernel.

    Args:
        weight: ``[out, in / groups, *kernel]``, of any number of kernel dimensions, none too.
        b: ``[out, r]``, or the whole change ``[out, in / groups]``.
        a: ``[r, in / groups]`` or ``None``.

    Returns:
        A new tensor of the shape and memory format of ``weight``; gradients flow to all three.
    """
    if weight.ndim == 2:
        return weight + b if a is None else torch.addmm(weight, b, a)
    merged = weight.clone()
    strides = merged.stride()
    centre = sum(size // 2 * step for size, step in zip(merged.shape[2:], strides[2:], strict=True))
    # A view in one call instead of indexing's four: on small layers these calls are the time.
    tap = merged.as_strided(merged.shape[:2], strides[:2], centre)
    if a is None:
        tap.add_(b)
    elif strides[1] == 1:
        tap.addmm_(b, a)
    else:
        tap.add_(b @ a)
    return merged


def adapted_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor, a: Tensor | None, how: Geometry
) -> Tensor:
    """Convolve ``[n, in, *space]`` by the merged weight, with zero padding.

    ``b`` and ``a`` as in :func:`merge_delta`. Every tensor gets the gradient that it would get from
    a convolution by the merged weight.
    """
    if autocasts(x):
        with exact(x):
            return _conv(cast(x), weight, bias, b, a, how, low=True)
    return _conv(x, weight, bias, b, a, how, low=False)


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor, a: Tensor | None
) -> Tensor:
    """Map ``[..., in]`` to ``[..., out]`` by the merged weight; gradients as autograd's own."""
    if autocasts(x):
        with exact(x):
            return _linear(cast(x), weight, bias, b, a, low=True)
    return _linear(x, weight, bias, b, a, low=False)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    b: Tensor,
    a: Tensor | None,
    how: Geometry,
    *,
    low: bool,
) -> Tensor:
    """``low``: parameters are to be cast to the type of ``x``, which is lower than theirs."""
    if _trains(b, a) and not weight.requires_grad:
        result: Tensor = _Conv.apply(x, weight, bias, b, a, how, low)
        return result
    return _convolve(x, _as(merge_delta(weight, b, a), x, low), _as(bias, x, low), how)


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor, a: Tensor | None, *, low: bool
) -> Tensor:
    if _trains(b, a) and not weight.requires_grad:
        # The function is one of rows: what is a view of its result may be written to in place.
        result: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias, b, a, low)
        return result.view(*x.shape[:-1], len(weight))
    return F.linear(x, _as(merge_delta(weight, b, a), x, low), _as(bias, x, low))


def _trains(b: Tensor, a: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (b.requires_grad or (a is not None and a.requires_grad))


def _as(value: Any, x: Tensor, low: bool) -> Any:
    return value.to(x.dtype) if low and value is not None else value


def _projects(a: Tensor | None) -> bool:
    """Whether ``A x`` is so much smaller than x that two products beat the one of ``g x^T``."""
    return a is not None and a.shape[1] > 3 * a.shape[0]


def _merges(weight: Tensor, positions: int) -> bool:
    """Whether merging, which touches every weight, is less work than a product beside W.

    That touches ``in + out`` numbers at every position.
    """
    return weight.numel() <= positions * sum(weight.shape[:2])


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, how: Geometry) -> Tensor:
    none = (0,) * (x.ndim - 2)
    out: Tensor = torch.convolution(
        x, weight, bias, how.stride, how.padding, how.dilation, False, none, how.groups
    )
    return out


def _spread(g: Tensor, weight: Tensor, shape: Sequence[int], how: Geometry) -> Tensor:
    """The gradient of a convolution's input: the transposed convolution back to ``shape``."""
    # Positions at the end that no kernel reached have to be asked for.
    rest = [
        size - ((length - 1) * stride - 2 * padding + dilation * (taps - 1) + 1)
        for size, length, taps, stride, padding, dilation in zip(
            shape[2:], g.shape[2:], weight.shape[2:], *how[:3], strict=True
        )
    ]
    out: Tensor = torch.convolution(
        g, weight, None, how.stride, how.padding, how.dilation, True, rest, how.groups
    )
    return out


class _Conv(torch.autograd.Function):
    """One adapted convolution."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        b: Tensor,
        a: Tensor | None,
        how: Geometry,
        low: bool,
    ) -> Tensor:
        _, _, _, needs_b, needs_a, _, _ = ctx.needs_input_grad
        ctx.how, ctx.shape = how, x.shape
        ctx.projects = how.groups == 1 and _projects(a)
        # Beside W only where the centre sees x as it is: nothing has to be put in place.
        aligned = set(how.stride) == {1} and all(
            k // 2 * d == p and k % 2
            for k, d, p in zip(weight.shape[2:], how.dilation, how.padding, strict=True)
        )
        ctx.merges = not (ctx.projects and aligned) or _merges(weight, x.numel() // x.shape[1])
        merged = _as(merge_delta(weight, b, a) if ctx.merges else weight, x, low)
        y = _convolve(x, merged, _as(bias, x, low), how)
        z = None
        if ctx.projects and (needs_b or not ctx.merges) and a is not None:
            z = pointwise(seen_by_centre(x, y.shape, weight.shape[2:], how), _as(a, x, low))
        if z is not None and not ctx.merges:
            add_pointwise_(y, z, _as(b, x, low))
        needs_x = needs_a or not ctx.projects
        kept = merged if ctx.merges and merged.numel() <= x.numel() else None
        ctx.save_for_backward(weight, b, a, z, x if needs_x else None, kept)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _once(_conv_gradients, ctx, g)


def _conv_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    weight, b, a, z, x, merged = ctx.saved_tensors
    how = ctx.how
    needs_x, _, needs_bias, needs_b, needs_a, _, _ = ctx.needs_input_grad
    dx: Tensor | None = None
    dbias: Tensor | None = None
    beside = needs_x and not ctx.merges
    h = pointwise(g, b.t().to(g.dtype)) if ctx.projects and (needs_a or beside) else g
    if beside:
        dx = _spread(g, weight.to(g.dtype), ctx.shape, how)
        add_pointwise_(dx, h, a.t().to(g.dtype))
    elif needs_x:
        merged = merge_delta(weight, b, a).to(g.dtype) if merged is None else merged
        dx = _spread(g, merged, ctx.shape, how)
    if needs_bias:
        dbias = g.sum([d for d in range(g.ndim) if d != 1])
    if ctx.projects:
        db = correlate(g, z) if needs_b else None
        da = None
        if needs_a:
            da = correlate(h, seen_by_centre(x, g.shape, weight.shape[2:], how))
    else:
        seen = seen_by_centre(x, g.shape, weight.shape[2:], how)
        db, da = _factors(correlate(g, seen, how.groups), b, a, needs_b, needs_a)
    return dx, None, dbias, db, da, None, None


class _Linear(torch.autograd.Function):
    """One adapted product with rows ``x [n, in]``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        b: Tensor,
        a: Tensor | None,
        low: bool,
    ) -> Tensor:
        ctx.projects = _projects(a)
        ctx.merges = not ctx.projects or _merges(weight, len(x))
        _, _, _, needs_b, needs_a, _ = ctx.needs_input_grad
        z = None
        if ctx.projects and (needs_b or not ctx.merges) and a is not None:
            z = x @ _as(a, x, low).t()
        merged = _as(merge_delta(weight, b, a) if ctx.merges else weight, x, low)
        y = F.linear(x, merged, _as(bias, x, low))
        if z is not None and not ctx.merges:
            y.addmm_(z, _as(b, x, low).t())
        needs_x = needs_a or not ctx.projects
        kept = merged if ctx.merges and merged.numel() <= x.numel() else None
        ctx.save_for_backward(weight, b, a, z, x if needs_x else None, kept)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _once(_linear_gradients, ctx, g)


def _linear_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    weight, b, a, z, x, merged = ctx.saved_tensors
    needs_x, _, needs_bias, needs_b, needs_a, _ = ctx.needs_input_grad
    dx: Tensor | None = None
    h = g @ b.to(g.dtype) if ctx.projects and (needs_a or not ctx.merges) else g
    if needs_x and ctx.merges:
        dx = g @ (merge_delta(weight, b, a).to(g.dtype) if merged is None else merged)
    elif needs_x:
        dx = (g @ weight.to(g.dtype)).addmm_(h, a.to(g.dtype))
    if ctx.projects:
        db = outer(g, z) if needs_b else None
        da = outer(h, x) if needs_a else None
    else:
        db, da = _factors(outer(g, x), b, a, needs_b, needs_a)
    return dx, None, g.sum(0) if needs_bias else None, db, da, None


_Gradients = Callable[[Any, Tensor], tuple[Tensor | None, ...]]


def _once(gradients: _Gradients, ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """Compute gradients; theirs are refused, at a price only where somebody may want them."""
    if torch.is_grad_enabled():
        gradients = once_differentiable(gradients)
    if autocasts(g):
        with exact(g):
            return gradients(ctx, g)
    return gradients(ctx, g)


def _factors(
    delta: Tensor, b: Tensor, a: Tensor | None, needs_b: bool, needs_a: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The factors' gradients from that of the whole change."""
    delta = delta.to(b.dtype)
    if a is None:
        return delta, None
    return delta @ a.t() if needs_b else None, b.t() @ delta if needs_a else None
