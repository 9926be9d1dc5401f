"""One trial: a network to be made within a budget, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedsprig.artifacts.container import Array
from fedsprig.graph import materialize
from fedsprig.masks import Budget, Mask, PlanCosts, ScoreSet, solve
from fedsprig.masks.costs import BYTES_PER_PARAMETER
from fedsprig.masks.weights import WeightMask
from fedsprig.pruning.filling import filled
from fedsprig.pruning.job import Job, Labelled
from fedsprig.pruning.journal import Checkpoint
from fedsprig.pruning.network import Stage, train, trainable
from fedsprig.pruning.product import STATE, WEIGHT_MASK, Progress
from fedsprig.seeds import derive_seed
from fedsprig.training import TrainConfig

_SCORES: Final = "scores"
_COMPARABLE: Final = "comparable"


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
        found = self.stage.arrays() | {STATE + name: a for name, a in self.state.items()}
        found[_COMPARABLE] = np.array(self.comparable)
        found[_SCORES] = np.frombuffer(self.scores.to_bytes(), np.uint8)
        if self.weight_mask is not None:
            found[WEIGHT_MASK] = np.frombuffer(self.weight_mask.to_bytes(), np.uint8)
        return found

    @classmethod
    def restored(cls, job: Job, arrays: Mapping[str, Array], metrics: Mapping[str, float]) -> Found:
        """What :meth:`arrays` was of."""
        weights = arrays.get(WEIGHT_MASK)
        return cls(
            Stage.restored(job, arrays),
            ScoreSet.from_bytes(arrays[_SCORES].tobytes(), job.plan),
            None if weights is None else WeightMask.from_bytes(weights.tobytes(), job.plan.shapes),
            {n.removeprefix(STATE): a for n, a in arrays.items() if n.startswith(STATE)},
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
        floor: share of every group's units that stays.
        protect: groups or kinds that stay whole.
        checkpoint: where a part of the trial stands, by its name: what was saved of it before the
            run was killed, and what it is saved to. The trial goes on by being done again, but for
            what its parts had saved.
    """

    job: Job
    whole: Stage
    budget: Budget
    pictures: Labelled
    seed: int
    progress: Progress
    floor: float
    protect: tuple[str, ...]
    checkpoint: Callable[[str], Checkpoint]

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
            floor=self.floor,
            protect=self.protect,
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
        """Train a stage's network in place, then measure its normalisation statistics anew.

        Args:
            stage: what to train.
            config: how long and how.
            name: of the training; no other part of the trial has it.
        """
        train(
            stage,
            self.job,
            config,
            seed=derive_seed(self.seed, name),
            calibration=self.pictures,
            name=name,
            progress=self.progress,
            checkpoint=self.checkpoint(name),
        )
