"""The operator's commands about base models. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedsprig_server.options import (
    ImageSize,
    Json,
    Model,
    Seed,
    Weights,
    check_json,
    weights_of,
    write_json,
)
from fedsprig_server.pairs import pairs

base = typer.Typer(add_completion=False, no_args_is_help=True, help="Make base models ready.")


@base.callback()
def _base() -> None:
    """Make base models ready."""


@base.command("prepare")
def _prepare(
    out: Annotated[Path, typer.Argument(help="Where the weights go: a .safetensors file.")],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="SOURCE",
            help="A folder of pictures by class, an .npz file, or embedded:digits; repeatable.",
        ),
    ],
    model: Model = "sprig20",
    weights: Weights = "shipped",
    image_size: ImageSize = None,
    steps: Annotated[int, typer.Option(min=0, help="Optimiser steps.")] = 1200,
    library: Annotated[
        Path | None,
        typer.Option(help="Units matter as its tasks say, not by their weights' sizes."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Of the training: order=varied; repeatable."
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of each class that is measured on and not trained on.")
    ] = 0.1,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Train a base so that what is cut from it knows more; see docs/starting.md.

    The same command goes on after an interruption. The file is a base's weights wherever weights
    are asked for; `fedsprig library rebase` takes a library of the original base along.
    """
    from fedsprig_server.base_command import prepare

    check_json(json_file)
    changed = pairs(settings or [], "--set", form="KEY=VALUE")
    if "steps" in changed:
        raise typer.BadParameter("use --steps", param_hint="--set steps")
    report = prepare(
        out,
        data,
        model=model,
        weights=weights_of(weights),
        image_size=image_size,
        library=library,
        settings={**changed, "steps": str(steps)},
        held_out=held_out,
        seed=seed,
    )
    write_json(json_file, asdict(report))
    table = Table("MACs kept", "before", "after", "points", box=None)
    for ratio, before in report.before.items():
        after = report.after[ratio]
        table.add_row(
            f"{100 * float(ratio):g} %",
            f"{100 * before:.1f} %",
            f"{100 * after:.1f} %",
            f"{100 * (after - before):+.1f}",
        )
    Console().print(table)
    print(f"{report.file}: base {report.base[:12]}")
