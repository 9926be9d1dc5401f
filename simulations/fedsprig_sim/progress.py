"""What a person sees while a run works: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars


class Progress(Protocol):
    """Receives what happens. Stages may overlap; every method may be called from any thread."""

    def begin(self, stage: str, total: int) -> None:
        """A stage of so many steps begins."""

    def step(self, stage: str, what: str = "") -> None:
        """One step of a stage is done; `what` says in a few words which."""

    def say(self, line: str) -> None:
        """A line that stays visible, such as a task's figures."""


class Silence:
    """Shows nothing."""

    def begin(self, stage: str, total: int) -> None:
        """Nothing."""

    def step(self, stage: str, what: str = "") -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class BarProgress:
    """A bar for every stage, above which lines scroll."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._stages: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def begin(self, stage: str, total: int) -> None:
        """Show a bar."""
        with self._lock:
            self._stages[stage] = self._bars.add_task(stage, total=total, what="")

    def step(self, stage: str, what: str = "") -> None:
        """Advance the bar and say what was done."""
        with self._lock:
            self._bars.update(self._stages[stage], advance=1, what=what)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(line, markup=False, highlight=False)


class LineProgress:
    """A line when a stage begins and ends, and in between one in five seconds at most: for logs."""

    _PAUSE_SECONDS = 5.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._done: dict[str, tuple[int, int]] = {}
        self._started = self._last = time.monotonic()

    def begin(self, stage: str, total: int) -> None:
        """Announce the stage."""
        with self._lock:
            self._done[stage] = (0, total)
            self._write(f"{stage}: {total} to do")

    def step(self, stage: str, what: str = "") -> None:
        """Write a line if the stage ends or the last line is old."""
        with self._lock:
            done, total = self._done[stage]
            done += 1
            self._done[stage] = (done, total)
            if done == total or time.monotonic() - self._last > self._PAUSE_SECONDS:
                self._write(f"{stage}: {done} of {total}" + (f", {what}" if what else ""))

    def say(self, line: str) -> None:
        """Write the line."""
        with self._lock:
            self._write(line)

    def _write(self, line: str) -> None:
        self._last = time.monotonic()
        clock = f"{self._last - self._started:6.1f} s  "
        self._console.print(clock + line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """Progress on a console: bars where it is a terminal, lines where it is a file or a pipe."""
    if not console.is_terminal:
        yield LineProgress(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}", style="dim", markup=False),
    )
    with Bars(*columns, console=console) as bars:
        yield BarProgress(bars)
