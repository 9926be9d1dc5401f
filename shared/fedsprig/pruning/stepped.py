"""What all methods share: settings of the training and of what stays, and a run step by step."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedsprig.errors import BudgetError
from fedsprig.pruning.job import Job
from fedsprig.pruning.journal import Journal
from fedsprig.pruning.product import Product, Progress, silent
from fedsprig.training import TrainConfig


class Run(Protocol):
    """One run of a method, all of whose steps are committed to its journal."""

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""

    def step(self) -> None:
        """Do the next step, and commit it."""

    def product(self) -> Product:
        """What was found."""


@dataclass(frozen=True, kw_only=True)
class SteppedPruner(ABC):
    """A method with its settings; a subclass says how its run begins.

    Attributes:
        training: of the whole network, and of every smaller one.
        train_first: whether the whole network is trained before it is pruned; else it is taken as
            it comes.
        floor: share of every group's units that stays.
        protect: groups or kinds that stay whole.
        score_pictures: training pictures that scores and normalisation statistics are measured on.

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

    def __post_init__(self) -> None:
        if self.score_pictures < 1:
            raise BudgetError(f"score_pictures is 1 or more, not {self.score_pictures}")
        if not 0 <= self.floor < 1:
            raise BudgetError(f"floor is a share of units from 0 to below 1, not {self.floor}")

    @property
    @abstractmethod
    def name(self) -> str:
        """The method's name in ``PRUNERS``."""

    @abstractmethod
    def begun(
        self, job: Job, settings: dict[str, Any], journal: Journal, progress: Progress
    ) -> Run:
        """A run, at its beginning or where the journal says that it stands.

        Args:
            job: what and to which target.
            settings: of the method, as plain JSON data.
            journal: where every step is committed.
            progress: told of every step of a training.
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
        journal = Journal(checkpoint, job.digest([self.name, settings]))
        run = self.begun(job, settings, journal, progress)
        while not run.ended:
            run.step()
        return run.product()
