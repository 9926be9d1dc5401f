"""The benchmark of what new tasks get from a library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from fedsprig.artifacts import require_writable, write_bytes
from fedsprig_server.options import ImageSize, Model, Weights, weights_of
from fedsprig_sim.bench_commands.options import (
    Bf16,
    DataPaths,
    Figures,
    Json,
    Out,
    Threads,
    paths_of,
    report,
)
from fedsprig_sim.progress import show_progress
from fedsprig_sim.scenario import Scenario

starting = typer.Typer()


@starting.command("one-shot-accuracy")
def _one_shot_accuracy(
    scenario: Annotated[
        Path, typer.Argument(help="TOML file with library and new tasks.", show_default=False)
    ],
    data: DataPaths = None,
    model: Model = "sprig20",
    weights: Weights = "shipped",
    image_size: ImageSize = None,
    prepared: Annotated[
        Path | None,
        typer.Option(help="The base prepared for cutting (`fedsprig base prepare`), for its arms."),
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="Repeatable; the masks alone by default.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="test, or validation: tasks of the library, to choose settings on.")
    ] = "test",
    seeds: Annotated[int, typer.Option(min=1, help="Draws of new tasks.")] = 2,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="So many of every draw; all by default.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="A class, on the device.")] = 40,
    macs: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the base's.")] = 0.25,
    weight_bytes: Annotated[
        int | None, typer.Option(min=1, help="Limit of the weights, in place of the MACs.")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Of fine-tuning.")] = 50,
    trains: Annotated[
        str, typer.Option(help="adapters or weights: what trains of a cut network.")
    ] = "adapters",
    batch_size: Annotated[int, typer.Option(min=2, max=1_024, help="Pictures per step.")] = 16,
    adapter_rate: Annotated[float, typer.Option(help="Learning rate of adapters.")] = 0.05,
    weights_rate: Annotated[float, typer.Option(help="Learning rate of all weights.")] = 0.005,
    bf16: Bf16 = False,
    threads: Threads = None,
    out: Out = Path("runs/one-shot-accuracy"),
    figure: Annotated[Path | None, typer.Option(help="Draw the means, as .svg.")] = None,
    json_file: Json = None,
) -> None:
    """Compare one-shot networks from a library with every other way to one: hours on two cores."""
    from fedsprig_sim.benchmarks import one_shot_accuracy as study

    options = study.Options(
        scenario=Scenario.load(scenario, data=paths_of(data, "--data")),
        model=model,
        weights=weights_of(weights),
        image_size=image_size,
        prepared=str(prepared) if prepared else None,
        split=cast(study.Split, split),
        pictures=pictures,
        local=study.LocalSettings(
            macs=None if weight_bytes else macs,
            weight_bytes=weight_bytes,
            steps=steps,
            trains=cast(study.Trains, trains),
            batch_size=batch_size,
            adapter_rate=adapter_rate,
            weights_rate=weights_rate,
            bf16=bf16,
        ),
    )

    def measure() -> Figures:
        with show_progress(Console(stderr=True)) as progress:
            return study.run(
                out,
                options,
                arms=arm or study.DEFAULT_ARMS,
                seeds=seeds,
                tasks=tasks,
                threads=threads,
                progress=progress,
            )

    def measure_and_draw() -> Figures:
        figures = measure()
        if figure is not None:
            write_bytes(figure, study.figure(figures).encode())
        return figures

    if figure is not None:
        if figure.suffix != ".svg":
            raise typer.BadParameter(f"{figure} is no .svg file", param_hint="--figure")
        require_writable(figure)
    report(json_file, measure_and_draw, study.table)
