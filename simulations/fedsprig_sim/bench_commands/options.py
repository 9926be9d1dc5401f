"""What the commands that measure have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsprig.artifacts import require_writable, write_bytes
from fedsprig_server.pairs import pairs

Figures = dict[str, Any]

Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")]
Data = Annotated[
    str, typer.Option(help="An .npz file with splits train and test, or digits or fashion.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Repetitions.")]
Pictures = Annotated[int, typer.Option(min=64, help="Training pictures, at most.")]
TestPictures = Annotated[int, typer.Option(min=1, help="Test pictures, at most.")]
Out = Annotated[Path, typer.Option(help="Folder; what it holds is not computed again.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1_024, help="Of torch; all by default.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Train in bfloat16.")]
DataPaths = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=PATH", help="Where the scenario's data NAME lie; repeatable."),
]


def paths_of(items: Sequence[str] | None, option: str) -> dict[str, str]:
    """Paths of ``NAME=PATH``, repeated.

    Raises:
        typer.BadParameter: Another form, or a name that is given twice.
    """
    return pairs(items or (), option, form="NAME=PATH")


def report(
    json_file: Path | None, measure: Callable[[], Figures], table: Callable[[Figures], str]
) -> None:
    """Measure, print the table and write the figures; a file that could not be is said first."""
    if json_file is not None:
        require_writable(json_file)
    figures = measure()
    print(table(figures))
    if json_file is not None:
        write_bytes(json_file, (json.dumps(figures, indent=1) + "\n").encode())
