"""How much of each layer goes: from one ranking of all weights at the start of pruning.

Weights that were ranked once over the whole network decide how many each layer loses in the end
(PDP, arXiv 2305.11203; so does global magnitude pruning); which ones is asked again at every step.
Sizes depend on these numbers alone, so a limit that they meet is met whatever is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsprig.masks.costs import BYTES_PER_PARAMETER
from fedsprig.pruning.sparse.soft import hard_mask


def most_dropped(length: int, cap: float) -> int:
    """The most weights that a tensor of ``length`` loses: ``cap`` of it, and never all."""
    return min(length - 1, int(cap * length))


def needed_drops(size: int, parameters: int, limit_bytes: int) -> int:
    """The fewest weights to drop so that a network, stored with its mask, is within a limit.

    It takes ``4 (parameters - dropped) + ceil(size / 8)`` bytes
    (:meth:`fedsprig.masks.WeightMask.stored_bytes`), and without a mask, where nothing is dropped,
    ``4 parameters``.

    Args:
        size: weights under the mask.
        parameters: of the whole network.
        limit_bytes: the limit.

    Returns:
        Possibly more than there are.
    """
    whole = BYTES_PER_PARAMETER * parameters
    if whole <= limit_bytes:
        return 0
    return math.ceil((whole + -(-size // 8) - limit_bytes) / BYTES_PER_PARAMETER)


def global_drops(values: Mapping[str, Tensor], total: int, cap: float) -> dict[str, int]:
    """How many of each tensor's weights are among the ``total`` smallest of all.

    No tensor loses more than ``cap`` of its own: its largest weights are left out of the ranking,
    and other tensors lose more in its place.

    Args:
        values: float ``[1, length]`` by tensor.
        total: at most the sum of :func:`most_dropped`.
        cap: share of a tensor.

    Returns:
        Counts that sum to ``total``.
    """
    ranked = []
    for row in values.values():
        most = most_dropped(row.shape[1], cap)
        keep = hard_mask(row, torch.tensor([most], device=row.device))
        ranked.append(row.detach().abs().float().masked_fill(keep, math.inf))
    together = torch.cat([*ranked, torch.full_like(ranked[0][:, :1], math.inf)], 1)
    gone = ~hard_mask(together, torch.tensor([total], device=together.device))[0]
    parts = torch.split(gone[:-1], [row.shape[1] for row in ranked])
    return {name: int(part.sum()) for name, part in zip(values, parts, strict=True)}
