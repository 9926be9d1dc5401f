"""Leaving tasks out of a real library: against real searches, by hand, and as a command."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsprig.cli import run
from fedsprig.errors import BudgetError, InfeasibleBudgetError, LibraryError, RunError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Budget, Mask, ScoreSet, plan_macs
from fedsprig.masks.layout import Layout
from fedsprig.tasks import (
    SCORE_MASKS,
    Evidence,
    Neighbour,
    SketchIndex,
    nearest,
    neighbour_weights,
    score_mask,
)
from fedsprig.training import read
from fedsprig_server.base import Base
from fedsprig_server.config import SelectionConfig
from fedsprig_server.library import Library
from fedsprig_server.library_build import BuildConfig, LibraryTask, build_library
from fedsprig_server.library_evaluation import (
    Solver,
    Subject,
    Way,
    choose,
    evaluate,
    settled,
)
from fedsprig_server.library_evaluation.choice import Estimate
from fedsprig_server.library_evaluation.overlap import (
    group_overlap,
    overlap,
    rank_correlation,
    reshuffled,
)
from fedsprig_server.library_evaluation.ways import MEAN, predictions
from fedsprig_server.one_shot import find

DIGITS = {"low": [0, 1], "next": [2, 3], "three": [4, 5, 6], "high": [7, 8], "again": [0, 1, 9]}
MODEL = ["--model", "cifar_resnet20", "--weights", "none", "--image-size", "8"]


def task(name):
    pictures = read("embedded", name="digits").only(DIGITS[name])
    index = np.concatenate(
        [np.flatnonzero(pictures.labels == n)[:8] for n in range(len(DIGITS[name]))]
    )
    return LibraryTask(name, pictures.subset(index))


@pytest.fixture(scope="module")
def base():
    return Base.load("cifar_resnet20", None, image_size=8)


def filled(folder, base, names):
    with Library(folder) as library:
        config = BuildConfig(steps=2, batch_size=8)
        build_library(library, base, [task(name) for name in names], config)
    return folder


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    return filled(tmp_path_factory.mktemp("library"), base, DIGITS)


@pytest.fixture
def library(folder):
    with Library(folder) as opened:
        yield opened


def quarter(plan: GroupPlan) -> Budget:
    return Budget.fraction(plan, macs=0.25)


def subject_of(library, base, **options):
    solver = Solver(base.plan, quarter, SelectionConfig())
    return Subject.read(library, base.digest, solver, **{"most": 200, "seed": 3, **options})


@pytest.fixture(scope="module")
def evaluation(folder, base):
    with Library(folder) as opened:
        return evaluate(subject_of(opened, base))


def test_every_way_is_what_a_library_without_the_task_would_say(evaluation, base):
    """The products of arrays against real searches, entry by entry."""
    subject = evaluation.subject
    tried = {way.score_mask for way in evaluation.ways}
    assert tried == {*SCORE_MASKS, "farthest"}
    assert {way.similarity for way in evaluation.ways} == {"", *evaluation.known}
    for number, way in enumerate(evaluation.ways):
        if way.score_mask in ("ridge", "farthest"):
            continue
        made = predictions(subject, way, evaluation.known)
        masks = evaluation.masks(way, range(len(subject.rows)))
        for row, entry in enumerate(subject.rows):
            others = [at for at in range(len(subject.names)) if at != entry]
            index = SketchIndex.build(
                [subject.names[at] for at in others], [subject.sketches[at] for at in others]
            )
            evidence = Evidence(subject.sketches[entry])
            hits = nearest(evidence, index, similarity=way.similarity or "prototypes")
            near = [
                Neighbour(hit.name, hit.similarity, scores_of(subject, hit.name)) for hit in hits
            ]
            expected = score_mask(
                evidence.sketch, near, method=way.score_mask, temperature=way.temperature or 0.5
            )
            np.testing.assert_allclose(made[row], expected.flat, rtol=1e-4, atol=1e-5)
            mask = masks[row]
            plan = base.plan.with_num_classes(len(DIGITS[subject.names[entry]]))
            assert plan_macs(plan, mask) <= 0.25 * plan_macs(plan, Mask.full(plan))
            own = evaluation.own_mask(row)
            shared = np.count_nonzero(mask.flat & own.flat) / np.count_nonzero(mask.flat | own.flat)
            assert evaluation.overlaps[number, row] == pytest.approx(shared)
            ratios = [
                np.count_nonzero(mask.groups[name] & own.groups[name])
                / np.count_nonzero(mask.groups[name] | own.groups[name])
                for name in mask.groups
            ]
            assert evaluation.group_overlaps[number, row] == pytest.approx(np.mean(ratios))


def scores_of(subject, name):
    return ScoreSet(subject.layout.split(subject.values[subject.names.index(name)]))


def test_a_task_has_no_part_in_its_own_prediction(evaluation):
    subject = evaluation.subject
    changed = subject.values.copy()
    changed[2] = changed[2][::-1]
    other = replace(subject, values=changed)
    for way in evaluation.ways:
        if way.score_mask == "ridge":  # its settings are chosen by the others, who learn from it
            continue
        before = predictions(subject, way, evaluation.known)
        after = predictions(other, way, evaluation.known)
        np.testing.assert_array_equal(before[2], after[2])
        if way.score_mask == "mean":
            assert not np.array_equal(before[0], after[0])


def test_a_random_mask_has_the_widths_of_the_own_one(evaluation):
    for row in range(len(evaluation.subject.rows)):
        own, drawn = evaluation.own_mask(row), evaluation.random_mask(row)
        assert own != drawn
        assert [own.kept(name) for name in own.groups] == [drawn.kept(n) for n in own.groups]
        assert evaluation.floor[row] == pytest.approx(overlap(own.flat, drawn.flat))


def test_overlaps_by_hand():
    one = np.array([1, 1, 0, 0, 1], np.bool_)
    two = np.array([1, 0, 1, 0, 1], np.bool_)
    layout = Layout(("a", "b"), (4, 1))
    assert overlap(one, two) == pytest.approx(2 / 4)
    assert group_overlap(one, two, layout) == pytest.approx((1 / 3 + 1) / 2)
    np.testing.assert_allclose(overlap(np.stack([one, two]), two), [0.5, 1])
    np.testing.assert_allclose(group_overlap(np.stack([one, two]), two, layout), [2 / 3, 1])
    drawn = reshuffled(one, layout, np.random.default_rng(0))
    assert (drawn[:4].sum(), drawn[4]) == (2, 1)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3], [10, 20, 21], 1),
        ([1, 2, 3], [3, 2, -9], -1),
        # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5 over sqrt(4.5 * 5).
        ([1, 5, 5, 9], [1, 2, 3, 4], 4.5 / np.sqrt(4.5 * 5)),
        ([1, 1, 1], [1, 2, 3], 0),
    ],
)
def test_rank_correlations_by_hand(one, other, expected):
    assert rank_correlation(np.array(one, float), np.array(other, float)) == pytest.approx(expected)


def test_correlations_are_of_similarities_with_overlaps_of_own_masks(evaluation):
    subject = evaluation.subject
    for name, values in evaluation.correlations.items():
        others = [0, 1, 3, 4]
        near = evaluation.known[name][2, others]
        shared = [overlap(evaluation.own[at], evaluation.own[2]) for at in others]
        assert values[2] == pytest.approx(rank_correlation(near, np.array(shared)))
        assert np.isnan(evaluation.known[name][np.arange(len(subject.rows)), subject.rows]).all()


def with_overlaps(evaluation, changes, count=20):
    """The evaluation as if so many tasks had been left out with these overlaps."""
    rows = np.arange(count)
    table = np.full((len(evaluation.ways), count), 0.4)
    for way, values in changes.items():
        table[evaluation.ways.index(way)] = values
    return replace(evaluation, subject=replace(evaluation.subject, rows=rows), overlaps=table)


WEIGHTED = Way("weighted", "prototypes", 0.5)


def test_a_way_that_is_better_is_taken(evaluation):
    gains = np.linspace(0.02, 0.06, 20)
    choice = choose(with_overlaps(evaluation, {WEIGHTED: 0.4 + gains}))
    assert choice.way == choice.best == WEIGHTED
    # The same way is chosen on every part of the tasks, so the gain is that of all.
    assert choice.gain.mean == pytest.approx(0.04)
    assert choice.gain.error == pytest.approx(gains.std(ddof=1) / np.sqrt(20))
    assert choice.verdict.startswith("Choosing similar tasks helps: +0.040 IoU")
    assert "20 tasks" in choice.verdict
    assert choice.selection == {
        "score_mask": "weighted",
        "similarity": "prototypes",
        "temperature": 0.5,
    }


def test_where_nothing_is_better_the_mean_is_taken(evaluation):
    for changes in ({}, {MEAN: 0.5}, {Way("farthest", "prototypes"): 0.9}):
        choice = choose(with_overlaps(evaluation, changes))
        assert choice.way == MEAN
        assert "does not help here" in choice.verdict
        assert choice.selection == {"score_mask": "mean"}


def test_the_best_of_many_by_luck_is_not_taken(evaluation):
    """Each way is best on one fold of tasks alone: what it won there, it loses elsewhere."""
    rng = np.random.default_rng(evaluation.subject.seed)
    order = rng.permutation(20)
    lucky = [way for way in evaluation.ways if way.offered and way != MEAN][:5]
    table = {}
    for fold, way in enumerate(lucky):
        table[way] = np.full(20, 0.39)
        table[way][order[fold::5]] = 0.5
    chosen = with_overlaps(evaluation, table)
    best = max(chosen.overlaps.mean(axis=1))
    assert best > 0.4  # on the tasks that choose, it looks better
    choice = choose(chosen)
    assert choice.gain.mean < 0
    assert choice.way == MEAN


def test_little_evidence_is_called_so(evaluation):
    wobble = 0.02 * np.tile([1, -1], 10)
    choice = choose(with_overlaps(evaluation, {WEIGHTED: 0.4 + 0.007 + wobble}))
    assert 1 < choice.gain.mean / choice.gain.error < 2
    assert choice.way == WEIGHTED
    assert "may help" in choice.verdict
    one = choose(with_overlaps(evaluation, {WEIGHTED: 0.9}, count=1))
    assert one.way == MEAN
    assert "1 task)" in one.verdict


def test_an_estimate_by_hand():
    found = Estimate.of(np.array([1.0, 3.0, 5.0]))
    assert (found.mean, found.count) == (3, 3)
    assert found.error == pytest.approx(2 / np.sqrt(3))
    assert found.above(2)
    assert not found.above(3)
    assert not Estimate.of(np.zeros(4)).above(1)


def test_as_many_as_asked_are_left_out_and_the_named_always(library, base):
    two = subject_of(library, base, most=2)
    assert len(two.rows) == 2
    assert len(two.names) == 5
    named = subject_of(library, base, most=2, always=["high", "low", "next"])
    assert {named.names[row] for row in named.rows} == {"high", "low", "next"}
    assert subject_of(library, base, visible=3).names == tuple(DIGITS)[:3]
    with pytest.raises(LibraryError, match="has 2 tasks of this base: leaving one out needs"):
        subject_of(library, base, visible=2)
    with pytest.raises(LibraryError, match="no task 'higher'"):
        subject_of(library, base, always=["higher"])


def test_the_server_takes_what_its_library_advises(library, base, evaluation):
    fixed = SelectionConfig(score_mask="votes")
    assert settled(fixed, library, base) is fixed
    auto = SelectionConfig(score_mask="auto", floor=0.1)
    few = settled(auto, library, base, visible=2)
    assert few == replace(auto, score_mask="mean")
    solver = Solver(base.plan, quarter, auto)
    subject = Subject.read(library, base.digest, solver, most=200, seed=0)
    way = choose(evaluate(subject)).way
    made = settled(auto, library, base)
    assert (made.score_mask, made.floor) == (way.score_mask, 0.1)
    assert made.similarity == (way.similarity or auto.similarity)
    assert made.temperature == (way.temperature or auto.temperature)
    # Found once for a number of entries, however it is asked for.
    assert settled(auto, library, base, visible=5) is made
    assert settled(auto, library, base, visible=9) is made
    with pytest.raises(RunError, match="score mask 'weigted': did you mean 'weighted'"):
        SelectionConfig(score_mask="weigted")


@pytest.mark.parametrize("name", ["auto", "mean", *SCORE_MASKS])
def test_devices_are_not_asked_for_what_nobody_reads(name):
    if name in ("weighted", "nearest", "votes", "importance_votes"):
        SelectionConfig(rerank="leep", score_mask=name)
        return
    with pytest.raises(
        RunError, match=f"score_mask '{name}', .* use weighted, nearest, votes, imp"
    ):
        SelectionConfig(rerank="leep", score_mask=name)
    SelectionConfig(score_mask=name)


@pytest.mark.parametrize(
    ("way", "expected"), [("mean", [1 / 5] * 5), ("nearest", [1, 0, 0, 0, 0]), ("votes", None)]
)
def test_the_shares_that_are_told_are_those_that_count(library, base, evaluation, way, expected):
    selection = SelectionConfig(score_mask=way)
    found = find(evaluation.subject.sketches[0], library, base, selection)
    weights = [near.weight for near, _ in found]
    if expected is None:
        expected = neighbour_weights([near.similarity for near, _ in found], 0.5)
    np.testing.assert_allclose(weights, expected)
    assert found[0][0].name == "low"  # the task itself


def test_the_command_says_it_in_plain_words(folder, tmp_path, capsys):
    out = tmp_path / "evaluation.json"
    assert run(["library", "evaluate", str(folder), "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    (found,) = json.loads(out.read_text())
    assert found["verdict"] in shown
    assert set(found["left_out"]) == set(DIGITS)
    assert found["accuracy"] == []
    assert 0 < found["random"]["iou"] < found["ways"][0]["iou"] < 1
    assert found["ways"][0]["over_the_mean"]["mean"] == 0
    # What is printed last can be pasted, and means what was chosen.
    pasted = tomllib.loads(shown[shown.index("[selection]") :])["selection"]
    assert pasted == found["selection"]
    SelectionConfig(**pasted)


def test_a_file_that_cannot_be_written_is_said_before_the_work(folder, tmp_path, capsys):
    assert run(["library", "evaluate", str(folder), "--json", str(tmp_path)]) != 0
    shown = capsys.readouterr()
    assert "no regular file; choose another path" in shown.err
    assert shown.out == ""


def test_the_budget_can_be_bytes_and_one_task_is_enough(folder, tmp_path, capsys):
    out = tmp_path / "evaluation.json"
    command = ["library", "evaluate", str(folder), "--bytes", "150kB", "--entries", "1"]
    assert run([*command, "--json", str(out)]) == 0
    (found,) = json.loads(out.read_text())
    assert len(found["left_out"]) == 1
    assert found["gain"]["error"] is None
    assert "1 of 5 tasks" in capsys.readouterr().out


def archive(tmp_path, name):
    pictures = task(name).pictures
    path = tmp_path / f"{name}.npz"
    np.savez(path, x=pictures.images, y=pictures.labels)
    return path


def test_with_pictures_it_measures_what_is_lost(folder, tmp_path, capsys):
    out = tmp_path / "evaluation.json"
    command = ["library", "evaluate", str(folder), *MODEL, "--json", str(out), "--entries", "2"]
    for name in ("high", "three"):
        command += ["--data", f"{name}={archive(tmp_path, name)}"]
    assert run(command) == 0
    assert "points lost against the own mask" in capsys.readouterr().out
    (found,) = json.loads(out.read_text())
    assert [item["name"] for item in found["accuracy"]] == ["high", "three"]
    for item, classes in zip(found["accuracy"], (2, 3), strict=True):
        assert item["pictures"] == 2 * classes  # a fifth of eight, rounded, of each class
        assert "mean" in item["predicted"]
        assert len(item["predicted"]) == 2
        for share in (item["whole"], item["own"], item["random"], *item["predicted"].values()):
            assert share * item["pictures"] == pytest.approx(round(share * item["pictures"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--macs", "5ms"], "is a time, which nobody measures here"),
        (["--macs", "much"], "--macs 'much' is no limit: write 25% or 12M"),
        (["--bytes", "10"], "the smallest network needs"),
        (["--data", "nobody=FILE", *MODEL], "the library has no task 'nobody' of this base"),
        (["--data", "low=FILE", *MODEL], "has 2 classes, its pictures 3"),
        (["--data", "low"], "'low' is not of the form NAME=VALUE"),
        (["--data", "low=FILE"], "are of this sprig20: check its weights"),
    ],
)
def test_what_cannot_be_done_is_one_line(options, message, folder, tmp_path, capsys):
    path = str(archive(tmp_path, "three"))
    command = [
        "library",
        "evaluate",
        str(folder),
        *(word.replace("FILE", path) for word in options),
    ]
    assert run(command) != 0
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_two_tasks_are_too_few(base, tmp_path, capsys):
    folder = filled(tmp_path / "library", base, ["low", "next"])
    assert run(["library", "evaluate", str(folder)]) != 0
    shown = capsys.readouterr().err
    assert "at most 2 tasks of one base: leaving one out needs at least 3" in shown
    assert shown.count("\n") == 1
    with Library(folder) as library, pytest.raises(LibraryError):
        subject_of(library, base)


def test_a_budget_that_nothing_meets_is_refused(library, base):
    solver = Solver(base.plan, lambda plan: Budget(macs=1), SelectionConfig())
    with pytest.raises(InfeasibleBudgetError):
        evaluate(Subject.read(library, base.digest, solver, most=2, seed=0))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--macs=-5%"], BudgetError.exit_code, "--macs '-5%' is no limit: write 25% or 12M"),
        (["--macs=nan"], BudgetError.exit_code, "--macs 'nan' is no limit: write 25% or 12M"),
        (["--bytes=0"], BudgetError.exit_code, "--bytes '0' is no limit: write 25% or 120kB"),
        (["--model", "cifar_resnet20"], 2, "give --data too"),
        (["--weights", "none"], 2, "give --data too"),
    ],
)
def test_options_that_mean_nothing_are_refused(library, words, code, message, capsys):
    folder = str(Path(library.database.name).parent)
    assert run(["library", "evaluate", folder, *words]) == code
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_no_error_is_told_of_a_single_task(library, capsys):
    folder = str(Path(library.database.name).parent)
    assert run(["library", "evaluate", folder, "--entries", "1"]) == 0
    assert "inf" not in capsys.readouterr().out.split()
