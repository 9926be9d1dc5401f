from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsprig.errors import ScenarioError
from fedsprig_sim.expand import Expansion
from fedsprig_sim.scenario import Scenario

CLASSES = {"clothes": [f"c{i}" for i in range(10)]}
OLD = {"name": "old", "data": "clothes", "classes": ["c3", 0]}


def expand(draw: dict[str, object], *, seed: int = 0, **more: object) -> Expansion:
    defaults = {"data": "clothes", "prefix": "new", "count": 1, "classes_per_task": 2}
    scenario = Scenario.parse(
        {
            "name": "mine",
            "seed": seed,
            "data": {"clothes": {"kind": "embedded", "name": "fashion"}},
            "library": {"tasks": [OLD]},
            "draws": [{**defaults, **draw}],
            **more,
        }
    )
    return scenario.expand(CLASSES)


def test_names_and_labels_become_classes() -> None:
    (task,) = expand({}).library
    assert task.classes == ("c3", "c0")
    assert task.labels == (3, 0)
    assert task.devices == ()


@given(seed=st.integers(0, 2**32 - 1), per_task=st.integers(2, 10), count=st.integers(1, 12))
def test_draws_share_no_class_until_the_pool_is_dealt(seed: int, per_task: int, count: int) -> None:
    tasks = expand({"classes_per_task": per_task, "count": count}, seed=seed).tasks
    assert [task.name for task in tasks] == [f"new-{i + 1}" for i in range(count)]
    assert all(len(set(task.labels)) == per_task for task in tasks)
    per_pass = 10 // per_task
    for start in range(0, count, per_pass):
        dealt = [label for task in tasks[start : start + per_pass] for label in task.labels]
        assert len(set(dealt)) == len(dealt)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    first, again, other = (expand({"count": 5}, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert [t.labels for t in first.tasks] != [t.labels for t in other.tasks]
    assert {t.seed for t in first.tasks}.isdisjoint(t.seed for t in other.tasks)


def test_another_draw_changes_nothing_of_the_first() -> None:
    alone = expand({"count": 3})
    both = expand({"count": 3}, library={"tasks": [OLD], "draws": [
        {"data": "clothes", "prefix": "more", "count": 2, "classes_per_task": 4}
    ]})  # fmt: skip
    assert alone.tasks == both.tasks


def test_cameras_and_budgets_are_dealt_in_turn() -> None:
    expansion = expand(
        {"count": 3, "cameras": ["plain", "invert"]},
        devices={"per_task": 4, "budgets": ["large", "small"]},
    )
    assert [task.camera for task in expansion.tasks] == ["plain", "invert", "plain"]
    devices = expansion.tasks[0].devices
    assert [device.budget for device in devices] == ["large", "small", "large", "small"]
    assert devices[1].name == "new-1.device-2"
    seeds = [device.seed for task in expansion.tasks for device in task.devices]
    assert len(set(seeds)) == 12


def test_budgets_go_on_where_the_task_before_left_off() -> None:
    expansion = expand(
        {"count": 2}, devices={"per_task": 3, "budgets": ["small", "small", "large"]}
    )
    dealt = [[device.budget for device in task.devices] for task in expansion.tasks]
    assert dealt == [["small", "small", "large"], ["small", "small", "large"]]
    odd = expand({"count": 2}, devices={"per_task": 3, "budgets": ["small", "large"]})
    dealt = [[device.budget for device in task.devices] for task in odd.tasks]
    assert dealt == [["small", "large", "small"], ["large", "small", "large"]]


def test_all_budgets_are_dealt_where_none_is_named() -> None:
    (task,) = expand({}, devices={"per_task": 3}).tasks
    assert [device.budget for device in task.devices] == ["small", "medium", "large"]


@pytest.mark.parametrize(
    ("pool", "allowed"),
    [({"first": 2, "last": 4}, {2, 3, 4}), (["c7", 9, "c0"], {7, 9, 0}), (None, set(range(10)))],
)
def test_pools(pool: object, allowed: set[int]) -> None:
    tasks = expand({"count": 20} | ({} if pool is None else {"pool": pool})).tasks
    assert {label for task in tasks for label in task.labels} == allowed


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ({"classes_per_task": 11}, "11 classes per task are more than the 10 of its pool"),
        ({"pool": ["c0", "c11"]}, "draw new: unknown class 'c11': did you mean 'c1'?"),
        ({"pool": [0, 10]}, "draw new: label 10 is out of range: there are 10 classes"),
        ({"pool": [0, "c0"]}, "draw new: class 'c0' is there twice"),
        ({"pool": {"first": 8, "last": 12}}, "label 10 is out of range"),
    ],
)
def test_what_cannot_be_drawn(draw: dict[str, object], message: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        expand(draw)
    assert message in str(raised.value)


def test_two_tasks_of_one_name() -> None:
    with pytest.raises(ScenarioError, match="two tasks are called old"):
        expand({}, tasks=[OLD])
