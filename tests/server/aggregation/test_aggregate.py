"""Aggregation against a slow reference that goes coordinate by coordinate, and its invariants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import NonFiniteUpdateError, UpdateError, UpdateShapeError
from fedsprig.graph.index import KeptIndex, kept_axes, restrict
from fedsprig_server.aggregation import Contribution, aggregate

OUT, IN, RANK, CLASSES = 6, 5, 2, 3
SHAPES = {
    "c.adapter_b": (OUT, RANK),
    "c.bias": (OUT,),
    "n.weight": (OUT,),
    "head.weight": (CLASSES, OUT),
    "head.bias": (CLASSES,),
}
FACTOR = {"c.adapter_a": (RANK, IN)}
STATISTICS = {"n.running_mean": (OUT,), "n.running_var": (OUT,)}


def index_of(outputs: np.ndarray, inputs: np.ndarray) -> KeptIndex:
    """What a mask with these kept outputs and inputs leaves of a convolution and what follows."""
    index: dict[str, dict[int, np.ndarray]] = {"c.weight": {}}
    if not outputs.all():
        kept = np.flatnonzero(outputs)
        index["c.weight"][0] = kept
        for name in ("c.bias", "n.weight", "n.running_mean", "n.running_var"):
            index[name] = {0: kept}
        index["head.weight"] = {1: kept}
    if not inputs.all():
        index["c.weight"][1] = np.flatnonzero(inputs)
    return index


def state_of(rng: np.random.Generator, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


flags = lambda size: st.lists(st.booleans(), min_size=size, max_size=size).filter(any)  # noqa: E731


@st.composite
def cohorts(draw: st.DrawFn, *, factor: bool = False, statistics: bool = False) -> Any:
    """A current adapter and one to five devices with any masks, nested or not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shapes = {**SHAPES, **(FACTOR if factor else {})}
    current = state_of(rng, shapes)
    full = {**shapes, **(STATISTICS if statistics else {})}
    items = []
    for number in range(draw(st.integers(1, 5))):
        outputs, inputs = np.array(draw(flags(OUT))), np.array(draw(flags(IN)))
        index = index_of(outputs, inputs)
        items.append(
            Contribution(
                device=f"d{number}",
                weight=draw(st.sampled_from([1.0, 2.0, 0.5, 37.0])),
                state=restrict(state_of(rng, full), index),
                index=index,
                stratum=f"{outputs.tobytes().hex()}{inputs.tobytes().hex()}",
            )
        )
    return current, items


def coordinates(name: str, item: Contribution, full: tuple[int, ...]) -> dict[Any, float]:
    """Full coordinate -> the device's value there."""
    kept = kept_axes(name, item.index)
    found = {}
    for small in np.ndindex(item.state[name].shape):
        where = tuple(int(kept[a][i]) if a in kept else i for a, i in enumerate(small))
        assert all(0 <= i < size for i, size in zip(where, full, strict=True))
        found[where] = float(item.state[name][small])
    return found


def reference_mean(name: str, current: np.ndarray, items: list[Contribution]) -> np.ndarray:
    result = current.astype(np.float64)
    views = [(item.weight, coordinates(name, item, current.shape)) for item in items]
    for where in np.ndindex(current.shape):
        having = [(weight, view[where]) for weight, view in views if where in view]
        if having:
            total = math.fsum(weight for weight, _ in having)
            result[where] = math.fsum(weight * value for weight, value in having) / total
    return result


@settings(deadline=None, max_examples=60)
@given(cohorts())
def test_every_coordinate_is_the_mean_over_the_devices_that_have_it(cohort: Any) -> None:
    current, items = cohort
    result, _ = aggregate(current, items)
    assert result.keys() == current.keys()
    for name, value in result.items():
        assert value.dtype == current[name].dtype
        expected = reference_mean(name, current[name], items)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(cohorts())
def test_what_nobody_has_keeps_its_value_exactly(cohort: Any) -> None:
    current, items = cohort
    result, _ = aggregate(current, items)
    for name, value in result.items():
        had = {where for item in items for where in coordinates(name, item, value.shape)}
        for where in set(np.ndindex(value.shape)) - had:
            assert value[where] == current[name][where]


@settings(deadline=None, max_examples=40)
@given(cohorts(statistics=True), st.randoms())
def test_the_order_of_arrival_does_not_matter(cohort: Any, random: Any) -> None:
    current, items = cohort
    shuffled = list(items)
    random.shuffle(shuffled)
    one, first = aggregate(current, items)
    other, second = aggregate(current, shuffled)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert first.statistics.keys() == second.statistics.keys()
    for stratum, values in first.statistics.items():
        for name, value in values.items():
            np.testing.assert_array_equal(value, second.statistics[stratum][name])


@settings(deadline=None, max_examples=40)
@given(cohorts(statistics=True))
def test_equal_contributions_give_themselves_back(cohort: Any) -> None:
    current, items = cohort
    whole = state_of(np.random.default_rng(5), {**SHAPES, **STATISTICS})
    same = [
        Contribution(
            item.device, item.weight, restrict(whole, item.index), item.index, item.stratum
        )
        for item in items
    ]
    result, report = aggregate(current, same)
    for item in same:
        for name, value in restrict(result, item.index).items():
            np.testing.assert_array_equal(value, item.state[name])
        for name in STATISTICS:
            np.testing.assert_array_equal(report.statistics[item.stratum][name], item.state[name])


