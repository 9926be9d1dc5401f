"""Pruning in one shot: score every unit once, keep the best, train what is left.

The baselines that every other method must beat, under the same interface; the criterion is one of
:data:`fedsprig.scoring.SCORERS`. A hard limit is met by :func:`fedsprig.masks.solve`. Under the
accuracy policy the smallest network is sought by bisection over the share of parameters, each trial
cut from the same whole network and trained for the same time.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedsprig.errors import BudgetError, InfeasibleBudgetError
from fedsprig.graph import materialize
from fedsprig.masks import Budget, Mask, ScoreSet, plan_macs, plan_parameters, solve
from fedsprig.masks.costs import BYTES_PER_PARAMETER
from fedsprig.pruning.job import Job
from fedsprig.pruning.journal import Journal
from fedsprig.pruning.nesting import nested_masks
from fedsprig.pruning.network import (
    Stage,
    accuracy,
    some_pictures,
    train,
    trainable,
    weights_of,
    whole,
)
from fedsprig.pruning.product import Product, Progress, silent
from fedsprig.scoring import SCORERS, score
from fedsprig.seeds import derive_seed
from fedsprig.spelling import lookup
from fedsprig.training import TrainConfig, labelled_batches

_BATCH = 32
_WHOLE = "whole"


@dataclass(frozen=True, slots=True, kw_only=True)
class OneShot:
    """A criterion and how long to train.

    Attributes:
        criterion: a name in ``SCORERS``.
        options: the criterion's own, as pairs: ``(("p", 2.0),)``.
        training: of the whole network, and of every cut one.
        train_first: whether the whole network is trained before it is scored.
        floor: share of every group's units that stays.
        protect: groups or kinds that stay whole.
        score_pictures: training pictures that scores and normalisation statistics are measured on.
        trials: networks that are trained under the accuracy policy.

    Raises:
        UnknownNameError: no such criterion.
        BudgetError: a setting out of its range.
    """

    criterion: str
    options: tuple[tuple[str, Any], ...] = ()
    training: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=8, batch_size=64, learning_rate=0.02)
    )
    train_first: bool = True
    floor: float = 0.05
    protect: tuple[str, ...] = ()
    score_pictures: int = 1024
    trials: int = 5

    def __post_init__(self) -> None:
        lookup(SCORERS, self.criterion, "criterion")
        if self.trials < 1 or self.score_pictures < 1:
            raise BudgetError("trials and score_pictures are 1 or more")

    @property
    def name(self) -> str:
        """The criterion's name."""
        return self.criterion

    def prune(
        self, job: Job, *, progress: Progress = silent, checkpoint: Path | None = None
    ) -> Product:
        """Prune; see :class:`fedsprig.pruning.Pruner`.

        Raises:
            InfeasibleBudgetError: the hard limit is below the smallest network.
            RunError: the checkpoint is of another run.
        """
        job.check_feasible(self.floor, self.protect)
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        run = _Run(self, job, settings, Journal(checkpoint, job.digest(settings)), progress)
        while not run.state["ended"]:
            run.trial()
        return run.product()


