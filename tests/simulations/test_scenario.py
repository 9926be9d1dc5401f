from __future__ import annotations

from pathlib import Path

import pytest

from fedsprig.errors import ScenarioError
from fedsprig_sim.scenario import Scenario, embedded_scenario, embedded_scenarios
from fedsprig_sim.sections import BudgetSection, parse_bytes

SCENARIOS = Path(__file__).parents[2] / "simulations" / "scenarios"

TABLES = {
    "name": "mine",
    "data": {"clothes": {"kind": "embedded", "name": "fashion"}},
    "library": {"tasks": [{"name": "old", "data": "clothes", "classes": ["Bag", "Shirt"]}]},
    "tasks": [{"name": "new", "data": "clothes", "classes": [0, "Coat"], "camera": "invert"}],
}


def parse(**changes: object) -> Scenario:
    return Scenario.parse({**TABLES, **changes}, source="my.toml")


def test_defaults_make_a_whole_scenario() -> None:
    scenario = parse()
    assert scenario.seed == 0
    assert scenario.base.model == "sprig20"
    assert list(scenario.budgets) == ["small", "medium", "large"]
    assert scenario.compare == ("magnitude", "random", "full_finetune")
    assert scenario.tasks[0].classes == (0, "Coat")


def test_json_form_is_a_scenario_again() -> None:
    scenario = parse(budgets={"tiny": {"weight_bytes": "1.5MB"}})
    assert Scenario.parse(scenario.model_dump(mode="json", exclude_none=True)) == scenario


@pytest.mark.parametrize("name", embedded_scenarios())
def test_embedded_scenarios_are_read(name: str) -> None:
    assert embedded_scenario(name).name == name


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_scenarios_are_read(path: Path, tmp_path: Path) -> None:
    with_paths = {
        "cifar100": ["cifar100"],
        "heterogeneous": ["cifar10", "cifar100", "steel", "tiny"],
        "lite0": ["cifar100", "steel", "tiny"],
        "smoke": [],
    }
    scenario = Scenario.load(path, data=dict.fromkeys(with_paths[path.stem], tmp_path))
    assert scenario.name == path.stem


def test_demo_is_as_large_as_promised() -> None:
    demo = embedded_scenario("demo")
    classes = {"fashion": [str(i) for i in range(10)], "digits": [str(i) for i in range(10)]}
    names = {c: None for t in demo.tasks for c in t.classes if t.data == "fashion"}
    classes["fashion"] = [*names, *classes["fashion"]][:10]
    tasks = demo.expand(classes).tasks
    devices = [device for task in tasks for device in task.devices]
    assert len(tasks) >= 4
    assert len(devices) >= 12
    assert len({device.budget for device in devices}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nam": 1}, "my.toml: unknown key nam: did you mean 'name'?"),
        ({"rounds": {"cout": 3}}, "my.toml: unknown key rounds.cout: did you mean 'count'?"),
        (
            {"tasks": [{"name": "a", "data": "clothes", "clases": [0, 1]}]},
            "my.toml: unknown key tasks.0.clases: did you mean 'classes'? (and 1 more)",
        ),
        (
            {"data": {"clothes": {"kind": "embedded", "nme": "fashion"}}},
            "my.toml: unknown key data.clothes.nme: did you mean 'name'?",
        ),
        (
            {"selection": {"xyz": 1}},
            "my.toml: unknown key selection.xyz: there is similarity, rerank, shortlist, "
            "score_mask, temperature, floor, round_to, protect",
        ),
        ({"selection": {"temperature": 1e-320}}, "my.toml: selection.temperature: input should"),
        ({"rounds": {"count": "3"}}, "my.toml: rounds.count: input should be a valid integer"),
        ({"rounds": {"count": 0}}, "my.toml: rounds.count: input should be greater than"),
        ({"rounds": {"learning_rate": float("inf")}}, "my.toml: rounds.learning_rate: input"),
        (
            {"start": {"heal_steps": 3}, "rounds": {"sharing": 0.5}},
            "my.toml: widths that are healed share no weights: set rounds.sharing to 0",
        ),
        (
            {"start": {"heal_steps": 3}, "pruning": {"cuts": 1}},
            "my.toml: pruning cuts from the base again: set start.heal_steps to 0",
        ),
        ({"rounds": {"epochs": 1, "steps": 2}}, "my.toml: rounds: epochs and steps are given both"),
        ({"budgets": {"none": {}}}, "my.toml: budgets.none: a budget needs at least one limit"),
        ({"budgets": {"b": {"macs_ratio": 1.5}}}, "my.toml: budgets.b.macs_ratio: input should"),
        ({"budgets": {"b": {"weight_bytes": "1 mile"}}}, "'1 mile' is no size"),
        ({"devices": {"budgets": ["smal"]}}, "unknown budget 'smal': did you mean 'small'?"),
        ({"compare": ["magnitude", "magnitude"]}, "compare names an arm twice"),
        ({"library": {}}, "the library has no task"),
        ({"tasks": []}, "there is no new task"),
        (
            {"tasks": [{"name": "a", "data": "cloths", "classes": [0, 1]}]},
            "my.toml: task a: unknown data 'cloths': did you mean 'clothes'?",
        ),
        (
            {"tasks": [{"name": "../a", "data": "clothes", "classes": [0, 1]}]},
            "my.toml: tasks.0.name: string should match",
        ),
        ({"tasks": [{"name": "a", "data": "clothes", "classes": [0]}]}, "tasks.0.classes"),
        ({"data": {"clothes": {"kind": "npz"}}}, "data.clothes has no path: add --data clothes="),
        ({"data": {"clothes": {"kind": "embedded"}}}, "embedded data need a name"),
        ({"seed": 2**32}, "my.toml: seed: input should be less than"),
    ],
)
def test_a_wrong_scenario_is_one_line_that_names_the_mend(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ScenarioError) as raised:
        parse(**changes)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


