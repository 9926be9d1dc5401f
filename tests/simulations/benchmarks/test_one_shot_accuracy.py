"""The study of one-shot networks: what it asks, measures once and concludes."""

import copy
import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from fedsprig.cli import run as command
from fedsprig.errors import (
    ArtifactError,
    BudgetError,
    DataError,
    ScenarioError,
    TrainingError,
    UnknownNameError,
    WeightsError,
)
from fedsprig.graph import materialize
from fedsprig.masks import Budget, Mask, plan_macs, plan_parameters, solve
from fedsprig.scoring import score
from fedsprig_server.library_build import BuildConfig
from fedsprig_sim.benchmarks import one_shot_accuracy as study
from fedsprig_sim.benchmarks.kept import once
from fedsprig_sim.benchmarks.one_shot_accuracy.arms import ARMS
from fedsprig_sim.benchmarks.one_shot_accuracy.masks import MASKS
from fedsprig_sim.benchmarks.one_shot_accuracy.side import Known, Side
from fedsprig_sim.benchmarks.one_shot_accuracy.summary import Pair, difference, summarise
from fedsprig_sim.benchmarks.one_shot_accuracy.tasks import Tasks
from fedsprig_sim.benchmarks.one_shot_accuracy.trial import LocalSettings, measure
from fedsprig_sim.scenario import Scenario

TABLES = {
    "name": "tiny",
    "data": {"digits": {"kind": "embedded", "name": "digits"}},
    "library": {
        "images_per_class": 6,
        "steps": 0,
        "tasks": [
            {"name": "low", "data": "digits", "classes": ["0", "2"]},
            {"name": "high", "data": "digits", "classes": ["6", "8"], "camera": "invert"},
            {"name": "mixed", "data": "digits", "classes": ["2", "8"], "camera": "dark"},
        ],
    },
    "draws": [
        {
            "data": "digits",
            "prefix": "new",
            "count": 2,
            "classes_per_task": 2,
            "pool": ["1", "3", "5"],
        }
    ],
    "devices": {"per_task": 1, "images_per_class": 6, "test_images_per_class": 5},
    "budgets": {"quarter": {"macs_ratio": 0.25}},
}
LOCAL = LocalSettings(steps=3, batch_size=4)
OPTIONS = study.Options(
    scenario=Scenario.parse(TABLES),
    model="cifar_resnet20",
    weights=None,
    image_size=16,
    local=LOCAL,
    pictures=6,
)


@pytest.fixture(scope="module")
def tasks():
    return Tasks(OPTIONS.scenario)


@pytest.fixture(scope="module")
def side(tasks, tmp_path_factory):
    return Side.load(
        tmp_path_factory.mktemp("libraries"),
        tasks,
        model="cifar_resnet20",
        weights=None,
        image_size=16,
        build=BuildConfig(steps=0),
        done=lambda task: None,
    )


def _pictures(images):
    return {image.tobytes() for image in images}


def test_seeds_draw_other_tasks_and_the_library_stays(tasks):
    first, again, other = (tasks.drawn(seed, "test", each=6) for seed in (0, 0, 1))
    assert [t.train.classes for t in first] == [t.train.classes for t in again]
    assert all(
        np.array_equal(a.train.images, b.train.images) for a, b in zip(first, again, strict=True)
    )
    assert any(
        a.train.classes != b.train.classes or not np.array_equal(a.train.images, b.train.images)
        for a, b in zip(first, other, strict=True)
    )


def test_what_trains_is_not_tested_and_fewer_pictures_are_some_of_more(tasks):
    for task, less in zip(
        tasks.drawn(0, "test", each=6), tasks.drawn(0, "test", each=2), strict=True
    ):
        assert not _pictures(task.train.images) & _pictures(task.test.images)
        assert _pictures(less.train.images) < _pictures(task.train.images)
        assert less.train.counts().tolist() == [2, 2]
        assert np.array_equal(task.test.images, less.test.images)


def test_a_validation_task_is_helped_by_no_entry_that_knows_one_of_its_classes(tasks, side):
    (task,) = tasks.drawn(0, "validation", each=6)
    shown = [side.entries[at].name for at in Known(side, task).shown()]
    assert task.train.classes == ("0", "2")
    assert task.hidden == {"low", "mixed"}
    assert shown == ["high"]


def test_smaller_libraries_are_parts_of_larger_ones(tasks, side):
    known = Known(side, tasks.drawn(0, "test", each=6)[0])
    one, two = (set(known.shown(count).tolist()) for count in (1, 2))
    assert len(one) == 1
    assert len(two) == 2
    assert one < two


def test_a_class_that_the_library_knows_is_refused():
    known = json.loads(json.dumps(TABLES))
    known["draws"][0]["pool"] = ["0", "1", "3"]
    with pytest.raises(ScenarioError, match="classes of their own"):
        Tasks(Scenario.parse(known))


def test_more_pictures_than_a_device_has_are_refused(tasks):
    with pytest.raises(DataError, match="gives a device 6"):
        tasks.drawn(0, "test", each=7)


