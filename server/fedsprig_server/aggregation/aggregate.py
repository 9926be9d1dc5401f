"""One round's aggregation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsprig.adapters import is_statistic
from fedsprig.adapters.factors import TRAINS, Trains, held, is_factor, partner
from fedsprig.errors import UpdateError, UpdateShapeError
from fedsprig.graph.index import KeptIndex, kept_axes, restrict
from fedsprig_server.aggregation.contribution import Contribution, checked
from fedsprig_server.aggregation.means import Statistics, coordinate_mean, pooled_statistics
from fedsprig_server.aggregation.refactor import Part, refactor

Array = NDArray[Any]
_A, _B = "adapter_a", "adapter_b"


@dataclass(frozen=True, slots=True)
class AggregationReport:
    """What went into an aggregation beside the new values.

    Attributes:
        truncation: By layer (module path), the relative error of the refactored product: 0 where
            the rank holds the mean of the products exactly. Empty where one factor stays.
        statistics: stratum -> name -> array at that stratum's width, in place of a full-width
            value: statistics of different masks are statistics of different activations. Strata
            that sent none are absent.
    """

    truncation: dict[str, float]
    statistics: dict[str, Statistics]


def aggregate(
    current: Mapping[str, Array],
    contributions: Sequence[Contribution],
    *,
    trains: Trains = "b",
    within: KeptIndex | None = None,
) -> tuple[dict[str, Array], AggregationReport]:
    """Join the devices' adapters into one.

    Every coordinate becomes the weighted mean over the devices that have it; one that nobody has
    keeps its value. Equal contributions give themselves back, a single one itself, both exactly (as
    a product ``B A``, to rounding, where that is refactored); neither order nor time of arrival
    matters.

    Args:
        current: The adapter in the base model's full coordinates. Statistics in it are passed
            through untouched.
        contributions: From the devices; none leaves everything as it is.
        trains: ``"b"``: A is the same everywhere, B is averaged, and so the product is exact.
            ``"a"``: the same with A and B exchanged. ``"both"``: products are averaged and factored
            again.
        within: What a mask keeps, where the result is for networks of that mask alone: refactoring
            spends the rank on these coordinates only, and leaves the factors elsewhere as they are.

    Returns:
        The new adapter, full coordinates, same names and dtypes; and the report.

    Raises:
        UpdateError: A device twice, a bad weight, or a trained factor that ``trains`` excludes.
        UpdateShapeError: Tensors that are not the adapter's, or not at the device's width.
        NonFiniteUpdateError: NaN or an infinity.
    """
    if trains not in TRAINS:
        raise UpdateError(f"{trains!r:.40} cannot train: use {', '.join(TRAINS)}")
    values = {name: value for name, value in current.items() if not is_statistic(name)}
    items = checked(contributions, {name: value.shape for name, value in values.items()})
    result = {name: np.array(value) for name, value in current.items()}
    truncation: dict[str, float] = {}
    stays = held(values, trains)
    _check_held(values, stays, items)
    if trains == "both":
        for module in _modules(values):
            if (error := _refactor(result, module, items, within or {})) is not None:
                truncation[module.rstrip(".")] = error
    for name, value in values.items():
        if name not in stays and not (trains == "both" and is_factor(name)):
            result[name] = coordinate_mean(name, value, items)
    return result, AggregationReport(truncation, pooled_statistics(items))


def _modules(values: Mapping[str, Array]) -> list[str]:
    """Prefixes (with the dot) of the modules that have both factors."""
    lone = sorted(name for name in values if is_factor(name) and partner(name) not in values)
    if lone:
        raise UpdateShapeError(
            f"{lone[0]} has no {partner(lone[0])}: train A on the devices to refactor"
        )
    return sorted({name.removesuffix(_A) for name in values if name.endswith(_A)})


def _check_held(
    values: Mapping[str, Array], stays: Collection[str], items: Sequence[Contribution]
) -> None:
    """A factor that differs between devices makes the mean of the other one wrong; refuse it."""
    factors = {name: values[name] for name in stays}
    for item in items:
        for name, expected in restrict(factors, item.index).items():
            if name in item.state and not np.array_equal(item.state[name], expected):
                raise UpdateError(
                    f"device {item.device!r} trained {name}, which stays as it is in this round: "
                    "train the other factor, or refactor both"
                )


def _refactor(
    result: dict[str, Array], module: str, items: Sequence[Contribution], within: KeptIndex
) -> float | None:
    """Put the factors of the mean product into ``result``; ``None`` when no device has them."""
    name_a, name_b = module + _A, module + _B
    full_a, full_b = result[name_a], result[name_b]
    rows = kept_axes(name_b, within).get(0, np.arange(len(full_b)))
    columns = kept_axes(name_a, within).get(1, np.arange(full_a.shape[1]))
    # A width may have a lower rank than the whole: the mean is factored at that one.
    ranks = kept_axes(name_a, within).get(0, np.arange(len(full_a)))
    parts: list[Part] = []
    for item in items:
        if (name_a in item.state) != (name_b in item.state):
            raise UpdateShapeError(
                f"device {item.device!r} sent one of {name_a} and {name_b}: send both"
            )
        if name_a not in item.state:
            continue
        outputs = kept_axes(name_b, item.index).get(0, np.arange(len(full_b)))
        inputs = kept_axes(name_a, item.index).get(1, np.arange(full_a.shape[1]))
        _, of_b, to_row = np.intersect1d(outputs, rows, return_indices=True)
        _, of_a, to_column = np.intersect1d(inputs, columns, return_indices=True)
        if len(of_b) and len(of_a):
            b, a = item.state[name_b][of_b], item.state[name_a][:, of_a]
            parts.append((item.weight, to_row, to_column, b, a))
    if not parts:
        return None
    at_b, at_a = np.ix_(rows, ranks), np.ix_(ranks, columns)
    full_b[at_b], full_a[at_a], error = refactor(full_b[at_b], full_a[at_a], parts)
    return error
