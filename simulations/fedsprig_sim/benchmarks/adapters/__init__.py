"""Training steps with adapters: ours, the limit, full fine-tuning and other libraries.

All contenders of a network take turns, a few steps each, so that whatever else the machine does
touches all of them alike; medians are compared, and the ratios are what counts. The first step of a
turn does not count: it finds the caches full of the others' numbers, as no training does.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig_sim.benchmarks.adapters.contenders import (
    CONTENDERS,
    FROZEN,
    FULL,
    OUR_WAYS,
    PEFT,
    SPA,
    difference_to_library,
)
from fedsprig_sim.benchmarks.adapters.memory import held_by, peak_bytes
from fedsprig_sim.benchmarks.adapters.networks import CLASSES, NETWORKS
from fedsprig_sim.benchmarks.machine import machine

__all__ = ["CONTENDERS", "NETWORKS", "TARGETS", "run", "table"]

TARGETS: Final = {FROZEN: 1.08, FULL: 0.80, SPA: 1 / 1.3, PEFT: 1 / 1.3}
"""A step of ours over one of theirs, at most."""

_WARM_UP: Final = 2  # turns
_STEPS: Final = 2  # of a turn, after the first


def run(
    *,
    networks: Sequence[str] = tuple(NETWORKS),
    ranks: Sequence[int] = (8, 16),
    batch_size: int = 32,
    repeats: int = 15,
    bf16: bool = False,
    channels_last: bool = True,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Time a training step of every contender on every network.

    Args:
        networks: Names in ``NETWORKS``.
        ranks: Of the adapters.
        batch_size: Pictures per step.
        repeats: Turns of each contender.
        bf16: Compute in bfloat16 by autocast.
        channels_last: Memory format of networks and pictures; contiguous otherwise.
        threads: Threads of torch; as it is set when ``None``.
        progress: Called with a line before every network.

    Returns:
        Plain data: settings, the machine, and for every network and rank the contenders' median
        seconds, trained parameters and peak bytes, and ratios of both of our ways. Contenders
        that are not installed are absent.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    cases = []
    for name in networks:
        for rank in ranks:
            progress(f"{name}, rank {rank}")
            cases.append(_case(name, rank, batch_size, repeats, bf16, channels_last))
    return {
        "batch_size": batch_size,
        "repeats": repeats,
        "bf16": bf16,
        "channels_last": channels_last,
        "machine": machine(),
        "cases": cases,
    }


def table(figures: dict[str, Any]) -> str:
    """The figures of :func:`run` as lines of text."""
    lines = [
        f"{'network':<14} {'rank':>4}  {'trained by':<28} {'ms':>8} {'A fixed /':>10} "
        f"{'A trained /':>12} {'at most':>8} {'trained':>11} {'peak MB':>8}"
    ]
    for case in figures["cases"]:
        for name, found in case["contenders"].items():
            fixed, trained = (_figure(case["ratios"][own].get(name)) for own in OUR_WAYS)
            lines.append(
                f"{case['network']:<14} {case['rank']:>4}  {name:<28} "
                f"{1e3 * found['seconds']:>8.1f} {fixed:>10} {trained:>12} "
                f"{_figure(TARGETS.get(name)):>8} {found['trained']:>11,} "
                f"{found['peak_bytes'] / 1e6:>8.1f}"
            )
        peaks = ", ".join(f"{own} {ratio:.2f}" for own, ratio in case["peak_ratios"].items())
        lines.append(f"{'':<21}peak memory over that of full fine-tuning, at most 1: {peaks}")
        if (difference := case["difference"]) is not None:
            lines.append(
                f"{'':<21}forward pass against {SPA}, at most 1e-05: {difference:.1e} of the output"
            )
    if missing := CONTENDERS.keys() - figures["cases"][0]["contenders"].keys():
        lines.append(f"not installed: {', '.join(sorted(missing))} (pip install 'fedsprig[peers]')")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _case(
    name: str, rank: int, batch_size: int, repeats: int, bf16: bool, channels_last: bool
) -> dict[str, Any]:
    torch.manual_seed(0)
    network = NETWORKS[name]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    plain = network.make()
    x = torch.randn(batch_size, 3, network.side, network.side).contiguous(memory_format=layout)
    y = torch.randint(CLASSES, (batch_size,))
    steps: dict[str, _Step] = {}
    difference = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        for label, make in CONTENDERS.items():
            try:
                model = make(plain, rank)
            except ImportError:
                continue
            steps[label] = _Step(model.to(memory_format=layout), x, y, bf16)
        if SPA in steps:
            difference = difference_to_library(plain, rank, x)
        seconds: dict[str, list[float]] = {label: [] for label in steps}
        for turn in range(_WARM_UP + repeats):
            for label, step in steps.items():
                step()
                for _ in range(_STEPS):
                    start = time.perf_counter()
                    step()
                    if turn >= _WARM_UP:
                        seconds[label].append(time.perf_counter() - start)
        found = {
            label: {
                "seconds": statistics.median(seconds[label]),
                "trained": sum(p.numel() for p in step.model.parameters() if p.requires_grad),
                "peak_bytes": peak_bytes(step, held_by(step.model, step.optimiser)),
            }
            for label, step in steps.items()
        }
    return {
        "network": name,
        "rank": rank,
        "contenders": found,
        "ratios": {
            own: {
                label: found[own]["seconds"] / found[label]["seconds"]
                for label in found
                if label not in OUR_WAYS
            }
            for own in OUR_WAYS
        },
        "peak_ratios": {
            own: found[own]["peak_bytes"] / found[FULL]["peak_bytes"] for own in OUR_WAYS
        },
        "difference": difference,
    }


class _Step:
    """One training step of a contender, again and again."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, bf16: bool) -> None:
        self.model = model.train()
        self._x, self._y, self._bf16 = x, y, bf16
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def __call__(self) -> None:
        self.optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            out = self.model(self._x)
        loss = F.cross_entropy(out.float(), self._y)
        torch.autograd.backward(loss)
        self.optimiser.step()
