"""What the README shows must be so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fedsprig.cli import COMMANDS
from fedsprig_sim import sections
from fedsprig_sim.scenario import Scenario

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return text


def test_the_scenario_is_one(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    scenario = Scenario.parse(tomllib.loads(block("toml")), folder=tmp_path)
    expansion = scenario.expand(
        {"old": ["a", "b", "c", "d"], "new": ["hex", "round", "slotted", "star"]}
    )
    assert [len(expansion.library), len(expansion.tasks)] == [4, 1]


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("[base]", sections.BaseSection),
        ("[data.NAME]", sections.DataSection),
        ("[library]", sections.LibrarySection),
        ("[[tasks]]", sections.TaskSection),
        ("[[draws]]", sections.DrawSection),
        ("[devices]", sections.DevicesSection),
        ("[budgets.NAME]", sections.BudgetSection),
        ("[adapter]", sections.AdapterSection),
        ("[rounds]", sections.RoundsSection),
        ("[codecs]", sections.CodecsSection),
        ("[selection]", sections.SelectionSection),
        ("[pruning]", sections.PruningSection),
    ],
)
def test_every_key_is_listed(title: str, model: type[sections.Section]) -> None:
    (line,) = [line for line in README.splitlines() if line.startswith(f"| `{title}`")]
    shown = set(re.findall(r"`([a-z_]+)`", line)) | set(re.findall(r"\[\[library\.(\w+)\]\]", line))
    assert shown == set(model.model_fields)


def test_the_commands_are_those_that_there_are() -> None:
    shown = set(re.findall(r"fedsprig (\w+)", README)) | {"demo"}
    assert set(COMMANDS) <= shown


def test_the_python_example_runs() -> None:
    scope: dict[str, object] = {}
    exec(compile(block("python"), "README.md", "exec"), scope)
    parameters = [sum(p.numel() for p in scope[name].parameters()) for name in ("small", "model")]
    assert parameters[0] < parameters[1] / 2
