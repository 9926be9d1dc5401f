"""Shrinkage: the device's own noisy score and the library's prior, unit by unit.

Empirical Bayes for normal means (Efron and Morris 1973, "Stein's estimation rule and its
competitors", section 2; Morris 1983, equation 1.9, for unequal variances). The library says about
where a unit's score lies and how far tasks differ in it; the device has measured it on a few
pictures. Each counts by the inverse of its variance.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats64 = NDArray[np.float64]

LEAST: Final = 0.1
"""Of the mean variance of its group, what a unit's variance is at least: a few neighbours that
agree by chance, or a unit that was silent on a few pictures, are no certainty."""
ALONE: Final = 2.0
"""Effective number of neighbours below which weights tell nothing about a spread."""


def shrunk(prior: Floats64, spread: Floats64, own: Floats64, noise: Floats64) -> Floats64:
    """``(m / tau^2 + o / sigma^2) / (1 / tau^2 + 1 / sigma^2)``, element by element.

    Args:
        prior: m, what the library expects.
        spread: tau^2, the variance of tasks around it.
        own: o, what the device measured.
        noise: sigma^2, the variance of that measurement. Where both variances are 0, the library
            is believed.
    """
    trust = spread / np.maximum(spread + noise, np.finfo(np.float64).tiny)
    return np.asarray(prior + trust * (own - prior), np.float64)


def spread_of(values: NDArray[np.float32], shares: Floats64) -> Floats64:
    """How far tasks like the new one differ in each unit's score: a variance ``[units]``.

    The weighted variance around the weighted mean, over ``1 - sum_j w_j^2``, which makes it
    unbiased for independent tasks of one variance, and times ``1 + sum_j w_j^2``: the mean is
    itself uncertain, and as uncertain as a task where it is a single one's scores. Weights that
    rest on less than two tasks tell nothing of the variance: all count equally in that.

    Args:
        values: Normalised scores of at least two neighbours ``[n, units]``.
        shares: Their weights ``[n]``, of sum 1, by which their scores were mixed.
    """
    used, uncertain = shares, float((shares**2).sum())
    if 1 / uncertain < ALONE:
        used = np.full(len(shares), 1 / len(shares))
    centre = used @ values
    variance = used @ np.square(values - centre) / (1 - float((used**2).sum()))
    return np.asarray(variance * (1 + uncertain), np.float64)


def floored(variance: Floats64, starts: NDArray[np.int64], sizes: tuple[int, ...]) -> Floats64:
    """Variances ``[units]``, none below ``LEAST`` of the mean of its group."""
    means = np.add.reduceat(variance, starts) / np.array(sizes)
    return np.maximum(variance, LEAST * np.repeat(means, sizes))
