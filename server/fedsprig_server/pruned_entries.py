"""Filling a library by pruning: each task's pictures become an entry with masks and weights."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsprig.errors import LibraryError
from fedsprig.pruning import (
    Job,
    Labelled,
    Policy,
    Product,
    Progress,
    Pruner,
    Target,
    silent,
)
from fedsprig.pruning.latency import MeasuredLatency
from fedsprig.seeds import derive_seed
from fedsprig.training import ImageSet, hold_out, require_classes
from fedsprig_server.base import Base
from fedsprig_server.library import Entry, Library
from fedsprig_server.library.records import check_name
from fedsprig_server.library_build import (
    LibraryTask,
    base_record,
    described_task,
    started,
    task_seed,
    tensors,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedEntryConfig:
    """How a task becomes an entry.

    Attributes:
        pruner: The method with its settings.
        policy: What the target is of.
        target: The target as an operator writes it; shares are of the whole network with the
            task's head.
        held_out: Share of each class that selects and is never trained on.
        seed: Of everything.
    """

    pruner: Pruner
    policy: Policy
    target: str
    held_out: float = 0.2
    seed: int = 0


def prune_into_library(
    library: Library,
    base: Base,
    tasks: Sequence[LibraryTask],
    config: PrunedEntryConfig,
    *,
    checkpoints: Path,
    progress: Progress = silent,
) -> list[Entry]:
    """Add an entry for every task that has none yet; an interrupted call goes on where it stood.

    An entry is added when its task is finished, so that the library never holds a half one. What
    can be refused is refused for all tasks before the first is begun.

    Args:
        library: Where entries go.
        base: The base model.
        tasks: What to learn from.
        config: How.
        checkpoints: Folder for what is not finished; a finished task's part is removed.
        progress: Told of every step, with the task's name in front.

    Returns:
        The entries of the tasks, in their order.

    Raises:
        TooFewClassesError: A task with fewer than two classes.
        BudgetError: A target that cannot be read.
        InfeasibleBudgetError: A target that cannot be met.
        LibraryError: A task's name is taken by an entry that was made otherwise, or is no name.
        RunError: The checkpoint of a task was begun with other settings or pictures.
    """
    present = {entry.name: entry for entry in library.entries(base.digest)}
    for task in tasks:
        progress(f"{task.name}, looking at {len(task.pictures)} pictures", 0, 1)
        check_name(task.name, "the task's name")
        require_classes(task.pictures)
        # Made again when its turn comes: the pictures of all tasks at once may not fit.
        job, train = _job(base, task, config)
        config.pruner.check(job)
        if task.name in present:
            _require_same(present[task.name], config.pruner, _lineage(config.pruner, job, train))
        progress(f"{task.name}, looking at {len(task.pictures)} pictures", 1, 1)
    record = base_record(library, base, tasks, config.seed)
    entries = []
    for task in tasks:
        if task.name in present:
            entries.append(present[task.name])
            continue
        # A task's name may hold what a file's may not.
        folder = checkpoints / f"{derive_seed(0, task.name):016x}"
        product, pictures = _pruned(base, task, config, folder, progress)
        entry = _entry(library, base, record.probe, task, product, pictures)
        library.add_entry(entry)
        shutil.rmtree(folder, ignore_errors=True)
        entries.append(entry)
    return entries


def _job(base: Base, task: LibraryTask, config: PrunedEntryConfig) -> tuple[Job, ImageSet]:
    """A task's job, and the pictures that it trains on."""
    seed = task_seed(config.seed, task.name)
    train, validation = hold_out(task.pictures, config.held_out, seed=seed)
    classes = len(task.pictures.classes)
    images, labels = tensors(train, base.card)
    plan = base.plan.with_num_classes(classes)
    model = started(base, images, labels, classes)
    target = Target.parse(config.policy, config.target, plan)
    job = Job(
        model=model,
        plan=plan,
        train=Labelled(images, labels),
        validation=Labelled(*tensors(validation, base.card)),
        target=target,
        seed=seed,
        latency_ms=MeasuredLatency(model, plan) if target.unit == "ms" else None,
    )
    return job, train


def _lineage(pruner: Pruner, job: Job, train: ImageSet) -> dict[str, Any]:
    """What an entry says of how it was made, as far as that is known before."""
    found: dict[str, Any] = json.loads(
        json.dumps(
            {
                **asdict(pruner),  # type: ignore[call-overload]
                "pictures": len(train),
                "classes": list(train.classes),
                "target": asdict(job.target),
                "seed": job.seed,
            }
        )
    )
    return found


def _require_same(entry: Entry, pruner: Pruner, wanted: Mapping[str, Any]) -> None:
    """Refuse to take an entry for one that would have been made in another way."""
    other = [name for name, value in wanted.items() if entry.lineage.get(name) != value]
    if entry.method != pruner.name:
        other = ["method"]  # whose settings are others, of course
    if other:
        raise LibraryError(
            f"{entry.name!r} is in the library already, made otherwise ({', '.join(other)}): "
            "give the task another name, or take another library"
        )


def _pruned(
    base: Base, task: LibraryTask, config: PrunedEntryConfig, folder: Path, progress: Progress
) -> tuple[Product, ImageSet]:
    """The task's product, and the pictures that it was trained on."""
    job, train = _job(base, task, config)

    def told(stage: str, done: int, steps: int) -> None:
        progress(f"{task.name}, {stage}", done, steps)

    return config.pruner.prune(job, progress=told, checkpoint=folder), train


def _entry(
    library: Library,
    base: Base,
    probe: str,
    task: LibraryTask,
    product: Product,
    train: ImageSet,
) -> Entry:
    described = described_task(library, base, probe, task)
    lineage: dict[str, Any] = {
        "pictures": len(train),
        "classes": list(task.pictures.classes),
        "adapter": "weights of the pruned network",
        **product.settings,
    }
    return Entry(
        name=task.name,
        base=base.digest,
        plan=base.plan.digest,
        method=product.method,
        sketch=library.blobs.put(described.to_bytes()),
        scores=library.blobs.put(product.scores.to_bytes()),
        masks={label: library.blobs.put(m.to_bytes()) for label, m in product.masks.items()},
        adapter=library.blobs.put(product.weights_bytes()),
        metrics=dict(product.metrics),
        lineage=lineage,
        created=time.time(),
    )
