"""PASS against masks that follow from a criterion, and what its parts are worth.

arXiv 2407.17412. All see as many pictures: what PASS spends on its search, the others train longer;
AAP's rounds share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from fedsprig.errors import TrainingError
from fedsprig.pruning import AAP, PASS, OneShot, Pruner
from fedsprig.training import TrainConfig
from fedsprig_sim.benchmarks.pruners.case import Case
from fedsprig_sim.benchmarks.pruners.tables import paired, percents
from fedsprig_sim.benchmarks.pruners.world import World, scaled

TARGETS: Final = ("50%", "25%")
"""Of the whole network's multiply-accumulates."""
AAP_ROUNDS: Final = 3
_SEARCH_RATE: Final = 1e-3


def cases(world: World, seeds: Sequence[int]) -> list[Case]:
    """Every arm at every budget."""
    return [
        Case(
            row=f"{target} of MACs", arm=arm, pruner=pruner, policy="latency", target=target, seed=s
        )
        for target in TARGETS
        for s in seeds
        for arm, pruner in arms(world.options.training).items()
    ]


def arms(training: TrainConfig) -> dict[str, Pruner]:
    """Methods by name, each with ``training`` in all.

    Raises:
        TrainingError: epochs that cannot be shared evenly.
    """
    if (training.epochs or 0) % (2 * AAP_ROUNDS):
        raise TrainingError(
            f"the arms share {training.epochs} epochs by 2 and by {AAP_ROUNDS}: choose a multiple "
            f"of {2 * AAP_ROUNDS}"
        )
    half = scaled(training, 0.5)
    search = replace(half, optimiser="adam", learning_rate=_SEARCH_RATE, weight_decay=1e-4)
    prompts = PASS(search=search, training=half, train_first=False)
    part = scaled(training, 1 / AAP_ROUNDS)
    return {
        "magnitude": OneShot(criterion="magnitude", training=training, train_first=False),
        "taylor": OneShot(criterion="taylor", training=training, train_first=False),
        "aap": AAP(training=part, rounds=AAP_ROUNDS, most_share=1 / 2, train_first=False),
        "pass": prompts,
        "pass, prompt kept": replace(prompts, keep_prompt=True),
        "pass, random prompt": replace(prompts, prompt="fixed"),
        "pass, no prompt": replace(prompts, prompt="none"),
        "pass, no recurrence": replace(prompts, recurrent=False),
    }


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    """A line for every arm: the mean over the seeds, and PASS's lead over it seed by seed."""
    lines = [f"{'':<16} {'method':<22} {'test':>14} {'pass leads by':>14} {'MACs':>8} {'bytes':>8}"]
    for row in dict.fromkeys(case["row"] for case in figures):
        in_row = [case for case in figures if case["row"] == row]
        best = [case for case in in_row if case["arm"] == "pass"]
        for arm in dict.fromkeys(case["arm"] for case in in_row):
            own = [case for case in in_row if case["arm"] == arm]
            lead = "" if arm == "pass" else percents(paired(best, own), "+")
            metrics = own[0]["metrics"]
            lines.append(
                f"{row:<16} {arm:<22} {percents([c['test'] for c in own]):>14} {lead:>14} "
                f"{100 * metrics['macs_ratio']:>6.1f} % {100 * metrics['parameters_ratio']:>6.1f} %"
            )
    return "\n".join(lines)
