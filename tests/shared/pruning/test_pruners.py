"""What every pruner owes its caller, on a residual network and the embedded digits."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsprig.errors import (
    BudgetError,
    DataError,
    InfeasibleBudgetError,
    LabelRangeError,
    PlanError,
    RunError,
    TooFewClassesError,
    TrainingError,
    UnknownNameError,
)
from fedsprig.graph import materialize
from fedsprig.masks import Mask, ScoreSet, cost, plan_macs
from fedsprig.pruning import AAP, PRUNERS, Labelled, OneShot, Schedule, Target, rewinding
from fedsprig.pruning.job import least_units
from fedsprig.pruning.network import Stage, trainable
from fedsprig.pruning.sized import SizedPruner
from fedsprig.pruning.trial import Found
from fedsprig.training import TrainConfig, evaluate

FAST = TrainConfig(epochs=1, batch_size=16, learning_rate=0.05)


def never(stage, done, steps):
    raise AssertionError("training began")


def check_product(product, job):
    """What a library entry is made of hangs together."""
    product.mask.check(job.plan)
    product.scores.check(job.plan)
    assert ScoreSet.from_bytes(product.scores.to_bytes(), job.plan) == product.scores
    network = product.network(job.model, job.plan)
    found = evaluate(network, job.validation.images, job.validation.labels)
    assert found.accuracy == product.metrics["accuracy"]
    real = cost(network, job.train.images[:1])
    assert (real.parameters, real.macs) == (
        product.metrics["parameters"],
        product.metrics["macs"],
    )
    assert json.loads(json.dumps(product.settings)) == product.settings
    assert all(np.isfinite(value) for value in product.metrics.values())
    whole = plan_macs(job.plan, Mask.full(job.plan))
    ordered = sorted(product.masks.values(), key=lambda mask: mask.flat.sum())
    assert product.masks["target"] == product.mask
    assert len(ordered) > 2
    for smaller, larger in pairwise(ordered):
        assert smaller.is_subset_of(larger)
    for label, mask in product.masks.items():
        mask.check(job.plan)
        if label != "target":
            assert plan_macs(job.plan, mask) <= int(label.removeprefix("macs-")) / 100 * whole


@pytest.mark.parametrize("name", PRUNERS)
def test_a_hard_limit_holds(job_for, name):
    job = job_for("latency", "40%", seed=1)
    before = {key: value.clone() for key, value in job.model.state_dict().items()}
    told = []
    product = replace(PRUNERS[name], training=FAST).prune(
        job, progress=lambda *step: told.append(step)
    )
    assert product.method == name
    assert product.metrics["macs"] <= job.target.amount
    check_product(product, job)
    assert told[0] == ("whole network", 1, 4)
    for key, value in job.model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["aap", "taylor"])
def test_the_smallest_network_within_a_loss_is_found(job_for, name):
    job = job_for("accuracy", "1%")
    training = TrainConfig(epochs=3, batch_size=16, learning_rate=0.05)
    product = replace(PRUNERS[name], training=training).prune(job)
    check_product(product, job)
    loss = product.metrics["accuracy_whole"] - product.metrics["accuracy"]
    assert loss <= 0.01 + 1e-12
    rounds = product.settings["rounds_done"]
    if name == "aap":  # it went too far, and came back
        assert not all(line["accepted"] for line in rounds)
    held = [line["size"] for line in rounds if line["accepted"]]
    assert product.metrics["size"] == min(held)


@pytest.mark.parametrize("rounds", [1, 2, 20])
@pytest.mark.parametrize("text", ["15%", "37%", "80%"])
def test_aap_meets_bytes_closely_however_few_the_rounds(job_for, rounds, text):
    job = job_for("memory", text)
    method = AAP(training=replace(FAST, epochs=None, steps=1), rounds=rounds, train_first=False)
    product = method.prune(job)
    assert 0.97 * job.target.amount <= product.metrics["size"] <= job.target.amount
    assert product.metrics["rounds"] <= rounds + 1
    for name, least in least_units(job.plan, method.floor).items():
        assert product.mask.kept(name) >= least


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    share=st.floats(0.02, 1),
    unit=st.sampled_from(["bytes", "macs", "ms"]),
    weighting=st.sampled_from(["parameters", "macs", None]),
    form=st.sampled_from(["mean", "sum", "max"]),
    first_share=st.floats(0.01, 0.9),
    rounds=st.integers(1, 4),
)
def test_aap_is_never_over_a_hard_limit(job_for, share, unit, weighting, form, first_share, rounds):
    """Without training: the cuts alone. A limit that no cut meets is refused, and no other."""
    policy = "memory" if unit == "bytes" else "latency"
    whole = job_for(policy, "100%").target.amount
    job = job_for(
        target=Target(policy, share * whole, unit),
        latency_ms=lambda mask: plan_macs(job.plan, mask),
    )
    method = AAP(
        training=TrainConfig(epochs=0),
        train_first=False,
        weighting=weighting,
        form=form,
        first_share=first_share,
        rounds=rounds,
        score_pictures=8,
    )
    least = least_units(job.plan, method.floor)
    smallest = Mask({g.name: np.arange(g.units) < least[g.name] for g in job.plan.groups})
    if job.size(smallest) > job.target.amount:
        with pytest.raises(InfeasibleBudgetError):
            method.prune(job, progress=never)
        return
    product = method.prune(job)
    assert product.metrics["size"] <= job.target.amount
    assert all(product.mask.kept(name) >= count for name, count in least.items())
    assert product.metrics["rounds"] <= rounds + 1


def test_a_measured_latency_is_a_hard_limit_too(job_for, small_plan):
    measured = []

    def latency_ms(mask):
        """A machine whose time is its units: what counts is that it is asked."""
        measured.append(mask)
        return float(mask.flat.sum())

    limit = 0.5 * small_plan.units
    target = Target("latency", limit, "ms")
    for method in (AAP(training=FAST), OneShot(criterion="magnitude", training=FAST)):
        job = job_for(target=target, latency_ms=latency_ms)
        product = method.prune(job)
        assert measured
        assert product.mask.flat.sum() <= limit


@dataclass(frozen=True, kw_only=True)
class Careless(SizedPruner):
    """Makes the whole network, whatever it was asked for."""

    single: bool = False

    @property
    def name(self):
        return "careless"

    @property
    def one_size(self):
        return self.single

    def attempt(self, trial):
        mask = Mask.full(trial.job.plan)
        scores = ScoreSet({name: np.ones(len(kept)) for name, kept in mask.groups.items()})
        return Found(trial.cut(mask), scores)


def test_a_method_that_breaks_the_limit_makes_no_product(job_for):
    with pytest.raises(InfeasibleBudgetError, match="careless made a network of"):
        Careless(train_first=False).prune(job_for("memory", "50%"))


@pytest.mark.parametrize(("single", "trials"), [(True, 1), (False, 5)])
def test_what_has_one_size_is_tried_once(job_for, single, trials):
    product = Careless(train_first=False, single=single).prune(job_for("accuracy", "50%"))
    assert product.metrics["rounds"] == trials


def test_protected_groups_stay_whole_at_every_budget(job_for):
    job = job_for("latency", "70%")
    streams = [group.name for group in job.plan.groups if group.kind == "stream"]
    for name in ("magnitude", "aap"):
        method = replace(PRUNERS[name], training=FAST, protect=("stream",), train_first=False)
        product = method.prune(job)
        assert len(product.masks) > 1
        for mask in product.masks.values():
            assert all(mask.groups[stream].all() for stream in streams)


def test_a_unit_that_was_dropped_never_outranks_one_that_outlived_it(job_for):
    job = job_for("latency", "20%")
    product = AAP(training=FAST, first_share=0.1).prune(job)
    assert len(product.settings["rounds_done"]) > 2
    for name, kept in product.mask.groups.items():
        scores = product.scores.groups[name]
        if not kept.all():
            assert scores[~kept].max() <= scores[kept].min()


@pytest.mark.parametrize("most", [0.1, 0.4])
def test_a_round_takes_about_its_share_of_what_is_left_at_most(job_for, most):
    """Beyond the share by the units alone that fall together at one threshold."""
    method = AAP(training=FAST, first_share=0.9, most_share=most, rounds=6, train_first=False)
    sizes = [
        line["size"] for line in method.prune(job_for("accuracy", "99%")).settings["rounds_done"]
    ]
    assert len(sizes) > 3
    assert all(before * (1 - most) * 0.85 <= after for before, after in pairwise(sizes))
    assert sizes[1] < sizes[0] * (1 - most / 2)


def test_rolling_back_restores_the_network_exactly(job_for, small_net, small_plan):
    job = job_for()
    mask = Mask.random(job.plan, 0.5, np.random.default_rng(0))
    network = trainable(materialize(small_net, job.plan, mask))
    stage = Stage(network, mask)
    arrays = {name: array.copy() for name, array in stage.arrays().items()}
    images = job.train.images[:4]
    before = network(images)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    back = Stage.restored(job, arrays)
    assert back.mask == mask
    assert torch.equal(back.network(images), before)
    assert not torch.equal(network(images), before)


def test_weights_go_back_where_they_are_rewound(job_for):
    """Without a step of training, both kinds of rewinding are the cut of the whole network."""
    job = job_for("memory", "50%")
    still = TrainConfig(epochs=0)
    ends = [
        AAP(training=still, rewind=kind, train_first=False).prune(job).weights
        for kind in ("rate", "weights")
    ]
    name = "layer1.0.conv1.weight"
    np.testing.assert_array_equal(ends[0][name], ends[1][name])
    trained = AAP(training=FAST, rewind="weights").prune(job)
    other = AAP(training=FAST, rewind="rate").prune(job)
    assert any(
        trained.weights[key].shape != value.shape or (trained.weights[key] != value).any()
        for key, value in other.weights.items()
    )


def test_a_limit_that_the_whole_network_meets_leaves_it_whole(job_for):
    job = job_for("memory", "100%")
    product = AAP(training=FAST).prune(job)
    assert product.mask == Mask.full(job.plan)
    assert product.settings["ended"] == "the whole network meets the target"


@pytest.mark.parametrize("name", ["aap", "magnitude"])
def test_what_cannot_be_met_is_refused_before_any_training(job_for, name):
    with pytest.raises(InfeasibleBudgetError, match="raise the target"):
        PRUNERS[name].prune(job_for("memory", "100"), progress=never)
    slow = job_for(target=Target("latency", 0.5, "ms"), latency_ms=lambda mask: 1.0)
    with pytest.raises(InfeasibleBudgetError, match=r"the target allows 0\.5"):
        PRUNERS[name].prune(slow, progress=never)


def test_a_job_that_makes_no_sense_is_refused(job_for, small_plan, digits):
    images, labels = digits[0]
    with pytest.raises(PlanError, match="no group that can be pruned"):
        job_for(plan=replace(small_plan, groups=(), unit_macs={}))
    with pytest.raises(TooFewClassesError, match="of one class"):
        job_for(train=Labelled(images, torch.ones_like(labels)))
    with pytest.raises(DataError, match="0 validation pictures"):
        job_for(validation=Labelled(images[:0], labels[:0]))
    with pytest.raises(LabelRangeError, match="the model has 3 classes"):
        job_for(train=Labelled(images, labels + 1))
    with pytest.raises(BudgetError, match="pass latency_ms="):
        job_for(target=Target("latency", 5.0, "ms"))


def test_another_job_does_not_go_on_from_a_checkpoint(job_for, tmp_path):
    method = AAP(training=replace(FAST, epochs=None, steps=1), train_first=False)
    first = method.prune(job_for("memory", "50%"), checkpoint=tmp_path)
    again = method.prune(job_for("memory", "50%"), checkpoint=tmp_path, progress=never)
    assert again.weights_bytes() == first.weights_bytes()
    with pytest.raises(RunError, match="another run"):
        method.prune(job_for("memory", "40%"), checkpoint=tmp_path, progress=never)
    with pytest.raises(RunError, match="another run"):
        replace(method, rounds=7).prune(job_for("memory", "50%"), checkpoint=tmp_path)


TWICE = TrainConfig(epochs=2, batch_size=16, learning_rate=0.05)


@pytest.mark.parametrize(
    "method",
    [
        AAP(training=TWICE, rounds=3),
        AAP(training=replace(TWICE, epochs=3), rounds=2, rewind="weights", rewind_epoch=1),
        OneShot(
            criterion="magnitude",
            training=replace(TWICE, optimiser="adam", learning_rate=0.005),
            trials=2,
        ),
    ],
    ids=["rate", "weights", "one-shot"],
)
@pytest.mark.parametrize(("policy", "text"), [("accuracy", "20%"), ("memory", "40%")])
def test_a_run_stopped_in_every_epoch_ends_as_one_that_was_not(
    job_for, stopped_in_every_epoch, method, policy, text
):
    # Two epochs of the whole network at least, and two of a smaller one.
    assert stopped_in_every_epoch(method, job_for(policy, text)) >= 4


@pytest.mark.parametrize("name", PRUNERS)
def test_what_is_to_stay_whole_and_is_not_there_is_refused_before_any_training(job_for, name):
    for policy, text in (("memory", "50%"), ("accuracy", "1%")):
        with pytest.raises(PlanError, match="cannot protect foo"):
            replace(PRUNERS[name], protect=("foo",)).prune(job_for(policy, text), progress=never)
    with pytest.raises(BudgetError, match="floor is a share"):
        replace(PRUNERS[name], floor=float("nan"))


@pytest.mark.parametrize("answer", [float("nan"), -1.0, None, "fast"])
def test_a_latency_that_is_none_is_refused(job_for, answer):
    job = job_for(target=Target("latency", 5.0, "ms"), latency_ms=lambda mask: answer)
    with pytest.raises(BudgetError, match="return milliseconds"):
        OneShot(criterion="magnitude", training=FAST).prune(job, progress=never)


def test_a_latency_out_of_a_table_is_a_number(job_for):
    job = job_for(
        target=Target("latency", 60.0, "ms"),
        latency_ms=lambda mask: np.float32(mask.flat.sum()),
    )
    method = OneShot(criterion="magnitude", training=FAST, train_first=False)
    assert method.prune(job).metrics["size"] <= 60


def test_pictures_that_are_not_the_plans_are_refused(job_for, digits):
    images, labels = digits[0]
    for wrong in (images.double(), images[:, :1], torch.cat([images, images], 3)):
        with pytest.raises(DataError, match="validation pictures are"):
            job_for(validation=Labelled(wrong, labels))
    spoilt = images.clone()
    spoilt[3, 0, 2, 2] = torch.nan
    with pytest.raises(DataError, match="training pictures are not finite"):
        job_for(train=Labelled(spoilt, labels))


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"step": float("inf")}, BudgetError),
        ({"step": 1e-320}, BudgetError),
        ({"power": 50}, BudgetError),
        ({"form": "median"}, BudgetError),
        ({"form": None}, BudgetError),
        ({"weighting": "bytes"}, BudgetError),
        ({"power": 0}, BudgetError),
        ({"rounds": 0}, BudgetError),
        ({"step": 0.0}, BudgetError),
        ({"rewind_epoch": 8}, TrainingError),
        ({"rewind_epoch": 1, "training": TrainConfig(steps=4)}, TrainingError),
    ],
)
def test_settings_out_of_range_are_refused(values, error):
    with pytest.raises(error):
        AAP(**values)


def test_unknown_criteria_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'taylor'"):
        OneShot(criterion="tailor")


@pytest.mark.parametrize(
    ("policy", "text", "amount"),
    [
        ("accuracy", "1%", 0.01),
        ("accuracy", "0.02", 0.02),
        ("memory", "12kB", 12_000),
        ("memory", "70000", 70_000),
        ("latency", "1.5M", 1_500_000),
        ("latency", "5ms", 5),
    ],
)
def test_targets_are_read_as_an_operator_writes_them(small_plan, policy, text, amount):
    assert Target.parse(policy, text, small_plan).amount == pytest.approx(amount)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("accuracy", "120%"),
        ("accuracy", "5ms"),
        ("memory", "5ms"),
        ("latency", "x"),
        ("memory", "0"),
    ],
)
def test_targets_that_are_none_are_refused(small_plan, policy, text):
    with pytest.raises(BudgetError):
        Target.parse(policy, text, small_plan)


def test_a_schedule_goes_on_where_it_was_rewound_to():
    whole = TrainConfig(epochs=4, learning_rate=0.1)
    part = Schedule(epochs=3, learning_rate=0.1, skipped=1, whole=4)
    assert [part.learning_rate_at(s, 6) for s in range(6)] == [
        whole.learning_rate_at(s + 2, 8) for s in range(6)
    ]
    assert rewinding.part(rewinding.part(whole, 1), 1, 2) == rewinding.part(whole, 2, 3)
    assert rewinding.part(part, 0, 1) == rewinding.part(whole, 1, 2)
    steps = Schedule(epochs=3, learning_rate=0.1, schedule="constant", milestones=(1, 2))
    rates = [steps.learning_rate_at(step, 6) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
