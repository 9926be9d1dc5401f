"""Weighted means over devices: by coordinate for parameters, pooled for statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsprig.adapters import is_statistic
from fedsprig.errors import UpdateShapeError
from fedsprig.graph.index import kept_axes
from fedsprig_server.aggregation.contribution import Contribution

Array = NDArray[Any]
Statistics = dict[str, Array]
Selection = tuple[NDArray[np.int64], ...] | EllipsisType


def coordinate_mean(name: str, current: Array, contributions: Iterable[Contribution]) -> Array:
    """Weighted mean of every coordinate over the devices that have it.

    The mean runs, ``m += (w / W) (v - m)`` in float64 (West 1979, "Updating mean and variance
    estimates"): unlike a sum of ``w v`` divided by the sum of ``w``, it gives back equal values,
    and the value of a single device, exactly.

    Args:
        name: Name of the tensor.
        current: Its full value; coordinates that nobody has keep it.
        contributions: Checked, in a fixed order.

    Returns:
        The new full value.
    """
    mean = np.zeros(current.shape)
    total = np.zeros(current.shape)
    for item in contributions:
        value = item.state.get(name)
        if value is None:
            continue
        where = selection(name, current.shape, item)
        after = total[where] + item.weight
        before = mean[where]
        mean[where] = before + (value - before) * (item.weight / after)
        total[where] = after
    covered = total > 0
    return np.where(covered, mean, current).astype(current.dtype)


def selection(name: str, shape: tuple[int, ...], item: Contribution) -> Selection:
    """Where a device's tensor lies in the full one, as an index for numpy."""
    kept = kept_axes(name, item.index)
    if not kept:
        return ...
    return np.ix_(*(kept[a] if a in kept else np.arange(size) for a, size in enumerate(shape)))


def pooled_statistics(contributions: Sequence[Contribution]) -> dict[str, Statistics]:
    """Normalisation statistics by stratum: those of all its devices' activations together.

    Devices with other masks see other activations, so nothing is shared between strata. Within one,
    means are averaged, and variances by the law of total variance, ``mean(var_i) + var(mean_i)``:
    the plain mean of variances would miss how far the devices are apart.

    Returns:
        stratum -> name -> array at the width of the stratum's sub-network.

    Raises:
        UpdateShapeError: Devices of one stratum sent statistics of different shapes.
    """
    strata: dict[str, list[Contribution]] = {}
    for item in contributions:
        if any(map(is_statistic, item.state)):
            strata.setdefault(item.stratum, []).append(item)
    return {stratum: _pooled(stratum, strata[stratum]) for stratum in sorted(strata)}


def _pooled(stratum: str, items: Sequence[Contribution]) -> Statistics:
    names = {name: value for item in items for name, value in item.state.items()}
    result: Statistics = {}
    for name in sorted(filter(is_statistic, names)):
        for item in items:
            if name in item.state and item.state[name].shape != names[name].shape:
                raise UpdateShapeError(
                    f"device {item.device!r} sent {name} of shape {item.state[name].shape}, others "
                    f"in stratum {stratum[:12]} {names[name].shape}: name its own mask as stratum"
                )
        parts = [(item.weight, item.state) for item in items if name in item.state]
        module, _, kind = name.rpartition(".")
        partner = f"{module}.running_mean" if module else "running_mean"
        spread = kind == "running_var" and all(partner in state for _, state in parts)
        values = _mean([(weight, state[name]) for weight, state in parts])
        if spread:
            values = values + _variance([(weight, state[partner]) for weight, state in parts])
        result[name] = values.astype(names[name].dtype)
    return result


def _mean(parts: Sequence[tuple[float, Array]]) -> NDArray[np.float64]:
    mean, total = np.zeros(parts[0][1].shape), 0.0
    for weight, value in parts:
        total += weight
        mean = mean + (value - mean) * (weight / total)
    return mean


def _variance(parts: Sequence[tuple[float, Array]]) -> NDArray[np.float64]:
    """Weighted variance around the weighted mean, in the same running form: 0 for equal values."""
    mean, squares, total = np.zeros(parts[0][1].shape), np.zeros(parts[0][1].shape), 0.0
    for weight, value in parts:
        total += weight
        off = value - mean
        mean = mean + off * (weight / total)
        squares = squares + weight * off * (value - mean)
    return np.maximum(squares / total, 0.0)