@pytest.mark.parametrize("name", [name for name in MASKS if "entries" not in name])
def test_every_mask_scores_every_unit(tasks, side, name):
    known = Known(side, tasks.drawn(0, "test", each=6)[0])
    MASKS[name].scores(known).check(side.base.plan)


def test_a_case_keeps_its_budget_and_is_looked_at_when_it_should_be(tasks, side):
    known = Known(side, tasks.drawn(0, "test", each=6)[0])
    found = measure(ARMS["ridge"], known, LOCAL)
    assert found["accuracy"].keys() == {"0", "3"}
    assert found["macs"] <= 0.25
    assert found["compute_training"] == pytest.approx(3 * 4 * 3 * found["macs"])


def test_a_limit_of_bytes_takes_the_place_of_the_macs(tasks, side):
    known = Known(side, tasks.drawn(0, "test", each=6)[0])
    whole = 4 * plan_parameters(side.base.plan.with_num_classes(2), Mask.full(side.base.plan))
    local = replace(LOCAL, macs=None, weight_bytes=whole // 3)
    assert 0.25 < measure(ARMS["mean"], known, local)["parameters"] <= 1 / 3


def test_healing_trains_the_cut_network_and_not_the_base(tasks, side):
    base, plan = side.base.module, side.base.plan
    before = {name: value.clone() for name, value in base.state_dict().items()}
    mask = solve(score("magnitude", base, plan), plan, Budget.fraction(plan, macs=0.3))
    cut, healed = (materialize(copy.deepcopy(base), plan, mask) for _ in range(2))
    side.heal(healed, mask, seed=0)
    moved = [
        not one.equal(other)
        for one, other in zip(cut.parameters(), healed.parameters(), strict=True)
        if one.ndim > 1
    ]
    assert sum(moved) == len(moved) - 1  # all but the classifier, which is not asked
    assert all(value.equal(before[name]) for name, value in base.state_dict().items())


def test_a_healed_arm_is_another_network_of_the_same_mask(tasks, side):
    known = Known(side, tasks.drawn(0, "test", each=6)[0])
    healed, plain = (measure(ARMS[name], known, LOCAL) for name in ("healed", "mean"))
    assert healed["mask"] == plain["mask"]
    assert healed["accuracy"] != plain["accuracy"]


@pytest.mark.parametrize(
    ("name", "probed", "whole", "gradients"),
    [
        ("random", 0, 0, 0),
        ("ridge", 1, 0, 0),
        ("own attention", 0, 3, 0),
        ("own taylor", 0, 2, 12),
        ("ridge + one batch", 1, 2, 12),
    ],
)
def test_what_a_device_computes_before_it_trains(tasks, side, name, probed, whole, gradients):
    known = Known(side, tasks.drawn(0, "test", each=6)[0])
    probe = side.probe
    share = plan_macs(probe.plan, probe.mask) / plan_macs(probe.plan, Mask.full(probe.plan))
    found = measure(ARMS[name], known, replace(LOCAL, steps=0))
    assert found["compute_before"] == pytest.approx(12 * (probed * share + whole) + 3 * gradients)


def test_the_iterative_rival_ends_within_the_budget_and_counts_its_trainings(tasks, side):
    known = Known(side, tasks.drawn(0, "test", each=6)[0])
    found = measure(ARMS["iterative"], known, LOCAL)
    assert found["macs"] <= 0.25
    # The whole base once, three ever smaller ones, and eight times the last one.
    on_the_way = sum(0.25 ** (cut / 4) for cut in (1, 2, 3))
    whole = 1 + on_the_way + 8 * 0.25
    assert 0.9 * whole < found["compute_training"] / (3 * 4 * 3) <= whole
    assert 0.9 * (1 + on_the_way) < found["compute_before"] / (3 * 12) <= 1 + on_the_way


def test_nothing_is_measured_twice(tmp_path):
    first = study.run(tmp_path, OPTIONS, arms=("random", "mean"), seeds=1)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("case-*.json")}
    again = study.run(tmp_path, OPTIONS, arms=("random", "mean"), seeds=1)
    assert len(times) == 4
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("case-*.json")}
    assert first["cases"] == again["cases"]
    lines = study.table(first).splitlines()
    assert lines[1].startswith("random")
    assert len(lines) == 3
    study.run(tmp_path, replace(OPTIONS, pictures=5), arms=("random",), seeds=1)
    assert len(list(tmp_path.glob("case-*.json"))) == 6


def test_what_needs_a_prepared_base_says_so_before_anything_is_measured(tmp_path):
    with pytest.raises(UnknownNameError, match="--prepared"):
        study.run(tmp_path, OPTIONS, arms=("mean", "prepared"), seeds=1)
    assert not list(tmp_path.glob("case-*.json"))


def _pairs(**accuracies):
    return {name: Pair(value, f"classes of {name}") for name, value in accuracies.items()}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"trains": "nothing"}, UnknownNameError),
        ({"macs": math.nan}, BudgetError),
        ({"macs": 0.0}, BudgetError),
        ({"adapter_rate": math.nan}, TrainingError),
        ({"weights_rate": -1.0}, TrainingError),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, error):
    with pytest.raises(error):
        LocalSettings(**settings)


