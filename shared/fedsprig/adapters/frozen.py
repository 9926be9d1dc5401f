"""Layers beside frozen weights: forward by the merged weight, backward without its gradient.

A layer acts by ``W' = W + D``, where W is frozen and the change D lies at one tap of the kernel and
is either a product ``B A`` of rank r or a matrix. Autograd alone would compute the gradient of the
whole of ``W'`` (as much work as training W) and then throw most of it away. Here

* the input's gradient goes through ``W'``, which is kept until then;
* the gradients of the factors go through the projection ``z = A x``, kept from the forward pass:
  ``dB = g z^T``, and ``dA = (B^T g) x^T`` where A trains. That is ``r (in + out)`` multiplications
  a position instead of ``height width in out``;
* where the projection saves nothing (few inputs for the rank, grouped convolutions, D a matrix)
  ``dD = g x^T`` is computed, a 1x1 convolution's weight gradient, and ``dB = dD A^T``,
  ``dA = B^T dD``.

What is kept for the backward pass beside W' is z, or x where dA or dD needs it: of activations no
more than a network of plain frozen layers keeps (whose convolutions keep x), but for z. Which
kernel computes a product was measured on CPUs (docs/adapters.md); any gives the same result.
Gradients of gradients are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_FEW_ROWS = 2048
"""Up to so many positions a float32 product of matrices beats oneDNN's 1x1 convolution on a CPU."""


