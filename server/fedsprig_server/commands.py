"""The operator's commands. Nothing here imports torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedsprig.errors import LibraryError
from fedsprig_server.library import Library
from fedsprig_server.library.database import FILE
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

library = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Fill a library, look into it and check it."
)

Folder = Annotated[Path, typer.Argument(help="The library, such as runs/demo/library.")]


@library.command("list")
def _list(folder: Folder, json_file: Json = None) -> None:
    """Show the tasks that a library knows.

    Two accuracies: on pictures held out from training, which tasks have that devices brought, and
    on the very pictures that were trained on, which tasks have that the library was built from.
    """
    with _opened(folder) as opened:
        entries = opened.entries()
    write_json(json_file, [asdict(entry) for entry in entries])
    table = Table(
        "task", "method", "masks", "held out", "own pictures", "base", "added (UTC)", box=None
    )
    for entry in entries:
        table.add_row(
            entry.name,
            entry.method,
            str(len(entry.masks)),
            _percent(entry.metrics.get("accuracy")),
            _percent(entry.metrics.get("training_accuracy")),
            entry.base[:12],
            f"{datetime.fromtimestamp(entry.created, UTC):%Y-%m-%d %H:%M}",
        )
    Console().print(table)


@library.command("show")
def _show(folder: Folder, name: Annotated[str, typer.Argument(help="Name of a task.")]) -> None:
    """Show everything about one task as JSON."""
    with _opened(folder) as opened:
        print(json.dumps(asdict(opened.entry(name)), indent=1))


@library.command("verify")
def _verify(folder: Folder) -> None:
    """Check every row and every blob; print what is missing or damaged."""
    with _opened(folder) as opened:
        problems = opened.verify()
        count = len(opened.entries())
    for problem in problems:
        print(problem)
    if problems:
        raise LibraryError(
            f"{_counted(len(problems), 'problem')} in {folder}: restore it from a copy"
        )
    print(f"{_counted(count, 'task')}, every blob intact")


@library.command("methods")
def _methods(
    method: Annotated[str | None, typer.Argument(help="Show this one's settings.")] = None,
) -> None:
    """Show the methods that `build` knows, or the settings of one."""
    from fedsprig_server.method_settings import defaults, summaries

    if method is not None:
        for setting, value in defaults(method).items():
            print(f"--set {setting}={value}")
        return
    table = Table("method", "what it does", box=None)
    for name, line in summaries().items():
        table.add_row(name, line)
    Console().print(table)


@library.command("build")
def _build(
    folder: Folder,
    data: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=SOURCE",
            help="A task: a folder of pictures by class, an .npz file, or embedded:digits; "
            "repeatable.",
        ),
    ],
    method: Annotated[str, typer.Option(help="aap, pdp, pass, taylor and others: see `methods`.")],
    policy: Annotated[str, typer.Option(help="accuracy, memory or latency.")],
    target: Annotated[
        str, typer.Option(help="1% (accuracy), 25% or 120kB (memory), 30%, 12M or 5ms (latency).")
    ],
    model: Model = "sprig20",
    weights: Weights = "shipped",
    image_size: ImageSize = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Of the method: training.epochs=8; repeatable."
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of each class that selects and is not trained on.")
    ] = 0.2,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Make library entries of tasks with pictures; the same command goes on after an interruption.

    `fedsprig library methods` shows the methods and their settings.
    """
    from fedsprig_server.build_command import build

    check_json(json_file)
    entries = build(
        folder,
        pairs(data, "--data"),
        method=method,
        policy=policy,
        target=target,
        model=model,
        weights=weights_of(weights),
        image_size=image_size,
        settings=pairs(settings or [], "--set", empty=True),
        held_out=held_out,
        seed=seed,
    )
    write_json(json_file, [asdict(entry) for entry in entries])
    # Held-out accuracy of both networks; what is left of the whole one; what the target counts.
    table = Table("task", "method", "whole", "pruned", "weights", "MACs", "size", "limit", box=None)
    for entry in entries:
        known = entry.metrics
        table.add_row(
            entry.name,
            entry.method,
            _percent(known.get("accuracy_whole")),
            _percent(known.get("accuracy")),
            _percent(_weights_left(known)),
            _percent(known.get("macs_ratio")),
            *_size_and_limit(entry.lineage["target"], known["size"]),
        )
    Console().print(table)


