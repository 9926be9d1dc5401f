"""One trial of a sparse training: the course, the cut, the finish."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from fedsprig.masks import ScoreSet
from fedsprig.masks.weights import WeightMask
from fedsprig.pruning.by_epochs import fit_by_epochs
from fedsprig.pruning.gates import Reparametrised
from fedsprig.pruning.network import Stage, accuracy, trainable
from fedsprig.pruning.sparse.course import Course
from fedsprig.pruning.sparse.soft import hard_mask, softly
from fedsprig.pruning.sparse.subjects import (
    Rows,
    SingleWeights,
    WholeUnits,
    scores_of,
    unit_norms,
)
from fedsprig.pruning.trial import Found, Trial
from fedsprig.training import recalibrate

if TYPE_CHECKING:
    from fedsprig.pruning.sparse.method import SparsePruner

COURSE: Final = "sparse course"
FINISH: Final = "fixed masks"


class SparseRun:
    """One trial; both of its trainings are saved, the cut between them is made again."""

    def __init__(self, method: SparsePruner, trial: Trial) -> None:
        self._method, self._trial = method, trial
        self._subject = method.subject(trial.job)

    def found(self) -> Found:
        """The whole trial, or what is left of it."""
        network, course = self._trained()
        metrics: dict[str, float] = {}
        stage, scores, weight_mask = self._cut(network, course, metrics)
        if self._method.finish_epochs:
            self._finish(stage, weight_mask)
        if weight_mask is not None:
            scores = scores_of(unit_norms(_parameters(stage.network), self._trial.job.plan))
        return Found(stage, scores, weight_mask, metrics=metrics)

    def _trained(self) -> tuple[nn.Module, Course]:
        """The network at the end of the course, at full size and dense."""
        trial, method = self._trial, self._method
        # Whether there is any network within the budget does not depend on the weights.
        self._subject.drops(_parameters(trial.whole.network), trial)
        stage = Stage(copy.deepcopy(trial.whole.network), trial.whole.mask)
        checkpoint = stage.resumed(trial.checkpoint(COURSE))
        course = Course(
            self._subject,
            method.ramping(),
            method.training.total_steps(len(trial.job.train.images)),
            mask=method.mask,
            decide=lambda parameters: self._subject.drops(parameters, trial),
            drops=checkpoint.state.get("drops"),
        )
        fit_by_epochs(
            Reparametrised(stage.network, course),
            trial.job.train,
            method.training,
            seed=trial.seed,
            name=COURSE,
            head=_within(trial.job.plan.head),
            progress=trial.progress,
            learnt=stage.arrays,
            checkpoint=checkpoint.beside(lambda: {"drops": course.drops}),
            before_step=lambda done, _: course.begin(done),
        )
        return stage.network, course

    def _cut(
        self, network: nn.Module, course: Course, metrics: dict[str, float]
    ) -> tuple[Stage, ScoreSet, WeightMask | None]:
        """The hard network, judged beside the soft one; both by statistics measured alike."""
        trial, method = self._trial, self._method
        parameters = _parameters(network)
        with torch.no_grad():
            masks = course.masks(parameters) or {}
            if method.soft:
                soft = Stage(Reparametrised(network, course), trial.whole.mask)
                metrics["soft_accuracy"] = self._judged(soft)
                metrics["soft_share"] = softly(list(masks.values()))
            drops = course.drops or {}
            hard = {
                name: hard_mask(values, _each(values, drops[name]))
                for name, values in self._subject.rows(parameters).items()
            }
        stage, scores, weight_mask = self._hardened(network, hard)
        metrics["hard_accuracy"] = self._judged(stage)
        if method.soft:
            metrics["soft_to_hard_gap"] = metrics["soft_accuracy"] - metrics["hard_accuracy"]
        return stage, scores, weight_mask

    def _hardened(
        self, network: nn.Module, hard: Rows
    ) -> tuple[Stage, ScoreSet, WeightMask | None]:
        trial = self._trial
        scores = scores_of(unit_norms(_parameters(network), trial.job.plan))
        if isinstance(self._subject, WholeUnits):
            return trial.cut(self._subject.mask(hard), network), scores, None
        stage = Stage(trainable(network), trial.whole.mask)
        weight_mask = None
        if isinstance(self._subject, SingleWeights) and any(
            not bool(mask.all()) for mask in hard.values()
        ):
            weight_mask = self._subject.weight_mask(hard)
            weight_mask.apply_(network)
        return stage, scores, weight_mask

    def _finish(self, stage: Stage, weight_mask: WeightMask | None) -> None:
        """Train what is left; absent weights get no gradient, and stay exactly zero."""
        trial = self._trial
        network, head = stage.network, trial.job.plan.head
        checkpoint = stage.resumed(trial.checkpoint(FINISH))
        if weight_mask is not None:
            device = next(network.parameters()).device
            keep = {
                name: torch.from_numpy(mask.copy()).to(device)
                for name, mask in weight_mask.tensors.items()
            }
            network, head = (
                Reparametrised(
                    network,
                    lambda parameters: {n: parameters[n] * mask for n, mask in keep.items()},
                ),
                _within(head),
            )
        fit_by_epochs(
            network,
            trial.job.train,
            self._method.finishing(),
            seed=trial.seed,
            name=FINISH,
            head=head,
            progress=trial.progress,
            learnt=stage.arrays,
            checkpoint=checkpoint,
        )
        self._recalibrated(stage)

    def _judged(self, stage: Stage) -> float:
        self._recalibrated(stage)
        return accuracy(stage, self._trial.job)

    def _recalibrated(self, stage: Stage) -> None:
        pictures = self._trial.pictures.images
        if len(pictures) >= 2:
            recalibrate(stage.network, pictures)


def _within(head: str) -> str:
    """The path of the classifier of a network that is reparametrised."""
    return f"network.{head}" if head else ""


def _parameters(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters())


def _each(values: Tensor, drop: int) -> Tensor:
    return torch.full((len(values),), drop, dtype=torch.int64, device=values.device)
