"""A library that is taken along to a prepared base knows the tasks as before, to the bit."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedsprig.cli import run as command
from fedsprig.errors import LibraryError
from fedsprig.masks import Budget
from fedsprig.tasks import TaskSketch
from fedsprig.training import ImageSet
from fedsprig_server.base import Base
from fedsprig_server.config import SelectionConfig
from fedsprig_server.library import Library
from fedsprig_server.library_build import BuildConfig, LibraryTask, build_library
from fedsprig_server.library_rebase import rebase
from fedsprig_server.one_shot import arm_scores, cut, find

MODEL = "cifar_resnet20"


def task(name, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(2), 4)
    return LibraryTask(name, ImageSet(rng.integers(0, 256, (8, 8, 8, 3), np.uint8), labels, "xy"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of a base, and of one that could have been prepared from it."""
    folder, base = tmp_path_factory.mktemp("weights"), Base.load(MODEL, None)
    state = {
        name: value.numpy()
        for name, value in base.module.state_dict().items()
        if value.is_floating_point()
    }
    save_file(state, folder / "old.safetensors")
    for name, factor in (("new", 1.5), ("third", 2.0)):
        changed = {key: value * np.float32(factor) for key, value in state.items()}
        save_file(changed, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def old(files):
    return Base.load(MODEL, str(files / "old.safetensors"))


@pytest.fixture(scope="module")
def new(files):
    return Base.load(MODEL, str(files / "new.safetensors"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, old):
    place = tmp_path_factory.mktemp("library")
    with Library(place) as library:
        build_library(library, old, [task("a", 1), task("b", 2)], BuildConfig(steps=0))
    return place


def mask(library, base, name):
    sketch = TaskSketch.from_bytes(library.blobs.get(library.entry(name).sketch))
    near = [neighbour for _, neighbour in find(sketch, library, base, SelectionConfig())]
    settings = SelectionConfig()
    scores = arm_scores("one_shot", sketch, near, base, settings, seed=0, task="new")
    budget = Budget.fraction(base.plan, macs=0.3)
    return cut(scores, base, budget, settings, num_classes=2)


def test_a_task_gets_the_mask_on_the_new_base_that_it_got_on_the_old(folder, old, new, tmp_path):
    with Library(folder) as source, Library(tmp_path / "new") as target:
        made = rebase(source, target, new)
        assert [entry.name for entry in made] == ["a", "b"]
        assert mask(target, new, "a") == mask(source, old, "a")
        assert target.verify() == []
        assert target.entries(old.digest) == []


def test_what_was_trained_beside_the_old_weights_is_left_behind(folder, old, new, tmp_path):
    with Library(folder) as source, Library(tmp_path / "new") as target:
        blob = target.blobs.put(b"an adapter")
        assert blob
        entry = rebase(source, target, new)[0]
        assert entry.adapter is None
        assert entry.lineage["scored_on"] == old.digest
        assert entry.base == new.digest
        assert {**entry.lineage} == {**source.entry("a").lineage, "scored_on": old.digest}


def test_it_goes_on_where_it_was_interrupted(folder, new, tmp_path):
    with Library(folder) as source, Library(tmp_path / "new") as target:
        rebase(source, target, new)
        again = rebase(source, target, new)
        assert [entry.name for entry in target.entries()] == [entry.name for entry in again]


def test_the_same_library_cannot_hold_both(folder, old, new):
    # A name belongs to one entry, and the old ones are still there.
    with Library(folder) as source, pytest.raises(LibraryError, match="another folder"):
        rebase(source, source, new)
    with Library(folder) as source:
        assert [record.digest for record in source.bases()] == [old.digest]


def test_its_own_base_and_another_network_are_refused(folder, old, tmp_path):
    with Library(folder) as source, Library(tmp_path / "new") as target:
        with pytest.raises(LibraryError, match="own base"):
            rebase(source, target, old)
        with pytest.raises(LibraryError, match="no base of the network sprig20"):
            rebase(source, target, Base.load("sprig20", None))
        with pytest.raises(LibraryError, match="begins with 'ffff'"):
            rebase(source, target, Base.load(MODEL, None), origin="ffff")
        assert target.entries() == []


def test_of_several_bases_one_must_be_named(folder, old, new, files, tmp_path):
    with Library(folder) as source, Library(tmp_path / "both") as both:
        rebase(source, both, new)
        build_library(both, old, [task("c", 3)], BuildConfig(steps=0))
        third = Base.load(MODEL, str(files / "third.safetensors"))
        with Library(tmp_path / "third") as target:
            with pytest.raises(LibraryError, match="choose one of"):
                rebase(both, target, third)
            made = rebase(both, target, third, origin=old.digest[:12])
            assert [entry.name for entry in made] == ["c"]


def test_the_command_says_what_it_did(folder, new, files, tmp_path, capsys):
    arguments = ["library", "rebase", str(folder), str(tmp_path / "out")]
    weights = ["--weights", str(files / "new.safetensors"), "--model", MODEL]
    assert command([*arguments, *weights]) == 0
    assert f"2 tasks now of base {new.digest[:12]}" in capsys.readouterr().out
    assert command(["library", "list", str(tmp_path / "out"), "--json", str(tmp_path / "l")]) == 0
    assert {entry["base"] for entry in json.loads((tmp_path / "l").read_text())} == {new.digest}
