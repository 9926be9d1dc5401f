"""Products along the channels of pictures and signals, by whichever kernel is faster.

A product ``M x`` at every position, and the sum over positions of ``g x^T``, can be had as products
of matrices over positions, or as a 1x1 convolution and its weight gradient. On two x86-64 cores
with AVX-512 (ResNet-18 shapes, batch 32, channels-last), microseconds, product / convolution::

                            float32                 bfloat16
    16 to 8 at 32 x 32      M x 308 / 123           70 / 82
                            g x^T 88 / 91           151 / 130
    256 to 8 at 8 x 8       M x 129 / 113           71 / 87
                            g x^T 93 / 92           82 / 153
    512 to 8 at 4 x 4       M x 67 / 95             44 / 73
                            g x^T 70 / 102          45 / 144

So: matrices in channels-last memory, but for float32 with many positions on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_MANY: Final = 2048
"""Positions from which on oneDNN's 1x1 convolution is the faster one in float32."""


class Geometry(NamedTuple):
    """Settings of a convolution with zero padding, the same on both sides."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def seen_by_centre(x: Tensor, out: Sequence[int], kernel: Sequence[int], how: Geometry) -> Tensor:
    """The part of ``x`` that a kernel's centre multiplies: one value for each of the output's.

    Args:
        x: ``[n, in, *space]``.
        out: Shape of the convolution's output.
        kernel: Spatial shape of the kernel.
        how: The convolution.
    """
    firsts = [k // 2 * d - p for k, d, p in zip(kernel, how.dilation, how.padding, strict=True)]
    if not any(firsts) and out[2:] == x.shape[2:]:
        return x
    pads: list[int] = []
    window: list[slice] = [slice(None), slice(None)]
    for first, size, length, stride in zip(firsts, x.shape[2:], out[2:], how.stride, strict=True):
        last = first + (length - 1) * stride + 1
        before = max(-first, 0)
        pads = [before, max(last - size, 0), *pads]
        window.append(slice(first + before, last + before, stride))
    if any(pads):
        x = F.pad(x, pads)
    return x[tuple(window)]


def pointwise(x: Tensor, matrix: Tensor) -> Tensor:
    """``matrix [r, c]`` applied at every position of ``[n, c, *space]``."""
    if _by_rows(x):
        n, _, height, width = x.shape
        return (_rows(x) @ matrix.t()).view(n, height, width, len(matrix)).permute(0, 3, 1, 2)
    ones, zeros = [1] * (x.ndim - 2), [0] * (x.ndim - 2)
    kernel = matrix.reshape(*matrix.shape, *ones)
    return torch.convolution(x, kernel, None, ones, zeros, ones, False, zeros, 1)


def add_pointwise_(y: Tensor, x: Tensor, matrix: Tensor) -> None:
    """Add ``matrix [r, c]`` applied at every position of x to ``y [n, r, *space]``, in place."""
    if _by_rows(x) and y.is_contiguous(memory_format=torch.channels_last):
        y.permute(0, 2, 3, 1).view(-1, y.shape[1]).addmm_(_rows(x), matrix.t())
    else:
        y.add_(pointwise(x, matrix))


def correlate(g: Tensor, x: Tensor, groups: int = 1) -> Tensor:
    """The sum over positions of ``g x^T``, ``[out, in / groups]``.

    Args:
        g: ``[n, out, *space]``.
        x: ``[n, in, *space]``.
        groups: Of the convolution.
    """
    if groups == 1 and _by_rows(g) and _by_rows(x):
        return outer(_rows(g), _rows(x))
    ones, zeros = [1] * (x.ndim - 2), [0] * (x.ndim - 2)
    kernel = g.new_empty(g.shape[1], x.shape[1] // groups, *ones)
    mask = [False, True, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        g, x, kernel, None, ones, zeros, ones, False, zeros, groups, mask
    )[1]
    return found.flatten(1)


def outer(g: Tensor, x: Tensor) -> Tensor:
    """``g^T x`` of rows; this order of the factors is up to three times as fast as the other."""
    return (x.t() @ g).t()


def _by_rows(x: Tensor) -> bool:
    if x.ndim != 4 or x.stride(1) != 1:
        return False
    return x.dtype != torch.float32 or not x.is_cpu or x.numel() <= _MANY * x.shape[1]


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
