"""What a predicted mask costs in accuracy, where pictures of a task are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedsprig.errors import LibraryError
from fedsprig.masks import Mask
from fedsprig.pruning import silent
from fedsprig.training import evaluate, hold_out
from fedsprig_server.base import Base
from fedsprig_server.library_build import LibraryTask, accuracy_of_cut, started, task_seed, tensors
from fedsprig_server.library_evaluation.choice import Choice
from fedsprig_server.library_evaluation.evaluation import Evaluation
from fedsprig_server.library_evaluation.ways import MEAN, Progress


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """Accuracies on held-out pictures of a task, right after the cut.

    Attributes:
        name: Of the task.
        pictures: Held out.
        whole: Of the uncut base.
        own: With the mask of the task's own scores.
        predicted: By the label of a way.
        random: With a random mask of the own one's widths.
    """

    name: str
    pictures: int
    whole: float
    own: float
    predicted: Mapping[str, float]
    random: float


def losses(
    evaluation: Evaluation,
    choice: Choice,
    base: Base,
    tasks: Sequence[LibraryTask],
    *,
    held_out: float,
    seed: int,
    progress: Progress = silent,
) -> list[TaskLoss]:
    """Cut the base by the own masks and by predicted ones, the mean's and the best way's.

    Nothing is trained: statistics are measured anew on the task's other pictures, and the
    classifier is that of their class means.

    Args:
        evaluation: In which all these tasks are among those left out.
        choice: Of this evaluation.
        base: The network.
        tasks: With their pictures.
        held_out: Share of each class to measure on, drawn as ``library build`` draws it.
        seed: Of that; as it was built with, so that pictures that made the scores are not measured.
        progress: Told of every cut.

    Raises:
        LibraryError: Pictures of another number of classes than the entry has.
    """
    subject = evaluation.subject
    entries = [subject.names.index(task.name) for task in tasks]
    rows = [subject.rows.tolist().index(entry) for entry in entries]
    predicted = {way.label: evaluation.masks(way, rows) for way in (MEAN, choice.best)}
    found = []
    for number, (task, entry, row) in enumerate(zip(tasks, entries, rows, strict=True)):
        classes = len(task.pictures.classes)
        if classes != subject.classes(entry):
            raise LibraryError(
                f"the task {task.name!r} has {subject.classes(entry)} classes, its pictures "
                f"{classes}: give it the pictures that it was built from"
            )
        rest, held = hold_out(task.pictures, held_out, seed=task_seed(seed, task.name))
        measure = _Measure(base, tensors(rest, base.card), tensors(held, base.card), classes)
        found.append(
            TaskLoss(
                name=task.name,
                pictures=len(held),
                whole=measure.whole(),
                own=measure.cut(evaluation.own_mask(row)),
                predicted={label: measure.cut(masks[number]) for label, masks in predicted.items()},
                random=measure.cut(evaluation.random_mask(row)),
            )
        )
        progress("measuring accuracy", number + 1, len(tasks))
    return found


@dataclass(frozen=True, slots=True)
class _Measure:
    """One task's accuracy with whatever mask; pictures to start from, and held-out ones."""

    base: Base
    rest: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    classes: int

    def whole(self) -> float:
        return evaluate(started(self.base, *self.rest, self.classes), *self.held).accuracy

    def cut(self, mask: Mask) -> float:
        base = self.base
        return accuracy_of_cut(
            base.module, base.plan, base.card, mask, self.rest, self.held, self.classes
        )
