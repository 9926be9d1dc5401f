"""What stands behind ``fedsprig library evaluate``: the library read, figures shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table

from fedsprig.errors import BudgetError, LibraryError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Budget
from fedsprig.pruning import Target
from fedsprig_server.base import Base
from fedsprig_server.build_command import pictures_of
from fedsprig_server.config import SelectionConfig
from fedsprig_server.library import BaseRecord, Library
from fedsprig_server.library_build import LibraryTask
from fedsprig_server.library_evaluation.choice import Choice, Estimate, choose
from fedsprig_server.library_evaluation.evaluation import Evaluation, evaluate
from fedsprig_server.library_evaluation.losses import TaskLoss, losses
from fedsprig_server.library_evaluation.subject import LEAST, Solver, Subject
from fedsprig_server.library_evaluation.ways import MEAN, Progress


def evaluate_library(
    library: Library,
    sources: Mapping[str, str],
    *,
    macs: str | None,
    weight_bytes: str | None,
    entries: int,
    model: str,
    weights: str | None,
    image_size: int | None,
    held_out: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Evaluate every base of a library and print what came out.

    Args:
        library: Where the entries are.
        sources: Where pictures of tasks lie, by the name of their entry; without any, no network
            is needed.
        macs: Limit as an operator writes it, or ``None``.
        weight_bytes: The same of the weights; at least one of the two.
        entries: How many are left out at most.
        model: A builder's name, for the pictures.
        weights: As :func:`fedsprig.models.build` takes them.
        image_size: Side of the pictures, where it is not the model's own.
        held_out: Share of each class to measure accuracy on.
        seed: Of all drawing.

    Returns:
        What was found, one for each base with enough entries, as plain JSON data.

    Raises:
        LibraryError: No base with three entries, or pictures of no entry.
        BudgetError: A limit that cannot be read.
        InfeasibleBudgetError: A limit that no mask meets.
    """
    if entries < 1:
        raise LibraryError(f"entries {entries}: leave out at least 1 task")
    records = [item for item in library.bases() if len(library.entries(item.digest)) >= LEAST]
    if not records:
        counts = [len(library.entries(item.digest)) for item in library.bases()]
        raise LibraryError(
            f"the library has at most {max(counts, default=0)} tasks of one base: leaving one out "
            f"needs at least {LEAST}; add more"
        )

    def budget(plan: GroupPlan) -> Budget:
        return _budget(macs, weight_bytes, plan)

    base = _base(library, model, weights, image_size) if sources else None
    tasks = [
        LibraryTask(name, pictures_of(source, model, image_size))
        for name, source in sources.items()
    ]
    if base is not None and base.digest not in [item.digest for item in records]:
        raise LibraryError(
            f"no {LEAST} tasks of the library are of this {model}: check its weights"
        )
    found = []
    for record in records:
        own = base if base is not None and base.digest == record.digest else None
        plan = GroupPlan.from_bytes(library.blobs.get(record.plan))
        with _Watched() as progress:
            subject = Subject.read(
                library,
                record.digest,
                Solver(plan, budget, SelectionConfig()),
                most=entries,
                seed=seed,
                always=[task.name for task in tasks] if own else (),
            )
            evaluation = evaluate(subject, progress)
            choice = choose(evaluation)
            measured = (
                losses(
                    evaluation, choice, own, tasks, held_out=held_out, seed=seed, progress=progress
                )
                if own
                else []
            )
        _show(record, evaluation, choice, measured)
        found.append(_plain(record, evaluation, choice, measured))
    return found


