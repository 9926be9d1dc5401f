"""What the author of a method writes that makes a network of a given size."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from fedsprig.errors import BudgetError
from fedsprig.pruning.job import Job
from fedsprig.pruning.journal import Journal
from fedsprig.pruning.product import Progress
from fedsprig.pruning.stepped import Run, SteppedPruner
from fedsprig.pruning.trial import Found, Trial
from fedsprig.pruning.trials import Trials


@dataclass(frozen=True, kw_only=True)
class SizedPruner(SteppedPruner):
    """A method that makes a network of a given size, with its settings.

    Attributes:
        trials: networks that are made under the accuracy policy.

    Raises:
        BudgetError: a setting out of its range.
    """

    trials: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials < 1:
            raise BudgetError(f"trials is 1 or more, not {self.trials}")

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

    def begun(
        self, job: Job, settings: dict[str, Any], journal: Journal, progress: Progress
    ) -> Run:
        """The search over trials; see :mod:`fedsprig.pruning.trials`."""
        return Trials(self, job, settings, journal, progress)
