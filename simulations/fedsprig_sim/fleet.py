"""The pictures of a scenario, dealt to library tasks and to devices, as each would have them.

No device holds a picture that the library has seen: of a class that both learn, one half of the
training pictures belongs to the library's owner and the other to the devices. The devices of a task
share none. Test pictures come from the source's test split and are the same for all devices of a
task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w
from numpy.typing import NDArray

from fedsprig.errors import MissingSplitError, ScenarioError
from fedsprig.seeds import derive_seed
from fedsprig.training import ImageSet, camera, hold_out, read
from fedsprig_server.library_build import LibraryTask
from fedsprig_sim.expand import Expansion, TaskSpec
from fedsprig_sim.scenario import Scenario
from fedsprig_sim.sections import DataSection

DEVICE_FILE = "device.toml"


@dataclass(frozen=True, slots=True)
class SplitPictures:
    """A data section's pictures, for training and for testing."""

    train: ImageSet
    test: ImageSet


def read_data(section: DataSection, *, seed: int, size: int | None = None) -> SplitPictures:
    """Read both splits; where there is one only, a share of each class is held out for testing.

    Raises:
        DataError: Pictures that cannot be read, or too few classes.
    """
    path, name = section.path or "", section.name or ""
    train = read(section.kind, path, split=section.split_train, size=size, name=name)
    try:
        test = read(section.kind, path, split=section.split_test, size=size, name=name)
    except MissingSplitError:
        train, test = hold_out(train, section.held_out, seed=derive_seed(seed, "held out"))
    return SplitPictures(train, test.only(train.classes) if test.classes != train.classes else test)


def library_tasks(
    expansion: Expansion, sources: Mapping[str, SplitPictures], scenario: Scenario
) -> list[LibraryTask]:
    """The library's tasks with their pictures."""
    each = scenario.library.images_per_class
    devices = _owned(expansion.tasks)
    tasks = []
    for spec in expansion.library:
        train = sources[spec.data].train
        (share,) = _deal(spec, train, scenario.seed, half=0, shared=devices, parts=1, each=each)
        tasks.append(LibraryTask(spec.name, _seen(spec, train, share, "library")))
    return tasks


def write_fleet(
    expansion: Expansion, sources: Mapping[str, SplitPictures], scenario: Scenario, folder: Path
) -> int:
    """Write a numbered folder for every device: its pictures, its settings, room for its store.

    Returns:
        The number of devices.

    Raises:
        ScenarioError: A class with too few pictures for the devices of a task.
    """
    number = 0
    library = _owned(expansion.library)
    for spec in expansion.tasks:
        source = sources[spec.data]
        shares = _deal(
            spec,
            source.train,
            scenario.seed,
            half=1,
            shared=library,
            parts=len(spec.devices),
            each=scenario.devices.images_per_class,
        )
        test = _seen(spec, source.test, _test(spec, source.test, scenario), "test")
        for device, share in zip(spec.devices, shares, strict=True):
            train = _seen(spec, source.train, share, device.name)
            place = folder / f"{number:05d}"
            place.mkdir(parents=True, exist_ok=True)
            np.savez(
                place / "pictures.npz",
                x_train=train.images,
                y_train=train.labels,
                x_test=test.images,
                y_test=test.labels,
                classes=np.array(spec.classes),
            )
            settings = {
                "name": device.name,
                "task": spec.name,
                "threads": 1,
                "data": {"kind": "npz", "path": "pictures.npz", "split": "train"},
                "evaluation": {"kind": "npz", "path": "pictures.npz", "split": "test"},
                "budget": scenario.budgets[device.budget].limits(),
            }
            (place / DEVICE_FILE).write_text(tomli_w.dumps(settings))
            number += 1
    return number


def _deal(
    spec: TaskSpec,
    pictures: ImageSet,
    seed: int,
    *,
    half: int,
    shared: set[tuple[str, str]],
    parts: int,
    each: int,
) -> list[NDArray[np.int64]]:
    """``parts`` disjoint draws of ``each`` pictures of every class.

    Of a class in ``shared`` (what the other side learns too) they come from one half alone.
    """
    shares: list[list[NDArray[np.int64]]] = [[] for _ in range(parts)]
    for label, name in zip(spec.labels, spec.classes, strict=True):
        owned = np.flatnonzero(pictures.labels == label)
        split = np.random.default_rng(derive_seed(seed, "halves", spec.data, name))
        owned = split.permutation(owned)
        if (spec.data, name) in shared:
            owned = owned[half::2]
        if len(owned) < parts * each:
            key = "devices" if half else "library"
            raise ScenarioError(
                f"task {spec.name}: class {name!r} has {len(owned)} training pictures for the "
                f"{key}, {parts} x {each} are wanted: lower {key}.images_per_class"
            )
        drawn = np.random.default_rng(derive_seed(spec.seed, "deal", name)).permutation(owned)
        for part in range(parts):
            shares[part].append(drawn[part * each : (part + 1) * each])
    return [np.concatenate(share) for share in shares]


def _owned(specs: Sequence[TaskSpec]) -> set[tuple[str, str]]:
    """Data and class of everything that these tasks learn."""
    return {(spec.data, name) for spec in specs for name in spec.classes}


def _test(spec: TaskSpec, pictures: ImageSet, scenario: Scenario) -> NDArray[np.int64]:
    rng = np.random.default_rng(derive_seed(spec.seed, "test"))
    chosen = [
        rng.permutation(np.flatnonzero(pictures.labels == label))[
            : scenario.devices.test_images_per_class
        ]
        for label in spec.labels
    ]
    return np.concatenate(chosen)


def _seen(spec: TaskSpec, pictures: ImageSet, index: NDArray[np.int64], by: str) -> ImageSet:
    """Pictures of a task through its camera, labels renumbered."""
    part = pictures.subset(index)
    rng = np.random.default_rng(derive_seed(spec.seed, "camera", by))
    labels = np.array([spec.labels.index(label) for label in part.labels.tolist()], np.int64)
    return ImageSet(camera(spec.camera)(part.images, rng), labels, spec.classes)
