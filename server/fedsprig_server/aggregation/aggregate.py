"""One round's aggregation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsprig.adapters import is_statistic
from fedsprig.errors import UpdateError, UpdateShapeError
from fedsprig.graph.index import kept_axes, restrict
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
            the rank holds the mean of the products exactly. Empty when A is fixed.
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
    a: Literal["fixed", "refactored"] = "fixed",
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
        a: ``"fixed"``: A is the same everywhere, B is averaged, and so the product is exact.
            ``"refactored"``: A is trained too, products are averaged and factored again.

    Returns:
        The new adapter, full coordinates, same names and dtypes; and the report.

    Raises:
        UpdateError: A device twice, a bad weight, or a trained A although ``a`` is ``"fixed"``.
        UpdateShapeError: Tensors that are not the adapter's, or not at the device's width.
        NonFiniteUpdateError: NaN or an infinity.
    """
    if a not in ("fixed", "refactored"):
        raise UpdateError(f"A cannot be {a!r:.40}: use 'fixed' or 'refactored'")
    values = {name: value for name, value in current.items() if not is_statistic(name)}
    items = checked(contributions, {name: value.shape for name, value in values.items()})
    result = {name: np.array(value) for name, value in current.items()}
    truncation: dict[str, float] = {}
    if a == "refactored":
        for module in _modules(values):
            if (error := _refactor(result, module, items)) is not None:
                truncation[module.rstrip(".")] = error
    else:
        _check_fixed(values, items)
    for name, value in values.items():
        if not (a == "refactored" and _is_factor(name)):
            result[name] = coordinate_mean(name, value, items)
    return result, AggregationReport(truncation, pooled_statistics(items))


def _is_factor(name: str) -> bool:
    return name.rpartition(".")[2] in (_A, _B)


def _modules(values: Mapping[str, Array]) -> list[str]:
    """Prefixes (with the dot) of the modules that have both factors."""
    prefixes = sorted({name.removesuffix(_A) for name in values if name.endswith(_A)})
    lone = sorted(name for name in values if _is_factor(name) and _partner(name) not in values)
    if lone:
        raise UpdateShapeError(
            f"{lone[0]} has no {_partner(lone[0])}: train A on the devices to refactor"
        )
    return prefixes


def _partner(name: str) -> str:
    if name.endswith(_A):
        return name.removesuffix(_A) + _B
    return name.removesuffix(_B) + _A


def _check_fixed(values: Mapping[str, Array], items: Sequence[Contribution]) -> None:
    """A that differs between devices makes the mean of B alone wrong; refuse it."""
    factors = {name: value for name, value in values.items() if name.endswith(_A)}
    for item in items:
        for name, expected in restrict(factors, item.index).items():
            if name in item.state and not np.array_equal(item.state[name], expected):
                raise UpdateError(
                    f"device {item.device!r} trained {name}: aggregate with a='refactored', "
                    "or keep A fixed"
                )


def _refactor(result: dict[str, Array], module: str, items: Sequence[Contribution]) -> float | None:
    """Put the factors of the mean product into ``result``; ``None`` when no device has them."""
    name_a, name_b = module + _A, module + _B
    full_a, full_b = result[name_a], result[name_b]
    parts: list[Part] = []
    for item in items:
        if (name_a in item.state) != (name_b in item.state):
            raise UpdateShapeError(
                f"device {item.device!r} sent one of {name_a} and {name_b}: send both"
            )
        if name_a in item.state:
            outputs = kept_axes(name_b, item.index).get(0, np.arange(len(full_b)))
            inputs = kept_axes(name_a, item.index).get(1, np.arange(full_a.shape[1]))
            parts.append((item.weight, outputs, inputs, item.state[name_b], item.state[name_a]))
    if not parts:
        return None
    new_b, new_a, error = refactor(full_b, full_a, parts)
    result[name_b], result[name_a] = new_b.astype(full_b.dtype), new_a.astype(full_a.dtype)
    return error
