"""Masks from magnitudes: PDP's soft ones, and hard ones of exactly a given number.

Cho, Adya and Naik 2023, "PDP: Parameter-free Differentiable Pruning is All You Need", arXiv
2305.11203: a weight lies among the kept with probability ``m`` and among the dropped with
``1 - m``, even at ``t``, the middle between the smallest kept and the largest dropped magnitude:

    [1 - m(w), m(w)] = softmax([t^2 / tau, w^2 / tau]),   m(w) = sigmoid((w^2 - t^2) / tau)

The network computes with ``m(w) w``, whose gradient ``m + 2 w^2 / tau m (1 - m)`` never vanishes
for a weight near the border and is largest there. There is nothing to learn but the weights.

Values come in rows ``[rows, length]``, each pruned by itself: a tensor, a few weights of N:M, or
the norms of a group's units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fedsprig.errors import BudgetError

SOFT: Final = (0.05, 0.95)
"""A mask between them is soft: its weight is neither kept nor dropped."""
_LIMIT: Final = 40.0
"""Where the sigmoid is 1 in float32; beyond it, squares could overflow and gradients be NaN."""
LEAST: Final = 1e-12
"""Of kappa and tau: less would leave the range of float32 where it divides."""
_CLOSEST: Final = 1e-3
"""Of the mean distance, as a share of t^2; equal values would have an endless gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Softness:
    """How soft masks are.

    Attributes:
        kappa: tau as a share of how far squares lie from t^2: ``tau = kappa * mean(min(|w^2 - t^2|,
            t^2))`` over a row. Free of the weights' scale, and of how close together they lie: of
            the norms of a layer's units, all within a few per cent, no more are soft than of its
            weights.
        tau: the paper's fixed number instead (1e-4 for single weights of convolutions): on tensors
            of small weights it is soft everywhere, on norms of large ones nowhere.

    Raises:
        BudgetError: a number that is not above zero.
    """

    kappa: float = 0.05
    tau: float | None = None

    def __post_init__(self) -> None:
        small = self.tau is not None and not LEAST <= self.tau < float("inf")
        if not LEAST <= self.kappa <= 1 or small:
            raise BudgetError(
                f"kappa is {self.kappa} and tau {self.tau}, with their hardening: choose kappa "
                f"from {LEAST:g} to 1, and tau from {LEAST:g} up or none"
            )


@torch.no_grad()
def border(values: Tensor, drop: Tensor) -> Tensor:
    """``t``, the middle between the largest dropped and the smallest kept magnitude of each row.

    Args:
        values: float ``[rows, length]``, of either sign.
        drop: int64 ``[rows]``, from 0 to below ``length``.

    Returns:
        ``[rows, 1]``; of no meaning where nothing is dropped.
    """
    sizes = values.abs()
    if len(sizes) == 1:
        count = max(1, int(drop[0]))
        low, high = (sizes.kthvalue(k, 1, keepdim=True).values for k in (count, count + 1))
    else:
        ordered = sizes.sort(1).values
        at = drop.clamp(min=1).unsqueeze(1)
        low, high = ordered.gather(1, at - 1), ordered.gather(1, at)
    return low + (high - low) / 2


def soft_mask(values: Tensor, drop: Tensor, softness: Softness) -> Tensor:
    """PDP's mask ``m``; gradients flow to the values, and t and tau are constants.

    Args:
        values: float ``[rows, length]``, of either sign; squares are taken in float32 at least.
        drop: int64 ``[rows]``, from 0 to below ``length``.
        softness: tau.

    Returns:
        Of the values' shape and dtype. Rows that drop nothing are 1; in a row with t = 0, whose
        kappa allows no softness, zeros are 1/2 and all else is 1.

    Raises:
        BudgetError: a row would vanish.
    """
    _check(values, drop)
    if not drop.any():
        return torch.ones_like(values)
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    t = border(wide, drop)
    if softness.tau is not None:
        # As a product: the difference of two infinite squares would be no number.
        exponent = (wide - t) * (wide + t) / softness.tau
        mask = exponent.clamp(-_LIMIT, _LIMIT).sigmoid()
    else:
        # Relative to t before squaring: squares of small weights would vanish. Clamped before it:
        # the square of an infinite ratio would have a gradient that is no number.
        some = t >= torch.finfo(wide.dtype).tiny
        ratio = wide / torch.where(some, t, 1)
        with torch.no_grad():
            apart = (ratio.clamp(-2, 2).square() - 1).abs().clamp(max=1).mean(1, keepdim=True)
            tau = softness.kappa * apart.clamp(min=_CLOSEST)
            far = (1 + _LIMIT * tau).sqrt()
        mask = ((ratio.clamp(-far, far).square() - 1) / tau).sigmoid()
        mask = torch.where(some, mask, torch.where(wide == 0, 0.5, 1.0).to(mask))
    return torch.where(drop.unsqueeze(1) > 0, mask, 1).to(values.dtype)


@torch.no_grad()
def hard_mask(values: Tensor, drop: Tensor) -> Tensor:
    """Drop exactly the ``drop`` smallest magnitudes of each row; of equal ones, the first.

    Args:
        values: float ``[rows, length]``, of either sign.
        drop: int64 ``[rows]``, from 0 to below ``length``.

    Returns:
        bool ``[rows, length]``, True = keep.

    Raises:
        BudgetError: a row would vanish.
    """
    _check(values, drop)
    if not drop.any():
        return torch.ones_like(values, dtype=torch.bool)
    sizes = values.abs()
    if len(sizes) == 1:
        last = sizes.kthvalue(int(drop[0]), 1, keepdim=True).values
    else:
        last = sizes.sort(1).values.gather(1, drop.clamp(min=1).unsqueeze(1) - 1)
    below, equal = sizes < last, sizes == last
    room = drop.unsqueeze(1) - below.sum(1, keepdim=True)
    gone = below | (equal & (equal.cumsum(1) <= room))
    return ~(gone & (drop.unsqueeze(1) > 0))


@torch.no_grad()
def ramped(values: Tensor, drop: int, factor: float) -> Tensor:
    """How many each row drops on the way to ``drop``: the smallest of all that will go, first.

    A row of four weights cannot lose a tenth of two. What is to go is ranked over all rows of the
    tensor, and the first ``floor(factor * rows * drop)`` go.

    Args:
        values: float ``[rows, length]``.
        drop: of each row in the end.
        factor: 0 to 1.

    Returns:
        int64 ``[rows]``.
    """
    rows, device = len(values), values.device
    count = int(factor * rows * drop)
    if rows == 1 or count == rows * drop:
        return torch.full((rows,), count // max(1, rows), dtype=torch.int64, device=device)
    # In each row the smallest lie first, so those that go are a beginning of it.
    going = values.abs().sort(1).values[:, :drop].reshape(1, -1)
    kept = hard_mask(going, torch.tensor([count], device=device)).reshape(rows, drop)
    return (~kept).sum(1)


def softly(masks: list[Tensor]) -> float:
    """The soft fraction: share of all values whose mask lies between the bounds of ``SOFT``."""
    low, high = SOFT
    soft = sum(int(((mask > low) & (mask < high)).sum()) for mask in masks)
    return soft / max(1, sum(mask.numel() for mask in masks))


def _check(values: Tensor, drop: Tensor) -> None:
    if drop.shape != values.shape[:1] or bool(((drop < 0) | (drop >= values.shape[1])).any()):
        raise BudgetError(
            f"a row of {values.shape[1]} values loses {drop.tolist()[:4]}: keep at least one"
        )
