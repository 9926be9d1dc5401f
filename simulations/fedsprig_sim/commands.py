"""The simulator's commands. The runner, and torch with it, is imported when there is work to do."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedsprig.artifacts import write_bytes
from fedsprig.spelling import lookup
from fedsprig_sim.memory import bound_allocators
from fedsprig_sim.progress import LineProgress, show_progress
from fedsprig_sim.report import write_report
from fedsprig_sim.result import Result
from fedsprig_sim.scenario import Scenario, embedded_scenario
from fedsprig_sim.table import print_table

demo = typer.Typer(add_completion=False)
simulate = typer.Typer(add_completion=False)
report = typer.Typer(add_completion=False)
bench = typer.Typer(add_completion=False, help="Measure parts of the system.")


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
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Where the scenario's data NAME lie; repeatable."),
    ] = None,
    seed: Seed = None,
    runtime: RuntimeOption = None,
    out: Out = None,
    json_file: Json = None,
    resume: Resume = False,
) -> None:
    """Run a scenario: tasks, devices, budgets and rounds as its file says."""
    paths = {}
    for item in data or ():
        name, sign, path = item.partition("=")
        if not (name and sign and path):
            raise typer.BadParameter(f"{item!r} is not of the form NAME=PATH", param_hint="--data")
        paths[name] = path
    _run(Scenario.load(scenario, data=paths), seed, runtime, out, json_file, resume)


@report.command()
def _report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
) -> None:
    """Print the table of a finished run and draw its report again."""
    result = Result.read(run / "result.json")
    page = write_report(result, run / "report.html")
    print_table(result)
    print(f"\nreport: {page}")


@bench.callback()
def _bench() -> None:
    """Measure parts of the system."""


@bench.command("one-shot")
def _one_shot(
    model: Annotated[str, typer.Option(help="Base model.")] = "torchvision/resnet50",
    entries: Annotated[int, typer.Option(min=1, help="Tasks in the library.")] = 1_000,
    search_entries: Annotated[int, typer.Option(min=1, help="Tasks in the search.")] = 100_000,
    json_file: Json = None,
) -> None:
    """Measure the time from a sketch to a sub-network, and that of a search in a large library."""
    from fedsprig_sim.benchmarks import one_shot

    log = LineProgress(Console(stderr=True))
    figures = one_shot.run(
        model=model, entries=entries, search_entries=search_entries, progress=log.say
    )
    if json_file is not None:
        write_bytes(json_file, (json.dumps(figures, indent=1) + "\n").encode())
    whole, search = figures["one_shot"], figures["search"]
    rows = [(f"  {name}", seconds, None) for name, seconds in whole["steps"].items()]
    rows += [
        (f"sketch to sub-network, {entries:,} tasks", whole["seconds"], whole["target_seconds"]),
        (f"search in {search_entries:,} tasks", search["seconds"], search["target_seconds"]),
    ]
    for name, seconds, target in rows:
        aim = "" if target is None else f"   target {target:.3f} s"
        print(f"{name:<44} {seconds:8.3f} s{aim}")


@bench.command("switching")
def _switching(
    model: Annotated[str, typer.Option(help="Base model.")] = "torchvision/resnet18",
    image_size: Annotated[int, typer.Option(min=32, help="Side of its pictures.")] = 64,
    keep_macs: Annotated[float, typer.Option(min=0.01, max=1.0, help="Of the base's MACs.")] = 0.25,
    codec: Annotated[str, typer.Option(help="What the weights are rounded by.")] = "float16",
    repeats: Annotated[int, typer.Option(min=1, help="Turns.")] = 15,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; all by default.")] = None,
    json_file: Json = None,
) -> None:
    """Measure the time from one task to another on a device whose base model is in memory."""
    from fedsprig_sim.benchmarks import switching

    log = LineProgress(Console(stderr=True))
    figures = switching.run(
        model=model,
        image_size=image_size,
        keep_macs=keep_macs,
        codec=codec,
        repeats=repeats,
        threads=threads,
        progress=log.say,
    )
    if json_file is not None:
        write_bytes(json_file, (json.dumps(figures, indent=1) + "\n").encode())
    for way, seconds in figures["seconds"].items():
        fastest = figures["fastest_seconds"][way]
        aim = f"   target {figures['target_seconds']:.3f} s" if way == switching.WAYS[0] else ""
        print(f"{way:<28} {seconds:9.4f} s   fastest {fastest:.4f} s{aim}")
    for what, size in figures["sizes"].items():
        print(f"{what:<28} {size / 1e6:9.3f} MB")


@bench.command("adapters")
def _adapters(
    network: Annotated[
        list[str] | None, typer.Option(help="Which network; repeatable; all by default.")
    ] = None,
    rank: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable; 8 and 16.")] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Pictures per step.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of every contender.")] = 15,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")] = False,
    contiguous: Annotated[
        bool, typer.Option("--contiguous", help="Not in channels-last memory.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; all by default.")] = None,
    json_file: Json = None,
) -> None:
    """Time training steps: ours, frozen, full, and other libraries where they are installed."""
    from fedsprig_sim.benchmarks import adapters

    for name in network or ():
        lookup(adapters.NETWORKS, name, "network")
    log = LineProgress(Console(stderr=True))
    figures = adapters.run(
        networks=network or tuple(adapters.NETWORKS),
        ranks=rank or (8, 16),
        batch_size=batch_size,
        repeats=repeats,
        bf16=bf16,
        channels_last=not contiguous,
        threads=threads,
        progress=log.say,
    )
    if json_file is not None:
        write_bytes(json_file, (json.dumps(figures, indent=1) + "\n").encode())
    print(adapters.table(figures))
    if missing := adapters.CONTENDERS.keys() - figures["cases"][0]["contenders"].keys():
        print(f"not installed: {', '.join(sorted(missing))} (pip install 'fedsprig[peers]')")


@bench.command("fine-pruning")
def _fine_pruning(
    data: Annotated[
        str, typer.Option(help="An .npz file with splits train and test, or digits or fashion.")
    ] = "digits",
    model: Annotated[str, typer.Option(help="Base model.")] = "sprig20",
    weights: Annotated[str, typer.Option(help="Its weights: a name or a file.")] = "shipped",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 3,
    arm: Annotated[
        list[str] | None, typer.Option(help="Who is compared; repeatable; all by default.")
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD=RATE", help="Learning rates to choose from; repeatable."),
    ] = None,
    pictures: Annotated[int, typer.Option(min=64, help="Training pictures, at most.")] = 20_000,
    test_pictures: Annotated[int, typer.Option(min=1, help="Test pictures, at most.")] = 4_000,
    first_steps: Annotated[int, typer.Option(min=1, help="Steps before the first cut.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Steps after a cut.")] = 40,
    reported_steps: Annotated[int, typer.Option(min=1, help="After those to 30 and 10 %.")] = 120,
    out: Annotated[Path, typer.Option(help="Folder; what it holds is not computed again.")] = Path(
        "runs/fine-pruning"
    ),
    json_file: Json = None,
) -> None:
    """Compare adapters and fine-pruning at 30 and 10 % of the filters: hours on two cores."""
    from fedsprig_sim.benchmarks import fine_pruning

    with show_progress(Console(stderr=True)) as progress:
        figures = fine_pruning.run(
            out,
            data=data,
            model=model,
            weights=weights,
            seeds=seeds,
            arms=arm or tuple(fine_pruning.ARMS),
            rates=fine_pruning.read_rates(rate or ()),
            pictures=pictures,
            test_pictures=test_pictures,
            course=fine_pruning.Course(
                first_steps=first_steps, steps=steps, reported_steps=reported_steps
            ),
            progress=progress,
        )
    if json_file is not None:
        write_bytes(json_file, (json.dumps(figures, indent=1) + "\n").encode())
    print(fine_pruning.table(figures["arms"]))


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
    with show_progress(Console(stderr=True)) as progress:
        result = run_scenario(
            scenario, folder, runtime=scenario.runtime, progress=progress, resume=resume
        )
    if json_file is not None:
        result.write(json_file)
    page = write_report(result, folder / "report.html")
    print_table(result)
    print(f"\n{result.seconds:.0f} s   report: {page}   figures: {folder / 'result.json'}")