TOML = """
name = "mine"
[data.own]
kind = "npz"
path = "pictures.npz"
[[library.tasks]]
name = "old"
data = "own"
classes = [0, 1]
[[tasks]]
name = "new"
data = "own"
classes = [1, 2]
"""


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    (tmp_path / "pictures.npz").touch()
    assert Scenario.load(tmp_path / "mine.toml").data["own"].path == tmp_path / "pictures.npz"


def test_a_path_from_the_command_line_replaces_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    other = tmp_path / "other.npz"
    other.touch()
    assert Scenario.load(tmp_path / "mine.toml", data={"own": other}).data["own"].path == other


def test_weights_in_a_file_are_relative_to_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML + '[base]\nweights = "base.safetensors"\n')
    (tmp_path / "pictures.npz").touch()
    weights = Scenario.load(tmp_path / "mine.toml").base.weights
    assert weights == str(tmp_path / "base.safetensors")


@pytest.mark.parametrize(
    ("text", "data", "message"),
    [
        (TOML, {}, "data.own: there is no"),
        (TOML, {"on": "x"}, "--data: unknown data 'on': did you mean 'own'?"),
        ("name = ", {}, "is no TOML"),
        ("\xff\xfe", {}, "is no TOML"),
        ("#" * (1 << 20) + "\n", {}, "is larger than 1 MiB"),
        (None, {}, "there is no scenario"),
    ],
)
def test_files_that_cannot_be_run(
    tmp_path: Path, text: str | None, data: dict[str, str], message: str
) -> None:
    if text is not None:
        (tmp_path / "mine.toml").write_text(text, "latin-1")
    with pytest.raises(ScenarioError, match=message):
        Scenario.load(tmp_path / "mine.toml", data=data)


def test_unknown_embedded_scenario() -> None:
    with pytest.raises(ScenarioError, match="did you mean 'demo'"):
        embedded_scenario("dmo")


@pytest.mark.parametrize(
    ("text", "count"),
    [("12B", 12), ("1.5MB", 1_500_000), ("1.5 MiB", 1_572_864), ("2kB", 2000), ("1GiB", 1 << 30)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


def test_limits_carry_the_names_of_the_wire() -> None:
    from fedsprig.wire.budgets import to_wire

    budget = BudgetSection(macs_ratio=0.25, weight_bytes=1000, units=0.5)
    assert budget.limits() == {"macs_ratio": 0.25, "weight_bytes": 1000, "units": 0.5}
    every = dict.fromkeys(BudgetSection.model_fields, 1)
    assert len(to_wire(every).ListFields()) == len(every)


def test_an_endless_file_is_refused_before_memory_is_full() -> None:
    with pytest.raises(ScenarioError, match="1 MiB"):
        Scenario.load("/dev/zero")
