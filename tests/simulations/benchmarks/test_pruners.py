"""The studies of pruners: what they ask, that nothing is measured twice, and what they show."""

import json
from dataclasses import replace

import pytest
import torch

from fedsprig.cli import run as command
from fedsprig.errors import DataError, TrainingError, UnknownNameError
from fedsprig.pruning import AAP, PASS, PDP
from fedsprig.training import TrainConfig
from fedsprig_sim.benchmarks import pruners
from fedsprig_sim.benchmarks.pruners import aap, prompts, sparsity
from fedsprig_sim.benchmarks.pruners.case import Case, measured
from fedsprig_sim.benchmarks.pruners.tables import paired, percents
from fedsprig_sim.benchmarks.pruners.world import Options, World, read_training, scaled
from fedsprig_sim.progress import Silence

FAST = TrainConfig(steps=1, batch_size=8, learning_rate=0.01)
OPTIONS = Options(
    data="digits",
    model="cifar_resnet20",
    weights=None,
    pictures=40,
    validation_pictures=20,
    test_pictures=20,
    training=FAST,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.of(OPTIONS, tmp_path_factory.mktemp("world"))


class StoppedError(Exception):
    pass


class Stopping(Silence):
    """Stops a run at the given line."""

    def __init__(self, at):
        self.lines, self._at = [], at

    def say(self, line):
        self.lines.append(line)
        if len(self.lines) == self._at:
            raise StoppedError


def test_what_selects_and_what_is_reported_never_overlap(tmp_path):
    def pictures(labelled):
        return {image.numpy().tobytes() for image in labelled.images}

    parts = {}
    for held_out in ("train", "test"):
        made = World.of(replace(OPTIONS, held_out=held_out), tmp_path)
        train, validation, test = map(pictures, (made.train, made.validation, made.test))
        assert not train & validation
        assert not train & test
        assert not validation & test
        parts[held_out] = validation
    assert not parts["train"] & parts["test"]
    with pytest.raises(DataError, match="use train or test"):
        replace(OPTIONS, held_out="all")


def test_a_case_is_measured_once_and_goes_on_where_it_was_killed(world, tmp_path):
    pruner = AAP(training=FAST, rounds=3, train_first=False, score_pictures=8)
    case = Case(row="a", arm="aap", pruner=pruner, policy="memory", target="60%")
    whole = Stopping(0)
    reference = measured(case, world, tmp_path / "whole", whole)
    assert len(whole.lines) > 1
    with pytest.raises(StoppedError):
        measured(case, world, tmp_path / "killed", Stopping(2))
    rest = Stopping(0)
    found = measured(case, world, tmp_path / "killed", rest)
    assert len(rest.lines) == len(whole.lines) - 1  # the first round was there
    assert reference["seconds"] > 0
    assert found == {**reference, "seconds": None}  # of a killed run it is not known
    again = Stopping(1)  # would stop at the first stage
    assert measured(case, world, tmp_path / "whole", again) == reference
    assert measured(replace(case, seed=1), world, tmp_path / "whole", Silence()) != reference
    assert {path.suffix for path in (tmp_path / "whole").iterdir()} == {".json"}
    # Another study asks for the same by other names.
    renamed = replace(case, row="b", arm="rounds")
    other = measured(renamed, world, tmp_path / "whole", Stopping(1))
    assert other == {**reference, "row": "b", "arm": "rounds"}


def test_a_whole_network_that_is_trained_first_is_trained_once_for_every_seed(tmp_path):
    trained = replace(OPTIONS, whole_training=FAST)
    worlds = [World.of(trained, tmp_path) for _ in range(2)]
    first, second = (made.job("memory", "60%", 0).model.state_dict() for made in worlds)
    assert len(list(tmp_path.iterdir())) == 1
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = worlds[0].job("memory", "60%", 1).model.state_dict()
    assert len(list(tmp_path.iterdir())) == 2
    plain = worlds[0].network.state_dict()
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["conv1.weight"], plain["conv1.weight"])


def test_every_arm_of_the_prompt_study_sees_as_many_pictures():
    training = TrainConfig(epochs=12)
    seen = {}
    for arm, pruner in prompts.arms(training).items():
        rounds = pruner.rounds if isinstance(pruner, AAP) else 1
        search = pruner.search.epochs if isinstance(pruner, PASS) else 0
        seen[arm] = rounds * pruner.training.epochs + search
    assert set(seen.values()) == {12}
    with pytest.raises(TrainingError, match="choose a multiple of 6"):
        prompts.arms(TrainConfig(epochs=8))
    kinds = {
        arm: (p.prompt, p.recurrent)
        for arm, p in prompts.arms(training).items()
        if isinstance(p, PASS)
    }
    assert len(set(kinds.values())) == 4


