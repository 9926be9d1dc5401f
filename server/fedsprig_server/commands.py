"""The operator's commands. Nothing here imports torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedsprig.errors import LibraryError
from fedsprig_server.library import Library
from fedsprig_server.library.database import FILE

library = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Look into a library and check it."
)

Folder = Annotated[Path, typer.Argument(help="The library, such as runs/demo/library.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write this to a file too.")]


@library.command("list")
def _list(folder: Folder, json_file: Json = None) -> None:
    """Show the tasks that a library knows.

    Two accuracies: on pictures held out from training, which tasks have that devices brought, and
    on the very pictures that were trained on, which tasks have that the library was built from.
    """
    with _opened(folder) as opened:
        entries = opened.entries()
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(entry) for entry in entries], indent=1) + "\n")
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
    """Check every row and every blob.

    Raises:
        LibraryError: Something is missing or damaged; all problems are printed first.
    """
    with _opened(folder) as opened:
        problems = opened.verify()
        count = len(opened.entries())
    for problem in problems:
        print(problem)
    if problems:
        raise LibraryError(f"{len(problems)} problems in {folder}: restore it from a copy")
    print(f"{count} tasks, every blob intact")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _opened(folder: Path) -> Library:
    # Opening makes a library where there is none; a mistyped path must not.
    if not (folder / FILE).is_file():
        raise LibraryError(f"there is no library {folder}: check the path")
    return Library(folder)
