"""Optimal transport between classes against all assignments, one by one."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import LibraryError
from fedsprig.tasks import SIMILARITIES, Evidence, SketchIndex, TaskSketch
from fedsprig.tasks.similarity import cosines
from fedsprig.tasks.similarity.transport import transport_cost

transport = SIMILARITIES["transport"].compare


def sketch(*prototypes: tuple[float, ...]) -> TaskSketch:
    rows = np.array(prototypes, np.float32)
    counts, none = np.ones(len(rows), np.int64), np.zeros(0, np.float32)
    return TaskSketch("a" * 64, rows, counts, ("",) * len(rows), none)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_with_little_entropy_it_is_the_cheapest_assignment(seed: int, classes: int) -> None:
    costs = np.random.default_rng(seed).uniform(0, 2, (3, classes, classes))
    each = range(classes)
    best = [
        min(np.mean([cost[i, order[i]] for i in each]) for order in permutations(each))
        for cost in costs
    ]
    found = transport_cost(costs, epsilon=0.004, iterations=3000)
    np.testing.assert_allclose(found, best, atol=0.02)


def test_a_class_is_shared_out_where_the_numbers_differ() -> None:
    # One class against two: half of it goes to either.
    np.testing.assert_allclose(transport_cost(np.array([[[0.2, 1.0]]])), [0.6])
    np.testing.assert_allclose(transport_cost(np.array([[[0.2], [1.0]]])), [0.6])
    # Three against two: the last class goes to both, and either is full after it.
    costs = np.array([[[0.0, 2.0], [2.0, 0.0], [0.5, 0.5]]])
    np.testing.assert_allclose(transport_cost(costs), [0.5 / 3], atol=1e-6)


def test_no_class_serves_twice() -> None:
    # Both classes of the task are like class 0 of the entry, none is like class 1.
    costs = np.array([[[0.0, 1.0], [0.0, 1.0]]])
    np.testing.assert_allclose(transport_cost(costs), [0.5], atol=1e-6)


def test_hand_computed_similarities() -> None:
    # The centre is (0, 0); cosines of the two classes are 1 and -1 with one entry, 0 with another.
    task = sketch((2, 0), (-1, 0))
    entries = [sketch((5, 0), (-5, 0)), sketch((0, 1), (0, -1)), sketch((1, 0), (-1, 0), (0, 0))]
    index = SketchIndex.build(["same", "other", "more"], entries)
    values = transport(Evidence(task), index)
    # Against three classes, each class of the task gives a third of all to the one without a
    # direction, at a cost of 1.
    np.testing.assert_allclose(values, [1.0, 0.0, 2 / 3], atol=1e-4)
    np.testing.assert_allclose(transport(Evidence(task), index, np.array([1])), values[1:2])
    assert transport(Evidence(task), SketchIndex.build([], [])).shape == (0,)


def test_entries_of_many_sizes_keep_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    made = [sketch(*rng.normal(size=(rng.integers(1, 5), 3))) for _ in range(12)]
    index, task = SketchIndex.build([f"t{n}" for n in range(12)], made), Evidence(made[3])
    one_by_one = [transport(task, index, np.array([n]))[0] for n in range(12)]
    np.testing.assert_allclose(transport(task, index), one_by_one, atol=1e-6)
    monkeypatch.setattr(cosines, "CHUNK_ENTRIES", 5)
    np.testing.assert_allclose(transport(task, index), one_by_one, atol=1e-6)
    assert int(np.argmax(one_by_one)) == 3


@pytest.mark.parametrize(
    ("costs", "changes"),
    [
        (np.full((1, 2, 2), np.nan), {}),
        (np.full((1, 2, 2), np.inf), {}),
        (np.zeros((1, 0, 2)), {}),
        (np.zeros((1, 2, 0)), {}),
        (np.zeros((2, 2)), {}),
        (np.zeros((1, 2, 2)), {"epsilon": 0.0}),
        (np.zeros((1, 2, 2)), {"epsilon": 1e-320}),
        (np.zeros((1, 2, 2)), {"epsilon": np.nan}),
        (np.zeros((1, 2, 2)), {"iterations": 0}),
    ],
)
def test_costs_that_nothing_can_be_transported_at_are_refused(
    costs: np.ndarray, changes: dict[str, Any]
) -> None:
    with pytest.raises(LibraryError, match="transport"):
        transport_cost(costs, **changes)
    assert transport_cost(np.zeros((0, 2, 2))).shape == (0,)
