"""How many ranks a layer gets when a network is adapted at some rank; one rule, one function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from fedsprig.graph.index import Kept, KeptIndex
from fedsprig.spelling import lookup

RankRule = Callable[[int, Sequence[int], Sequence[int]], int]
"""From the rank asked for and a weight's shapes ``[out, in / groups, *kernel]``, in the uncut base
and as the mask leaves it, to the layer's rank."""


def by_layer(rank: int, full: Sequence[int], kept: Sequence[int]) -> int:
    """As asked for, but not where that is waste; a cut changes no rank.

    ``B A`` cannot have a rank above ``min(in, out)``, so more is waste, with two sides:

    * Where A and B would have more numbers than the layer itself (the break-even of the paper,
      ``r (in + out) > height width in out``), or where there is one input (depthwise convolutions),
      the rank is capped at ``min(in, out)``.
    * Elsewhere it is as asked for, even above ``min(in, out)``. That is so for the three-channel
      first convolution of a network, at a price of some hundred numbers, and it makes the count of
      parameters that of the paper (Hedegaard et al., arXiv 2211.10155, Table 1).
    """
    out, inputs = full[:2]
    if inputs == 1 or rank * (inputs + out) > math.prod(full):
        return min(rank, inputs, out)
    return rank


def by_kept(rank: int, full: Sequence[int], kept: Sequence[int]) -> int:
    """``min(rank, kept inputs, kept outputs)``: never more than the small layer can use."""
    return min(rank, *kept[:2])


def by_width(rank: int, full: Sequence[int], kept: Sequence[int]) -> int:
    """The rank times the smaller of the two kept shares, rounded up; then as :func:`by_kept`.

    A layer that keeps all of its units has the whole rank, one that keeps a quarter of its inputs
    or of its outputs a quarter of it.
    """
    of_out, of_in = (-(-rank * k // n) for k, n in zip(kept[:2], full[:2], strict=True))
    return by_kept(min(of_out, of_in), full, kept)


RANK_RULES: Final[Mapping[str, RankRule]] = {
    "layer": by_layer,
    "kept": by_kept,
    "width": by_width,
}


def with_ranks(
    index: KeptIndex, shapes: Mapping[str, tuple[int, ...]], rank: int, rule: str
) -> KeptIndex:
    """Kept positions of A's rows and B's columns too, where a cut layer has a lower rank.

    A lower rank has the first rows of a higher one (``splora.draw_a``), so that a narrow network's
    adapter is a part of the wide one's, like everything else of it.

    Args:
        index: What a mask keeps of the base's tensors.
        shapes: Of the base's tensors.
        rank: That was asked for.
        rule: A name in ``RANK_RULES``.

    Raises:
        UnknownNameError: There is no such rule.
    """
    ranks_of = lookup(RANK_RULES, rule, "rank rule")
    lower: dict[str, dict[int, Kept]] = {}
    for name, axes in index.items():
        module, _, suffix = name.rpartition(".")
        full = shapes[name]
        if suffix != "weight" or len(full) < 2:
            continue
        kept = [len(axes[axis]) if axis in axes else size for axis, size in enumerate(full)]
        has, had = ranks_of(rank, full, kept), ranks_of(rank, full, full)
        if has < had:
            prefix = f"{module}." if module else ""
            rows = np.arange(has, dtype=np.int64)
            lower[f"{prefix}adapter_a"] = {0: rows}
            lower[f"{prefix}adapter_b"] = {1: rows}
    return {**index, **lower}
