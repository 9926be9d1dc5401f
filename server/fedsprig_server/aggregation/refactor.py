"""Averaging products: where A is trained too, ``mean(B) mean(A)`` is not ``mean(B A)``.

What a layer computes is ``B A``, so that is what is averaged, and the mean is factored again by a
truncated singular value decomposition (the nearest matrix of that rank: Eckart and Young 1936).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float = NDArray[np.float64]
Part = tuple[float, NDArray[np.int64], NDArray[np.int64], Array, Array]
"""A device's weight, its kept outputs and inputs, its B ``[outputs, r]`` and A ``[r, inputs]``."""


def refactor(
    current_b: Array, current_a: Array, parts: Sequence[Part]
) -> tuple[Float, Float, float]:
    """The factors of the mean product, and how much of it their rank cannot hold.

    The mean is taken by coordinate: element ``(o, i)`` of the product over the devices that keep
    output ``o`` and input ``i``; where there are none, it is that of the current factors. The rows
    of the new A are orthogonal and as long as the current ones (root mean square), so that it goes
    on training where a singular value is 0, and turned to lie as near as possible to the current A.

    Args:
        current_b: ``[outputs, r]``, full width.
        current_a: ``[r, inputs]``, full width.
        parts: The devices', in a fixed order.

    Returns:
        B, A (full width, same rank) and the relative error ``|mean - B A| / |mean|`` (Frobenius).
    """
    rank = len(current_a)
    left, right = _stacked(current_b, current_a, parts)
    rows, inner, columns = len(left), left.shape[1], right.shape[1]
    if inner < min(rows, columns):
        # The product's rank is at most `inner`, so the decomposition of a small core will do.
        basis_left, core_left = np.linalg.qr(left)
        basis_right, core_right = np.linalg.qr(right.T)
        u, s, vt = np.linalg.svd(core_left @ core_right.T)
        u, vt = basis_left @ u, vt @ basis_right.T
    else:
        u, s, vt = np.linalg.svd(left @ right, full_matrices=False)
    whole = float(np.sqrt(np.sum(s**2)))
    lost = float(np.sqrt(np.sum(s[rank:] ** 2)))
    kept = min(rank, len(s))
    scale = float(np.sqrt(np.mean(np.sum(current_a.astype(np.float64) ** 2, axis=1)))) or 1.0
    turn = _nearest_rotation(current_a.astype(np.float64) @ vt[:kept].T)
    new_a = scale * (turn @ vt[:kept])
    new_b = (u[:, :kept] * s[:kept]) @ turn.T / scale
    return new_b, new_a, min(lost / whole, 1.0) if whole > 0 else 0.0


def _nearest_rotation(matrix: Float) -> Float:
    """The matrix with orthonormal columns nearest to ``[r, k]``, ``k <= r`` (Schönemann 1966)."""
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    nearest: Float = u @ vt
    return nearest


def _stacked(current_b: Array, current_a: Array, parts: Sequence[Part]) -> tuple[Float, Float]:
    """``left [outputs, n] @ right [n, inputs]`` = the mean product.

    Outputs that the same devices keep form a pattern. For one pattern, element ``(o, i)`` of the
    mean is ``sum_d w_d B_d[o] A_d[i] / W[i]`` with ``W[i]`` the weight of the pattern's devices
    that keep input ``i``: a product of stacked factors, with ``w_d / W[i]`` put into the right one.
    """
    outputs, inputs = len(current_b), current_a.shape[1]
    has_output = _membership([part[1] for part in parts], outputs)
    has_input = _membership([part[2] for part in parts], inputs)
    weights = np.array([part[0] for part in parts], np.float64)
    patterns, of_row = np.unique(has_output, axis=1, return_inverse=True)
    of_row = of_row.reshape(-1)
    lefts: list[Float] = []
    rights: list[Float] = []
    for number, devices in enumerate(patterns.T):
        rows = np.flatnonzero(of_row == number)
        total = (weights * devices) @ has_input
        for has, part in zip(devices, parts, strict=True):
            if not has:
                continue
            weight, kept_outputs, kept_inputs, b, a = part
            share = np.zeros((len(a), inputs))
            share[:, kept_inputs] = a * (weight / total[kept_inputs])
            block = np.zeros((outputs, b.shape[1]))
            block[rows] = b[np.searchsorted(kept_outputs, rows)]
            lefts.append(block)
            rights.append(share)
        if (untouched := total == 0).any():
            block = np.zeros(current_b.shape)
            block[rows] = current_b[rows]
            lefts.append(block)
            rights.append(np.where(untouched, current_a, 0.0))
    return np.concatenate(lefts, axis=1), np.concatenate(rights, axis=0)


def _membership(kept: Sequence[NDArray[np.int64]], size: int) -> NDArray[np.bool_]:
    flags = np.zeros((len(kept), size), np.bool_)
    for row, positions in zip(flags, kept, strict=True):
        row[positions] = True
    return flags
