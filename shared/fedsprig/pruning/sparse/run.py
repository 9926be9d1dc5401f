"""One trial of a sparse training: the course, the cut, the finish, committed epoch by epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from fedsprig.artifacts.container import Array
from fedsprig.masks import ScoreSet
from fedsprig.masks.weights import WeightMask
from fedsprig.pruning.gates import Reparametrised
from fedsprig.pruning.network import Stage, accuracy, trainable
from fedsprig.pruning.rewinding import part
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
from fedsprig.seeds import derive_seed
from fedsprig.training import TrainConfig, fit, recalibrate

if TYPE_CHECKING:
    from fedsprig.pruning.sparse.method import SparsePruner

COURSE: Final = "sparse course"
FINISH: Final = "fixed masks"
_MOMENTUM: Final = "momentum:"
_SCORES: Final = "scores"
_WEIGHT_MASK: Final = "weight_mask"


class SparseRun:
    """What one trial has done lies in ``_state`` and ``_momenta``, which a resumed one reads."""

    def __init__(self, method: SparsePruner, trial: Trial) -> None:
        self._method, self._trial = method, trial
        self._subject = method.subject(trial.job)
        self._momenta: dict[str, Tensor] = {}
        self._state: dict[str, Any] = {"phase": COURSE, "epochs": 0, "drops": None, "metrics": {}}
        self._arrays: Mapping[str, Array] = {}
        saved = trial.saved
        if saved is not None:
            self._state, self._arrays = dict(saved[0]), saved[1]
            self._momenta = {
                name.removeprefix(_MOMENTUM): torch.from_numpy(array)
                for name, array in self._arrays.items()
                if name.startswith(_MOMENTUM)
            }

    def found(self) -> Found:
        """The whole trial, or what is left of it."""
        if self._state["phase"] == COURSE:
            network, course = self._trained()
            stage, scores, weight_mask = self._cut(network, course)
        else:
            stage = Stage.restored(self._trial.job, self._arrays)
            scores, weight_mask = self._read()
        if self._method.finish_epochs:
            self._finish(stage, scores, weight_mask)
        if weight_mask is not None:
            scores = scores_of(unit_norms(_parameters(stage.network), self._trial.job.plan))
        return Found(stage, scores, weight_mask, metrics=self._state["metrics"])

    def _trained(self) -> tuple[nn.Module, Course]:
        """The network at the end of the course, at full size and dense."""
        trial, method = self._trial, self._method
        # Whether there is any network within the budget does not depend on the weights.
        self._subject.drops(_parameters(trial.whole.network), trial)
        if self._arrays:
            network = Stage.restored(trial.job, self._arrays).network
        else:
            network = copy.deepcopy(trial.whole.network)
        total = method.training.total_steps(len(trial.job.train.images))
        course = Course(
            self._subject,
            method.ramping(),
            total,
            mask=method.mask,
            decide=lambda parameters: self._subject.drops(parameters, trial),
            drops=self._state["drops"],
        )

        def stepped(done: int) -> None:
            course.done = done

        def save() -> None:
            self._state["drops"] = course.drops
            self._save(Stage(network, trial.whole.mask))

        self._fit(Reparametrised(network, course), method.training, stepped, save)
        course.done = total
        return network, course

    def _cut(self, network: nn.Module, course: Course) -> tuple[Stage, ScoreSet, WeightMask | None]:
        """The hard network, judged beside the soft one; both by statistics measured alike."""
        trial, method = self._trial, self._method
        parameters = _parameters(network)
        metrics: dict[str, float] = {}
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
        self._momenta = {}
        self._state |= {"phase": FINISH, "epochs": 0, "metrics": metrics}
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

    def _finish(self, stage: Stage, scores: ScoreSet, weight_mask: WeightMask | None) -> None:
        """Train what is left; absent weights get no gradient, and stay exactly zero."""
        network = stage.network
        if weight_mask is not None:
            device = next(network.parameters()).device
            keep = {
                name: torch.from_numpy(mask.copy()).to(device)
                for name, mask in weight_mask.tensors.items()
            }
            network = Reparametrised(
                network, lambda parameters: {n: parameters[n] * mask for n, mask in keep.items()}
            )
        kept: dict[str, Array] = {_SCORES: np.frombuffer(scores.to_bytes(), np.uint8)}
        if weight_mask is not None:
            kept[_WEIGHT_MASK] = np.frombuffer(weight_mask.to_bytes(), np.uint8)
        self._fit(
            network, self._method.finishing(), lambda _: None, lambda: self._save(stage, kept)
        )
        self._recalibrated(stage)

    def _fit(
        self,
        network: nn.Module,
        config: TrainConfig,
        stepped: Callable[[int], None],
        save: Callable[[], None],
    ) -> None:
        """Train what of a phase is left, epoch by epoch where it counts epochs."""
        trial, phase = self._trial, self._state["phase"]
        images, labels = trial.job.train
        total = config.total_steps(len(images))
        parts = 1 if config.epochs is None else config.epochs
        steps = total // max(1, parts)
        head = trial.job.plan.head
        if isinstance(network, Reparametrised) and head:
            head = f"network.{head}"
        for epoch in range(self._state["epochs"], parts):
            before = epoch * steps

            def told(step: int, _steps: int, _loss: float, before: int = before) -> None:
                stepped(before + step)
                trial.progress(phase, before + step, total)

            stepped(before)
            fit(
                network,
                images,
                labels,
                config if config.epochs is None else part(config, epoch, epoch + 1),
                seed=derive_seed(trial.seed, phase, str(epoch)),
                head=head,
                progress=told,
                momenta=self._momenta,
            )
            self._state["epochs"] = epoch + 1
            save()

    def _save(self, stage: Stage, more: Mapping[str, Array] | None = None) -> None:
        momenta = {
            _MOMENTUM + name: np.array(value.cpu().numpy(), order="C")
            for name, value in self._momenta.items()
        }
        self._trial.save(self._state, stage.arrays() | momenta | dict(more or {}))

    def _read(self) -> tuple[ScoreSet, WeightMask | None]:
        plan = self._trial.job.plan
        mask = self._arrays.get(_WEIGHT_MASK)
        return (
            ScoreSet.from_bytes(self._arrays[_SCORES].tobytes(), plan),
            None if mask is None else WeightMask.from_bytes(mask.tobytes(), plan.shapes),
        )

    def _judged(self, stage: Stage) -> float:
        self._recalibrated(stage)
        return accuracy(stage, self._trial.job)

    def _recalibrated(self, stage: Stage) -> None:
        pictures = self._trial.pictures.images
        if len(pictures) >= 2:
            recalibrate(stage.network, pictures)


def _parameters(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters())


def _each(values: Tensor, drop: int) -> Tensor:
    return torch.full((len(values),), drop, dtype=torch.int64, device=values.device)