def test_both_arms_of_the_sparsity_study_differ_by_the_method_alone(world):
    cases = sparsity.cases(world, [0])
    assert {case.pruner.name for case in cases} == {"pdp", "gmp"}
    for own, other in zip(cases[::2], cases[1::2], strict=True):
        assert (own.row, own.policy, own.target, own.seed) == (
            other.row,
            other.policy,
            other.target,
            other.seed,
        )
        shared = (
            "training",
            "pattern",
            "ramp",
            "start",
            "full",
            "dense",
            "cap",
            "floor",
            "train_first",
        )
        assert all(getattr(own.pruner, n) == getattr(other.pruner, n) for n in shared)


def test_the_unstructured_target_leaves_a_tenth_of_the_weights(world):
    target = str(sparsity.stored_bytes(world, 0.9))
    method = PDP(pattern="unstructured", training=FAST, train_first=False)
    job = world.job("memory", target, 0)
    product = method.prune(job)
    mask = product.weight_mask
    assert mask is not None
    assert mask.kept / mask.size == pytest.approx(0.1, abs=1e-4)
    assert product.metrics["size"] <= job.target.amount


def test_a_study_runs_and_shows_what_it_found(tmp_path):
    figures = pruners.run(tmp_path, "policies", OPTIONS, only=["memory 50%, taylor", "ms, taylor"])
    assert [case["row"].split()[0] for case in figures["cases"]] == ["memory", "latency"]
    for case in figures["cases"]:
        assert case["metrics"]["size"] <= case["amount"]
        assert 0 <= case["test"] <= 1
    shown = pruners.table(figures)
    assert "memory 50%" in shown
    assert "taylor" in shown
    assert json.loads(json.dumps(figures)) == figures
    assert figures["pictures"] == {"train": 40, "validation": 20, "test": 20}


def fake(row, arm, seed, test, **metrics):
    base = {"parameters_ratio": 0.25, "macs_ratio": 0.5, "accuracy": 0.9, "soft_to_hard_gap": 0.001}
    return {
        "row": row,
        "arm": arm,
        "seed": seed,
        "test": test,
        "test_whole": 0.95,
        "rounds": [0, 1, 2],
        "metrics": base | metrics,
    }


def test_tables_by_hand():
    lines = sparsity.table(
        [
            fake("2:4", "pdp, linear", 0, 0.90, soft_to_hard_gap=-0.002),
            fake("2:4", "gmp, linear", 0, 0.88),
            fake("2:4", "pdp, linear", 1, 0.92),
            fake("2:4", "gmp, linear", 1, 0.91),
        ]
    )
    row = " ".join(lines.splitlines()[1].split())
    assert row == "2:4 linear 91.00 ± 1.00 89.50 ± 1.50 +1.50 ± 0.50 0.15 0.20 95.00"
    row = aap.table([fake("parameters, no loss", "all groups", 0, 0.93)]).splitlines()[1]
    assert "-75.00 %" in row
    assert "-50.00 %" in row
    assert "-79.11 %" in row
    assert row.split()[-1] == "2"
    led = prompts.table([fake("a", "pass", 0, 0.5), fake("a", "taylor", 0, 0.48)]).splitlines()
    assert "+2.00" in led[2]
    assert percents([]) == ""
    assert paired([fake("a", "x", 3, 0.5)], [fake("a", "y", 4, 0.5)]) == []


def test_half_a_training_is_half_as_long():
    assert scaled(TrainConfig(epochs=12), 0.5).epochs == 6
    assert scaled(TrainConfig(steps=9), 1 / 3).steps == 3
    assert scaled(TrainConfig(epochs=1), 0.1).epochs == 1


def test_trainings_are_read_as_a_person_writes_them():
    found = read_training(
        epochs=3, batch_size=8, learning_rate=0.1, augment="flip", milestones="1,2"
    )
    assert (found.schedule, found.milestones) == ("constant", (1, 2))
    with pytest.raises(TrainingError, match="write epochs, as 91,136"):
        read_training(epochs=3, batch_size=8, learning_rate=0.1, augment="flip", milestones="one")


def test_studies_and_cases_that_are_not_there_are_refused(tmp_path, capsys):
    with pytest.raises(UnknownNameError, match="did you mean 'policies'"):
        pruners.run(tmp_path, "policy", OPTIONS)
    with pytest.raises(UnknownNameError, match="no case of aap has parameter loss in its name"):
        pruners.run(tmp_path, "aap", OPTIONS, only=["parameter loss"])
    assert command(["bench", "pruners", "polices"]) != 0
    assert "did you mean 'policies'" in capsys.readouterr().err
