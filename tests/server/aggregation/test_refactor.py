"""The refactored mean of products against dense arithmetic, one coordinate at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import UpdateShapeError
from fedsprig.graph import restrict
from fedsprig_server.aggregation import Contribution, aggregate
from fedsprig_server.aggregation.refactor import Part, refactor

Layer = tuple[np.ndarray, np.ndarray, list[Part]]


def dense_mean(b: np.ndarray, a: np.ndarray, parts: list[Part]) -> np.ndarray:
    """The mean product, coordinate by coordinate."""
    current = b.astype(np.float64) @ a.astype(np.float64)
    total, weight = np.zeros_like(current), np.zeros_like(current)
    for w, outputs, inputs, part_b, part_a in parts:
        product = part_b.astype(np.float64) @ part_a.astype(np.float64)
        for row, o in enumerate(outputs):
            for column, i in enumerate(inputs):
                total[o, i] += w * product[row, column]
                weight[o, i] += w
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), current)


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def layer(
    rng: np.random.Generator, sizes: tuple[int, int, int], kept: list[tuple[Any, Any]]
) -> Layer:
    outputs, inputs, rank = sizes
    parts = []
    for has_output, has_input in kept:
        o, i = np.flatnonzero(has_output), np.flatnonzero(has_input)
        b, a = rng.normal(size=(len(o), rank)), rng.normal(size=(rank, len(i)))
        parts.append((float(rng.integers(1, 50)), o, i, b.astype("f4"), a.astype("f4")))
    b, a = rng.normal(size=(outputs, rank)), rng.normal(size=(rank, inputs))
    return b.astype(np.float32), a.astype(np.float32), parts


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Small and large layers, so that both ways to the decomposition are taken."""
    sizes = (draw(st.integers(1, 24)), draw(st.integers(1, 24)), draw(st.integers(1, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kept = []
    for _ in range(draw(st.integers(1, 4))):
        flags = [rng.random(size) < draw(st.sampled_from([0.3, 0.8, 1.0])) for size in sizes[:2]]
        for flag in flags:
            flag[rng.integers(len(flag))] = True
        kept.append((flags[0], flags[1]))
    return layer(rng, sizes, kept)


@settings(deadline=None, max_examples=80)
@given(layers())
def test_it_is_the_nearest_product_of_that_rank_to_the_dense_mean(case: Layer) -> None:
    b, a, parts = case
    rank = len(a)
    new_b, new_a, error = refactor(b, a, parts)
    mean = dense_mean(b, a, parts)
    size = np.linalg.norm(mean)
    # Of equally near products (ties of singular values) any will do, so distances are compared.
    best = np.linalg.norm(mean - truncated(mean, rank))
    assert np.linalg.norm(mean - new_b @ new_a) == pytest.approx(best, abs=1e-6 * size)
    assert error == pytest.approx(best / size, abs=1e-6)
    assert new_b.shape == b.shape
    assert new_a.shape == a.shape


def test_both_ways_to_the_decomposition_agree() -> None:
    rng = np.random.default_rng(0)
    flags = [(rng.random(40) < 0.7, rng.random(30) < 0.7) for _ in range(2)]
    b, a, parts = layer(rng, (40, 30, 2), flags)
    factored = refactor(b, a, parts)
    # Padding with factors of zeros changes nothing but the inner size, which forces the dense way.
    wide = [
        (w, o, i, np.pad(pb, ((0, 0), (0, 30))), np.pad(pa, ((0, 30), (0, 0))))
        for w, o, i, pb, pa in parts
    ]
    dense = refactor(b, a, wide)
    np.testing.assert_allclose(factored[0] @ factored[1], dense[0] @ dense[1], atol=1e-9)
    assert factored[2] == pytest.approx(dense[2], abs=1e-9)


def contribution(device: str, b: np.ndarray, a: np.ndarray, index: Any = None) -> Contribution:
    state = {"c.adapter_a": a.astype(np.float32), "c.adapter_b": b.astype(np.float32)}
    return Contribution(device, 2.0, state, index or {}, "s")


def product(state: Any) -> np.ndarray:
    return state["c.adapter_b"].astype(np.float64) @ state["c.adapter_a"].astype(np.float64)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_equal_devices_give_their_product_back(seed: int, devices: int) -> None:
    rng = np.random.default_rng(seed)
    current = contribution("", rng.normal(size=(7, 2)), rng.normal(size=(2, 9))).state
    b, a = rng.normal(size=(7, 2)), rng.normal(size=(2, 9))
    items = [contribution(f"d{n}", b, a) for n in range(devices)]
    result, report = aggregate(current, items, trains="both")
    np.testing.assert_allclose(product(result), product(items[0].state), atol=1e-5)
    assert report.truncation["c"] < 1e-6


def test_the_order_of_arrival_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    items = [
        contribution(f"d{n}", rng.normal(size=(7, 2)), rng.normal(size=(2, 9))) for n in range(4)
    ]
    current = items[0].state
    one, first = aggregate(current, items, trains="both")
    other, second = aggregate(current, items[::-1], trains="both")
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert first.truncation == second.truncation
    assert first.truncation["c"] > 0.01  # four products of rank 2 do not fit into rank 2


def test_averaging_factors_would_have_been_wrong() -> None:
    # Two devices that learned the same product in opposite signs: the mean factors are all zero.
    b, a = np.array([[1.0], [2.0]]), np.array([[3.0, 4.0]])
    current = contribution("", np.zeros((2, 1)), np.ones((1, 2))).state
    items = [contribution("d0", b, a), contribution("d1", -b, -a)]
    result, report = aggregate(current, items, trains="both")
    np.testing.assert_allclose(product(result), b @ a, atol=1e-6)
    assert report.truncation["c"] < 1e-6


def test_a_stays_alive_where_nothing_was_learned_yet() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(size=(2, 9)).astype(np.float32)
    current = contribution("", np.zeros((7, 2)), a).state
    items = [contribution("d0", np.zeros((7, 2)), a), contribution("d1", np.zeros((7, 2)), a)]
    result, report = aggregate(current, items, trains="both")
    np.testing.assert_allclose(product(result), np.zeros((7, 9)), atol=1e-6)
    norms = np.linalg.norm(result["c.adapter_a"], axis=1)
    np.testing.assert_allclose(norms, np.sqrt(np.mean(np.sum(a**2, axis=1))), rtol=1e-5)
    assert report.truncation["c"] == 0


def test_the_rank_is_spent_on_what_is_used_alone() -> None:
    # One device of two inputs out of three: its product has rank 1 and fits. With what the third
    # input once had beside it, the product would have rank 2.
    current = contribution("", np.array([[1.0], [1.0]]), np.array([[0.0, 0.0, 1.0]])).state
    index = {"c.weight": {1: np.array([0, 1])}}
    item = contribution("d", np.array([[1.0], [-1.0]]), np.array([[2.0, 0.0]]), index)
    result, report = aggregate(current, [item], trains="both", within=index)
    np.testing.assert_allclose(product(result)[:, :2], [[2, 0], [-2, 0]], atol=1e-6)
    assert report.truncation["c"] < 1e-6
    assert result["c.adapter_a"][0, 2] == 1  # as it was
    _, whole = aggregate(current, [item], trains="both")
    assert whole.truncation["c"] == pytest.approx(np.sqrt(2 / 10))  # |third column| / |product|


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32))
def test_within_a_mask_it_is_the_nearest_product_there(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept = []
    for _ in range(3):
        flags = [rng.random(9) < 0.6, rng.random(8) < 0.6]
        for flag in flags:
            flag[rng.integers(len(flag))] = True
        kept.append((flags[0], flags[1]))
    b, a, parts = layer(rng, (9, 8, 2), kept)
    items = [
        Contribution(
            f"d{n}",
            weight,
            {"c.adapter_b": part_b, "c.adapter_a": part_a},
            {"c.weight": {0: outputs, 1: inputs}},
            "s",
        )
        for n, (weight, outputs, inputs, part_b, part_a) in enumerate(parts)
    ]
    current = {"c.adapter_b": b, "c.adapter_a": a}
    within = items[0].index
    result, report = aggregate(current, items, trains="both", within=within)
    rows, columns = within["c.weight"][0], within["c.weight"][1]
    mean = dense_mean(b, a, parts)[np.ix_(rows, columns)]
    best = np.linalg.norm(mean - truncated(mean, 2))
    found = product(result)[np.ix_(rows, columns)]
    size = np.linalg.norm(mean)
    assert np.linalg.norm(mean - found) == pytest.approx(best, abs=1e-5 * size)
    assert report.truncation["c"] == pytest.approx(best / size, abs=1e-5)
    others = np.setdiff1d(np.arange(9), rows), np.setdiff1d(np.arange(8), columns)
    np.testing.assert_array_equal(result["c.adapter_b"][others[0]], b[others[0]])
    np.testing.assert_array_equal(result["c.adapter_a"][:, others[1]], a[:, others[1]])


def test_a_layer_that_no_device_has_keeps_its_factors() -> None:
    rng = np.random.default_rng(2)
    current = {
        **contribution("", rng.normal(size=(7, 2)), rng.normal(size=(2, 9))).state,
        "bias": np.zeros(3, np.float32),
    }
    only_bias = Contribution("d", 1.0, {"bias": np.ones(3, np.float32)}, {}, "s")
    result, report = aggregate(current, [only_bias], trains="both")
    np.testing.assert_array_equal(result["c.adapter_a"], current["c.adapter_a"])
    np.testing.assert_array_equal(result["c.adapter_b"], current["c.adapter_b"])
    np.testing.assert_array_equal(result["bias"], np.ones(3))
    assert report.truncation == {}


def test_a_lone_factor_is_refused() -> None:
    rng = np.random.default_rng(2)
    whole = contribution("d", rng.normal(size=(7, 2)), rng.normal(size=(2, 9)))
    half = {"c.adapter_b": whole.state["c.adapter_b"]}
    with pytest.raises(UpdateShapeError, match=r"no c\.adapter_a"):
        aggregate(half, [], trains="both")
    with pytest.raises(UpdateShapeError, match="send both"):
        aggregate(whole.state, [Contribution("d", 1.0, half, {}, "s")], trains="both")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_a_width_of_a_lower_rank_gets_its_own_product_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    full = {
        "x.adapter_a": rng.normal(size=(5, 9)).astype("f4"),
        "x.adapter_b": rng.normal(size=(8, 5)).astype("f4"),
    }
    kept_out, kept_in, rank = np.array([0, 2, 3, 7]), np.array([1, 4, 5, 6, 8]), 2
    index = {
        "x.weight": {0: kept_out, 1: kept_in},
        "x.adapter_a": {0: np.arange(rank)},
        "x.adapter_b": {1: np.arange(rank)},
    }
    state = {
        "x.adapter_a": rng.normal(size=(rank, 5)).astype("f4"),
        "x.adapter_b": rng.normal(size=(4, rank)).astype("f4"),
    }
    device = Contribution(device="d", weight=3.0, state=state, index=index, stratum="s")
    found, report = aggregate(full, [device], trains="both", within=index)
    sent = restrict(found, index)  # what the device gets in the next round
    assert {name: value.shape for name, value in sent.items()} == {
        name: value.shape for name, value in state.items()
    }
    expected = state["x.adapter_b"] @ state["x.adapter_a"]
    np.testing.assert_allclose(sent["x.adapter_b"] @ sent["x.adapter_a"], expected, atol=1e-5)
    assert report.truncation["x"] < 1e-6
