"""The engine of methods that meet a given size: one trial under a hard limit, else a search.

Such a method says how to make one network within a budget (:meth:`SizedPruner.attempt`). What all
of them share is here: the whole network is trained once; a hard limit takes one trial; under the
accuracy policy the smallest network is sought by bisection over the share of the parameters' bytes,
every trial from the same whole network. All of it is committed step by step.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsprig.artifacts.container import Array
from fedsprig.errors import BudgetError, InfeasibleBudgetError
from fedsprig.graph import materialize
from fedsprig.masks import Budget, Mask, PlanCosts, ScoreSet, solve
from fedsprig.masks.costs import BYTES_PER_PARAMETER
from fedsprig.masks.weights import WeightMask
from fedsprig.pruning.filling import filled
from fedsprig.pruning.finish import figures, finished
from fedsprig.pruning.job import Job, Labelled
from fedsprig.pruning.journal import Journal
from fedsprig.pruning.network import Stage, accuracy, some_pictures, train, trainable, whole
from fedsprig.pruning.product import Product, Progress, silent
from fedsprig.seeds import derive_seed
from fedsprig.training import TrainConfig

_WHOLE: Final = "whole"
_SCORES: Final = "scores"
_COMPARABLE: Final = "comparable"
_WEIGHTS: Final = "weight_mask"
_STATE: Final = "state:"
_ROUNDING: Final = 1e-12
Part = tuple[dict[str, Any], dict[str, Array]]
"""Plain data and arrays of a trial that is not finished."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What one trial came to.

    Attributes:
        stage: the network, physically small where units went, and the units that it keeps.
        scores: of all units of the plan; one that was dropped never outranks one of its group that
            was kept.
        weight_mask: single weights that are zero in it.
        state: what else the entry keeps.
        metrics: the method's own figures, finite.
        comparable: whether scores of different groups compare as they are; else they are divided by
            their group's root mean square first.
    """

    stage: Stage
    scores: ScoreSet
    weight_mask: WeightMask | None = None
    state: Mapping[str, Array] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    comparable: bool = False

    def arrays(self) -> dict[str, Array]:
        """All of it but the metrics, for the journal."""
        found = self.stage.arrays() | {_STATE + name: a for name, a in self.state.items()}
        found[_COMPARABLE] = np.array(self.comparable)
        found[_SCORES] = np.frombuffer(self.scores.to_bytes(), np.uint8)
        if self.weight_mask is not None:
            found[_WEIGHTS] = np.frombuffer(self.weight_mask.to_bytes(), np.uint8)
        return found

    @classmethod
    def restored(cls, job: Job, arrays: Mapping[str, Array], metrics: Mapping[str, float]) -> Found:
        """What :meth:`arrays` was of."""
        weights = arrays.get(_WEIGHTS)
        return cls(
            Stage.restored(job, arrays),
            ScoreSet.from_bytes(arrays[_SCORES].tobytes(), job.plan),
            None if weights is None else WeightMask.from_bytes(weights.tobytes(), job.plan.shapes),
            {n.removeprefix(_STATE): a for n, a in arrays.items() if n.startswith(_STATE)},
            metrics,
            bool(arrays[_COMPARABLE]),
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trial:
    """One network to be made.

    Attributes:
        job: for whom.
        whole: the whole network, which other trials begin with too: never change it.
        budget: the hard limit.
        pictures: training pictures for scores and normalisation statistics.
        seed: of this trial.
        progress: told of every step.
    """

    job: Job
    whole: Stage
    budget: Budget
    pictures: Labelled
    seed: int
    progress: Progress
    _method: SizedPruner
    _saved: Part | None
    _save: Callable[[Mapping[str, Any], Mapping[str, Array]], None]

    def solve(
        self, scores: ScoreSet, budget: Budget | None = None, *, normalise: bool = True
    ) -> Mask:
        """The best units within the budget, by :func:`fedsprig.masks.solve`, and what still fits.

        Args:
            scores: of all units.
            budget: in place of the trial's.
            normalise: whether scores are divided by their group's root mean square.

        Raises:
            InfeasibleBudgetError: no mask is within it.
        """
        plan, budget = self.job.plan, budget or self.budget
        mask = solve(
            scores,
            plan,
            budget,
            floor=self._method.floor,
            protect=self._method.protect,
            latency_ms=self.job.latency_ms,
            normalise=normalise,
        )
        if budget.latency_ms is not None:
            return mask  # every size would be a measurement
        costs = PlanCosts(plan)

        def fits(drop: Mapping[str, NDArray[np.bool_]]) -> bool:
            kept = np.array([np.count_nonzero(~drop[name]) for name in costs.names], np.int64)
            within = budget.macs is None or costs.macs(kept) <= budget.macs
            size = BYTES_PER_PARAMETER * costs.parameters(kept)
            return within and (budget.weight_bytes is None or size <= budget.weight_bytes)

        dropped = {name: ~units for name, units in mask.groups.items()}
        rest = filled((scores.normalised() if normalise else scores).groups, dropped, fits)
        return Mask({name: ~gone for name, gone in rest.items()})

    def cut(self, mask: Mask, network: nn.Module | None = None) -> Stage:
        """The small network of a mask.

        Args:
            mask: what stays.
            network: of full size; by default the whole one.
        """
        source = self.whole.network if network is None else network
        return Stage(trainable(materialize(source, self.job.plan, mask)), mask)

    def train(self, stage: Stage, config: TrainConfig, name: str) -> None:
        """Train a stage's network in place, then measure its normalisation statistics anew."""
        train(
            stage,
            self.job,
            config,
            seed=derive_seed(self.seed, name),
            calibration=self.pictures,
            name=name,
            progress=self.progress,
        )

    def saved(self) -> Part | None:
        """What :meth:`save` wrote last in this trial before the run was killed."""
        return self._saved

    def save(self, state: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Commit a part of a long trial, from which it goes on after a kill.

        Args:
            state: plain JSON data.
            arrays: by name.
        """
        self._save(state, arrays)


@dataclass(frozen=True, kw_only=True)
class SizedPruner(ABC):
    """A method that makes a network of a given size, with its settings.

    Attributes:
        training: of the whole network, and of every trial's.
        train_first: whether the whole network is trained before it is pruned; else it is taken as
            it comes.
        floor: share of every group's units that stays.
        protect: groups or kinds that stay whole.
        score_pictures: training pictures that scores and normalisation statistics are measured on.
        trials: networks that are made under the accuracy policy.

    Raises:
        BudgetError: a setting out of its range.
    """

    training: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=8, batch_size=64, learning_rate=0.02)
    )
    train_first: bool = True
    floor: float = 0.05
    protect: tuple[str, ...] = ()
    score_pictures: int = 1024
    trials: int = 5

    def __post_init__(self) -> None:
        if self.trials < 1 or self.score_pictures < 1:
            raise BudgetError("trials and score_pictures are 1 or more")

    @property
    @abstractmethod
    def name(self) -> str:
        """The method's name in ``PRUNERS``."""

    @property
    def one_size(self) -> bool:
        """Whether settings alone fix the size: there is nothing to search, and one trial is all."""
        return False

    @abstractmethod
    def attempt(self, trial: Trial) -> Found:
        """One network within ``trial.budget``.

        Raises:
            InfeasibleBudgetError: there is none.
        """

    def check(self, job: Job) -> None:
        """Refuse, before any training, a job that this method cannot do.

        Raises:
            InfeasibleBudgetError: the hard limit is below the smallest network.
        """
        job.check_feasible(self.floor, self.protect)

    def prune(
        self, job: Job, *, progress: Progress = silent, checkpoint: Path | None = None
    ) -> Product:
        """Prune; see :class:`fedsprig.pruning.Pruner`.

        Raises:
            InfeasibleBudgetError: the hard limit is below the smallest network.
            RunError: the checkpoint is of another run.
        """
        self.check(job)
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        # Methods with the same settings differ by their names.
        run = _Run(self, job, settings, Journal(checkpoint, job.digest([self.name, settings])))
        run.begin(progress)
        while not run.state["ended"]:
            run.trial(progress)
        return run.product()


class _Run:
    """One run; all that a resumed one begins with lies in ``state`` and the journal's networks."""

    state: dict[str, Any]

    def __init__(
        self, method: SizedPruner, job: Job, settings: dict[str, Any], journal: Journal
    ) -> None:
        self._method, self._job, self._settings = method, job, settings
        self._journal = journal
        generator = torch.Generator().manual_seed(derive_seed(job.seed, "trials", "pictures"))
        self._pictures = some_pictures(job, method.score_pictures, generator)

    def begin(self, progress: Progress) -> None:
        """The whole network, trained where that is wanted and not done yet."""
        if self._journal.state is not None:
            self.state = self._journal.state
        else:
            stage = whole(self._job)
            if self._method.train_first:
                train(
                    stage,
                    self._job,
                    self._method.training,
                    seed=derive_seed(self._job.seed, "trials", "whole network"),
                    calibration=self._pictures,
                    name="whole network",
                    progress=progress,
                )
            self.state = {
                "reference": accuracy(stage, self._job),
                "low": 0.0,
                "high": 1.0,
                "best": 0,
                "made": 0,
                "trials": [],
                "part": None,
                "ended": False,
            }
            self._commit({_WHOLE: stage.arrays()})
        self._whole = Stage.restored(self._job, self._journal.network(_WHOLE))

    def trial(self, progress: Progress) -> None:
        """Make, judge and commit one network."""
        job, state = self._job, self.state
        hard = job.target.budget
        share = 1.0 if self._method.one_size else (state["low"] + state["high"]) / 2
        number = len(state["trials"]) + 1
        part = state["part"]
        trial = Trial(
            job=job,
            whole=self._whole,
            budget=hard or Budget.fraction(job.plan, parameters=share),
            pictures=self._pictures,
            seed=derive_seed(job.seed, "trial", str(number)),
            progress=lambda stage, done, steps: progress(self._named(stage, number), done, steps),
            _method=self._method,
            _saved=None if part is None else (part["state"], self._journal.network(part["name"])),
            _save=self._save,
        )
        try:
            found = self._method.attempt(trial)
        except InfeasibleBudgetError:
            if hard is not None:
                raise
            # Below the smallest network: only larger ones are left to try.
            state["low"] = share
            self._judged({"share": share, "accepted": False}, {})
            return
        reached = accuracy(found.stage, job)
        held = hard is not None or state["reference"] - reached <= job.target.amount + _ROUNDING
        line = {
            "share": share,
            "accepted": held,
            "accuracy": reached,
            **figures(job, found.stage.mask, found.weight_mask),
            "metrics": dict(found.metrics),
        }
        state["made"] = number
        if hard is not None and line["size"] > job.target.amount:
            raise InfeasibleBudgetError(
                f"{self._method.name} made a network of {line['size']:,.6g} {job.target.unit}, the "
                f"target allows {job.target.amount:,.6g}: raise the target"
            )
        if held:
            # A network may be smaller than it had to be; the next is to be smaller still.
            own = line["size"] / job.size(Mask.full(job.plan))
            state["high"] = share if hard is not None else min(share, own)
            state["best"] = number
        else:
            state["low"] = share
        self._judged(line, {f"trial-{number}": found.arrays()})

    def product(self) -> Product:
        """The best trial; the whole network where none held."""
        job, state, journal = self._job, self.state, self._journal
        best = state["best"]
        if best:
            line = state["trials"][best - 1]
            found = Found.restored(job, journal.network(f"trial-{best}"), line["metrics"])
            reached = line["accuracy"]
        else:
            found, reached = Found(self._whole, self._last_scores()), state["reference"]
        return finished(
            self._method.name,
            job,
            found.stage,
            found.scores,
            floor=self._method.floor,
            protect=self._method.protect,
            comparable=found.comparable,
            weight_mask=found.weight_mask,
            state=found.state,
            metrics={
                "accuracy_whole": state["reference"],
                "accuracy": reached,
                "rounds": len(state["trials"]),
                **found.metrics,
            },
            settings={**self._settings, "rounds_done": state["trials"]},
        )

    def _last_scores(self) -> ScoreSet:
        if not self.state["made"]:
            raise InfeasibleBudgetError(
                f"no trial of {self._method.name} made a network: lower floor or give more trials"
            )
        arrays = self._journal.network(f"trial-{self.state['made']}")
        return ScoreSet.from_bytes(arrays[_SCORES].tobytes(), self._job.plan)

    def _judged(self, line: dict[str, Any], added: dict[str, Mapping[str, Array]]) -> None:
        state = self.state
        state["trials"].append(line)
        state["part"] = None
        hard = self._job.target.budget is not None
        trials = 1 if hard or self._method.one_size else self._method.trials
        state["ended"] = len(state["trials"]) >= trials
        self._commit(added)

    def _save(self, part: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        # A new name each time: a kill between the two writes must not spoil the one before.
        count = 1 if self.state["part"] is None else self.state["part"]["count"] + 1
        name = f"part-{count}"
        self.state["part"] = {"name": name, "count": count, "state": dict(part)}
        self._commit({name: arrays})

    def _commit(self, added: Mapping[str, Mapping[str, Array]]) -> None:
        state = self.state
        names = {_WHOLE, *(f"trial-{number}" for number in {state["best"], state["made"]} - {0})}
        if state["part"] is not None:
            names.add(state["part"]["name"])
        self._journal.write(state, add=added, keep=frozenset(names))

    def _named(self, stage: str, number: int) -> str:
        return stage if self._job.target.budget is not None else f"trial {number}, {stage}"
