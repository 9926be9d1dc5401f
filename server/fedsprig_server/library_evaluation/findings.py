"""What an evaluation found, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fedsprig_server.library import BaseRecord
from fedsprig_server.library_evaluation.choice import Choice, Estimate
from fedsprig_server.library_evaluation.evaluation import Evaluation
from fedsprig_server.library_evaluation.losses import TaskLoss
from fedsprig_server.library_evaluation.ways import MEAN


def show(
    record: BaseRecord, evaluation: Evaluation, choice: Choice, measured: Sequence[TaskLoss]
) -> None:
    """Print tables, the verdict and the settings to paste.

    Args:
        record: The base.
        evaluation: Of its entries.
        choice: Of this evaluation.
        measured: Accuracies, where there were pictures.
    """
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
        paired = ("", "") if way == MEAN else (f"{gain.mean:+.3f}", _error(gain))
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
        table.add_row(name, f"{estimate.mean:.3f}", _error(estimate))
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
        known = f" (standard error {lost.error:.1f})" if math.isfinite(lost.error) else ""
        console.print(
            f"{label}: {lost.mean:+.1f} points lost against the own mask right after the cut"
            f"{known}",
            highlight=False,
        )


def _error(estimate: Estimate) -> str:
    """Of one task alone, nothing is known of it."""
    return f"{estimate.error:.3f}" if math.isfinite(estimate.error) else ""


def plain(
    record: BaseRecord, evaluation: Evaluation, choice: Choice, measured: Sequence[TaskLoss]
) -> dict[str, Any]:
    """The same as plain JSON data."""
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
