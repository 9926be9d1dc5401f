"""Tasks become entries by pruning: what they hold, and what an interruption or a refusal leaves."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedsprig.artifacts.container import unpack
from fedsprig.cli import run
from fedsprig.errors import (
    BudgetError,
    InfeasibleBudgetError,
    LibraryError,
    TooFewClassesError,
    UnknownNameError,
)
from fedsprig.masks import Mask, ScoreSet, plan_macs, plan_parameters
from fedsprig.pruning import AAP, PRUNERS, OneShot
from fedsprig.pruning.job import least_units
from fedsprig.training import TrainConfig, read
from fedsprig_server.base import Base
from fedsprig_server.library import Library
from fedsprig_server.library_build import LibraryTask
from fedsprig_server.method_settings import configured, defaults, summaries
from fedsprig_server.pruned_entries import PrunedEntryConfig, prune_into_library

FAST = TrainConfig(steps=2, batch_size=8, learning_rate=0.02)
CONFIG = PrunedEntryConfig(
    pruner=AAP(training=FAST, rounds=2, score_pictures=16), policy="latency", target="40%", seed=5
)


@pytest.fixture(scope="module")
def base():
    return Base.load("cifar_resnet20", None, image_size=8)


def task(name, digits):
    pictures = read("embedded", name="digits").only(digits)
    index = np.concatenate([np.flatnonzero(pictures.labels == n)[:8] for n in range(len(digits))])
    return LibraryTask(name, pictures.subset(index))


TASKS = [task("zero or one", [0, 1]), task("two/three/four", [2, 3, 4])]


def facts(library, base):
    """Everything of every entry but the time that it was made at."""
    return [replace(entry, created=0.0) for entry in library.entries(base.digest)]


def built(folder, base, tasks=TASKS, config=CONFIG, **options):
    with Library(folder) as library:
        prune_into_library(library, base, tasks, config, checkpoints=folder / "building", **options)
        assert library.verify() == []
        return facts(library, base)


@pytest.fixture(scope="module")
def reference(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return folder, built(folder, base)


def test_an_entry_holds_scores_masks_weights_and_how_it_was_made(base, reference):
    folder, (first, second) = reference
    assert (first.name, first.method, first.plan) == ("zero or one", "aap", base.plan.digest)
    with Library(folder) as library:
        for entry, classes in ((first, 2), (second, 3)):
            ScoreSet.from_bytes(library.blobs.get(entry.scores), base.plan)
            masks = {
                label: Mask.from_bytes(library.blobs.get(blob), base.plan)
                for label, blob in entry.masks.items()
            }
            plan = base.plan.with_num_classes(classes)
            macs = plan_macs(plan, masks["target"])
            assert macs == entry.metrics["macs"] <= 0.4 * plan_macs(plan, Mask.full(plan))
            assert masks["macs-10"].is_subset_of(masks["target"])
            assert masks["target"].is_subset_of(masks["macs-75"])
            weights, metadata = unpack(library.blobs.get(entry.adapter))
            assert weights["linear.weight"].shape[0] == classes
            assert metadata["mask"] == masks["target"].digest
            assert entry.lineage["target"]["unit"] == "macs"
            assert entry.lineage["training"]["steps"] == 2
    assert not any((folder / "building").iterdir())


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_an_interrupted_build_goes_on_and_ends_the_same(base, reference, tmp_path, steps):
    told = []

    def stop(*step):
        if "looking at" not in step[0]:
            told.append(step)
        if len(told) == steps:
            raise StoppedError

    with pytest.raises(StoppedError):
        built(tmp_path, base, progress=stop)
    with Library(tmp_path) as library:
        assert library.verify() == []
        # Three rounds of two steps make a task.
        assert len(library.entries()) == (steps - 1) // 6
    assert built(tmp_path, base) == reference[1]


def test_refusals_leave_the_library_as_it_was(base, tmp_path):
    one = LibraryTask("one", TASKS[0].pictures.subset(TASKS[0].pictures.labels == 0))
    there = built(tmp_path, base, TASKS[:1])
    before = sorted(path.relative_to(tmp_path) for path in (tmp_path).rglob("*"))
    for tasks, config, error in (
        ([one], CONFIG, TooFewClassesError),
        (TASKS, replace(CONFIG, target="much"), BudgetError),
        (TASKS, replace(CONFIG, policy="memory", target="100"), InfeasibleBudgetError),
    ):
        with pytest.raises(error):
            built(tmp_path, base, tasks, config)
        with Library(tmp_path) as library:
            assert library.verify() == []
            assert facts(library, base) == there
    after = sorted(path.relative_to(tmp_path) for path in (tmp_path).rglob("*"))
    assert [path for path in after if "sqlite" not in path.name] == [
        path for path in before if "sqlite" not in path.name
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target": "30%"}, "target"),
        ({"seed": 6}, "seed"),
        ({"pruner": replace(CONFIG.pruner, rounds=3)}, "rounds"),
        ({"pruner": OneShot(criterion="taylor", training=FAST)}, "method"),
        ({"held_out": 0.4}, "pictures"),
    ],
)
def test_an_entry_that_was_made_otherwise_is_not_taken_for_the_one_that_is_asked_for(
    base, reference, changes, named
):
    folder, _ = reference
    with pytest.raises(LibraryError, match=rf"in the library already, made otherwise \({named}"):
        built(folder, base, TASKS, replace(CONFIG, **changes))


def test_a_target_that_the_last_task_cannot_meet_is_refused_before_the_first(base, tmp_path):
    plan = base.plan.with_num_classes(3)
    least = least_units(plan, CONFIG.pruner.floor)
    smallest = Mask({g.name: np.arange(g.units) < least[g.name] for g in plan.groups})
    bytes_ = 4 * plan_parameters(plan, smallest) - 1  # enough for the task of two classes
    config = replace(CONFIG, policy="memory", target=str(bytes_))
    told = []
    with pytest.raises(InfeasibleBudgetError):
        built(tmp_path, base, TASKS, config, progress=lambda *step: told.append(step[0]))
    assert all("looking at" in stage for stage in told)
    assert built(tmp_path, base, TASKS[:1], config)


def test_a_target_in_milliseconds_is_measured(base, tmp_path):
    config = replace(CONFIG, target="100000ms")
    (entry,) = built(tmp_path, base, TASKS[:1], config)
    assert entry.lineage["target"] == {"policy": "latency", "amount": 100_000, "unit": "ms"}
    assert 0 < entry.metrics["size"] < 100_000


def test_settings_that_need_each_other_are_read_in_any_order():
    changed = configured("aap", {"training.milestones": "2,4", "training.schedule": "constant"})
    assert changed.training.milestones == (2, 4)


@pytest.mark.parametrize(
    ("method", "text", "value"),
    [
        ("pdp", "tau=1e-4", 1e-4),
        ("pdp", "tau=none", None),
        ("aap", "weighting=macs", "macs"),
        ("aap", "weighting=none", None),
        ("aap", "step=2", 2.0),
        ("pass", "border=3", 3),
        ("pass", "statistics=mean,std", ("mean", "std")),
        ("pass", "prompt=none", "none"),
    ],
)
def test_a_setting_without_a_default_value_is_read_by_its_type(method, text, value):
    setting, _, written = text.partition("=")
    found = getattr(configured(method, {setting: written}), setting)
    assert found == value
    assert type(found) is type(value)


def test_a_text_of_another_type_is_refused_with_what_may_be_written():
    with pytest.raises(BudgetError, match="write parameters, macs or none"):
        configured("aap", {"weighting": "bytes"})
    for key in ("rounds.x", "training", "training.epochs.x"):
        with pytest.raises(UnknownNameError):
            configured("aap", {key: "1"})
    with pytest.raises(UnknownNameError):
        configured("magnitude-l2", {"options": ""})
    with pytest.raises(BudgetError, match="write true or false"):
        configured("aap", {"train_first": "1"})


def test_settings_are_read_by_the_kind_that_they_have():
    options = {"rounds": "7", "training.epochs": "3", "rewind": "weights", "train_first": "false"}
    changed = configured("aap", {**options, "protect": "stream,heads", "step": "0.5"})
    assert isinstance(changed, AAP)
    assert (changed.rounds, changed.training.epochs, changed.rewind) == (7, 3, "weights")
    assert changed.protect == ("stream", "heads")
    assert changed.step == 0.5
    assert not changed.train_first
    assert configured("taylor", {}) == OneShot(criterion="taylor")
    found = configured("pass", {"prompt": "none", "statistics": "mean,l2", "search.epochs": "2"})
    assert (found.prompt, found.statistics, found.search.epochs) == ("none", ("mean", "l2"), 2)
    assert configured("pass", {"border": "3", "recurrent": "false"}).border == 3
    with pytest.raises(UnknownNameError, match=r"setting of aap 'round': did you mean 'rounds'\?"):
        configured("aap", {"round": "7"})
    with pytest.raises(UnknownNameError, match="method 'aapp': did you mean 'aap'"):
        configured("aapp", {})
    with pytest.raises(BudgetError, match="rounds='many' cannot be read: write a whole number"):
        configured("aap", {"rounds": "many"})


@pytest.fixture
def archive(tmp_path):
    pictures = TASKS[0].pictures
    path = tmp_path / "digits.npz"
    np.savez(path, x=pictures.images, y=pictures.labels)
    return path


def test_the_command_builds_lists_and_writes(archive, tmp_path, capsys):
    folder, out = tmp_path / "library", tmp_path / "entries.json"
    command = ["library", "build", str(folder), "--data", f"mine={archive}"]
    command += ["--method", "fpgm", "--policy", "memory", "--target", "50%"]
    command += ["--model", "cifar_resnet20", "--weights", "none", "--image-size", "8"]
    command += ["--set", "training.epochs=1", "--json", str(out)]
    for _ in range(2):  # the second time, everything is there
        assert run(command) == 0
        shown = capsys.readouterr()
        assert "mine" in shown.out
        (entry,) = json.loads(out.read_text())
        assert (entry["name"], entry["method"]) == ("mine", "fpgm")
        assert entry["metrics"]["parameters_ratio"] <= 0.5
    assert run(["library", "verify", str(folder)]) == 0


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"--method": "pup"}, 2, "unknown method 'pup'"),
        ({"--policy": "speed"}, 30, "the policy is 'speed': use accuracy, memory, latency"),
        ({"--data": "mine"}, 2, "'mine' is not of the form NAME=VALUE"),
        ({"--data": "mine=nowhere.npz"}, 20, "there is no file 'nowhere.npz'"),
        ({"--set": "training.epochs=-1"}, 81, "steps or epochs is -1"),
    ],
)
def test_wrong_commands_make_no_library(changes, code, message, archive, tmp_path, capsys):
    options = {
        "--data": f"mine={archive}",
        "--method": "aap",
        "--policy": "memory",
        "--target": "50%",
        **changes,
    }
    command = ["library", "build", str(tmp_path / "library")]
    assert run([*command, *(word for pair in options.items() for word in pair)]) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "library").exists()


def test_every_setting_that_is_shown_can_be_written(capsys):
    assert summaries().keys() == PRUNERS.keys()
    assert all(len(line) > 20 for line in summaries().values())
    for name, pruner in PRUNERS.items():
        shown = defaults(name)
        assert configured(name, shown) == pruner
        assert run(["library", "methods", name]) == 0
        printed = capsys.readouterr().out
        assert all(f"{setting}={value}" in printed for setting, value in shown.items())
    assert defaults("aap")["training.epochs"] == "8"
    assert run(["library", "methods"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in PRUNERS)
    assert run(["library", "methods", "tailor"]) != 0
    assert "did you mean 'taylor'" in capsys.readouterr().err
