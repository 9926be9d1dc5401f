from __future__ import annotations

import io

from rich.console import Console

from fedsprig_sim.result import Result
from fedsprig_sim.table import result_table


def lines(result: Result, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(result_table(result, gap=int(width >= 100)))
    return console.file.getvalue().splitlines()


def test_every_task_has_a_line_with_its_figures(result: Result) -> None:
    shown = lines(result, 110)
    task = result.tasks[1]
    (line,) = [line for line in shown if line.strip().startswith("shirts")]
    curve = task.arms["one_shot"].curve
    cells = line.split()
    assert cells[:3] == ["shirts", "[1]", "3"]
    assert cells[4:8] == ["551", "kB", "24.2", "kB"]
    assert cells[8:10] == [f"{100 * curve[0]:.1f}", f"{100 * curve[-1]:.1f}"]
    assert cells[-1] == "8.5"
    assert "[1] Seen in pretraining." in shown
    assert any(line.strip().startswith("mean") for line in shown)


def test_it_fits_a_terminal_of_eighty_columns(result: Result) -> None:
    shown = lines(result, 80)
    assert max(map(len, shown)) <= 80
    row = next(line for line in shown if "digits-low" in line)
    assert f"{100 * result.tasks[2].arms['one_shot'].curve[-1]:.1f}" in row.split()
    assert row.split()[-1] == "8.5"


def test_an_arm_that_was_not_run_has_a_dash(result: Result) -> None:
    task = result.tasks[0]
    arms = {arm: record for arm, record in task.arms.items() if arm != "random"}
    changed = (task.model_copy(update={"arms": arms}), *result.tasks[1:])
    shown = lines(result.model_copy(update={"tasks": changed}), 110)
    assert "-" in next(line for line in shown if "footwear" in line).split()
