"""A library is filled the same way whatever the number of threads, and after an interruption."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsprig.artifacts import state_digest
from fedsprig.errors import TooFewClassesError
from fedsprig.graph import shrink_plan
from fedsprig.masks import Mask
from fedsprig.subnetwork import build_subnetwork
from fedsprig.tasks import TaskSketch
from fedsprig.training import ImageSet, evaluate
from fedsprig_server.base import Base
from fedsprig_server.library import Library
from fedsprig_server.library_build import (
    BuildConfig,
    LibraryTask,
    accuracy_of_cut,
    build_library,
    started,
    tensors,
)

CONFIG = BuildConfig(steps=2, batch_size=8, seed=5)


@pytest.fixture(scope="module")
def base():
    return Base.load("cifar_resnet20", None)


def task(name, seed, *, per_class=4, shades=(40, 200)):
    """Pictures that lie class by class, as readers give them."""
    rng = np.random.default_rng(seed)
    images = np.concatenate(
        [rng.integers(shade - 30, shade + 30, (per_class, 8, 8, 3), np.uint8) for shade in shades]
    )
    labels = np.repeat(np.arange(len(shades)), per_class)
    names = tuple(f"{name}-{shade}" for shade in shades)
    return LibraryTask(name, ImageSet(images, labels.astype(np.int64), names))


TASKS = [task("a", 1), task("b", 2), task("c", 3)]


def facts(library, base):
    """Everything of every entry but the time that it was made at."""
    return [
        (entry.name, entry.sketch, entry.scores, entry.metrics, entry.lineage)
        for entry in library.entries(base.digest)
    ]


def built(folder, base, tasks, config=CONFIG, **options):
    with Library(folder) as library:
        build_library(library, base, tasks, config, **options)
        record = library.find_base(base.digest)
        assert library.verify() == []
        return record, facts(library, base)


@pytest.fixture(scope="module")
def reference(base, tmp_path_factory):
    return built(tmp_path_factory.mktemp("reference"), base, TASKS)


def test_two_workers_make_the_entries_of_one(base, reference, tmp_path):
    config = BuildConfig(steps=2, batch_size=8, seed=5, workers=2)
    assert built(tmp_path, base, TASKS, config) == reference


def test_an_interrupted_build_goes_on(base, reference, tmp_path):
    class Stopped(Exception):
        pass

    def stop(name):
        raise Stopped

    with pytest.raises(Stopped):
        built(tmp_path, base, TASKS, done=stop)
    with Library(tmp_path) as library:
        (first,) = library.entries(base.digest)
    told = []
    assert built(tmp_path, base, TASKS, done=told.append) == reference
    assert told == ["a", "b", "c"]
    with Library(tmp_path) as library:
        assert library.entry("a") == first  # not made a second time


def test_the_probe_is_calibrated_on_every_class(base, tmp_path, monkeypatch):
    """The first pictures are of one class alone, and its statistics would be others."""
    seen = []
    probe = Base.probe

    def watched(self, images):
        seen.append(images)
        return probe(self, images)

    monkeypatch.setattr(Base, "probe", watched)
    monkeypatch.setattr("fedsprig_server.library_build.PROBE_PICTURES", 16)
    built(tmp_path, base, [task("long", 4, per_class=20)], BuildConfig(steps=0, seed=5))
    (images,) = seen
    assert len(images) == 16
    bright = images.mean((1, 2, 3)) > 0
    assert 4 <= int(bright.sum()) <= 12


def test_the_entry_describes_its_task_through_the_probe(base, reference, tmp_path):
    record, _ = reference
    with Library(tmp_path) as library:
        build_library(library, base, TASKS[:1], BuildConfig(steps=0, seed=5))
        (entry,) = library.entries(base.digest)
        own = library.find_base(base.digest)
        described = TaskSketch.from_bytes(library.blobs.get(entry.sketch))
        network = build_subnetwork(library.blobs.get(own.probe), plan_of=lambda _: None)
    assert own.probe != record.probe  # it was made of other pictures
    assert described.probe == own.probe
    assert described.counts.tolist() == [4, 4]
    assert described.classes == ("a-40", "a-200")
    assert len(described.fingerprint) == shrink_plan(network.plan, network.mask).units
    assert entry.lineage["pictures"] == 8


def test_one_class_is_refused_before_anything_is_made(base, tmp_path):
    with Library(tmp_path) as library:
        with pytest.raises(TooFewClassesError):
            build_library(library, base, [TASKS[0], task("one", 4, shades=(90,))], CONFIG)
        assert library.find_base(base.digest) is None


def test_the_base_is_left_as_it_was(base, reference):
    fresh = Base.load("cifar_resnet20", None)
    assert fresh.digest == base.digest
    for name, value in base.module.state_dict().items():
        assert torch.equal(value, fresh.module.state_dict()[name]), name
    assert not any(isinstance(m, nn.BatchNorm2d) and m.training for m in base.module.modules())


def test_a_cut_that_keeps_everything_is_the_base_that_was_started(base):
    images, labels = tensors(TASKS[0].pictures, base.card)
    half = (images[::2], labels[::2]), (images[1::2], labels[1::2])
    before = state_digest(base.module.state_dict())
    whole = accuracy_of_cut(base.module, base.plan, base.card, Mask.full(base.plan), *half, 2)
    assert whole == evaluate(started(base, *half[0], 2), *half[1]).accuracy
    dark = torch.zeros_like(images[1::2]), labels[1::2]
    mask = Mask.random(base.plan, 0.5, np.random.default_rng(0))
    # Pictures that are all alike are all of one class.
    assert accuracy_of_cut(base.module, base.plan, base.card, mask, half[0], dark, 2) == 0.5
    assert state_digest(base.module.state_dict()) == before
