"""Preparing a base model for cutting: many of its sub-networks learn to say what the whole says.

A network that was never cut loses most of what it knows with the first units that go. Trained under
many masks at once, as slimmable networks are (Yu and Huang 2019, "Universally Slimmable Networks",
arXiv 1903.05134: the sandwich rule and distillation from the largest), it keeps much of it in every
part. The teacher here is the original base, frozen, so that what is prepared stays near to it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.errors import LabelRangeError, TrainingError
from fedsprig.graph import GroupPlan
from fedsprig.masks import Mask, ScoreSet
from fedsprig.preparing.body import BodyTraining, check_head
from fedsprig.preparing.config import PrepareConfig
from fedsprig.preparing.masks import Masks, MaskSource, NestedMasks
from fedsprig.preparing.order import StepOrder, survey
from fedsprig.preparing.sliced import SlicedNetwork, skeleton_of
from fedsprig.preparing.teacher import DISTANCES, ClassMeans, Teacher, divergence
from fedsprig.scoring import score
from fedsprig.seeds import derive_seed
from fedsprig.training import recalibrate
from fedsprig.training.loop import Progress
from fedsprig.training.modes import device_of
from fedsprig.training.optimiser import check_pictures


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What a preparation did.

    Attributes:
        losses: Mean loss over the widths of every step.
        smallest: Loss of the smallest width of every step.
        steps: Optimiser steps.
        seconds: Wall-clock time.
    """

    losses: tuple[float, ...]
    smallest: tuple[float, ...]
    steps: int
    seconds: float


def prepare(
    module: nn.Module,
    plan: GroupPlan,
    images: Tensor,
    labels: Tensor,
    config: PrepareConfig,
    *,
    seed: int,
    masks: Sequence[Mask] = (),
    scores: Sequence[ScoreSet] = (),
    progress: Progress | None = None,
) -> PrepareReport:
    """Train a base model under many masks, in place; its statistics are measured anew at the end.

    With ``order="nested"`` the masks follow the mean of the scores alone. What is cut along that
    order then starts far better than after varied masks, what is cut otherwise starts worse: so
    tasks must take the mean's mask (``score_mask = "mean"``), which is the same for all of them,
    and from a library of the same scores (``fedsprig library rebase`` takes it along). With
    ``order="varied"`` every task may have a mask of its own.

    The same weights, pictures, settings and seed give the same result bit for bit on a CPU with the
    same number of threads.

    Args:
        module: The base; its classifier is neither asked nor trained.
        plan: Its groups.
        images: ``float32 [n, c, h, w]``, what the operator has; the broader, the better.
        labels: ``int64 [n]``, of any number of classes; they shape the loss only.
        config: The settings.
        seed: Of masks, pictures and augmentation.
        masks: Those to train under as they are, as of a library; for ``order="varied"``.
        scores: What units matter, as of a library; the size of the weights where none are given.
        progress: Told of every step.

    Raises:
        TrainingError: Fewer than two pictures, a base without a head, or masks beside a nested
            order.
        DataError: Pictures or labels of another dtype or shape.
        LabelRangeError: A label below 0.
        InfeasibleBudgetError: A ratio below the smallest network.
        PlanError: A plan, masks or scores that do not fit.
        NonFiniteLossError: The loss became NaN or infinite; the base is then spoilt.
    """
    started = time.perf_counter()
    run = Preparation(module, plan, images, labels, config, seed=seed, masks=masks, scores=scores)
    losses, smallest = [], []
    for step in range(config.steps):
        of_widths = run.step(step)
        losses.append(sum(of_widths) / len(of_widths))
        smallest.append(of_widths[0])
        if progress is not None:
            progress(step + 1, config.steps, losses[-1])
    run.finish()
    return PrepareReport(
        tuple(losses), tuple(smallest), config.steps, time.perf_counter() - started
    )


