"""Aggregation against a slow reference that goes coordinate by coordinate, and its invariants."""

from __future__ import annotations

import math
from dataclasses import replace
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


def without(items: list[Contribution], name: str) -> list[Contribution]:
    return [
        replace(item, state={n: value for n, value in item.state.items() if n != name})
        for item in items
    ]


@settings(deadline=None, max_examples=60)
@given(cohorts(factor=True), st.sampled_from(["a", "b"]))
def test_of_two_factors_one_is_averaged_and_the_other_stays(cohort: Any, trains: Any) -> None:
    current, items = cohort
    stays = "c.adapter_b" if trains == "a" else "c.adapter_a"
    items = without(items, stays)
    result, report = aggregate(current, items, trains=trains)
    np.testing.assert_array_equal(result[stays], current[stays])
    assert report.truncation == {}
    for name in current.keys() - {stays}:
        expected = reference_mean(name, current[name], items)
        np.testing.assert_allclose(result[name], expected, rtol=1e-6, atol=1e-7)


def test_taking_turns_by_hand() -> None:
    b, a = np.array([[1.0], [2.0]]), np.array([[3.0, 4.0]])
    current = {"adapter_b": b, "adapter_a": a}

    def device(name: str, weight: float, **state: np.ndarray) -> Contribution:
        return Contribution(name, weight, state, {}, "s")

    first = [
        device("d0", 1, adapter_b=np.array([[5.0], [2.0]])),
        device("d1", 3, adapter_b=np.array([[1.0], [6.0]])),
    ]
    after, _ = aggregate(current, first, trains="b")
    np.testing.assert_array_equal(after["adapter_b"], [[2.0], [5.0]])  # (5 + 3) / 4, (2 + 18) / 4
    np.testing.assert_array_equal(after["adapter_a"], a)
    second = [
        device("d0", 1, adapter_a=np.array([[7.0, 0.0]])),
        device("d1", 3, adapter_a=np.array([[3.0, 4.0]])),
    ]
    after, _ = aggregate(after, second, trains="a")
    np.testing.assert_array_equal(after["adapter_b"], [[2.0], [5.0]])
    np.testing.assert_array_equal(after["adapter_a"], [[4.0, 3.0]])  # (7 + 9) / 4, 12 / 4


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 4), st.sampled_from(["a", "b"]))
def test_the_mean_of_products_is_exact_while_one_factor_stays(
    seed: int, devices: int, trains: Any
) -> None:
    rng = np.random.default_rng(seed)
    current = {name: rng.normal(size=s) for name, s in {**SHAPES, **FACTOR}.items()}
    name = f"c.adapter_{trains}"
    index = index_of(rng.random(OUT) < 0.7, rng.random(IN) < 0.7) if seed % 2 else {}
    kept = restrict(current, index)
    items = [
        Contribution(f"d{n}", n + 1.0, {name: rng.normal(size=kept[name].shape)}, index, "s")
        for n in range(devices)
    ]
    if not all(value.size for value in kept.values()):
        return  # a mask that drops all of a group is no mask
    small = restrict(aggregate(current, items, trains=trains)[0], index)
    products = [
        (item.weight, whole["c.adapter_b"] @ whole["c.adapter_a"])
        for item in items
        for whole in [{**kept, **item.state}]
    ]
    total = sum(weight for weight, _ in products)
    expected = sum(weight * product for weight, product in products) / total
    found = small["c.adapter_b"] @ small["c.adapter_a"]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(cohorts())
def test_what_nobody_has_keeps_its_value_exactly(cohort: Any) -> None:
    current, items = cohort
    result, _ = aggregate(current, items)
    for name, value in result.items():
        had = {where for item in items for where in coordinates(name, item, value.shape)}
        for where in set(np.ndindex(value.shape)) - had:
            assert value[where] == current[name][where]


ways = st.sampled_from(["fixed", "a", "b", "both"])


def trained_so(cohort: Any, way: str) -> tuple[Any, list[Contribution], Any]:
    """A cohort whose devices sent what they send in a round of that kind."""
    current, items = cohort
    if way == "fixed":  # nobody ever sees A
        current = {name: value for name, value in current.items() if name != "c.adapter_a"}
        return current, without(items, "c.adapter_a"), "b"
    stays = {"a": "c.adapter_b", "b": "c.adapter_a", "both": ""}[way]
    return current, without(items, stays), way


@settings(deadline=None, max_examples=80)
@given(cohorts(factor=True, statistics=True), ways, st.randoms())
def test_the_order_of_arrival_does_not_matter(cohort: Any, way: str, random: Any) -> None:
    current, items, trains = trained_so(cohort, way)
    shuffled = list(items)
    random.shuffle(shuffled)
    one, first = aggregate(current, items, trains=trains)
    other, second = aggregate(current, shuffled, trains=trains)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert first.statistics.keys() == second.statistics.keys()
    for stratum, values in first.statistics.items():
        for name, value in values.items():
            np.testing.assert_array_equal(value, second.statistics[stratum][name])


@settings(deadline=None, max_examples=60)
@given(cohorts(factor=True, statistics=True), st.sampled_from(["fixed", "a", "b"]))
def test_equal_contributions_give_themselves_back(cohort: Any, way: str) -> None:
    current, items, trains = trained_so(cohort, way)
    whole = state_of(np.random.default_rng(5), {**SHAPES, **FACTOR, **STATISTICS})
    same = [
        replace(item, state={n: restrict(whole, item.index)[n] for n in item.state})
        for item in items
    ]
    result, report = aggregate(current, same, trains=trains)
    for item in same:
        small = restrict(result, item.index)
        for name in item.state.keys() & small.keys():
            np.testing.assert_array_equal(small[name], item.state[name])
        for name in STATISTICS:
            np.testing.assert_array_equal(report.statistics[item.stratum][name], item.state[name])


@settings(deadline=None, max_examples=80)
@given(cohorts(factor=True, statistics=True), ways)
def test_one_device_is_taken_as_it_is(cohort: Any, way: str) -> None:
    current, (item, *_), trains = trained_so(cohort, way)
    result, report = aggregate(current, [item], trains=trains, within=item.index)
    small = restrict(result, item.index)
    for name in item.state.keys() & small.keys():
        if way == "both" and "adapter" in name:
            continue
        np.testing.assert_array_equal(small[name], item.state[name])
    if way == "both":  # another pair of factors of the same product
        found, expected = (s["c.adapter_b"] @ s["c.adapter_a"] for s in (small, item.state))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert report.truncation["c"] < 1e-6
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
    with pytest.raises(UpdateError, match=r"trained c\.adapter_a, which stays"):
        aggregate(current, [valid(state=trained)])
    other = {**sent, "c.adapter_b": sent["c.adapter_b"] + 1}
    with pytest.raises(UpdateError, match=r"trained c\.adapter_b, which stays"):
        aggregate(current, [valid(state=other)], trains="a")


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(UpdateError, match="'fixed' cannot train: use a, b, both"):
        aggregate({}, [], trains="fixed")  # type: ignore[arg-type]