def test_a_split_that_does_not_exist_is_refused():
    with pytest.raises(UnknownNameError, match="validation"):
        replace(OPTIONS, split="valid")


def test_weights_that_are_no_base_are_refused_before_the_library_is_built(tmp_path):
    options = replace(OPTIONS, prepared=str(tmp_path / "none.safetensors"))
    with pytest.raises(WeightsError, match="no file"):
        study.run(tmp_path, options, arms=("mean", "prepared"), seeds=1)
    assert not list(tmp_path.glob("library-*"))


@pytest.mark.parametrize("damage", ["{bad", "[]", ""])
def test_a_damaged_case_is_named(tmp_path, damage):
    (tmp_path / "case.json").write_text(damage)
    with pytest.raises(ArtifactError, match=r"case\.json is damaged: remove it"):
        once(tmp_path / "case.json", dict)


def test_differences_are_paired_by_task_and_seed():
    found = difference(_pairs(a=0.7, b=0.5, c=0.9), _pairs(a=0.6, b=0.5, d=0.1))
    assert (found.pairs, found.sets) == (2, 2)
    assert found.mean == pytest.approx(0.05)
    assert found.error == pytest.approx(math.sqrt(2 * 0.05**2) / math.sqrt(2))
    assert found.better == 0.75  # one ahead, one equal
    assert difference(_pairs(a=0.7), _pairs(d=0.1)) is None


def test_tasks_of_the_same_classes_count_once_in_the_error():
    own = {"a@0": Pair(0.7, "x"), "a@1": Pair(0.9, "x"), "b@0": Pair(0.5, "y")}
    other = dict.fromkeys(own, Pair(0.5, ""))
    found = difference(own, other)
    assert (found.pairs, found.sets) == (3, 2)
    assert found.mean == pytest.approx(0.2)
    # Sets at 0.3 and 0: standard deviation 0.3 / sqrt(2), over sqrt(2).
    assert found.error == pytest.approx(0.15)


def test_the_sign_test_knows_the_exact_share_of_sign_patterns():
    # Four equal differences: of 16 patterns two have a sum as large, all plus and all minus.
    found = difference(_pairs(a=0.1, b=0.1, c=0.1, d=0.1), _pairs(a=0, b=0, c=0, d=0))
    assert found.p == pytest.approx(2 / 16, abs=0.01)
    assert difference(_pairs(a=0.1, b=-0.1), _pairs(a=0, b=0)).p == 1.0


def test_the_summary_counts_every_pair_once():
    cases = [
        {
            "arm": arm,
            "task": task,
            "seed": 0,
            "domain": "digits",
            "classes": [task],
            "accuracy": {"0": start, "3": end},
            "macs": 0.2,
            "compute_before": 4.0,
        }
        for arm, task, start, end in (
            ("x", "a", 0.2, 0.6),
            ("x", "b", 0.4, 0.8),
            ("y", "a", 0.1, 0.5),
        )
    ]
    found = summarise(cases, (0, 3))
    assert found["x"]["pairs"] == 2
    assert found["x"]["accuracy"] == {"0": pytest.approx(0.3), "3": pytest.approx(0.7)}
    assert found["x"]["against"]["y"]["3"]["mean"] == pytest.approx(0.1)
    assert found["x"]["against"]["y"]["3"]["error"] is None


def test_the_drawing_has_a_mark_for_every_mean():
    summary = {
        "x & y": {"accuracy": {"0": 0.31, "3": 0.62}},
        "z": {"accuracy": {"3": 0.5}},
    }
    page = ElementTree.fromstring(study.figure({"looks": (0, 3), "summary": summary}))
    circles = [item for item in page.iter() if item.tag.endswith("circle")]
    assert len(circles) == 3 + 2  # and the two of the legend
    texts = [item.text for item in page.iter() if item.tag.endswith("text")]
    assert {"x & y", "z", "right after the cut", "after 3 steps"} <= set(texts)


def test_the_command_names_what_it_does_not_know(tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text('[data.digits]\nkind = "embedded"\nname = "digits"\n')
    assert command(["bench", "one-shot-accuracy", str(path), "--data", "digits"]) != 0
    assert "NAME=PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "size"),
    [("sprig_vit", 16), pytest.param("torchvision/vit_b_16", 32, marks=pytest.mark.slow)],
)
def test_heads_and_hidden_units_of_transformers_go_the_same_way(tasks, tmp_path, model, size):
    transformer = Side.load(
        tmp_path,
        tasks,
        model=model,
        weights=None,
        image_size=size,
        build=BuildConfig(steps=0),
        done=lambda task: None,
    )
    known = Known(transformer, tasks.drawn(0, "test", each=6)[0])
    kinds = {group.kind for group in transformer.base.plan.groups}
    assert "heads" in kinds
    found = measure(ARMS["ridge"], known, LOCAL)
    assert 0.2 < found["macs"] <= 0.25
    assert found["accuracy"].keys() == {"0", "3"}