class Preparation:
    """A preparation step by step: what is drawn follows from seed and step number alone.

    So weights and momenta are all that a preparation must keep to go on after a kill. The arguments
    are those of :func:`prepare`; ``module`` must hold the original base when this is made.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: GroupPlan,
        images: Tensor,
        labels: Tensor,
        config: PrepareConfig,
        *,
        seed: int,
        masks: Sequence[Mask] = (),
        scores: Sequence[ScoreSet] = (),
    ) -> None:
        check_head(plan)
        check_pictures(images, labels)
        _check_labels(labels)
        self._module, self._plan, self._config, self._seed = module, plan, config, seed
        self._images = images
        device = device_of(module)
        self._labels = labels.to(device)
        important = list(scores) or [score("magnitude", module, plan)]
        self._masks = _masks(plan, config, important, masks)
        self._teacher = Teacher(module, plan.head)
        self._classifier = self._fitted(images, labels)
        self._skeleton = skeleton_of(module)
        self._order = StepOrder(images, config.batch_size, config.augment, seed)
        self._training = BodyTraining(module, plan.head, config)

    def _fitted(self, images: Tensor, labels: Tensor) -> ClassMeans | None:
        if not self._config.logit_weight and not self._config.label_weight:
            return None
        index = survey(len(images), self._config.survey, self._seed)
        return self._teacher.classifier(images[index], labels[index])

    def step(self, number: int) -> list[float]:
        """Train all widths of one step.

        Returns:
            The losses: the smallest width first, then those drawn, then the whole where it is
            trained.
        """
        config, device = self._config, device_of(self._module)
        index, batch = self._order.batch(number)
        batch, labels = batch.to(device), self._labels[index.to(device)]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            target = self._teacher.features(batch)
        self._training.begin(number)
        losses = []
        for mask in self._drawn(number):
            small = SlicedNetwork(
                self._module, self._plan, mask, batch_statistics=True, skeleton=self._skeleton
            )
            loss = self._loss(small, batch, target, labels)
            losses.append(self._training.learn(loss, number))
        self._training.end()
        return losses

    def _drawn(self, number: int) -> list[Mask]:
        config = self._config
        rng = np.random.default_rng(derive_seed(self._seed, "masks", str(number)))
        smallest, others = config.ratios[0], config.ratios[1:] or config.ratios
        ratios = [smallest]
        ratios += [others[int(rng.integers(len(others)))] for _ in range(config.fresh_masks)]
        masks = [self._masks.draw(ratio, rng) for ratio in ratios]
        if config.whole_every and number % config.whole_every == 0:
            masks.append(Mask.full(self._plan))
        return masks

    def _loss(self, small: SlicedNetwork, batch: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        config = self._config
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=config.bf16):
            said = small.features(batch)
        said, kept = said.float(), small.kept_features
        kept = None if kept is None else kept.to(batch.device)
        loss = said.new_zeros(())
        if config.feature_weight:
            wanted = target if kept is None else target.index_select(1, kept)
            loss = loss + config.feature_weight * DISTANCES[config.distance](said, wanted)
        if self._classifier is not None:
            logits = self._classifier.logits(said, kept)
            if config.logit_weight:
                wanted = self._classifier.logits(target)
                loss = loss + config.logit_weight * divergence(logits, wanted, config.temperature)
            if config.label_weight:
                loss = loss + config.label_weight * F.cross_entropy(logits, labels)
        return loss

    def check(self, done: int) -> None:
        """Make sure that ``done`` steps have not spoilt the base, as before these are kept.

        Raises:
            NonFiniteLossError: A weight or a statistic is NaN or infinite.
        """
        self._training.check(done)

    def momenta(self) -> dict[str, Tensor]:
        """What the optimiser remembers; empty before the first step."""
        return self._training.momenta()

    def remember(self, momenta: Mapping[str, Tensor]) -> None:
        """Give the optimiser back what :meth:`momenta` said.

        Raises:
            TrainingError: It is of another network.
        """
        self._training.remember(momenta)

    def finish(self) -> None:
        """Measure the base's running statistics anew at full width; what required gradients may.

        Raises:
            NonFiniteLossError: A weight or a statistic is NaN or infinite.
        """
        self._training.close()
        index = survey(len(self._images), self._config.survey, self._seed)
        recalibrate(self._module, self._images[index])
        self.check(self._config.steps)


def _masks(
    plan: GroupPlan, config: PrepareConfig, scores: Sequence[ScoreSet], given: Sequence[Mask]
) -> Masks:
    if config.order == "nested":
        if given:
            raise TrainingError(
                f'{len(given)} masks are given beside order="nested", which has its own: leave '
                'them out, or use order="varied"'
            )
        return NestedMasks(plan, config.ratios, scores)
    return MaskSource(
        plan,
        config.ratios,
        scores=scores,
        given=given,
        random_share=config.random_share,
        given_share=config.given_share,
        noise=config.noise,
    )


def _check_labels(labels: Tensor) -> None:
    if int(labels.min()) < 0:
        raise LabelRangeError(f"labels go from {int(labels.min())}: relabel them from 0")