@settings(deadline=None, max_examples=40)
@given(cohorts(statistics=True))
def test_one_device_is_taken_as_it_is(cohort: Any) -> None:
    current, (item, *_) = cohort
    result, report = aggregate(current, [item])
    for name, value in restrict(result, item.index).items():
        np.testing.assert_array_equal(value, item.state[name])
    for name in STATISTICS:
        np.testing.assert_array_equal(report.statistics[item.stratum][name], item.state[name])


def test_no_device_leaves_everything() -> None:
    current = state_of(np.random.default_rng(0), {**SHAPES, **STATISTICS})
    result, report = aggregate(current, [])
    for name, value in current.items():
        np.testing.assert_array_equal(result[name], value)
        assert result[name] is not value  # a later change of one must not reach the other
    assert report.statistics == {}


def with_statistics(device: str, weight: float, mean: float, var: float, **other: Any) -> Any:
    outputs, inputs = np.ones(OUT, bool), np.ones(IN, bool)
    state = {
        "n.running_mean": np.array([mean], np.float32),
        "n.running_var": np.array([var], np.float32),
    }
    values = {"index": index_of(outputs, inputs), "stratum": "s", "state": state, **other}
    return Contribution(device=device, weight=weight, **values)


def test_statistics_of_a_stratum_are_those_of_all_its_activations() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(0, 1, 300), rng.normal(3, 2, 100)
    both = np.concatenate([one, other])
    _, report = aggregate(
        {},
        [
            with_statistics("a", 300, one.mean(), one.var()),
            with_statistics("b", 100, other.mean(), other.var()),
        ],
    )
    pooled = report.statistics["s"]
    np.testing.assert_allclose(pooled["n.running_mean"], [both.mean()], rtol=1e-5)
    np.testing.assert_allclose(pooled["n.running_var"], [both.var()], rtol=1e-5)


def test_statistics_do_not_cross_strata() -> None:
    items = [
        with_statistics("a", 1, 1.0, 1.0),
        with_statistics("b", 5, 2.0, 1.0, stratum="t"),
    ]
    _, report = aggregate({}, items)
    means = {
        stratum: {name: float(value[0]) for name, value in values.items() if "mean" in name}
        for stratum, values in report.statistics.items()
    }
    assert means == {
        "s": {"n.running_mean": 1},
        "t": {"n.running_mean": 2},
    }


def test_statistics_in_the_full_state_pass_through() -> None:
    current = {"n.running_mean": np.full(OUT, 4, np.float32)}
    result, _ = aggregate(current, [with_statistics("a", 1, 1.0, 1.0)])
    np.testing.assert_array_equal(result["n.running_mean"], np.full(OUT, 4))


def valid(**changes: Any) -> Contribution:
    outputs, inputs = np.array([1, 1, 0, 0, 1, 0], bool), np.ones(IN, bool)
    index = index_of(outputs, inputs)
    state = restrict(state_of(np.random.default_rng(3), SHAPES), index)
    values = {"device": "d", "weight": 1.0, "state": state, "index": index, "stratum": "s"}
    return Contribution(**{**values, **changes})


def changed(name: str, value: np.ndarray) -> Contribution:
    return valid(state={**valid().state, name: value})


@pytest.mark.parametrize(
    ("items", "error", "text"),
    [
        ([valid(), valid()], UpdateError, "twice"),
        ([valid(weight=0.0)], UpdateError, "weight"),
        ([valid(weight=float("nan"))], UpdateError, "weight"),
        (
            [changed("c.bias", np.zeros(OUT, np.float32))],
            UpdateShapeError,
            r"its mask leaves \(3,\)",
        ),
        ([changed("other", np.zeros(3, np.float32))], UpdateShapeError, "no part of the adapter"),
        ([changed("c.bias", np.zeros(3, np.int64))], UpdateShapeError, "floats"),
        ([changed("c.bias", np.full(3, np.nan, np.float32))], NonFiniteUpdateError, "c.bias"),
        ([changed("n.running_var", np.full(3, np.inf, np.float32))], NonFiniteUpdateError, "var"),
        ([valid(index={"c.weight": {0: np.array([1, 2, 99])}})], UpdateShapeError, "does not fit"),
        (
            [
                with_statistics("a", 1, 1, 1),
                with_statistics("b", 1, 1, 1, state={"n.running_mean": np.zeros(2, np.float32)}),
            ],
            UpdateShapeError,
            "stratum",
        ),
    ],
)
def test_bad_contributions_are_refused_by_name(items: Any, error: type, text: str) -> None:
    current = state_of(np.random.default_rng(0), SHAPES)
    with pytest.raises(error, match=text) as caught:
        aggregate(current, items)
    assert "\n" not in str(caught.value)


def test_a_trained_a_is_refused_where_it_is_said_to_be_fixed() -> None:
    current = state_of(np.random.default_rng(0), {**SHAPES, **FACTOR})
    item = valid()
    sent = {**item.state, "c.adapter_a": current["c.adapter_a"]}
    result, _ = aggregate(current, [valid(state=sent)])
    np.testing.assert_array_equal(result["c.adapter_a"], current["c.adapter_a"])
    trained = {**sent, "c.adapter_a": current["c.adapter_a"] + 1}
    with pytest.raises(UpdateError, match="refactored"):
        aggregate(current, [valid(state=trained)])


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(UpdateError, match="'fixed' or 'refactored'"):
        aggregate({}, [], a="both")  # type: ignore[arg-type]
