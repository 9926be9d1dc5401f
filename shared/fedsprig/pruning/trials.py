"""The engine of methods that meet a given size: one trial under a hard limit, else a search.

Such a method says how to make one network within a budget
(:meth:`fedsprig.pruning.sized.SizedPruner.attempt`). What all of them share is here: the whole
network is trained once; a hard limit takes one trial; under the accuracy policy the smallest
network is sought by bisection over the share of the parameters' bytes, every trial from the same
whole network. All of it is committed, trainings epoch by epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

from fedsprig.artifacts.container import Array
from fedsprig.errors import InfeasibleBudgetError
from fedsprig.masks import Budget, Mask, ScoreSet
from fedsprig.pruning.finish import figures, finished
from fedsprig.pruning.job import Job
from fedsprig.pruning.journal import Journal
from fedsprig.pruning.network import Stage, accuracy, some_pictures, train, whole
from fedsprig.pruning.product import Product, Progress
from fedsprig.pruning.trial import Found, Trial
from fedsprig.seeds import derive_seed

if TYPE_CHECKING:
    from fedsprig.pruning.sized import SizedPruner

_WHOLE: Final = "whole"


class Trials:
    """One run; all that a resumed one begins with lies in ``state`` and the journal's networks."""

    state: dict[str, Any]

    def __init__(
        self,
        method: SizedPruner,
        job: Job,
        settings: dict[str, Any],
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._method, self._job, self._settings = method, job, settings
        self._journal, self._progress = journal, progress
        generator = torch.Generator().manual_seed(derive_seed(job.seed, "trials", "pictures"))
        self._pictures = some_pictures(job, method.score_pictures, generator)
        if journal.state is not None:
            self.state = journal.state
        else:
            self._begin()
        self._whole = Stage.restored(job, journal.network(_WHOLE))

    @property
    def ended(self) -> bool:
        """Whether all trials are done."""
        return bool(self.state["ended"])

    def _begin(self) -> None:
        """The whole network, trained where that is wanted."""
        stage = whole(self._job)
        if self._method.train_first:
            train(
                stage,
                self._job,
                self._method.training,
                seed=derive_seed(self._job.seed, "trials", "whole network"),
                calibration=self._pictures,
                name="whole network",
                progress=self._progress,
                checkpoint=self._journal.checkpoint("whole network"),
            )
        self.state = {
            "reference": accuracy(stage, self._job),
            "low": 0.0,
            "high": 1.0,
            "best": 0,
            "made": 0,
            "trials": [],
            "ended": False,
        }
        self._commit({_WHOLE: stage.arrays()})

    def step(self) -> None:
        """Make, judge and commit one network."""
        job, state = self._job, self.state
        hard = job.target.budget
        share = 1.0 if self._method.one_size else (state["low"] + state["high"]) / 2
        number = len(state["trials"]) + 1
        trial = Trial(
            job=job,
            whole=self._whole,
            budget=hard or Budget.fraction(job.plan, parameters=share),
            pictures=self._pictures,
            seed=derive_seed(job.seed, "trial", str(number)),
            progress=self._told(number),
            floor=self._method.floor,
            protect=self._method.protect,
            checkpoint=self._journal.checkpoint,
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
        held = hard is not None or job.target.allows(state["reference"] - reached)
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
        return Found.restored(self._job, arrays, {}).scores

    def _judged(self, line: dict[str, Any], added: dict[str, Mapping[str, Array]]) -> None:
        state = self.state
        state["trials"].append(line)
        hard = self._job.target.budget is not None
        trials = 1 if hard or self._method.one_size else self._method.trials
        state["ended"] = len(state["trials"]) >= trials
        self._commit(added)

    def _commit(self, added: Mapping[str, Mapping[str, Array]]) -> None:
        state = self.state
        names = {_WHOLE, *(f"trial-{number}" for number in {state["best"], state["made"]} - {0})}
        self._journal.write(state, add=added, keep=frozenset(names))

    def _told(self, number: int) -> Progress:
        """The run's progress, told which trial it is where there are several."""
        if self._job.target.budget is not None:
            return self._progress
        return lambda stage, done, steps: self._progress(f"trial {number}, {stage}", done, steps)