def merge_tap(weight: Tensor, b: Tensor, a: Tensor | None) -> Tensor:
    """``W + B A`` (or ``W + B`` without A) at the centre tap of a kernel.

    Args:
        weight: ``[out, in / groups, *kernel]``, of any number of kernel dimensions, none too.
        b: ``[out, r]``, or the whole change ``[out, in / groups]``.
        a: ``[r, in / groups]`` or ``None``.

    Returns:
        A new tensor of the shape and memory format of ``weight``; gradients flow to all three.
    """
    if weight.numel() == b.shape[0] * weight.shape[1]:  # no kernel, or one tap
        flat = weight.view(weight.shape[:2])
        whole = flat + b if a is None else torch.addmm(flat, b, a)
        return whole.view(weight.shape)
    merged = weight.clone()
    strides = merged.stride()
    centre = sum(size // 2 * step for size, step in zip(merged.shape[2:], strides[2:], strict=True))
    tap = merged.as_strided(merged.shape[:2], strides[:2], centre)
    if a is None:
        tap.add_(b)
    elif strides[1] == 1:
        tap.addmm_(b, a)
    else:
        tap.add_(b @ a)
    return merged


class Geometry(NamedTuple):
    """Settings of a convolution; zero padding, the same on both sides."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    centred: bool
    """Whether the stride is 1 and the centre tap of the first output lies on the first input."""


def geometry(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Geometry:
    """The settings of a convolution with zero padding; what can be said of it beforehand."""
    centred = set(stride) == {1} and all(
        taps // 2 * step == pad for taps, step, pad in zip(kernel, dilation, padding, strict=True)
    )
    return Geometry(stride, padding, dilation, groups, centred)


def adapted_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor, a: Tensor | None, how: Geometry
) -> Tensor:
    """Convolve ``[n, in, *space]`` by the merged weight, with zero padding.

    ``b`` and ``a`` as in :func:`merge_tap`. Every tensor gets the gradient that it would get from a
    convolution by the merged weight.
    """
    if _trains(b, a) and not weight.requires_grad:
        result: Tensor = _Conv.apply(x, weight, bias, b, a, how)
        return result
    with _exact(x):
        merged = merge_tap(weight, b, a)
    return _convolve(x, merged, bias, how)


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor, a: Tensor | None
) -> Tensor:
    """Map ``[..., in]`` to ``[..., out]`` by the merged weight; gradients as autograd's own."""
    if _trains(b, a) and not weight.requires_grad:
        result: Tensor = _Linear.apply(x, weight, bias, b, a)
        return result
    with _exact(x):
        merged = merge_tap(weight, b, a)
    return F.linear(x, merged, bias)


def _trains(b: Tensor, a: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (b.requires_grad or (a is not None and a.requires_grad))


def _projects(a: Tensor | None) -> bool:
    """Whether ``A x`` is so much smaller than x that two products beat the one of ``g x^T``."""
    return a is not None and a.shape[1] > 2 * a.shape[0]


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, how: Geometry) -> Tensor:
    out: Tensor = torch.convolution(
        x,
        weight,
        bias,
        how.stride,
        how.padding,
        how.dilation,
        False,
        (0,) * (x.ndim - 2),
        how.groups,
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
    ) -> Tensor:
        low = _autocast_type(x)
        ctx.how, ctx.shape = how, x.shape
        projects = how.groups == 1 and _projects(a)
        z = None
        with _exact(x):
            x = _cast(x, low)
            merged = _cast(merge_tap(weight, b, a), low)
            y = _convolve(x, merged, None if bias is None else _cast(bias, low), how)
            if projects and a is not None:
                z = _pointwise(_seen_by_tap(x, y.shape, weight.shape[2:], how), _cast(a, low))
        needs_x = not projects or ctx.needs_input_grad[4]
        ctx.save_for_backward(merged, b, a, z, x if needs_x else None)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _once(_conv_gradients, ctx, g)


def _conv_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    merged, b, a, z, x = ctx.saved_tensors
    how = ctx.how
    needs_x, _, needs_bias, needs_b, needs_a, _ = ctx.needs_input_grad
    dx: Tensor | None = None
    dbias: Tensor | None = None
    with _exact(g):
        if needs_x:
            dx = _spread(g, merged, ctx.shape, how)
        if needs_bias:
            dbias = g.sum([d for d in range(g.ndim) if d != 1])
        if z is not None:
            db = _correlate(g, z) if needs_b else None
            da = None
            if needs_a:
                seen = _seen_by_tap(x, g.shape, merged.shape[2:], how)
                da = _correlate(_pointwise(g, b.t().to(g.dtype)), seen)
        else:
            seen = _seen_by_tap(x, g.shape, merged.shape[2:], how)
            db, da = _factors(_correlate(g, seen, how.groups), b, a, needs_b, needs_a)
    return dx, None, dbias, db, da, None


class _Linear(torch.autograd.Function):
    """One adapted linear layer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor, a: Tensor | None
    ) -> Tensor:
        low = _autocast_type(x)
        ctx.shape = x.shape
        projects = _projects(a)
        z = None
        with _exact(x):
            rows = _cast(x.reshape(-1, x.shape[-1]), low)
            if projects and a is not None:
                z = rows @ _cast(a, low).t()
            # Merging touches every weight: with few rows, the product beside it is less work.
            ctx.merges = z is None or weight.numel() <= len(rows) * sum(weight.shape)
            merged = _cast(merge_tap(weight, b, a) if ctx.merges else weight, low)
            y = F.linear(rows, merged, None if bias is None else _cast(bias, low))
            if z is not None and not ctx.merges:
                y.addmm_(z, _cast(b, low).t())
        needs_x = not projects or ctx.needs_input_grad[4]
        ctx.save_for_backward(merged, b, a, z, rows if needs_x else None)
        return y.view(*ctx.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _once(_linear_gradients, ctx, g)


def _linear_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    merged, b, a, z, rows = ctx.saved_tensors
    needs_x, _, needs_bias, needs_b, needs_a = ctx.needs_input_grad
    dx: Tensor | None = None
    with _exact(g):
        g = g.reshape(-1, g.shape[-1])
        h = g @ b.to(g.dtype) if z is not None and (needs_a or not ctx.merges) else g
        if needs_x and ctx.merges:
            dx = (g @ merged).view(ctx.shape)
        elif needs_x:
            dx = (g @ merged).addmm_(h, a.to(g.dtype)).view(ctx.shape)
        if z is not None:
            db = _product(g, z) if needs_b else None
            da = _product(h, rows) if needs_a else None
        else:
            db, da = _factors(_product(g, rows), b, a, needs_b, needs_a)
        dbias = g.sum(0) if needs_bias else None
    return dx, None, dbias, db, da


_Gradients = Callable[[Any, Tensor], tuple[Tensor | None, ...]]


def _once(gradients: _Gradients, ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """Compute gradients; theirs are refused, at a price only where somebody may want them."""
    if torch.is_grad_enabled():
        gradients = once_differentiable(gradients)
    return gradients(ctx, g)


def _factors(
    change: Tensor, b: Tensor, a: Tensor | None, needs_b: bool, needs_a: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The factors' gradients from that of the whole change."""
    change = change.to(b.dtype)
    if a is None:
        return change, None
    return change @ a.t() if needs_b else None, b.t() @ change if needs_a else None


def _product(g: Tensor, x: Tensor) -> Tensor:
    """``g^T x`` of rows; this order of the factors is up to three times as fast as the other."""
    return (x.t() @ g).t()


def _autocast_type(x: Tensor) -> torch.dtype | None:
    """What autocast computes convolutions and products of ``x`` in; ``None`` without autocast."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def _exact(x: Tensor) -> AbstractContextManager[Any]:
    """Keep autocast out: what is cast is cast by hand, and merging keeps the weights' precision."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _cast(value: Tensor, to: torch.dtype | None) -> Tensor:
    return value if to is None else value.to(to)


def _seen_by_tap(x: Tensor, out: Sequence[int], kernel: Sequence[int], how: Geometry) -> Tensor:
    """The part of ``x`` that the centre tap multiplies: one value for each of the output's."""
    if how.centred and out[2:] == x.shape[2:]:
        return x  # said at once, since it is so nearly everywhere
    pads: list[int] = []
    window: list[slice] = [slice(None), slice(None)]
    for size, length, taps, stride, padding, dilation in zip(
        x.shape[2:], out[2:], kernel, how.stride, how.padding, how.dilation, strict=True
    ):
        first = taps // 2 * dilation - padding
        last = first + (length - 1) * stride + 1
        before = max(-first, 0)
        pads = [before, max(last - size, 0), *pads]
        window.append(slice(first + before, last + before, stride))
    if any(pads):
        x = F.pad(x, pads)
    return x[tuple(window)]


def _by_rows(x: Tensor) -> bool:
    """Whether a product of matrices over positions is the faster way; see ``_FEW_ROWS``."""
    if x.ndim != 4 or x.stride(1) != 1:
        return False
    return x.dtype != torch.float32 or not x.is_cpu or x.numel() <= _FEW_ROWS * x.shape[1]


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _pointwise(x: Tensor, matrix: Tensor) -> Tensor:
    """``matrix [r, c]`` applied at every position of ``[n, c, *space]``."""
    if _by_rows(x):
        n, _, height, width = x.shape
        return (_rows(x) @ matrix.t()).view(n, height, width, len(matrix)).permute(0, 3, 1, 2)
    ones, zeros = [1] * (x.ndim - 2), [0] * (x.ndim - 2)
    kernel = matrix.reshape(*matrix.shape, *ones)
    return torch.convolution(x, kernel, None, ones, zeros, ones, False, zeros, 1)


def _correlate(g: Tensor, x: Tensor, groups: int = 1) -> Tensor:
    """``sum over positions of g x^T``, ``[out, in / groups]``."""
    if groups == 1 and _by_rows(g) and _by_rows(x):
        return _product(_rows(g), _rows(x))
    ones, zeros = [1] * (x.ndim - 2), [0] * (x.ndim - 2)
    kernel = g.new_empty(g.shape[1], x.shape[1] // groups, *ones)
    mask = [False, True, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        g, x, kernel, None, ones, zeros, ones, False, zeros, groups, mask
    )[1]
    return found.flatten(1)
