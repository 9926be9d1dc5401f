"""The same words and units for the table, the report and the README."""

from __future__ import annotations

from statistics import fmean

from fedsprig_sim.result import ArmName, Result, TaskRecord

ARM_TITLES: dict[ArmName, str] = {
    "one_shot": "one-shot",
    "magnitude": "magnitude",
    "random": "random",
    "full_finetune": "whole base",
}


def human_bytes(count: float) -> str:
    """``17408`` to ``17.4 kB``: decimal units, three digits."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def percent(share: float, digits: int = 1) -> str:
    """``0.7215`` to ``72.2``, without the sign."""
    return f"{100 * share:.{digits}f}"


def counted(number: int, noun: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def notes(result: Result) -> list[str]:
    """The caveats of all tasks, each once."""
    return list(dict.fromkeys(task.note for task in result.tasks if task.note))


def difference(mine: float, other: float) -> str:
    """``3.1 points above``, ``0.4 points below`` or ``level with``, as one decimal shows it."""
    points = round(100 * mine, 1) - round(100 * other, 1)
    if abs(points) < 0.05:
        return "level with"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def summary_sentence(result: Result) -> str:
    """What the run did, how well it went and what it cost, for someone who knows nothing of it."""
    means, summary = result.mean_accuracy(), result.summary
    mine = means["one_shot"]
    rounds = len(result.tasks[0].arms["one_shot"].curve) - 1
    comparisons = [
        f"{difference(mine, means[arm])} {text}"
        for arm, text in (
            ("magnitude", "cutting by weight magnitude"),
            ("random", "cutting at random"),
            ("full_finetune", "fine-tuning the whole base model"),
        )
        if arm in means
    ]
    compared = f": {listed(comparisons)}" if comparisons else ""
    share = round(1 / summary["update_share"]) if summary["update_share"] else 0
    largest = max(task.update_bytes for task in result.tasks)
    devices = counted(sum(task.devices for task in result.tasks), "device")
    tasks, library = counted(len(result.tasks), "new task"), counted(len(result.library), "task")
    return (
        f"{devices} with {tasks} got their networks in one shot from a library of {library}. "
        f"With {percent(summary['keep_macs'], 0)} % of the base model's multiply-accumulates they "
        f"reach {percent(mine)} % accuracy after {counted(rounds, 'round')} of fine-tuning"
        f"{compared}. An update is {human_bytes(largest)} at most, 1/{share:,} of the base model."
        f"{_truncation(result)}"
    )


def _truncation(result: Result) -> str:
    """What refactoring averaged adapters lost, where that was done."""
    rounds = [lost for task in result.tasks for lost in task.arms["one_shot"].truncation]
    if not rounds:
        return ""
    worst, mean = max(lost.worst for lost in rounds), fmean(lost.mean for lost in rounds)
    return (
        f" Factoring the averaged adapters again lost {percent(mean)} % of a layer's change a "
        f"round, {percent(worst)} % at most."
    )


def cuts(task: TaskRecord) -> list[str]:
    """How networks went on shrinking, a line for every budget; none where they did not."""
    made = task.arms["one_shot"].cuts
    lines = []
    for budget in dict.fromkeys(cut.budget for cut in made):
        own = [cut for cut in made if cut.budget == budget]
        shares = [
            f"{percent(cut.macs / task.base_macs, 0)}/"
            f"{percent(cut.parameters / task.base_parameters, 0)}"
            for cut in own
        ]
        rounds = listed([str(cut.round) for cut in own])
        after = f"after round{'s' * (len(own) > 1)} {rounds}"
        lines.append(f"{task.name}, {budget}: {', '.join(shares)} {after}")
    return lines


def listed(parts: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([*filter(None, [", ".join(parts[:-1])]), *parts[-1:]])
