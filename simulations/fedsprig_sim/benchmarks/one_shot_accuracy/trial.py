"""One arm on one task: cut, look, train for a few steps, look again."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from fedsprig.errors import BudgetError, UnknownNameError
from fedsprig.graph import GroupPlan, kept_index, materialize
from fedsprig.masks import Budget, Mask, plan_macs, plan_parameters, solve
from fedsprig.models import replace_head
from fedsprig.seeds import derive_seed
from fedsprig.spelling import unknown
from fedsprig.subnetwork import AdapterConfig, attach_configured
from fedsprig.training import TrainConfig, evaluate, fit, recalibrate, to_tensor
from fedsprig.training.config import Augment, Optimiser, Schedule
from fedsprig_server.library_build import set_class_mean_head
from fedsprig_sim.benchmarks.one_shot_accuracy.arms import Arm
from fedsprig_sim.benchmarks.one_shot_accuracy.iterative import pruned
from fedsprig_sim.benchmarks.one_shot_accuracy.masks import ALL, MASKS
from fedsprig_sim.benchmarks.one_shot_accuracy.side import Known

Trains = Literal["adapters", "weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """What a device does with its network.

    Attributes:
        macs: Multiply-accumulates over those of the base; ``None``: no limit.
        weight_bytes: Limit of the weights; ``None``: none.
        trains: What of a cut network trains: adapters, or all weights. Of an uncut one, and where
            the device prunes for itself, all weights do.
        steps: Of fine-tuning.
        batch_size: Pictures a step.
        adapter_rate: Learning rate of adapters.
        weights_rate: Learning rate where all weights train.
        optimiser: As in ``TrainConfig``.
        schedule: As in ``TrainConfig``, over all steps.
        head_rate_scale: Factor of the head's learning rate.
        rank: Of the adapters.
        augment: As in ``TrainConfig``.
        bf16: Compute in bfloat16.
    """

    macs: float | None = 0.25
    weight_bytes: int | None = None
    trains: Trains = "adapters"
    steps: int = 50
    batch_size: int = 16
    adapter_rate: float = 0.05
    weights_rate: float = 0.005
    optimiser: Optimiser = "sgd"
    schedule: Schedule = "cosine"
    head_rate_scale: float = 1.0
    rank: int = 8
    augment: Augment = "none"
    bf16: bool = False

    def __post_init__(self) -> None:
        """Check what the types cannot say.

        Raises:
            UnknownNameError: Nothing of that name trains.
            BudgetError: A share that is none.
            TrainingError: A setting out of its range.
        """
        if self.trains not in get_args(Trains):
            raise UnknownNameError(unknown("thing that trains", self.trains, get_args(Trains)))
        if self.macs is not None and not 0 < self.macs <= 1:
            raise BudgetError(f"macs is {self.macs}: give a share above 0, 1 at most")
        for trains in get_args(Trains):
            self.training(trains, self.steps)

    def budget(self, plan: GroupPlan) -> Budget:
        """What the network must fit into."""
        macs = None if self.macs is None else int(self.macs * plan_macs(plan, Mask.full(plan)))
        return Budget(macs=macs, weight_bytes=self.weight_bytes)

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many steps accuracy is measured."""
        return tuple(sorted({0, self.steps}))

    def training(self, trains: Trains, steps: int) -> TrainConfig:
        """So many steps."""
        return TrainConfig(
            steps=steps,
            batch_size=self.batch_size,
            learning_rate=self.adapter_rate if trains == "adapters" else self.weights_rate,
            optimiser=self.optimiser,
            schedule=self.schedule,
            head_learning_rate_scale=self.head_rate_scale,
            augment=self.augment,
            bf16=self.bf16,
        )


