"""Correlation of what tasks say of units, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.masks.layout import levelled

CHUNK_ENTRIES: Final = 2048  # bounds the copies in double precision


def group_correlation(
    own: NDArray[np.float32],
    rows: NDArray[np.float32],
    centre: NDArray[np.float64],
    sizes: Sequence[int],
) -> NDArray[np.float64]:
    """Pearson's correlation within each group, averaged over groups by their units.

    Every row is brought to a root mean square of 1 in each group, and the library's mean is taken
    away. What all tasks share (the units that are strong in the base itself) would otherwise make
    all of them look alike. A group that does not vary counts as 0.

    Args:
        own: Of the task, ``[units]``.
        rows: Of entries, ``[entries, units]``.
        centre: Mean of all entries, ``[units]``; see :func:`group_centre`.
        sizes: Units of every group; their sum is ``units``.

    Returns:
        float64 ``[entries]``, from -1 to 1.
    """
    shares = np.array(sizes) / sum(sizes)
    mine = _standard(own[None], centre, sizes)
    found = [np.zeros(0)]
    for start in range(0, len(rows), CHUNK_ENTRIES):
        theirs = _standard(rows[start : start + CHUNK_ENTRIES], centre, sizes)
        found.append(np.add.reduceat(mine * theirs, _starts(sizes), axis=1) @ shares)
    return np.clip(np.concatenate(found), -1.0, 1.0)


def group_centre(rows: NDArray[np.float32], sizes: Sequence[int]) -> NDArray[np.float64]:
    """The mean of rows ``[entries, units]``, each at a root mean square of 1 in every group."""
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), CHUNK_ENTRIES):
        total += levelled(rows[start : start + CHUNK_ENTRIES], sizes).sum(axis=0)
    mean: NDArray[np.float64] = total / max(1, len(rows))
    return mean


def _starts(sizes: Sequence[int]) -> NDArray[np.int64]:
    return np.cumsum(np.array([0, *sizes[:-1]], np.int64))


def _standard(
    rows: NDArray[np.float32], centre: NDArray[np.float64], sizes: Sequence[int]
) -> NDArray[np.float64]:
    """Rows minus the centre, in every group of mean 0 and length 1, or 0 where they are equal."""
    values = levelled(rows, sizes) - centre
    means = np.add.reduceat(values, _starts(sizes), axis=1) / np.array(sizes)
    values -= np.repeat(means, sizes, axis=1)
    lengths = np.sqrt(np.add.reduceat(np.square(values), _starts(sizes), axis=1))
    # At a root mean square of 1, a difference below this is the rounding of single precision.
    lengths = np.where(lengths > 1e-5 * np.sqrt(np.array(sizes)), lengths, np.inf)
    values /= np.repeat(lengths, sizes, axis=1)
    return values