class _Watched(AbstractContextManager[Progress]):
    """A bar on stderr that follows the stages."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        # Where nobody watches, not even the empty line that a bar leaves.
        self._bars = Bars(console=console, transient=True, disable=not console.is_terminal)
        self._bar = self._bars.add_task("reading the library")

    def __enter__(self) -> Progress:
        self._bars.start()
        return self._told

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _told(self, stage: str, done: int, steps: int) -> None:
        self._bars.update(self._bar, description=stage, completed=done, total=steps)


def _base(library: Library, model: str, weights: str | None, image_size: int | None) -> Base:
    def stored_plan(digest: str) -> bytes | None:
        record = library.find_base(digest)
        return None if record is None else library.blobs.get(record.plan)

    return Base.load(model, weights, image_size=image_size, stored_plan=stored_plan)


def _budget(macs: str | None, weight_bytes: str | None, plan: GroupPlan) -> Budget:
    limits = {}
    if macs is not None:
        budget = Target.parse("latency", macs, plan).budget
        if budget is None or budget.macs is None:
            raise BudgetError(
                f"the limit {macs!r:.40} is a time, which nobody measures here: "
                "write multiply-accumulates, 25% or 12M"
            )
        limits["macs"] = budget.macs
    if weight_bytes is not None:
        budget = Target.parse("memory", weight_bytes, plan).budget
        if budget is not None and budget.weight_bytes is not None:
            limits["weight_bytes"] = budget.weight_bytes
    return Budget(**limits)


def _show(
    record: BaseRecord, evaluation: Evaluation, choice: Choice, measured: Sequence[TaskLoss]
) -> None:
    console = Console()
    subject = evaluation.subject
    console.print(
        f"{record.model}: {len(subject.rows)} of {len(subject.names)} tasks left out in turn\n"
    )
    table = Table("score mask", "similarity", "temp.", "IoU", "by group", "gain", "error", box=None)
    mean = evaluation.overlaps[evaluation.ways.index(MEAN)]
    rows = zip(evaluation.ways, evaluation.overlaps, evaluation.group_overlaps, strict=True)
    for way, whole, by_group in rows:
        gain = Estimate.of(whole - mean)
        paired = ("", "") if way == MEAN else (f"{gain.mean:+.3f}", f"{gain.error:.3f}")
        table.add_row(
            way.score_mask,
            way.similarity,
            f"{way.temperature:g}" if way.temperature else "",
            f"{whole.mean():.3f}",
            f"{by_group.mean():.3f}",
            *paired,
        )
    table.add_row(
        "random units",
        "",
        "",
        f"{evaluation.floor.mean():.3f}",
        f"{evaluation.group_floor.mean():.3f}",
    )
    console.print(table)
    table = Table("similarity", "rank correlation with IoU", "standard error", box=None)
    for name, values in evaluation.correlations.items():
        estimate = Estimate.of(values)
        table.add_row(name, f"{estimate.mean:.3f}", f"{estimate.error:.3f}")
    console.print()
    console.print(table)
    if measured:
        _show_losses(console, choice, measured)
    # In lines of their own length, and brackets as they are.
    print(f"\n{choice.verdict}.\n\n[selection]")
    for key, value in choice.selection.items():
        print(f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value:g}")


def _show_losses(console: Console, choice: Choice, measured: Sequence[TaskLoss]) -> None:
    labels = [MEAN.label, choice.best.label]
    table = Table("task", "held out", "whole", "own mask", *labels, "random", box=None)
    for task in measured:
        accuracies = (task.whole, task.own, *(task.predicted[x] for x in labels), task.random)
        table.add_row(task.name, str(task.pictures), *(f"{100 * x:.1f} %" for x in accuracies))
    console.print()
    console.print(table)
    for label in labels:
        lost = Estimate.of(
            np.array([100 * (task.own - task.predicted[label]) for task in measured])
        )
        console.print(
            f"{label}: {lost.mean:+.1f} points lost against the own mask right after the cut "
            f"(standard error {lost.error:.1f})",
            highlight=False,
        )


def _plain(
    record: BaseRecord, evaluation: Evaluation, choice: Choice, measured: Sequence[TaskLoss]
) -> dict[str, Any]:
    subject = evaluation.subject
    mean = evaluation.overlaps[evaluation.ways.index(MEAN)]
    return {
        "model": record.model,
        "base": record.digest,
        "entries": len(subject.names),
        "left_out": [subject.names[row] for row in subject.rows],
        "ways": [
            {
                **asdict(way),
                "iou": float(whole.mean()),
                "group_iou": float(by_group.mean()),
                "over_the_mean": _figures(whole - mean),
            }
            for way, whole, by_group in zip(
                evaluation.ways, evaluation.overlaps, evaluation.group_overlaps, strict=True
            )
        ],
        "random": {
            "iou": float(evaluation.floor.mean()),
            "group_iou": float(evaluation.group_floor.mean()),
        },
        "rank_correlations": {
            name: _figures(values) for name, values in evaluation.correlations.items()
        },
        "accuracy": [asdict(task) for task in measured],
        "gain": _finite(asdict(choice.gain)),
        "verdict": choice.verdict,
        "selection": choice.selection,
    }


def _figures(values: NDArray[np.float64]) -> dict[str, Any]:
    return _finite(asdict(Estimate.of(values)))


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    """With nothing in the place of an error that is not known, which JSON has no word for."""
    return {key: None if value == math.inf else value for key, value in figures.items()}