def measure(arm: Arm, known: Known, settings: LocalSettings) -> dict[str, Any]:
    """Accuracy on the test pictures after every look, and what it cost."""
    side, task = known.side, known.task
    classes = len(task.train.classes)
    plan = side.base.plan.with_num_classes(classes)
    if arm.iterative:
        return _iterative(arm, known, settings)
    if arm.mask is None:
        mask = Mask.full(plan)
    else:
        scores = MASKS[arm.mask].scores(known)
        mask = solve(scores, plan, settings.budget(plan))
    network = _cut(known, mask)
    if arm.healed:
        known.side.heal(network, mask, seed=derive_seed(task.seed, "healing", task.name))
    trains: Trains = "weights" if arm.mask is None else settings.trains
    accuracy = follow(network, known, mask, trains, settings)
    return _figures(arm, known, mask, accuracy) | {
        "compute_before": _compute_before(arm, known),
        "compute_training": 3 * settings.batch_size * settings.steps * _share(plan, mask),
    }


def _iterative(arm: Arm, known: Known, settings: LocalSettings) -> dict[str, Any]:
    task, base = known.task, known.side.base
    images, labels = known.tensors

    def train(network: nn.Module, part: str) -> None:
        seed = derive_seed(task.seed, "iterative", task.name, part)
        training = settings.training("weights", settings.steps)
        fit(network, images, labels, training, seed=seed, head=base.card.head)
        recalibrate(network, images)

    network, mask, trained, scored = pruned(known, settings.budget, train)
    test = to_tensor(task.test.images, base.card), torch.from_numpy(task.test.labels)
    accuracy = {str(settings.steps): evaluate(network, *test).accuracy}
    return _figures(arm, known, mask, accuracy) | {
        "compute_before": 3 * scored * len(images),
        "compute_training": 3 * settings.batch_size * settings.steps * trained,
    }


def _figures(arm: Arm, known: Known, mask: Mask, accuracy: dict[str, float]) -> dict[str, Any]:
    task = known.task
    plan = known.side.base.plan.with_num_classes(len(task.train.classes))
    return {
        "arm": arm.name,
        "task": task.name,
        "domain": task.domain,
        "classes": sorted(task.train.classes),
        "seed": task.seed,
        "accuracy": accuracy,
        "macs": _share(plan, mask),
        "parameters": plan_parameters(plan, mask) / plan_parameters(plan, Mask.full(plan)),
        "mask": mask.digest,
    }


def _share(plan: GroupPlan, mask: Mask) -> float:
    return plan_macs(plan, mask) / plan_macs(plan, Mask.full(plan))


def _cut(known: Known, mask: Mask) -> nn.Module:
    """The small network of the base's weights, its classifier still empty."""
    side, classes = known.side, len(known.task.train.classes)
    whole = replace_head(copy.deepcopy(side.base.module), side.base.card, classes)
    return materialize(whole, side.base.plan.with_num_classes(classes), mask)


def follow(
    network: nn.Module, known: Known, mask: Mask, trains: Trains, settings: LocalSettings
) -> dict[str, float]:
    """Steps done -> test accuracy, from right after the cut to the end."""
    base, task = known.side.base, known.task
    images, labels = known.tensors
    classes = len(task.train.classes)
    test = to_tensor(task.test.images, base.card), torch.from_numpy(task.test.labels)
    recalibrate(network, images)
    set_class_mean_head(network, base.card.head, images, labels, classes)
    found = {"0": evaluate(network, *test).accuracy}
    seed = derive_seed(task.seed, "fine-tuning", task.name)
    plan = base.plan.with_num_classes(classes)
    adapter = AdapterConfig(kind="splora" if trains == "adapters" else "full", rank=settings.rank)
    network = attach_configured(network, adapter, plan, kept_index(plan, mask))
    if settings.steps:
        config = settings.training(trains, settings.steps)
        fit(network, images, labels, config, seed=seed, head=base.card.head)
        recalibrate(network, images)
        found[str(settings.steps)] = evaluate(network, *test).accuracy
    return found


def _compute_before(arm: Arm, known: Known) -> float:
    """What the device computes before it trains, in forward passes of the whole base.

    Forward and back count as three.
    """
    if arm.mask is None:
        return 0.0
    item, pictures, probe = MASKS[arm.mask], len(known.task.train), known.side.probe
    small = plan_macs(probe.plan, probe.mask) / plan_macs(probe.plan, Mask.full(probe.plan))
    gradients = pictures if item.gradients == ALL else min(item.gradients, pictures)
    return (item.probed * small + item.whole) * pictures + 3 * gradients
