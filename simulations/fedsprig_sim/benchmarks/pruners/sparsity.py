"""PDP against gradual magnitude pruning: the same start, epochs and seeds, by pattern and ramp.

Cho, Adya and Naik 2023, arXiv 2305.11203, whose ramp is linear, against Zhu and Gupta 2017, arXiv
1710.01878, whose ramp is cubic; here both by both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import mean
from typing import Any, Final, get_args

from fedsprig.masks.costs import BYTES_PER_PARAMETER, PlanCosts
from fedsprig.pruning import PDP, GradualMagnitude, Policy
from fedsprig.pruning.sparse.course import Ramp
from fedsprig.pruning.sparse.layers import WORDS, prunable_layers
from fedsprig_sim.benchmarks.pruners.case import Case
from fedsprig_sim.benchmarks.pruners.tables import paired, percents
from fedsprig_sim.benchmarks.pruners.world import World

SPARSITY: Final = 0.9
CHANNELS: Final = "30%"
RAMPS: Final = get_args(Ramp)
_METHODS: Final = {"pdp": PDP, "gmp": GradualMagnitude}


def cases(world: World, seeds: Sequence[int]) -> list[Case]:
    """Each pattern by both methods on both ramps."""
    patterns: tuple[tuple[str, str, Policy, str], ...] = (
        ("unstructured 90 %", "unstructured", "memory", str(stored_bytes(world, SPARSITY))),
        ("2:4", "2:4", "memory", "100%"),
        ("1:4", "1:4", "memory", "100%"),
        (f"channels, {CHANNELS} of MACs", "channels", "latency", CHANNELS),
    )
    return [
        Case(
            row=row,
            arm=f"{name}, {ramp}",
            pruner=method(
                pattern=pattern, ramp=ramp, training=world.options.training, train_first=False
            ),
            policy=policy,
            target=target,
            seed=seed,
        )
        for row, pattern, policy, target in patterns
        for seed in seeds
        for ramp in RAMPS
        for name, method in _METHODS.items()
    ]


def stored_bytes(world: World, sparsity: float) -> int:
    """What the network takes with that share of its prunable weights zero and a bit for each."""
    weights = sum(
        math.prod(layer.shape) for layer in prunable_layers(world.network, world.plan, WORDS)
    )
    costs = PlanCosts(world.plan)
    kept = costs.parameters(costs.units) - math.ceil(sparsity * weights)
    return BYTES_PER_PARAMETER * kept + math.ceil(weights / 8)


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    """A line for every pattern and ramp: means over the seeds, and differences seed by seed."""
    lines = [
        f"{'':<24} {'ramp':<8} {'pdp':>14} {'gmp':>14} {'difference':>14} {'gap, pdp':>9} "
        f"{'largest':>8} {'whole':>8}"
    ]
    for row, ramp in product(dict.fromkeys(case["row"] for case in figures), RAMPS):
        arms = {
            name: [c for c in figures if (c["row"], c["arm"]) == (row, f"{name}, {ramp}")]
            for name in _METHODS
        }
        both = arms["pdp"] + arms["gmp"]
        if not both:
            continue
        gaps = [100 * abs(case["metrics"]["soft_to_hard_gap"]) for case in arms["pdp"]]
        lines.append(
            f"{row:<24} {ramp:<8} {percents([c['test'] for c in arms['pdp']]):>14} "
            f"{percents([c['test'] for c in arms['gmp']]):>14} "
            f"{percents(paired(arms['pdp'], arms['gmp']), '+'):>14} "
            f"{f'{mean(gaps):.2f}' if gaps else '':>9} {f'{max(gaps):.2f}' if gaps else '':>8} "
            f"{100 * mean(c['test_whole'] for c in both):>8.2f}"
        )
    return "\n".join(lines)
