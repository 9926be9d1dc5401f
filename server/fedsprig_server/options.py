"""Options that several commands have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsprig.artifacts import require_writable, write_bytes

Json = Annotated[Path | None, typer.Option("--json", help="Write this to a file too.")]
Model = Annotated[str, typer.Option(help="Base model.")]
Weights = Annotated[str, typer.Option(help="shipped, imagenet, a .safetensors file, or none.")]
ImageSize = Annotated[
    int | None, typer.Option(min=8, help="Side of the pictures that the model gets.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")]


def weights_of(name: str) -> str | None:
    """What ``none`` means to those who build a model."""
    return None if name == "none" else name


def check_json(json_file: Path | None) -> None:
    """Refuse a file that could not be written, before the work for it is done.

    Raises:
        ArtifactError: Its folder cannot be written to, or it is no regular file.
    """
    if json_file is not None:
        require_writable(json_file)


def write_json(json_file: Path | None, value: Any) -> None:
    """Write plain data durably, where a file was named.

    Raises:
        ArtifactError: The file cannot be written.
    """
    if json_file is not None:
        write_bytes(json_file, (json.dumps(value, indent=1) + "\n").encode())
