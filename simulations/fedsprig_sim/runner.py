"""Runs a scenario: pictures, library, server and devices, result.

Everything lies under one folder, so that a run can be looked at afterwards and an interrupted one
goes on:

    out/scenario.json     what is run
    out/library/          the library, with every committed round
    out/fleet/            a folder for every device
    out/pictures/         the server's own pictures, where networks are healed with them
    out/server.json       the server's settings
    out/result.json       the figures
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsprig.errors import InfeasibleBudgetError, RunError
from fedsprig.scoring import score
from fedsprig.subnetwork import AdapterConfig
from fedsprig.wire.budgets import from_wire, to_wire
from fedsprig_server.aggregation import AGGREGATIONS
from fedsprig_server.base import Base
from fedsprig_server.config import (
    PruningConfig,
    RoundsConfig,
    SelectionConfig,
    ServerConfig,
    StartConfig,
)
from fedsprig_server.library import Library
from fedsprig_server.library_build import BuildConfig, build_library
from fedsprig_server.one_shot import cut
from fedsprig_sim.expand import Expansion
from fedsprig_sim.fleet import SplitPictures, library_tasks, read_data, write_fleet
from fedsprig_sim.gather import gather_result
from fedsprig_sim.own_pictures import write_own_pictures
from fedsprig_sim.progress import Progress
from fedsprig_sim.result import Result
from fedsprig_sim.runtimes import run_apps
from fedsprig_sim.scenario import Scenario

SCENARIO, RESULT = "scenario.json", "result.json"
WATCH_SECONDS = 0.5


def run_scenario(
    scenario: Scenario,
    out: Path,
    *,
    runtime: str,
    progress: Progress,
    resume: bool = False,
) -> Result:
    """Run a scenario and write ``out/result.json``.

    Args:
        scenario: What to run.
        out: Folder of the run; one that holds an earlier run of ours is cleared unless ``resume``
            is set.
        runtime: A name of :data:`fedsprig_sim.runtimes.RUNTIMES`.
        progress: Told what happens.
        resume: Go on with the run that lies in ``out``.

    Raises:
        RunError: ``out`` holds something else, or another scenario than the one to be resumed.
        FedsprigError: Anything that the scenario asks for and cannot be had.
    """
    started = time.perf_counter()
    _claim(out, scenario, resume=resume)
    base = Base.load(
        scenario.base.model, scenario.base.weights, image_size=scenario.base.image_size
    )
    check_budgets(scenario, base)
    sources = _read(scenario, base, progress)
    expansion = scenario.expand({name: source.train.classes for name, source in sources.items()})
    devices = write_fleet(expansion, sources, scenario, out / "fleet")
    pictures: tuple[str, ...] = ()
    if scenario.start.heal_steps:
        pictures = write_own_pictures(library_tasks(expansion, sources, scenario), out / "pictures")
    config = server_config(scenario, expansion, out / "library", pictures)
    config.save(out / "server.json")
    with Library(out / "library") as library:
        fill_library(library, base, expansion, sources, scenario, progress)
        with _watched(library, config, progress):
            run_apps(
                runtime,
                fleet=out / "fleet",
                devices=devices,
                server_config=out / "server.json",
                workers=scenario.workers,
            )
        seconds = time.perf_counter() - started
        result = gather_result(
            scenario, expansion, library, base, config, runtime=runtime, seconds=seconds
        )
    result.write(out / RESULT)
    return result


def check_budgets(scenario: Scenario, base: Base) -> None:
    """Find a budget that no mask can meet before any work is done.

    Raises:
        InfeasibleBudgetError: Its name, which limit, and by how much.
    """
    scores = score("magnitude", base.module, base.plan)
    selection = SelectionConfig(**scenario.selection.model_dump())
    for name, section in scenario.budgets.items():
        try:
            limits = from_wire(to_wire(section.limits()), base.plan)
            cut(scores, base, limits, selection, num_classes=2)
        except InfeasibleBudgetError as error:
            raise InfeasibleBudgetError(f"budgets.{name}: {error}") from None


def server_config(
    scenario: Scenario, expansion: Expansion, library: Path, pictures: tuple[str, ...] = ()
) -> ServerConfig:
    """The server's settings that a scenario means; ``pictures`` are files of the server's own."""
    rounds = scenario.rounds
    return ServerConfig(
        library=library.resolve(),
        model=scenario.base.model,
        weights=scenario.base.weights,
        image_size=scenario.base.image_size,
        tasks={task.name: len(task.devices) for task in expansion.tasks},
        seed=scenario.seed,
        arms=("one_shot", *scenario.compare),
        adapter=AdapterConfig(
            kind=scenario.adapter.kind,
            rank=scenario.adapter.rank,
            rank_rule=scenario.adapter.rank_rule,
            unadapted=scenario.adapter.unadapted,
            seed=scenario.seed,
            train_a=AGGREGATIONS[scenario.adapter.aggregation].trains_a,
            local_statistics=scenario.adapter.statistics == "local",
        ),
        aggregation=scenario.adapter.aggregation,
        rounds=RoundsConfig(
            count=rounds.count,
            epochs=rounds.epochs or 1,
            steps=rounds.steps or 0,
            batch_size=rounds.batch_size,
            learning_rate=rounds.learning_rate,
            full_learning_rate=rounds.full_learning_rate,
            momentum=rounds.momentum,
            weight_decay=rounds.weight_decay,
            schedule=rounds.schedule,
            augment=rounds.augment,
            optimiser=rounds.optimiser,
            head_learning_rate_scale=rounds.head_learning_rate_scale,
            sharing=rounds.sharing,
            deadline_seconds=rounds.deadline_seconds,
            quorum=rounds.quorum,
        ),
        selection=SelectionConfig(**scenario.selection.model_dump()),
        start=StartConfig(pictures=pictures, **scenario.start.model_dump()),
        pruning=PruningConfig(**scenario.pruning.model_dump()) if scenario.pruning else None,
        update_codec=scenario.codecs.update,
        adapter_codec=scenario.codecs.adapter,
        weights_codec=scenario.codecs.weights,
        poll_seconds=0.02,
    )


def _claim(out: Path, scenario: Scenario, *, resume: bool) -> None:
    """Make ``out`` ours, and empty unless an earlier run is to go on."""
    said = json.dumps(scenario.model_dump(mode="json"), indent=1) + "\n"
    before = out / SCENARIO
    if resume:
        if not before.exists():
            raise RunError(f"{out} holds no run to resume: leave --resume away")
        if before.read_text() != said:
            raise RunError(f"{out} holds a run of another scenario: name another --out")
        return
    if out.exists() and any(out.iterdir()):
        if not before.exists():
            raise RunError(f"{out} is not empty and holds no run of ours: name another --out")
        for part in ("library", "fleet", "pictures"):
            shutil.rmtree(out / part, ignore_errors=True)
        (out / RESULT).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    before.write_text(said)


def _read(scenario: Scenario, base: Base, progress: Progress) -> dict[str, SplitPictures]:
    progress.begin("reading pictures", len(scenario.data))
    sources = {}
    for name, section in scenario.data.items():
        size = None if section.kind in ("embedded", "npz") else base.card.input_size
        sources[name] = read_data(section, seed=scenario.seed, size=size)
        progress.step("reading pictures", name)
    return sources


def fill_library(
    library: Library,
    base: Base,
    expansion: Expansion,
    sources: dict[str, SplitPictures],
    scenario: Scenario,
    progress: Progress,
) -> None:
    """Build the entries of the scenario's library tasks that are not there yet."""
    tasks = library_tasks(expansion, sources, scenario)
    progress.begin("library tasks", len(tasks))
    section = scenario.library
    build_library(
        library,
        base,
        tasks,
        BuildConfig(
            method=section.method,
            steps=section.steps,
            batch_size=section.batch_size,
            learning_rate=section.learning_rate,
            seed=scenario.seed,
            workers=scenario.workers,
        ),
        done=lambda name: progress.step("library tasks", name),
    )


@contextmanager
def _watched(library: Library, config: ServerConfig, progress: Progress) -> Iterator[None]:
    """Show the rounds as the server commits them, whatever process it runs in."""
    stage = "rounds on devices"
    # Every arm commits the state right after the cut, its rounds, and its end.
    each = config.rounds.count + 2
    names = [f"{task}.{arm}" for task in config.tasks for arm in config.arms]
    progress.begin(stage, each * len(names))
    ended = threading.Event()
    shown = dict.fromkeys(names, 0)

    def look() -> None:
        for name in names:
            run = library.run(name)
            latest = library.latest_round(name) if run else None
            done = (latest.round + 1 if latest else 0) + (run is not None and run.phase == "done")
            for _ in range(done - shown[name]):
                progress.step(stage, name)
            shown[name] = done

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            look()

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        look()
