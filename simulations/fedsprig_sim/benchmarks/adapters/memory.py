"""Peak memory of a training step."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], None], held: Iterable[Tensor]) -> int:
    """Bytes held at the worst moment of a step on a CPU: what is held before it, and more.

    Args:
        step: Trains once. It must have run before, so that the optimiser has its state.
        held: Parameters, buffers and the optimiser's state; memory they share counts once.
    """
    before = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    with _silence(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    events: Any = watched.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return sum(before.values()) + peak


@contextmanager
def _silence() -> Iterator[None]:
    """Send the process's standard error away: the profiler's C++ side talks about itself there."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def held_by(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters, buffers and the optimiser's state."""
    state = [
        value
        for values in optimiser.state.values()
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    return [*model.parameters(), *model.buffers(), *state]
