from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from fedsprig_sim.progress import show_progress


def test_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with show_progress(Console(file=out, width=40)) as progress:
        progress.begin("library tasks", 3)
        for name in "abc":
            progress.step("library tasks", name)
        progress.say("[bold]a name in brackets")
    shown = [line.split(" s  ", 1)[1] for line in out.getvalue().splitlines()]
    assert shown[0] == "library tasks: 3 to do"
    assert shown[-2:] == ["library tasks: 3 of 3, c", "[bold]a name in brackets"]


@pytest.mark.parametrize("terminal", [True, False])
def test_no_step_of_any_thread_is_lost(terminal: bool) -> None:
    out = io.StringIO()
    with show_progress(Console(file=out, force_terminal=terminal, width=120)) as progress:
        progress.begin("rounds", 200)
        threads = [
            threading.Thread(target=lambda: [progress.step("rounds", "x[/]") for _ in range(50)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ("200/200" if terminal else "200 of 200") in out.getvalue()
