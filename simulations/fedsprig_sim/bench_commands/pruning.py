"""Benchmarks of methods that prune and of what trains after a cut: accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from fedsprig_server.options import Model, Weights, weights_of
from fedsprig_sim.bench_commands.options import (
    Bf16,
    Data,
    Figures,
    Json,
    Out,
    Pictures,
    Seeds,
    TestPictures,
    Threads,
    report,
)
from fedsprig_sim.progress import show_progress

if TYPE_CHECKING:
    from fedsprig.training import TrainConfig

pruning = typer.Typer()


@pruning.command("fine-pruning")
def _fine_pruning(
    data: Data = "digits",
    model: Model = "sprig20",
    weights: Weights = "shipped",
    seeds: Seeds = 3,
    arm: Annotated[
        list[str] | None, typer.Option(help="Who is compared; repeatable; all by default.")
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD=RATE", help="Learning rates to choose from; repeatable."),
    ] = None,
    pictures: Pictures = 20_000,
    test_pictures: TestPictures = 4_000,
    first_steps: Annotated[int, typer.Option(min=1, help="Steps before the first cut.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Steps after a cut.")] = 40,
    reported_steps: Annotated[int, typer.Option(min=1, help="After those to 30 and 10 %.")] = 120,
    out: Out = Path("runs/fine-pruning"),
    json_file: Json = None,
) -> None:
    """Compare adapters and fine-pruning at 30 and 10 % of the filters: hours on two cores."""
    from fedsprig_sim.benchmarks import fine_pruning

    def measure() -> Figures:
        with show_progress(Console(stderr=True)) as progress:
            return fine_pruning.run(
                out,
                data=data,
                model=model,
                weights=weights_of(weights),
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

    report(json_file, measure, lambda figures: fine_pruning.table(figures["arms"]))


@pruning.command("pruners")
def _pruners(
    study: Annotated[
        str,
        typer.Argument(
            help="aap (how much goes within a loss), policies (are targets met), sparsity (PDP "
            "and a growing mask) or prompts (PASS and its parts)."
        ),
    ],
    data: Data = "digits",
    model: Model = "sprig20",
    weights: Weights = "shipped",
    seeds: Seeds = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Part of a case's name; repeatable; all by default.")
    ] = None,
    pictures: Pictures = 20_000,
    validation_pictures: Annotated[int, typer.Option(min=10, help="What selects.")] = 2_000,
    test_pictures: TestPictures = 4_000,
    held_out: Annotated[
        str,
        typer.Option(help="Split that selects: test, where the weights saw all of train."),
    ] = "train",
    device: Annotated[str, typer.Option(help="Where networks train: cpu or cuda.")] = "cpu",
    whole_epochs: Annotated[
        int, typer.Option(min=0, help="Training of the whole network before it is pruned.")
    ] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Of a round, or of a method.")] = 6,
    batch_size: Annotated[int, typer.Option(min=2, max=8_192, help="Pictures per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=0, help="At the first step.")] = 0.02,
    augment: Annotated[str, typer.Option(help="none, flip, shift or flip+shift.")] = "none",
    milestones: Annotated[
        str, typer.Option(help="Epochs at which the rate falls to a tenth, as 91,136.")
    ] = "",
    bf16: Bf16 = False,
    threads: Threads = None,
    out: Out = Path("runs/pruners"),
    json_file: Json = None,
) -> None:
    """Compare the methods that fill a library with their papers and with baselines: hours."""
    from fedsprig_sim.benchmarks import pruners

    def training(count: int, falls: str = "") -> TrainConfig:
        return pruners.read_training(
            epochs=count,
            batch_size=batch_size,
            learning_rate=learning_rate,
            augment=augment,
            milestones=falls,
            bf16=bf16,
        )

    options = pruners.Options(
        data=data,
        model=model,
        weights=weights_of(weights),
        pictures=pictures,
        validation_pictures=validation_pictures,
        test_pictures=test_pictures,
        held_out=cast(pruners.HeldOut, held_out),
        device=device,
        whole_training=training(whole_epochs) if whole_epochs else None,
        training=training(epochs, milestones),
    )

    def measure() -> Figures:
        with show_progress(Console(stderr=True)) as progress:
            return pruners.run(
                out,
                study,
                options,
                seeds=seeds,
                only=only or (),
                threads=threads,
                progress=progress,
            )

    report(json_file, measure, pruners.table)
