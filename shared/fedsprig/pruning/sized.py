"""What the author of a method writes that makes a network of a given size."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedsprig.errors import BudgetError
from fedsprig.pruning.job import Job
from fedsprig.pruning.journal import Journal
from fedsprig.pruning.product import Product, Progress, silent
from fedsprig.pruning.trial import Found, Trial
from fedsprig.pruning.trials import Trials
from fedsprig.training import TrainConfig


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
        if not 0 <= self.floor < 1:
            raise BudgetError(f"floor is a share of units from 0 to below 1, not {self.floor}")

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
        run = Trials(self, job, settings, Journal(checkpoint, job.digest([self.name, settings])))
        run.begin(progress)
        while not run.state["ended"]:
            run.trial(progress)
        return run.product()
