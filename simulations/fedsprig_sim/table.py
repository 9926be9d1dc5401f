"""The result of a run as a table in the terminal."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedsprig_sim.report.wording import cuts, human_bytes, listed, notes, percent, summary_sentence
from fedsprig_sim.result import ARMS, ArmName, Result, TaskRecord

_HEADINGS: dict[ArmName, str] = {
    "one_shot": "one-\nshot",
    "magnitude": "magni-\ntude",
    "random": "random",
    "full_finetune": "whole\nbase",
}
_RIVALS: dict[ArmName, str] = {
    "magnitude": "the same budgets cut by weight magnitude",
    "random": "the same budgets cut at random",
    "full_finetune": "the whole base model fine-tuned",
}


def result_table(result: Result, *, gap: int = 1) -> RenderableType:
    """Summary, a row per task, means, and the caveats of the data.

    Args:
        result: What is shown.
        gap: Spaces between columns beyond the one that is always there.
    """
    arms = [arm for arm in ARMS if any(arm in task.arms for task in result.tasks)]
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, gap, 0, 0),
        pad_edge=False,
        header_style="",
    )
    table.add_column("task", overflow="fold")
    headings = ["dev-\nices", "kept %\nu/p/MACs", "bytes\ndown", "up per\nround", "after\ncut"]
    headings += [_HEADINGS[arm] for arm in arms]
    for heading in [*headings, "secs"]:
        table.add_column(heading, justify="right", no_wrap=True)
    caveats = notes(result)
    for task in result.tasks:
        mark = f" [{caveats.index(task.note) + 1}]" if task.note else ""
        table.add_row(Text(task.name + mark), *_cells(task, arms))
    table.add_section()
    table.add_row(Text("mean", style="bold"), *_mean_cells(result, arms))
    lines: list[RenderableType] = [Text(summary_sentence(result)), Text(), table, Text(_key(arms))]
    if shrunk := [line for task in result.tasks for line in cuts(task)]:
        lines += [Text(), Text("Shrunk while they trained, to % of MACs/parameters:")]
        lines += [Text(f"  {line}") for line in shrunk]
    lines += [Text(f"[{number}] {note}") for number, note in enumerate(caveats, 1)]
    return Group(*lines)


def _key(arms: list[ArmName]) -> str:
    rivals = [_RIVALS[arm] for arm in arms if arm in _RIVALS]
    return (
        "kept: share of units / parameters / multiply-accumulates. Bytes and seconds are those of "
        "one device. Accuracy in % on held-out pictures: one-shot right after the cut, then after "
        f"fine-tuning{', beside ' if rivals else ''}{listed(rivals)}."
    )


def print_table(result: Result) -> None:
    """Print the table; where the output is no terminal, wide enough for any name."""
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(result_table(result, gap=int(console.width >= 100)))


def _cells(task: TaskRecord, arms: list[ArmName]) -> list[Text]:
    kept = (task.keep_units, task.keep_params, task.keep_macs)
    cells = [
        Text(str(task.devices)),
        Text("/".join(f"{100 * share:.0f}" for share in kept)),
        Text(human_bytes(task.download_bytes)),
        Text(human_bytes(task.update_bytes)),
        Text(percent(task.accuracy_after_cut)),
    ]
    cells += [_accuracy(task.accuracy, arm) for arm in arms]
    return [*cells, Text(f"{task.device_seconds:.1f}")]


def _mean_cells(result: Result, arms: list[ArmName]) -> list[Text]:
    mean = result.mean
    kept = (mean("keep_units"), mean("keep_params"), mean("keep_macs"))
    means: dict[ArmName, float | None] = dict(result.mean_accuracy())
    cells = [
        Text(str(sum(task.devices for task in result.tasks))),
        Text("/".join(f"{100 * share:.0f}" for share in kept)),
        Text(human_bytes(mean("download_bytes"))),
        Text(human_bytes(mean("update_bytes"))),
        Text(percent(mean("accuracy_after_cut"))),
    ]
    cells += [_accuracy(means, arm) for arm in arms]
    return [*cells, Text(f"{mean('device_seconds'):.1f}")]


def _accuracy(accuracy: dict[ArmName, float | None], arm: ArmName) -> Text:
    """An accuracy in per cent; the best of those at the same budget stands out."""
    value = accuracy.get(arm)
    if value is None:
        return Text("-")
    rivals = [v for name, v in accuracy.items() if name != "full_finetune" and v is not None]
    best = arm != "full_finetune" and len(rivals) > 1 and value == max(rivals)
    return Text(percent(value), style="bold green" if best else "")
