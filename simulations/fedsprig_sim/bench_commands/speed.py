"""Benchmarks of time and memory."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from fedsprig.spelling import lookup
from fedsprig_server.options import Model
from fedsprig_sim.bench_commands.options import Json, Threads, report
from fedsprig_sim.progress import LineProgress

speed = typer.Typer()


@speed.command("one-shot")
def _one_shot(
    model: Model = "torchvision/resnet50",
    entries: Annotated[int, typer.Option(min=1, max=100_000, help="Tasks in the library.")] = 1_000,
    search_entries: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Tasks in the search; ten kilobytes each.")
    ] = 100_000,
    growth: Annotated[
        bool, typer.Option("--growth", help="Also for libraries of 10 to 100,000 tasks.")
    ] = False,
    json_file: Json = None,
) -> None:
    """Measure the time from a sketch to a sub-network, and that of a search in a large library."""
    from fedsprig_sim.benchmarks import one_shot

    log = LineProgress(Console(stderr=True))
    report(
        json_file,
        lambda: one_shot.run(
            model=model,
            entries=entries,
            search_entries=search_entries,
            growth=one_shot.GROWTH if growth else (),
            progress=log.say,
        ),
        one_shot.table,
    )


@speed.command("switching")
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
    report(
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


@speed.command("adapters")
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
    report(
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
