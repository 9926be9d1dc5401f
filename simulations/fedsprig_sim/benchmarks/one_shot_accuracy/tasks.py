"""The tasks that are measured, with their pictures: a scenario's, drawn anew for every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import DataError, ScenarioError
from fedsprig.seeds import derive_seed
from fedsprig.training import ImageSet, camera
from fedsprig_server.library_build import LibraryTask
from fedsprig_sim.expand import TaskSpec
from fedsprig_sim.fleet import SplitPictures, library_tasks, read_data
from fedsprig_sim.scenario import Scenario

Split = Literal["test", "validation"]
_VALIDATION_EVERY: Final = 3
"""Of the library's tasks, one in so many is what settings are chosen on."""


@dataclass(frozen=True, slots=True, eq=False)
class NewTask:
    """A task that asks for a network.

    Attributes:
        name: In the scenario.
        domain: Name of its data section.
        seed: Of the draw.
        train: The device's pictures.
        test: What is reported.
        hidden: Names of the library entries that know a class of the task and must not help.
    """

    name: str
    domain: str
    seed: int
    train: ImageSet
    test: ImageSet
    hidden: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """Name and seed."""
        return f"{self.name}@{self.seed}"


class Tasks:
    """Pictures of a scenario, read once.

    Attributes:
        library: What the server learns from: the draws of the scenario's own seed, always.
        pictures: By name of the data section.
    """

    def __init__(self, scenario: Scenario) -> None:
        """Read the pictures.

        Raises:
            DataError: Pictures that cannot be read.
            ScenarioError: A class that is not there, or one with too few pictures.
        """
        self._scenario = scenario
        self.pictures: Mapping[str, SplitPictures] = {
            name: read_data(section, seed=scenario.seed) for name, section in scenario.data.items()
        }
        self._classes = {name: item.train.classes for name, item in self.pictures.items()}
        expansion = scenario.expand(self._classes)
        self._library_specs = expansion.library
        self._check_disjoint(expansion.tasks)
        self.library: list[LibraryTask] = library_tasks(expansion, self.pictures, scenario)

    def drawn(self, seed: int, split: Split, *, each: int) -> list[NewTask]:
        """The tasks of a seed.

        Args:
            seed: Of classes and pictures.
            split: ``"test"``: the scenario's new tasks. ``"validation"``: every third of the
                library's own tasks, its pictures drawn anew, while all entries that know one of its
                classes are hidden.
            each: Pictures a class on the device; at most what the scenario gives it.

        Raises:
            DataError: More pictures a class than the scenario gives a device.
        """
        most = self._scenario.devices.images_per_class
        if not 1 <= each <= most:
            raise DataError(f"{each} pictures a class: the scenario gives a device {most}")
        if split == "test":
            drawn = self._scenario.model_copy(update={"seed": self._scenario.seed + seed})
            specs = drawn.expand(self._classes).tasks
            self._check_disjoint(specs)
            return [self._task(spec, seed, each) for spec in specs]
        chosen = self._library_specs[::_VALIDATION_EVERY]
        anew = [
            replace(spec, seed=derive_seed(spec.seed, "validation", str(seed))) for spec in chosen
        ]
        return [replace(self._task(spec, seed, each), hidden=self._knowing(spec)) for spec in anew]

    def _knowing(self, spec: TaskSpec) -> frozenset[str]:
        """Entries of the library that share a class with a task."""
        return frozenset(
            other.name
            for other in self._library_specs
            if other.data == spec.data and set(other.classes) & set(spec.classes)
        )

    def _task(self, spec: TaskSpec, seed: int, each: int) -> NewTask:
        source = self.pictures[spec.data]
        most = self._scenario.devices.images_per_class
        train = _some(spec, source.train, most, "device")
        # Fewer pictures are the first ones of more: what differs is their number alone.
        train = train.subset(_first_of_each(train.labels, each))
        test = _some(spec, source.test, self._scenario.devices.test_images_per_class, "test")
        return NewTask(spec.name, spec.data, seed, train, test)

    def _check_disjoint(self, new: Sequence[TaskSpec]) -> None:
        """New tasks are of classes that the library has not seen: pictures are not told apart."""
        seen = {(spec.data, label) for spec in self._library_specs for label in spec.classes}
        for spec in new:
            for label in spec.classes:
                if (spec.data, label) in seen:
                    raise ScenarioError(
                        f"task {spec.name}: the library knows the class {label!r} too: give the "
                        "new tasks classes of their own"
                    )


def _some(spec: TaskSpec, pictures: ImageSet, each: int, by: str) -> ImageSet:
    """Up to ``each`` pictures of every class, through the task's camera, in a random order."""
    rng = np.random.default_rng(derive_seed(spec.seed, by))
    chosen = [
        rng.permutation(np.flatnonzero(pictures.labels == label))[:each] for label in spec.labels
    ]
    part = pictures.subset(rng.permutation(np.concatenate(chosen)))
    labels = np.array([spec.labels.index(label) for label in part.labels.tolist()], np.int64)
    taken = camera(spec.camera)(
        part.images, np.random.default_rng(derive_seed(spec.seed, "camera", by))
    )
    return ImageSet(taken, labels, spec.classes)


def _first_of_each(labels: NDArray[np.int64], each: int) -> NDArray[np.int64]:
    found = [np.flatnonzero(labels == label)[:each] for label in np.unique(labels)]
    return np.sort(np.concatenate(found))
