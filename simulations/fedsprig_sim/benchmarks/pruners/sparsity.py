"""PDP against gradual magnitude pruning: the same start, ramp, epochs and seeds, by pattern.

Cho, Adya and Naik 2023, arXiv 2305.11203, against Zhu and Gupta 2017, arXiv 1710.01878.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, Final

from fedsprig.masks.costs import BYTES_PER_PARAMETER, PlanCosts
from fedsprig.pruning import PDP, GradualMagnitude
from fedsprig.pruning.sparse.layers import WORDS, prunable_layers
from fedsprig_sim.benchmarks.pruners.case import Case
from fedsprig_sim.benchmarks.pruners.tables import paired, percents
from fedsprig_sim.benchmarks.pruners.world import World

SPARSITY: Final = 0.9
CHANNELS: Final = "30%"
_METHODS: Final = {"pdp": PDP, "gmp": GradualMagnitude}


def cases(world: World, seeds: Sequence[int]) -> list[Case]:
    """Each pattern by both methods."""
    found = []
    for row, pattern, policy, target in (
        ("unstructured 90 %", "unstructured", "memory", str(stored_bytes(world, SPARSITY))),
        ("2:4", "2:4", "memory", "100%"),
        ("1:4", "1:4", "memory", "100%"),
        (f"channels, {CHANNELS} of MACs", "channels", "latency", CHANNELS),
    ):
        for seed in seeds:
            for arm, method in _METHODS.items():
                pruner = method(pattern=pattern, training=world.options.training, train_first=False)
                found.append(
                    Case(
                        row=row,
                        arm=arm,
                        pruner=pruner,
                        policy="memory" if policy == "memory" else "latency",
                        target=target,
                        seed=seed,
                    )
                )
    return found


def stored_bytes(world: World, sparsity: float) -> int:
    """What the network takes with that share of its prunable weights zero and a bit for each."""
    weights = sum(
        math.prod(layer.shape) for layer in prunable_layers(world.network, world.plan, WORDS)
    )
    costs = PlanCosts(world.plan)
    kept = costs.parameters(costs.units) - math.ceil(sparsity * weights)
    return BYTES_PER_PARAMETER * kept + math.ceil(weights / 8)


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    """A line for every pattern: means over the seeds, and the difference seed by seed."""
    lines = [
        f"{'':<24} {'pdp':>14} {'gmp':>14} {'difference':>14} {'gap, pdp':>9} {'largest':>8} "
        f"{'whole':>8}"
    ]
    for row in dict.fromkeys(case["row"] for case in figures):
        arms = {
            arm: [case for case in figures if (case["row"], case["arm"]) == (row, arm)]
            for arm in _METHODS
        }
        gaps = [100 * abs(case["metrics"]["soft_to_hard_gap"]) for case in arms["pdp"]]
        whole = [case["test_whole"] for case in arms["pdp"] + arms["gmp"]]
        lines.append(
            f"{row:<24} {percents([c['test'] for c in arms['pdp']]):>14} "
            f"{percents([c['test'] for c in arms['gmp']]):>14} "
            f"{percents(paired(arms['pdp'], arms['gmp']), '+'):>14} "
            f"{f'{mean(gaps):.2f}' if gaps else '':>9} {f'{max(gaps):.2f}' if gaps else '':>8} "
            f"{100 * mean(whole):>8.2f}"
        )
    return "\n".join(lines)
