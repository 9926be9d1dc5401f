"""What a new task gets from the library, against every other way to a network of that size.

Every case (an arm, a task, a seed) lies in a folder once it is measured, so that a study that was
killed goes on where it stood, and another study with the same cases does not measure them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

import torch

from fedsprig.errors import UnknownNameError
from fedsprig.models import build
from fedsprig.spelling import lookup, unknown
from fedsprig_server.library_build import BuildConfig
from fedsprig_sim.benchmarks.kept import once
from fedsprig_sim.benchmarks.machine import machine
from fedsprig_sim.benchmarks.one_shot_accuracy.arms import ARMS, Arm
from fedsprig_sim.benchmarks.one_shot_accuracy.figure import figure
from fedsprig_sim.benchmarks.one_shot_accuracy.side import HEALING, Known, Side
from fedsprig_sim.benchmarks.one_shot_accuracy.summary import summarise
from fedsprig_sim.benchmarks.one_shot_accuracy.summary import table as _table
from fedsprig_sim.benchmarks.one_shot_accuracy.tasks import NewTask, Split, Tasks
from fedsprig_sim.benchmarks.one_shot_accuracy.trial import LocalSettings, Trains, measure
from fedsprig_sim.progress import Progress, Silence
from fedsprig_sim.scenario import Scenario

__all__ = ["ARMS", "LocalSettings", "Options", "Split", "Trains", "figure", "run", "table"]

DEFAULT_ARMS: Final = ("random", "magnitude", "mean", "weighted", "own taylor")
AGAINST: Final = ("random", "magnitude", "mean", "own taylor", "uncut")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person chooses.

    Attributes:
        scenario: Library, new tasks and pictures.
        model: Base model by name.
        weights: Its weights.
        image_size: Side of its pictures, or its own.
        prepared: Weights of the base that was prepared for cutting, for the arms that use it.
        split: The new tasks (``test``), or tasks of the library whose entry is hidden, to choose
            settings on (``validation``).
        pictures: A class, on the device.
        local: What the device does.
        library: How entries are made.
    """

    scenario: Scenario
    model: str = "sprig20"
    weights: str | None = "shipped"
    image_size: int | None = None
    prepared: str | None = None
    split: Split = "test"
    pictures: int = 40
    local: LocalSettings = field(default_factory=LocalSettings)
    library: BuildConfig = field(default_factory=lambda: BuildConfig(steps=0, workers=1))

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        if self.split not in get_args(Split):
            raise UnknownNameError(unknown("split", self.split, get_args(Split)))


class _Sides:
    """The bases, loaded when an arm first wants one."""

    def __init__(self, folder: Path, tasks: Tasks, options: Options, progress: Progress) -> None:
        self._folder, self._tasks = folder, tasks
        self._options, self._progress = options, progress
        self._loaded: dict[str, Side] = {}

    def of(self, name: str) -> Side:
        if name not in self._loaded:
            self._loaded[name] = self._plain() if name == "plain" else self._prepared()
        return self._loaded[name]

    def require_prepared(self) -> None:
        """Say that weights are missing or do not fit before a library is built.

        Raises:
            UnknownNameError: No weights are given.
            WeightsError: They cannot be read or are of another network.
        """
        if self._options.prepared is None:
            raise UnknownNameError(
                "this arm needs a base that was prepared for cutting: give --prepared FILE"
            )
        options = self._options
        build(
            options.model,
            num_classes=2,
            weights=options.prepared,
            image_size=options.image_size,
        )

    def _prepared(self) -> Side:
        return self.of("plain").prepared(str(self._options.prepared))

    def _plain(self) -> Side:
        options, what = self._options, "library"
        self._progress.begin(what, len(self._tasks.library))
        return Side.load(
            self._folder,
            self._tasks,
            model=options.model,
            weights=options.weights,
            image_size=options.image_size,
            build=options.library,
            done=lambda task: self._progress.step(what, task),
        )


def run(
    folder: Path,
    options: Options,
    *,
    arms: Sequence[str] = DEFAULT_ARMS,
    seeds: int = 2,
    tasks: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure arms on all tasks of all seeds, task by task.

    Args:
        folder: What it holds is not measured again.
        options: The study.
        arms: Names in ``ARMS``.
        seeds: Draws of new tasks and their pictures.
        tasks: So many of every draw, at even distances; all by default.
        threads: Of torch; all by default.
        progress: Told of every case.

    Raises:
        UnknownNameError: No such arm, or one that needs a prepared base where none is given.
        FedsprigError: Data, model or weights that cannot be used.
    """
    progress = progress or Silence()
    chosen = [lookup(ARMS, name, "arm") for name in arms]
    if threads is not None:
        torch.set_num_threads(threads)
    world = Tasks(options.scenario)
    sides = _Sides(folder, world, options, progress)
    drawn = [
        task
        for seed in range(seeds)
        for task in spread(world.drawn(seed, options.split, each=options.pictures), tasks)
    ]
    if any(arm.base == "prepared" for arm in chosen):
        sides.require_prepared()
    for arm in chosen:
        sides.of(arm.base)
    progress.begin("cases", len(drawn) * len(chosen))
    cases = []
    for task in drawn:
        known: dict[str, Known] = {}
        for arm in chosen:
            side = sides.of(arm.base)
            known.setdefault(arm.base, Known(side, task))
            found = _case(folder, arm, known[arm.base], options)
            cases.append(found)
            last = found["accuracy"][str(options.local.steps)]
            progress.step("cases", f"{task.key}, {arm.name}: {100 * last:.1f} %")
    looks = options.local.looks
    return {
        "options": _plain(options),
        "machine": machine(),
        "entries": len(world.library),
        "looks": looks,
        "cases": cases,
        "summary": summarise(cases, looks),
    }


PROTOCOL: Final = 3
"""Of how a case is measured; another number with every change of that."""


def _case(folder: Path, arm: Arm, known: Known, options: Options) -> dict[str, Any]:
    """From disk where it is there; the key holds all that the figures depend on.

    The definitions of score masks, which are code, are under ``PROTOCOL`` too.
    """
    side, task = known.side, known.task
    settings = [asdict(arm), asdict(options.local), asdict(HEALING), PROTOCOL]
    names = [task.key, sorted(task.hidden), side.base.digest, side.probe_digest]
    key = hashlib.sha256(json.dumps([settings, names], sort_keys=True).encode())
    for entry in side.entries:
        key.update(f"{entry.scores} {entry.sketch}".encode())
    for pictures in (task.train, task.test):
        key.update(pictures.images.tobytes() + pictures.labels.tobytes())
    path = folder / f"case-{key.hexdigest()[:24]}.json"
    return once(path, lambda: measure(arm, known, options.local))


def spread(tasks: Sequence[NewTask], count: int | None) -> list[NewTask]:
    """``count`` of the tasks at even distances; all where there are no more."""
    if count is None or count >= len(tasks):
        return list(tasks)
    return [tasks[round(at * len(tasks) / count)] for at in range(count)]


def _plain(options: Options) -> dict[str, Any]:
    """Options as JSON has them, without folders of a machine."""
    return {
        "scenario": options.scenario.name,
        "model": options.model,
        "weights": options.weights and Path(options.weights).name,
        "prepared": options.prepared and Path(options.prepared).name,
        "image_size": options.image_size,
        "split": options.split,
        "pictures": options.pictures,
        "local": asdict(options.local),
        "library": asdict(options.library),
    }


def table(figures: Mapping[str, Any]) -> str:
    """Lines of text."""
    return _table(figures["summary"], figures["looks"], AGAINST)
