"""Whether every policy meets its target: within a hundredth of it, and never over a hard limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fedsprig.masks import Mask
from fedsprig.pruning import AAP, OneShot, Policy, Pruner
from fedsprig.pruning.latency import MeasuredLatency
from fedsprig_sim.benchmarks.kept import once
from fedsprig_sim.benchmarks.pruners.case import Case
from fedsprig_sim.benchmarks.pruners.world import World

TARGETS: Final[tuple[tuple[Policy, str], ...]] = (
    ("accuracy", "1%"),
    ("memory", "50%"),
    ("memory", "20%"),
    ("latency", "50%"),
    ("latency", "20%"),
)
MEASURED: Final = 0.6
"""Share of the whole network's measured time that the target in milliseconds allows."""


def cases(world: World, seeds: Sequence[int]) -> list[Case]:
    """AAP and a baseline at every target; the time of the whole network is measured first."""
    whole = once(world.folder / "whole-network.json", lambda: _whole_time(world))["milliseconds"]
    training = world.options.training
    arms: dict[str, Pruner] = {
        "aap": AAP(training=training, train_first=False),
        "taylor": OneShot(criterion="taylor", training=training, train_first=False),
    }
    return [
        Case(row=f"{policy} {target}", arm=arm, pruner=pruner, policy=policy, target=target, seed=s)
        for policy, target in (*TARGETS, ("latency", f"{MEASURED * whole:.2f}ms"))
        for s in seeds
        for arm, pruner in arms.items()
    ]


def _whole_time(world: World) -> dict[str, float]:
    return {"milliseconds": MeasuredLatency(world.network, world.plan)(Mask.full(world.plan))}


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    """A line for every case: the target, what was reached, and how far that is off.

    Milliseconds are those of the finished network, measured anew.
    """
    lines = [
        f"{'policy':<18} {'method':<8} {'seed':>4} {'target':>14} {'reached':>14} {'off':>8} "
        f"{'bytes':>8} {'MACs':>8} {'test':>8} {'whole':>8} {'rounds':>7}"
    ]
    for case in figures:
        metrics, aim = case["metrics"], case["amount"]
        accuracy = case["policy"] == "accuracy"
        reached = case["milliseconds"] or metrics["size"]
        if accuracy:
            reached = metrics["accuracy_whole"] - metrics["accuracy"]
        # A loss is off in points, a size in hundredths of the target.
        off = 100 * (reached - aim) if accuracy else 100 * (reached / aim - 1)
        lines.append(
            f"{case['row']:<18} {case['arm']:<8} {case['seed']:>4} {aim:>14,.5g} {reached:>14,.5g} "
            f"{off:>+8.2f} {100 * metrics['parameters_ratio']:>6.1f} % "
            f"{100 * metrics['macs_ratio']:>6.1f} % {100 * case['test']:>6.2f} % "
            f"{100 * case['test_whole']:>6.2f} % {metrics['rounds']:>7.0f}"
        )
    return "\n".join(lines)
