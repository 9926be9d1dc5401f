"""The commands that measure. Torch is imported when there is something to measure."""

from __future__ import annotations

import typer

from fedsprig_sim.bench_commands.pruning import pruning
from fedsprig_sim.bench_commands.speed import speed
from fedsprig_sim.bench_commands.starting import starting

bench = typer.Typer(add_completion=False, help="Measure parts of the system.")
for part in (speed, starting, pruning):
    bench.registered_commands += part.registered_commands


@bench.callback()
def _bench() -> None:
    """Measure parts of the system."""
