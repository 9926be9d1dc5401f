"""Filling a library from tasks that the operator has pictures for."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsprig.graph import GroupPlan, materialize, shrink_plan
from fedsprig.masks import Mask
from fedsprig.models import ModelCard, replace_head
from fedsprig.scoring import score
from fedsprig.seeds import derive_seed
from fedsprig.subnetwork import build_subnetwork
from fedsprig.tasks import TaskSketch, class_means, observe, projected_variance, prototype_head
from fedsprig.training import (
    ImageSet,
    TrainConfig,
    evaluate,
    features,
    fit,
    labelled_batches,
    recalibrate,
    require_classes,
    to_tensor,
)
from fedsprig_server.base import Base
from fedsprig_server.library import BaseRecord, Entry, Library

SCORING_BATCH = 32
PROBE_PICTURES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """How a task becomes an entry.

    Attributes:
        method: The scorer.
        steps: Steps in which the whole base is fine-tuned on the task before its units are scored.
        workers: Tasks that are worked on at the same time, each in one thread, so that the result
            does not depend on it.
    """

    method: str = "taylor"
    steps: int = 40
    batch_size: int = 32
    learning_rate: float = 0.02
    seed: int = 0
    workers: int = 1


@dataclass(frozen=True, slots=True)
class LibraryTask:
    """A task with its pictures."""

    name: str
    pictures: ImageSet


def build_library(
    library: Library,
    base: Base,
    tasks: Sequence[LibraryTask],
    config: BuildConfig,
    *,
    done: Callable[[str], None] = lambda name: None,
) -> None:
    """Add an entry for every task that has none yet, so that an interrupted build goes on.

    Args:
        library: Where entries go.
        base: The base model.
        tasks: What to learn from.
        config: How.
        done: Called with each task's name.

    Raises:
        TooFewClassesError: A task with fewer than two classes.
    """
    present = {entry.name for entry in library.entries(base.digest)}
    for task in tasks:
        require_classes(task.pictures)
    with ThreadPoolExecutor(
        config.workers, "library", initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        record = pool.submit(base_record, library, base, tasks, config.seed).result()
        missing = [task for task in tasks if task.name not in present]
        made = pool.map(lambda task: _entry(library, base, record.probe, task, config), missing)
        for task in tasks:
            if task.name not in present:
                # In the order of the tasks, whichever is ready first.
                library.add_entry(next(made))
            done(task.name)


def base_record(
    library: Library, base: Base, tasks: Sequence[LibraryTask], seed: int
) -> BaseRecord:
    """The base's row in the library; where there is none yet, the probe is made first."""
    record = library.find_base(base.digest)
    if record is None:
        share = max(1, PROBE_PICTURES // len(tasks))
        drawn = [_drawn(task, share, derive_seed(seed, "probe", task.name)) for task in tasks]
        images = torch.cat([tensors(pictures, base.card)[0] for pictures in drawn])
        record = BaseRecord(
            digest=base.digest,
            model=base.plan.model,
            plan=library.blobs.put(base.plan.to_bytes()),
            probe=library.blobs.put(base.probe(images)),
        )
        library.add_base(record)
    return record


def described_task(
    library: Library, base: Base, probe_digest: str, task: LibraryTask
) -> TaskSketch:
    """The sketch of a task through the base's probe."""
    # A probe of its own: describing hooks into the network, and others are at it.
    probe = build_subnetwork(library.blobs.get(probe_digest), plan_of=lambda _: None)
    images, labels = tensors(task.pictures, base.card)
    return observe(
        probe.module,
        shrink_plan(probe.plan, probe.mask),
        base.card.head,
        images,
        labels,
        task.pictures.classes,
        probe=probe_digest,
    ).sketch


def _entry(
    library: Library,
    base: Base,
    probe_digest: str,
    task: LibraryTask,
    config: BuildConfig,
) -> Entry:
    described = described_task(library, base, probe_digest, task)
    images, labels = tensors(task.pictures, base.card)
    seed = task_seed(config.seed, task.name)
    module = started(base, images, labels, len(task.pictures.classes))
    if config.steps:
        training = TrainConfig(
            steps=config.steps,
            epochs=None,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
        )
        fit(module, images, labels, training, seed=seed)
        recalibrate(module, images)
    batches = labelled_batches(images, labels, SCORING_BATCH)
    scores = score(config.method, module, base.plan, batches)
    return Entry(
        name=task.name,
        base=base.digest,
        plan=base.plan.digest,
        method=config.method,
        sketch=library.blobs.put(described.to_bytes()),
        scores=library.blobs.put(scores.to_bytes()),
        masks={},
        adapter=None,
        metrics={"training_accuracy": evaluate(module, images, labels).accuracy},
        lineage={
            "pictures": len(labels),
            "classes": list(task.pictures.classes),
            "steps": config.steps,
            "learning_rate": config.learning_rate,
            "seed": config.seed,
        },
        created=time.time(),
    )


def task_seed(seed: int, name: str) -> int:
    """What a task's pictures are divided and trained by, from the seed of the whole build."""
    return derive_seed(seed, "library", name)


def _drawn(task: LibraryTask, share: int, seed: int) -> ImageSet:
    """Up to ``share`` pictures at random: a set often lies class by class."""
    order = np.random.default_rng(seed).permutation(len(task.pictures))
    return task.pictures.subset(order[:share])


def tensors(pictures: ImageSet, card: ModelCard) -> tuple[Tensor, Tensor]:
    """Pictures and labels as a network takes them."""
    return to_tensor(pictures.images, card), torch.from_numpy(pictures.labels)


def started(base: Base, images: Tensor, labels: Tensor, classes: int) -> nn.Module:
    """The base on a task's pictures: statistics recalibrated, a head from class means."""
    module = replace_head(copy.deepcopy(base.module), base.card, classes)
    recalibrate(module, images)
    set_class_mean_head(module, base.card.head, images, labels, classes)
    return module


def accuracy_of_cut(
    base: nn.Module,
    plan: GroupPlan,
    card: ModelCard,
    mask: Mask,
    train: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    classes: int,
) -> float:
    """Share of held-out pictures that a network gets right after it was cut, with no training.

    Statistics are measured anew on the other pictures, and the classifier is that of their class
    means, as a device of a new task begins.

    Args:
        base: At full width; left as it is.
        plan: Its groups.
        card: Its card.
        mask: What is kept.
        train: Pictures and labels to start from.
        held: Those that are counted.
        classes: Of the task.
    """
    small = replace_head(materialize(base, plan, mask), card, classes)
    recalibrate(small, train[0])
    set_class_mean_head(small, card.head, *train, classes)
    return evaluate(small, *held).accuracy


def set_class_mean_head(
    module: nn.Module, head: str, images: Tensor, labels: Tensor, classes: int
) -> None:
    """Fill a network's classifier from the class means of its features, in place."""
    found = features(module, head, images).numpy()
    means, counts = class_means(found, labels.numpy(), classes)
    variance = projected_variance(found, labels.numpy(), means)
    weight, bias = prototype_head(means, counts, variance)
    with torch.no_grad():
        for parameter, value in zip(
            module.get_submodule(head).parameters(), (weight, bias), strict=False
        ):
            parameter.copy_(torch.from_numpy(value).reshape(parameter.shape))
