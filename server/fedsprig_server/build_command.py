"""What stands behind ``fedsprig library build``: sources read, the base loaded, progress shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

from rich.console import Console
from rich.progress import Progress

from fedsprig.errors import BudgetError, DataError
from fedsprig.models import describe
from fedsprig.pruning import Policy
from fedsprig.training import ImageSet, read
from fedsprig_server.base import Base
from fedsprig_server.library import Entry, Library
from fedsprig_server.library_build import LibraryTask
from fedsprig_server.method_settings import configured
from fedsprig_server.pruned_entries import PrunedEntryConfig, prune_into_library

CHECKPOINTS = "building"
"""Folder in the library's where unfinished tasks lie."""

_EMBEDDED = "embedded:"


def build(
    folder: Path,
    sources: Mapping[str, str],
    *,
    method: str,
    policy: str,
    target: str,
    model: str,
    weights: str | None,
    image_size: int | None,
    settings: Mapping[str, str],
    held_out: float,
    seed: int,
) -> list[Entry]:
    """Fill a library; see :func:`fedsprig_server.pruned_entries.prune_into_library`.

    Everything that can be refused without the base model is refused before the library is made.

    Args:
        folder: The library.
        sources: Where each task's pictures lie.
        method: A name in ``PRUNERS``.
        policy: One of the three.
        target: As the operator writes it.
        model: A builder's name.
        weights: As :func:`fedsprig.models.build` takes them.
        image_size: Side of the pictures, where it is not the model's own.
        settings: Of the method, as texts.
        held_out: Share of each class that selects.
        seed: Of everything.
    """
    if policy not in get_args(Policy):
        raise BudgetError(f"the policy is {policy!r:.40}: use {', '.join(get_args(Policy))}")
    config = PrunedEntryConfig(
        pruner=configured(method, settings),
        policy=cast(Policy, policy),
        target=target,
        held_out=held_out,
        seed=seed,
    )
    tasks = [
        LibraryTask(name, pictures_of(source, model, image_size))
        for name, source in sources.items()
    ]
    console = Console(stderr=True)
    with Library(folder) as library, Progress(console=console, transient=True) as bars:
        bar = bars.add_task("reading the base")

        base = Base.load(model, weights, image_size=image_size, stored_plan=library.stored_plan)

        def told(stage: str, done: int, steps: int) -> None:
            bars.update(bar, description=stage, completed=done, total=steps)
            if done == steps:
                bars.console.print(f"{stage}: {steps} steps", markup=False, highlight=False)

        return prune_into_library(
            library, base, tasks, config, checkpoints=folder / CHECKPOINTS, progress=told
        )


def pictures_of(source: str, model: str, size: int | None) -> ImageSet:
    """The pictures of a source: ``embedded:NAME``, an .npz file, or a folder of classes.

    Args:
        source: As the operator writes it.
        model: Whose picture size files of a folder get.
        size: Side of the pictures, where it is not the model's own.

    Raises:
        DataError: A source that cannot be used.
    """
    if not source:
        raise DataError(
            "a source of pictures is empty: name a folder, an .npz file or embedded:NAME"
        )
    if source.startswith(_EMBEDDED):
        return read("embedded", name=source.removeprefix(_EMBEDDED))
    if source.endswith(".npz"):
        return read("npz", source, size=size)
    # Files in a folder are seldom of one size.
    return read("folder", source, size=size or describe(model).input_size)
