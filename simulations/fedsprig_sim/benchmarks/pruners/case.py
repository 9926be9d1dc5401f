"""One case of a study: a method, a target and a seed, pruned once and judged on test pictures."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsprig.masks import Mask
from fedsprig.pruning import Job, Policy, Pruner
from fedsprig.pruning.latency import MeasuredLatency
from fedsprig.training import evaluate
from fedsprig_sim.benchmarks.kept import once
from fedsprig_sim.benchmarks.pruners.world import World
from fedsprig_sim.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is measured.

    Attributes:
        row: the line of the table.
        arm: what is compared within a line.
        pruner: the method with its settings.
        policy: one of the three.
        target: as an operator writes it.
        seed: of the job.
    """

    row: str
    arm: str
    pruner: Pruner
    policy: Policy
    target: str
    seed: int = 0


def measured(case: Case, world: World, folder: Path, progress: Progress) -> dict[str, Any]:
    """The case's figures; from the folder where they are there, and goes on where it was killed.

    Args:
        case: what.
        world: network and pictures.
        folder: figures, checkpoints and trained whole networks lie there.
        progress: told of every stage of the run.
    """
    job = world.job(case.policy, case.target, case.seed)
    settings = asdict(case.pruner)  # type: ignore[call-overload]
    named = json.dumps([case.pruner.name, settings], sort_keys=True, default=str)
    key = hashlib.sha256(f"{job.digest(named)}{len(world.test.labels)}".encode()).hexdigest()[:24]
    checkpoint = folder / key
    name = f"{case.row}, {case.arm}, seed {case.seed}"

    def told(stage: str, done: int, steps: int) -> None:
        if done == steps:
            progress.say(f"{name}: {stage}, {steps} steps")

    resumed = checkpoint.exists()

    def measure() -> dict[str, Any]:
        started = time.perf_counter()
        product = case.pruner.prune(job, progress=told, checkpoint=checkpoint)
        seconds = time.perf_counter() - started
        whole = evaluate(job.model.eval(), *world.test).accuracy
        network = product.network(job.model, job.plan)
        return {
            "policy": case.policy,
            "target": case.target,
            "amount": job.target.amount,
            "seed": case.seed,
            "test_whole": whole,
            "test": evaluate(network, *world.test).accuracy,
            "metrics": dict(product.metrics),
            "rounds": product.settings.get("rounds_done", []),
            "ended": product.settings.get("ended", ""),
            "method": product.method,
            "settings": json.loads(json.dumps(settings, default=str)),
            "seconds": None if resumed else seconds,
            "milliseconds": _milliseconds(job, product.mask),
        }

    figures = once(folder / f"{key}.json", measure)
    shutil.rmtree(checkpoint, ignore_errors=True)
    # Two studies may ask for the same case by other names.
    return {"row": case.row, "arm": case.arm, **figures}


def _milliseconds(job: Job, mask: Mask) -> float | None:
    """The network's time, measured anew: what was selected by was the least of many, with luck."""
    if job.target.unit != "ms":
        return None
    return MeasuredLatency(job.model, job.plan)(mask)
