"""The simulator's commands. The runner, and torch with it, is imported when there is work to do."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedsprig.artifacts import require_writable
from fedsprig_sim.bench_commands.options import DataPaths, paths_of
from fedsprig_sim.memory import bound_allocators
from fedsprig_sim.progress import show_progress
from fedsprig_sim.report import write_report
from fedsprig_sim.result import Result
from fedsprig_sim.scenario import Scenario, embedded_scenario
from fedsprig_sim.table import print_table

demo = typer.Typer(add_completion=False)
simulate = typer.Typer(add_completion=False)
report = typer.Typer(add_completion=False)


class RuntimeName(StrEnum):
    """Where server and devices run."""

    IN_PROCESS = "in-process"
    RAY = "ray"


Seed = Annotated[int | None, typer.Option(min=0, help="Replaces the scenario's seed.")]
RuntimeOption = Annotated[
    RuntimeName | None, typer.Option(help="This process, or Flower's simulation engine on Ray.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/NAME.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]


@demo.command()
def _demo(
    seed: Seed = None,
    runtime: RuntimeOption = None,
    out: Out = None,
    json_file: Json = None,
    resume: Resume = False,
) -> None:
    """Run the main job on embedded data: some minutes on two cores."""
    _run(embedded_scenario("demo"), seed, runtime, out, json_file, resume)


@simulate.command()
def _simulate(
    scenario: Annotated[Path, typer.Argument(help="TOML file.", show_default=False)],
    data: DataPaths = None,
    seed: Seed = None,
    runtime: RuntimeOption = None,
    out: Out = None,
    json_file: Json = None,
    resume: Resume = False,
) -> None:
    """Run a scenario: tasks, devices, budgets and rounds as its file says."""
    _run(
        Scenario.load(scenario, data=paths_of(data, "--data")),
        seed,
        runtime,
        out,
        json_file,
        resume,
    )


@report.command()
def _report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
) -> None:
    """Print the table of a finished run and draw its report again."""
    result = Result.read(run / "result.json")
    page = write_report(result, run / "report.html")
    print_table(result)
    print(f"\nreport: {page}")


def _run(
    scenario: Scenario,
    seed: int | None,
    runtime: RuntimeName | None,
    out: Path | None,
    json_file: Path | None,
    resume: bool,
) -> None:
    changes: dict[str, object] = {} if seed is None else {"seed": seed}
    if runtime is not None:
        changes["runtime"] = runtime.value
    scenario = scenario.model_copy(update=changes)
    folder = out or Path("runs") / scenario.name

    bound_allocators()
    from fedsprig_sim.names import check_names
    from fedsprig_sim.runner import run_scenario

    check_names(scenario)
    if json_file is not None:
        require_writable(json_file)
    with show_progress(Console(stderr=True)) as progress:
        result = run_scenario(
            scenario, folder, runtime=scenario.runtime, progress=progress, resume=resume
        )
    if json_file is not None:
        result.write(json_file)
    page = write_report(result, folder / "report.html")
    print_table(result)
    print(f"\n{result.seconds:.0f} s   report: {page}   figures: {folder / 'result.json'}")
