"""How many ranks a layer gets when a network is adapted at some rank; one rule, one function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

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
    """The rank in proportion to the narrower kept side, rounded up; then as :func:`by_kept`.

    A layer that keeps all of its units has the whole rank, one that keeps a quarter of its inputs
    or outputs a quarter of it.
    """
    share = min(kept[0] / full[0], kept[1] / full[1])
    return by_kept(max(1, math.ceil(rank * share)), full, kept)


RANK_RULES: Final[Mapping[str, RankRule]] = {
    "layer": by_layer,
    "kept": by_kept,
    "width": by_width,
}
