"""From the sections of a scenario to concrete tasks and devices, drawn from the scenario's seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from fedsprig.errors import ScenarioError
from fedsprig.seeds import derive_seed
from fedsprig.spelling import unknown
from fedsprig_sim.sections import DrawSection, LabelRange, TaskSection

if TYPE_CHECKING:
    from fedsprig_sim.scenario import Scenario


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A simulated device."""

    name: str
    """``<task>.device-<number from 1>``"""
    budget: str
    """Name of its budget section."""
    seed: int


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A concrete task. A library task has no device."""

    name: str
    data: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    """Label of every class in the source."""
    camera: str
    seed: int
    devices: tuple[DeviceSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Expansion:
    """All tasks of a scenario, in its order; drawn tasks follow those that are written out."""

    library: tuple[TaskSpec, ...]
    tasks: tuple[TaskSpec, ...]


def class_split() -> dict[str, list[str]]:
    """CIFAR-100's classes: the shipped base trained on ``base``, not on ``library`` and ``new``."""
    source = resources.files("fedsprig.models") / "shipped" / "sprig20.json"
    split: dict[str, list[str]] = json.loads(source.read_text("utf-8"))["classes"]
    return split


def expand(scenario: Scenario, classes: Mapping[str, Sequence[str]]) -> Expansion:
    """See `Scenario.expand`."""
    library = [*scenario.library.tasks, *_drawn(scenario.library.draws, classes, scenario.seed)]
    new = [*scenario.tasks, *_drawn(scenario.draws, classes, scenario.seed)]
    seen: set[str] = set()
    for task in (*library, *new):
        if task.name in seen:
            raise ScenarioError(
                f"two tasks are called {task.name}: rename one, or the prefix of a draw"
            )
        seen.add(task.name)
    return Expansion(
        library=tuple(
            _concrete(task, classes[task.data], scenario, devices=0, dealt=0) for task in library
        ),
        tasks=tuple(
            _concrete(
                task,
                classes[task.data],
                scenario,
                devices=scenario.devices.per_task,
                dealt=number * scenario.devices.per_task,
            )
            for number, task in enumerate(new)
        ),
    )


def labels_of(wanted: Sequence[str | int], known: Sequence[str], *, where: str) -> tuple[int, ...]:
    """Labels of classes that are given by name or by label.

    Raises:
        ScenarioError: A class that the source does not have, or one that is given twice.
    """
    labels = []
    for item in wanted:
        if isinstance(item, int):
            if not 0 <= item < len(known):
                raise ScenarioError(
                    f"{where}: label {item} is out of range: there are {len(known)} classes"
                )
            label = item
        elif item in known:
            label = known.index(item)
        else:
            raise ScenarioError(f"{where}: {unknown('class', item, known)}")
        if label in labels:
            raise ScenarioError(f"{where}: class {known[label]!r} is there twice: remove one")
        labels.append(label)
    return tuple(labels)


def _pool(draw: DrawSection, known: Sequence[str]) -> Sequence[str | int]:
    match draw.pool:
        case None:
            return range(len(known))
        case LabelRange(first=first, last=last):
            return range(first, last + 1)
        case str(part):
            return class_split()[part]
        case listed:
            return listed


def _drawn(
    draws: Sequence[DrawSection], classes: Mapping[str, Sequence[str]], seed: int
) -> Iterator[TaskSection]:
    for draw in draws:
        known = classes[draw.data]
        labels = labels_of(_pool(draw, known), known, where=f"draw {draw.prefix}")
        if len(labels) < draw.classes_per_task:
            raise ScenarioError(
                f"draw {draw.prefix}: {draw.classes_per_task} classes per task are more than "
                f"the {len(labels)} of its pool: lower classes_per_task"
            )
        rng = np.random.default_rng(derive_seed(seed, "draw", draw.prefix))
        left: list[int] = []
        for number in range(draw.count):
            if len(left) < draw.classes_per_task:
                left = rng.permutation(labels).tolist()
            dealt, left = left[: draw.classes_per_task], left[draw.classes_per_task :]
            yield TaskSection(
                name=f"{draw.prefix}-{number + 1}",
                data=draw.data,
                classes=tuple(dealt),
                camera=draw.cameras[number % len(draw.cameras)],
            )


def _concrete(
    task: TaskSection, known: Sequence[str], scenario: Scenario, *, devices: int, dealt: int
) -> TaskSpec:
    """A task with its devices; budgets go on where the task before left off after ``dealt``."""
    labels = labels_of(task.classes, known, where=f"task {task.name}")
    budgets = scenario.devices.budgets or tuple(scenario.budgets)
    names = [f"{task.name}.device-{number + 1}" for number in range(devices)]
    return TaskSpec(
        name=task.name,
        data=task.data,
        classes=tuple(known[label] for label in labels),
        labels=labels,
        camera=task.camera,
        seed=derive_seed(scenario.seed, "task", task.name),
        devices=tuple(
            DeviceSpec(
                name=name,
                budget=budgets[(dealt + i) % len(budgets)],
                seed=derive_seed(scenario.seed, "device", name),
            )
            for i, name in enumerate(names)
        ),
    )
