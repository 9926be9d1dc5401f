"""What PDP and gradual magnitude pruning share: pattern, course, and what is refused at once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Final

from torch import Tensor

from fedsprig.errors import BudgetError, InfeasibleBudgetError
from fedsprig.masks import PlanCosts
from fedsprig.pruning.job import Job
from fedsprig.pruning.sized import SizedPruner
from fedsprig.pruning.sparse.course import Ramp, Ramping
from fedsprig.pruning.sparse.layers import WORDS, prunable_layers
from fedsprig.pruning.sparse.pattern import Pattern
from fedsprig.pruning.sparse.run import SparseRun
from fedsprig.pruning.sparse.subjects import SingleWeights, Subject, WholeUnits
from fedsprig.pruning.trial import Found, Trial
from fedsprig.training import TrainConfig

CAP: Final = 0.98


@dataclass(frozen=True, kw_only=True)
class SparsePruner(SizedPruner):
    """A method that masks more and more while it trains, and cuts at the end.

    Attributes:
        pattern: ``"channels"`` (whole units, for every policy), ``"unstructured"`` or ``"N:M"``, as
            in ``"2:4"`` (single weights: fewer bytes, no fewer multiply-accumulates).
        ramp: how the ratio grows in between: ``"linear"`` (PDP's) or ``"cubic"``, which reaches
            high ratios sooner.
        start: share of the training's steps that are dense (the paper: 16 of 100 epochs).
        full: share of them after which the ratio is that of the end (the paper: 16 + 67 of 100,
            which leaves 17 epochs; of few epochs, half must be left to recover in).
        dense: of single weights, the layers that stay dense: module paths, or ``"first"``,
            ``"depthwise"``, ``"head"``.
        cap: share of a tensor that goes at most, of ``"unstructured"``.
        finish_epochs: epochs of training with fixed masks after the cut.
        finish_rate: their learning rate, as a share of the training's.

    Raises:
        BudgetError: a setting out of its range, or one that the pattern has no use for.
        TrainingError: a course out of order.
    """

    pattern: str = "channels"
    ramp: Ramp = "linear"
    start: float = 0.16
    full: float = 0.5
    dense: tuple[str, ...] = WORDS
    cap: float = CAP
    finish_epochs: int = 0
    finish_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        pattern = Pattern.parse(self.pattern)
        single = pattern.single
        if not single and self.dense != WORDS:
            raise BudgetError("dense= is of single weights: with pattern=channels use protect=")
        if single and self.protect:
            raise BudgetError(f"protect= is of units: with pattern={self.pattern} use dense=")
        if not 0 < self.cap < 1:
            raise BudgetError(f"cap is a share of a tensor between 0 and 1, not {self.cap}")
        if pattern.kind != "unstructured" and self.cap != CAP:
            raise BudgetError(f"cap= is of pattern=unstructured, not of {self.pattern}")
        if self.finish_epochs < 0 or not 0 < self.finish_rate <= 1:
            raise BudgetError(
                f"finish_epochs is {self.finish_epochs} and finish_rate {self.finish_rate}: choose "
                "0 epochs or more, and a rate above 0 and up to 1"
            )
        self.ramping()
        self.finishing()

    def ramping(self) -> Ramping:
        """How the ratio grows."""
        return Ramping(start=self.start, full=self.full, ramp=self.ramp)

    @abstractmethod
    def mask(self, values: Tensor, drop: Tensor, hardening: float) -> Tensor:
        """The masks that a step computes with.

        Args:
            values: in rows, ``[rows, length]``.
            drop: what each row loses now, int64 ``[rows]``.
            hardening: from the full ratio, 0, to the end, 1.
        """

    @property
    def one_size(self) -> bool:
        """Whether the pattern alone says how many weights stay."""
        return Pattern.parse(self.pattern).kind == "n:m"

    @property
    @abstractmethod
    def soft(self) -> bool:
        """Whether masks are other than 0 and 1 before the cut."""

    def subject(self, job: Job) -> Subject:
        """What the pattern prunes of a job's network.

        Raises:
            UnknownNameError: a dense layer that the network does not have.
            PlanError: every layer is dense.
            BudgetError: no layer has enough inputs for the pattern.
        """
        pattern = Pattern.parse(self.pattern)
        if not pattern.single:
            return WholeUnits(job.plan)
        costs = PlanCosts(job.plan)
        return SingleWeights(
            prunable_layers(job.model, job.plan, self.dense),
            pattern,
            cap=self.cap,
            parameters=costs.parameters(costs.units),
        )

    def check(self, job: Job) -> None:
        """Refuse, before any training, a job that the pattern cannot do.

        Raises:
            InfeasibleBudgetError: the pattern cannot meet the target; says what can.
            UnknownNameError, PlanError, BudgetError: see :meth:`subject`.
        """
        subject = self.subject(job)
        if not isinstance(subject, SingleWeights):
            super().check(job)
            return
        if job.target.policy == "latency":
            raise InfeasibleBudgetError(
                f"pattern={self.pattern} makes zeros, which save bytes and no multiply-accumulates:"
                " use the memory policy, or pattern=channels"
            )
        limit = job.target.amount if job.target.policy == "memory" else None
        subject.least_dropped(limit)

    def finishing(self) -> TrainConfig:
        """How the cut network is trained."""
        values = {f.name: getattr(self.training, f.name) for f in fields(TrainConfig)}
        rate = self.training.learning_rate * self.finish_rate
        values |= {"steps": None, "epochs": self.finish_epochs, "learning_rate": rate}
        return TrainConfig(**values)

    def attempt(self, trial: Trial) -> Found:
        """Train along the course, cut, and finish."""
        return SparseRun(self, trial).found()
