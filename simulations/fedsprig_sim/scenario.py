"""A scenario: everything that determines a simulated run, as one strict TOML file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

from fedsprig.errors import ScenarioError
from fedsprig.spelling import unknown
from fedsprig_sim.expand import Expansion, expand
from fedsprig_sim.sections import (
    AdapterSection,
    Arm,
    BaseSection,
    BudgetSection,
    CodecsSection,
    DataSection,
    DevicesSection,
    DrawSection,
    LibrarySection,
    Name,
    PruningSection,
    RoundsSection,
    Runtime,
    Section,
    SelectionSection,
    StartSection,
    TaskSection,
)

__all__ = ["Scenario", "embedded_scenario", "embedded_scenarios"]

_LARGEST_FILE_BYTES = 1 << 20


class Scenario(Section):
    """One simulated run. The same scenario and seed give the same figures in every runtime."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    base: BaseSection = BaseSection()
    data: dict[Name, DataSection]
    library: LibrarySection
    tasks: tuple[TaskSection, ...] = ()
    """New tasks, written out."""
    draws: tuple[DrawSection, ...] = ()
    """New tasks, drawn."""
    devices: DevicesSection = DevicesSection()
    budgets: Annotated[dict[Name, BudgetSection], Field(min_length=1)] = Field(
        default_factory=lambda: {
            "small": BudgetSection(macs_ratio=0.15),
            "medium": BudgetSection(macs_ratio=0.25),
            "large": BudgetSection(macs_ratio=0.4),
        }
    )
    adapter: AdapterSection = AdapterSection()
    rounds: RoundsSection = RoundsSection()
    codecs: CodecsSection = CodecsSection()
    selection: SelectionSection = SelectionSection()
    start: StartSection = StartSection()
    pruning: PruningSection | None = None
    """Without it, networks stay as they were cut."""
    compare: tuple[Arm, ...] = ("magnitude", "random", "full_finetune")
    """What the one-shot masks are compared with, at the same budgets, pictures and steps."""
    runtime: Runtime = "in-process"
    workers: Annotated[int, Field(ge=1)] = 2
    """Devices that compute at the same time."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        library = self.library
        new: tuple[TaskSection | DrawSection, ...] = (*self.tasks, *self.draws)
        if not (library.tasks or library.draws):
            raise ValueError("the library has no task: add [[library.tasks]] or [[library.draws]]")
        if not new:
            raise ValueError("there is no new task: add [[tasks]] or [[draws]]")
        everything: tuple[TaskSection | DrawSection, ...]
        everything = (*library.tasks, *library.draws, *new)
        for item in everything:
            title = item.name if isinstance(item, TaskSection) else item.prefix
            if item.data not in self.data:
                raise ValueError(f"task {title}: " + unknown("data", item.data, self.data))
        for budget in self.devices.budgets:
            if budget not in self.budgets:
                raise ValueError("devices: " + unknown("budget", budget, self.budgets))
        if self.pruning is not None:
            self._check_pruning(self.pruning)
        if self.start.heal_steps and self.rounds.sharing:
            raise ValueError("widths that are healed share no weights: set rounds.sharing to 0")
        if len(set(self.compare)) < len(self.compare):
            raise ValueError("compare names an arm twice")
        return self

    def _check_pruning(self, pruning: PruningSection) -> None:
        if self.start.heal_steps:
            raise ValueError("pruning cuts from the base again: set start.heal_steps to 0")
        last = pruning.every * pruning.cuts
        if last >= self.rounds.count:
            raise ValueError(
                f"pruning: the last cut follows round {last} of {self.rounds.count}, and nothing "
                f"trains after it: raise rounds.count to {last + 1} or more"
            )
        if self.adapter.rank_rule != "layer":
            raise ValueError('pruning needs adapter.rank_rule = "layer", whose ranks no cut lowers')
        if self.selection.round_to != 1:
            raise ValueError("pruning drops single units: leave selection.round_to away")

    @classmethod
    def load(cls, path: Path | str, *, data: Mapping[str, Path | str] | None = None) -> Scenario:
        """Read a scenario file.

        Args:
            path: TOML file. Relative paths in it are relative to its folder.
            data: Paths that replace those of data sections of the same name.

        Raises:
            ScenarioError: What cannot be read, is misspelt, contradicts itself, or names data that
                are not there.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                # A device file or a pipe has no size to ask for.
                text = file.read(_LARGEST_FILE_BYTES + 1)
            if len(text) > _LARGEST_FILE_BYTES:
                raise ScenarioError(f"{path} is larger than 1 MiB: is it a scenario?")
            tables = tomllib.loads(text.decode())
        except FileNotFoundError:
            raise ScenarioError(f"there is no scenario {path}: check the path") from None
        except OSError as error:
            raise ScenarioError(f"{path} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ScenarioError(f"{path} is no TOML: {error}") from None
        return cls.parse(tables, source=str(path), folder=path.parent, data=data)

    @classmethod
    def parse(
        cls,
        tables: Mapping[str, Any],
        *,
        source: str = "scenario",
        folder: Path | None = None,
        data: Mapping[str, Path | str] | None = None,
    ) -> Scenario:
        """A scenario from tables as TOML gives them; the arguments are those of `load`."""
        try:
            # By way of JSON: only there does pydantic's strict mode take an array for a tuple and
            # a string for a path.
            scenario = cls.model_validate_json(json.dumps(tables, default=str))
        except ValidationError as error:
            raise ScenarioError(f"{source}: {_explain(error)}") from None
        replaced = dict(data or {})
        for name in replaced:
            if name not in scenario.data:
                raise ScenarioError(f"{source}: --data: " + unknown("data", name, scenario.data))
        sections = {}
        for name, section in scenario.data.items():
            given = replaced.get(name, section.path)
            if given is None:
                if section.kind != "embedded":
                    raise ScenarioError(
                        f"{source}: data.{name} has no path: add --data {name}=PATH"
                    )
                sections[name] = section
                continue
            place = Path(given).expanduser()
            if name not in replaced and folder is not None:
                place = folder / place
            if not place.exists():
                raise ScenarioError(
                    f"{source}: data.{name}: there is no {place}: "
                    f"correct its path or add --data {name}=PATH"
                )
            sections[name] = section.model_copy(update={"path": place})
        base = scenario.base
        if folder is not None and base.weights.endswith(".safetensors"):
            base = base.model_copy(update={"weights": str(folder / base.weights)})
        return scenario.model_copy(update={"data": sections, "base": base})

    def expand(self, classes: Mapping[str, Sequence[str]]) -> Expansion:
        """All tasks with their classes and devices.

        Args:
            classes: Class names of every data section, in the order of its labels.

        Raises:
            ScenarioError: A class that does not exist, or two tasks of one name.
        """
        return expand(self, classes)


def embedded_scenarios() -> tuple[str, ...]:
    """Names of the scenarios inside the package."""
    folder = resources.files("fedsprig_sim") / "scenarios"
    return tuple(
        sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
    )


def embedded_scenario(name: str) -> Scenario:
    """A scenario of the package; it needs no file from elsewhere.

    Raises:
        ScenarioError: The package has no scenario of this name.
    """
    if name not in embedded_scenarios():
        raise ScenarioError(unknown("embedded scenario", name, embedded_scenarios()))
    text = (resources.files("fedsprig_sim") / "scenarios" / f"{name}.toml").read_text("utf-8")
    return Scenario.parse(tomllib.loads(text), source=f"embedded scenario {name}")


def _explain(error: ValidationError) -> str:
    """The first problem in one line; a misspelt key goes first, as it explains a missing one."""
    problems = error.errors(include_url=False)
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    where = [str(part) for part in first["loc"]]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    place = ".".join(where)
    if first["type"] == "extra_forbidden":
        keys = _keys_at(Scenario, where[:-1])
        return f"{unknown('key', where[-1], keys, place=place)}{more}"
    if first["type"] == "missing":
        return f"key {place} is missing{more}"
    text = first["msg"].removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    return f"{place}: {text}{more}" if place else f"{text}{more}"


def _keys_at(model: type[BaseModel], where: list[str]) -> list[str]:
    """Keys of the section that a path of an error leads to."""
    for part in where:
        field = model.model_fields.get(part)
        if field is not None:
            model = _section_in(field.annotation) or model
    return list(model.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as ``dict[str, DataSection]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, dict, tuple, Annotated):
        return next((s for a in get_args(annotation) if (s := _section_in(a))), None)
    return None
