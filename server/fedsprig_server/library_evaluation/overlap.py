"""How much two masks have in common, and whether two rankings agree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsprig.masks.layout import Layout

Bools = NDArray[np.bool_]
Floats64 = NDArray[np.float64]


def overlap(one: Bools, other: Bools) -> Floats64:
    """Intersection over union of all units, for masks ``[..., units]``: ``[...]``; 1 for none."""
    return _ratio((one & other).sum(axis=-1), (one | other).sum(axis=-1))


def group_overlap(one: Bools, other: Bools, layout: Layout) -> Floats64:
    """The same of every group by itself, averaged over the groups, whatever their widths."""
    both = np.add.reduceat((one & other).astype(np.int64), layout.starts, axis=-1)
    either = np.add.reduceat((one | other).astype(np.int64), layout.starts, axis=-1)
    return np.asarray(_ratio(both, either).mean(axis=-1), np.float64)


def reshuffled(mask: Bools, layout: Layout, rng: np.random.Generator) -> Bools:
    """A mask ``[units]`` of the same widths whose units are drawn."""
    return np.concatenate([rng.permutation(part) for part in layout.split(mask).values()])


def rank_correlation(one: Floats64, other: Floats64) -> float:
    """Spearman's: Pearson's correlation of the ranks, equal values sharing their mean rank.

    Args:
        one: ``[n]``.
        other: ``[n]``.

    Returns:
        From -1 to 1; 0 where all values of one side are equal.
    """
    ranks = [_ranks(values) for values in (one, other)]
    ranks = [values - values.mean() for values in ranks]
    lengths = [float(np.linalg.norm(values)) for values in ranks]
    if not all(lengths):
        return 0.0
    return float(ranks[0] @ ranks[1]) / (lengths[0] * lengths[1])


def _ranks(values: Floats64) -> Floats64:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


def _ratio(both: NDArray[np.int64], either: NDArray[np.int64]) -> Floats64:
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
