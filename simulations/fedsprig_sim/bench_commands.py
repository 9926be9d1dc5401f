"""The commands that measure. Torch is imported when there is something to measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from fedsprig.artifacts import require_writable, write_bytes
from fedsprig.spelling import lookup
from fedsprig_sim.progress import LineProgress, show_progress

if TYPE_CHECKING:
    from fedsprig.training import TrainConfig

bench = typer.Typer(add_completion=False, help="Measure parts of the system.")

Figures = dict[str, Any]

Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")]
Data = Annotated[
    str, typer.Option(help="An .npz file with splits train and test, or digits or fashion.")
]
Model = Annotated[str, typer.Option(help="Base model.")]
Weights = Annotated[str, typer.Option(help="shipped, imagenet, a .safetensors file, or none.")]
Seeds = Annotated[int, typer.Option(min=1, help="Repetitions.")]
Pictures = Annotated[int, typer.Option(min=64, help="Training pictures, at most.")]
TestPictures = Annotated[int, typer.Option(min=1, help="Test pictures, at most.")]
Out = Annotated[Path, typer.Option(help="Folder; what it holds is not computed again.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1_024, help="Of torch; all by default.")]


@bench.callback()
def _bench() -> None:
    """Measure parts of the system."""


@bench.command("one-shot")
def _one_shot(
    model: Model = "torchvision/resnet50",
    entries: Annotated[int, typer.Option(min=1, max=100_000, help="Tasks in the library.")] = 1_000,
    search_entries: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Tasks in the search; ten kilobytes each.")
    ] = 100_000,
    json_file: Json = None,
) -> None:
    """Measure the time from a sketch to a sub-network, and that of a search in a large library."""
    from fedsprig_sim.benchmarks import one_shot

    log = LineProgress(Console(stderr=True))
    _report(
        json_file,
        lambda: one_shot.run(
            model=model, entries=entries, search_entries=search_entries, progress=log.say
        ),
        one_shot.table,
    )


@bench.command("switching")
def _switching(
    model: Model = "torchvision/resnet18",
    image_size: Annotated[int, typer.Option(min=32, max=1_024, help="Side of its pictures.")] = 64,
    keep_macs: Annotated[float, typer.Option(min=0.01, max=1.0, help="Of the base's MACs.")] = 0.25,
    codec: Annotated[str, typer.Option(help="What the weights are rounded by.")] = "float16",
    repeats: Annotated[int, typer.Option(min=1, help="Turns.")] = 15,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Measure the time from one task to another on a device whose base model is in memory."""
    from fedsprig_sim.benchmarks import switching

    log = LineProgress(Console(stderr=True))
    _report(
        json_file,
        lambda: switching.run(
            model=model,
            image_size=image_size,
            keep_macs=keep_macs,
            codec=codec,
            repeats=repeats,
            threads=threads,
            progress=log.say,
        ),
        switching.table,
    )


@bench.command("adapters")
def _adapters(
    network: Annotated[
        list[str] | None, typer.Option(help="Which network; repeatable; all by default.")
    ] = None,
    rank: Annotated[
        list[int] | None, typer.Option(min=1, max=1_024, help="Repeatable; 8 and 16.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, max=1_024, help="Pictures per step.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of every contender.")] = 15,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")] = False,
    contiguous: Annotated[
        bool, typer.Option("--contiguous", help="Not in channels-last memory.")
    ] = False,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Time training steps: ours, frozen, full, and other libraries where they are installed."""
    from fedsprig_sim.benchmarks import adapters

    for name in network or ():
        lookup(adapters.NETWORKS, name, "network")
    log = LineProgress(Console(stderr=True))
    _report(
        json_file,
        lambda: adapters.run(
            networks=network or tuple(adapters.NETWORKS),
            ranks=rank or (8, 16),
            batch_size=batch_size,
            repeats=repeats,
            bf16=bf16,
            channels_last=not contiguous,
            threads=threads,
            progress=log.say,
        ),
        adapters.table,
    )


@bench.command("fine-pruning")
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
                weights=_weights(weights),
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

    _report(json_file, measure, lambda figures: fine_pruning.table(figures["arms"]))


@bench.command("pruners")
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
    bf16: Annotated[bool, typer.Option("--bf16", help="Train in bfloat16.")] = False,
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
        weights=_weights(weights),
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

    _report(json_file, measure, pruners.table)


def _weights(name: str) -> str | None:
    return None if name == "none" else name


def _report(
    json_file: Path | None, measure: Callable[[], Figures], table: Callable[[Figures], str]
) -> None:
    """Measure, print the table and write the figures; a file that could not be is said first."""
    if json_file is not None:
        require_writable(json_file)
    figures = measure()
    print(table(figures))
    if json_file is not None:
        write_bytes(json_file, (json.dumps(figures, indent=1) + "\n").encode())
