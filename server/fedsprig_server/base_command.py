"""What stands behind ``fedsprig base prepare``: sources read, a library opened, progress shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from fedsprig.errors import DataError, LibraryError
from fedsprig.preparing import PrepareConfig
from fedsprig_server.base_prepare import PreparedBase, prepare_base
from fedsprig_server.build_command import pictures_of
from fedsprig_server.library import Library
from fedsprig_server.library.database import FILE
from fedsprig_server.method_settings import changed


def prepare(
    out: Path,
    sources: Sequence[str],
    *,
    model: str,
    weights: str | None,
    image_size: int | None,
    library: Path | None,
    settings: Mapping[str, str],
    held_out: float,
    seed: int,
) -> PreparedBase:
    """Prepare a base; see :func:`fedsprig_server.base_prepare.prepare_base`.

    Args:
        out: Where the weights go.
        sources: Where pictures lie.
        model: A builder's name.
        weights: As :func:`fedsprig.models.build` takes them.
        image_size: Side of the pictures, where it is not the model's own.
        library: Folder of a library whose scores bias the masks.
        settings: Of :class:`fedsprig.preparing.PrepareConfig`, as texts.
        held_out: Share of each class that is measured on.
        seed: Of everything.
    """
    config: PrepareConfig = changed(PrepareConfig(), settings, "base prepare")
    # Opening makes a library where there is none; a mistyped path must not.
    if library is not None and not (library / FILE).is_file():
        raise LibraryError(f"there is no library {library}: check the path")
    pictures = [pictures_of(source, model, image_size) for source in sources]
    for source, given in zip(sources, pictures, strict=True):
        if np.bincount(given.labels).max() < 2:
            raise DataError(
                f"{source} has one picture of a class, and --held-out needs two: give more pictures"
            )
    console = Console(stderr=True)
    opened = nullcontext() if library is None else Library(library)
    with opened as known, Progress(console=console, transient=True) as bars:
        bar = bars.add_task("reading the base")

        def told(stage: str, done: int, steps: int) -> None:
            bars.update(bar, description=stage, completed=done, total=steps)

        return prepare_base(
            out,
            pictures,
            model=model,
            weights=weights,
            image_size=image_size,
            library=known,
            config=config,
            held_out=held_out,
            seed=seed,
            told=told,
        )