class _Run:
    """One run; ``state`` holds the trials that are done."""

    def __init__(
        self,
        method: OneShot,
        job: Job,
        settings: dict[str, Any],
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._method, self._job, self._settings = method, job, settings
        self._journal, self._progress = journal, progress
        generator = torch.Generator().manual_seed(derive_seed(job.seed, "one shot", "pictures"))
        self._pictures = some_pictures(job, method.score_pictures, generator)
        self.state: dict[str, Any] = journal.state if journal.state is not None else self._begin()
        self._whole = Stage.restored(job, journal.network(_WHOLE))
        self._scores = self._scored()

    def trial(self) -> None:
        """Cut, train, judge and commit one network."""
        job, state = self._job, self.state
        hard = job.target.budget
        share = (state["low"] + state["high"]) / 2
        try:
            mask = self._solved(hard or Budget.fraction(job.plan, parameters=share))
        except InfeasibleBudgetError:
            if hard is not None:
                raise
            # Below the floor of all groups: only larger networks are left to try.
            state["low"] = share
            self._commit({}, {"share": share, "accepted": False})
            return
        number = len(state["trials"]) + 1
        network = materialize(self._whole.network, job.plan, mask)
        stage = Stage(trainable(network), mask)
        self._train(stage, f"trial {number}")
        reached = accuracy(stage, job)
        held = hard is not None or state["reference"] - reached <= job.target.amount + 1e-12
        if held:
            state["high"], state["best"] = share, number
        else:
            state["low"] = share
        figures = {"share": share, "accepted": held, "accuracy": reached, **self._figures(mask)}
        self._commit({f"trial-{number}": stage.arrays()} if held else {}, figures)

    def product(self) -> Product:
        """The best trial; the whole network where none held."""
        job, state = self._job, self.state
        best = state["best"]
        name = f"trial-{best}" if best else _WHOLE
        stage = Stage.restored(job, self._journal.network(name))
        reached = state["trials"][best - 1]["accuracy"] if best else state["reference"]
        own, full = self._figures(stage.mask), self._figures(Mask.full(job.plan))
        return Product(
            method=self._method.name,
            scores=self._scores,
            mask=stage.mask,
            masks=nested_masks(self._scores, job.plan, stage.mask, floor=self._method.floor),
            weights=weights_of(stage.network),
            metrics={
                "accuracy_whole": float(state["reference"]),
                "accuracy": float(reached),
                "parameters": float(own["parameters"]),
                "macs": float(own["macs"]),
                "parameters_ratio": own["parameters"] / full["parameters"],
                "macs_ratio": own["macs"] / full["macs"],
                "size": float(own["size"]),
                "rounds": float(len(state["trials"])),
            },
            settings={
                **self._settings,
                "target": asdict(job.target),
                "seed": job.seed,
                "rounds_done": state["trials"],
            },
        )

    def _begin(self) -> dict[str, Any]:
        stage = whole(self._job)
        if self._method.train_first:
            self._train(stage, "whole network")
        state = {
            "reference": accuracy(stage, self._job),
            "low": 0.0,
            "high": 1.0,
            "best": 0,
            "trials": [],
            "ended": False,
        }
        self._journal.write(state, add={_WHOLE: stage.arrays()}, keep=frozenset({_WHOLE}))
        return state

    def _scored(self) -> ScoreSet:
        method, job = self._method, self._job
        options = dict(method.options)
        if "seed" in inspect.signature(SCORERS[method.criterion]).parameters:
            options.setdefault("seed", derive_seed(job.seed, method.criterion))
        batches = labelled_batches(self._pictures.images, self._pictures.labels, _BATCH)
        return score(method.criterion, self._whole.network, job.plan, batches, **options)

    def _solved(self, budget: Budget) -> Mask:
        return solve(
            self._scores,
            self._job.plan,
            budget,
            floor=self._method.floor,
            protect=self._method.protect,
            latency_ms=self._job.latency_ms,
        )

    def _commit(self, added: dict[str, Any], figures: dict[str, Any]) -> None:
        state = self.state
        state["trials"].append(figures)
        hard = self._job.target.budget is not None
        state["ended"] = hard or len(state["trials"]) >= self._method.trials
        names = {_WHOLE} | ({f"trial-{state['best']}"} if state["best"] else set())
        self._journal.write(state, add=added, keep=frozenset(names))

    def _train(self, stage: Stage, name: str) -> None:
        train(
            stage,
            self._job,
            self._method.training,
            seed=derive_seed(self._job.seed, "one shot", name),
            calibration=self._pictures,
            name=name,
            progress=self._progress,
        )

    def _figures(self, mask: Mask) -> dict[str, Any]:
        parameters = plan_parameters(self._job.plan, mask)
        return {
            "parameters": parameters,
            "weight_bytes": BYTES_PER_PARAMETER * parameters,
            "macs": plan_macs(self._job.plan, mask),
            "size": self._job.size(mask),
        }
