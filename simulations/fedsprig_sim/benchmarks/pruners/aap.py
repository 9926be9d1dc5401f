"""AAP's headline: how much of a network goes without loss, and within one point.

Zhao, Jain and Zhao 2022, arXiv 2201.10520, Table 1: of ResNet-56 on CIFAR-10, 79.11 % of the
parameters and 70.13 % of the multiply-accumulates without loss, 88.23 % and 81.19 % within a point,
each round trained for 182 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fedsprig.pruning import AAP
from fedsprig_sim.benchmarks.pruners.case import Case
from fedsprig_sim.benchmarks.pruners.world import World

PUBLISHED: Final = {
    "parameters, no loss": 0.7911,
    "MACs, no loss": 0.7013,
    "parameters, one point": 0.8823,
    "MACs, one point": 0.8119,
}
"""Share that the paper removes of ResNet-56 on CIFAR-10."""
ARMS: Final = {"streams whole": ("stream",), "all groups": ()}
"""The published code prunes no residual stream as one: it is the harsher cut by far."""
_LOSSES: Final = {"no loss": "0%", "one point": "1%"}
_ROUNDS: Final = 40


def cases(world: World, seeds: Sequence[int]) -> list[Case]:
    """Each weighting at each loss, with residual streams and without.

    The world's training is that of one round.
    """
    return [
        Case(
            row=f"{what}, {loss}",
            arm=arm,
            pruner=AAP(
                training=world.options.training,
                train_first=False,
                protect=protect,
                weighting="macs" if what == "MACs" else "parameters",
                rounds=_ROUNDS,
            ),
            policy="accuracy",
            target=_LOSSES[loss],
            seed=seed,
        )
        for arm, protect in ARMS.items()
        for loss in _LOSSES
        for what in ("parameters", "MACs")
        for seed in seeds
    ]


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    """A line for every case; the paper's figures are of ResNet-56 on CIFAR-10."""
    lines = [
        f"{'':<24} {'groups':<14} {'seed':>4} {'parameters':>11} {'MACs':>8} {'paper':>10} "
        f"{'validation':>11} {'test':>8} {'whole':>8} {'rounds':>7}"
    ]
    for case in figures:
        metrics = case["metrics"]
        published = PUBLISHED.get(case["row"])
        lines.append(
            f"{case['row']:<24} {case['arm']:<14} {case['seed']:>4} "
            f"{_minus(metrics['parameters_ratio']):>11} "
            f"{_minus(metrics['macs_ratio']):>8} "
            f"{'' if published is None else f'-{100 * published:.2f} %':>10} "
            f"{100 * metrics['accuracy']:>9.2f} % {100 * case['test']:>6.2f} % "
            f"{100 * case['test_whole']:>6.2f} % {len(case['rounds']) - 1:>7}"
        )
    return "\n".join(lines)


def _minus(kept: float) -> str:
    return f"-{100 * (1 - kept):.2f} %"