@library.command("rebase")
def _rebase(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="Library that gets the entries; made if need be.")],
    weights: Annotated[
        str, typer.Option(help="Of the new base, as `fedsprig base prepare` wrote them.")
    ],
    model: Model = "sprig20",
    image_size: ImageSize = None,
    origin: Annotated[
        str, typer.Option("--from", help="Digest of the old base, or how it begins.")
    ] = "",
) -> None:
    """Take a library along to a base that was prepared from its own: nothing is scored anew."""
    from fedsprig_server.base import Base
    from fedsprig_server.library_rebase import rebase

    with _opened(folder) as source:
        base = Base.load(model, weights, image_size=image_size)
        with Library(out) as target:
            entries = rebase(source, target, base, origin=origin)
    print(f"{_counted(len(entries), 'task')} now of base {base.digest[:12]} in {out}")


@library.command("evaluate")
def _evaluate(
    folder: Folder,
    macs: Annotated[
        str | None,
        typer.Option(help="Compare masks of this size: 30% or 12M; 25% where nothing is said."),
    ] = None,
    weight_bytes: Annotated[
        str | None, typer.Option("--bytes", help="Of this size of weights: 25% or 120kB.")
    ] = None,
    entries: Annotated[int, typer.Option(min=1, help="Leave out this many at most.")] = 200,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SOURCE",
            help="Pictures of an entry's task, to measure accuracy on too: as for `build`; "
            "repeatable.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Base model, for the pictures.")] = "sprig20",
    weights: Weights = "shipped",
    image_size: ImageSize = None,
    held_out: Annotated[float, typer.Option(help="Share of each class to measure on.")] = 0.2,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Tell whether choosing similar tasks pays in this library, and print the settings for it.

    Leaves one task out, predicts its mask from the others by every way that there is, and compares
    it with the mask of its own scores. Without --data no network is needed.
    """
    from fedsprig_server.library_evaluation.command import evaluate_library

    if not data and (model, weights, image_size) != ("sprig20", "shipped", None):
        raise typer.BadParameter(
            "--model, --weights and --image-size are of pictures: give --data too"
        )
    check_json(json_file)
    with _opened(folder) as opened:
        found = evaluate_library(
            opened,
            pairs(data or [], "--data"),
            macs="25%" if macs is None and weight_bytes is None else macs,
            weight_bytes=weight_bytes,
            entries=entries,
            model=model,
            weights=weights_of(weights),
            image_size=image_size,
            held_out=held_out,
            seed=seed,
        )
    write_json(json_file, found)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _size_and_limit(target: Mapping[str, Any], size: float) -> tuple[str, str]:
    """What the target counts, of the pruned network, and how much is allowed."""
    unit, amount = target["unit"], target["amount"]
    if unit == "loss":
        return _amount(size, "bytes"), f"{100 * amount:g} points"
    return _amount(size, unit), _amount(amount, unit)


def _amount(value: float, unit: str) -> str:
    if unit == "ms":
        return f"{value:.2f} ms"
    return f"{value / 1e3:,.1f} kB" if unit == "bytes" else f"{value / 1e6:,.2f} M"


def _weights_left(metrics: Mapping[str, float]) -> float | None:
    """Share of the whole network's parameters that are there and not zero."""
    if "parameters_ratio" not in metrics:
        return None
    zeros = metrics.get("zeros", 0.0) / metrics["parameters"]
    return metrics["parameters_ratio"] * (1 - zeros)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _opened(folder: Path) -> Library:
    # Opening makes a library where there is none; a mistyped path must not.
    if not (folder / FILE).is_file():
        raise LibraryError(f"there is no library {folder}: check the path")
    return Library(folder)
