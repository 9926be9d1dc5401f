"""PDP and gradual magnitude pruning on a residual network and a small transformer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedsprig.errors import BudgetError, InfeasibleBudgetError, TrainingError, UnknownNameError
from fedsprig.graph import trace_groups
from fedsprig.masks import Mask, PlanCosts
from fedsprig.models.vit import SprigViT
from fedsprig.pruning import PDP, GradualMagnitude, Target
from fedsprig.pruning.sparse.layers import WORDS, prunable_layers
from fedsprig.training import TrainConfig, evaluate

FAST = TrainConfig(epochs=2, batch_size=16, learning_rate=0.05)
METHODS = [PDP, GradualMagnitude]


def never(stage, done, steps):
    raise AssertionError("training began")


@pytest.fixture(scope="module")
def vit_job(job_for):
    """A job of a transformer whose attention and MLPs are pruned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SprigViT(
            num_classes=3, image_size=8, embed_dim=16, depth=2, num_heads=4, mlp_dim=24
        ).eval()
    plan = trace_groups(model, torch.zeros(1, 3, 8, 8), name="tiny-vit")

    def make(policy, text):
        return job_for(model=model, plan=plan, target=Target.parse(policy, text, plan))

    return make


def of_m(keep, n, m, axis=1):
    """Whether n of every m along the inputs stay, and all of the rest."""
    lines = np.moveaxis(keep, axis, -1)
    whole = lines.shape[-1] // m * m
    rows = lines[..., :whole].reshape(-1, m).sum(1)
    return bool((rows == n).all() and lines[..., whole:].all())


def check(product, job):
    """What every product of single weights owes."""
    mask = product.weight_mask
    mask.check(job.plan.shapes)
    assert product.mask == Mask.full(job.plan)
    assert 0 < mask.kept < mask.size
    for name, keep in mask.tensors.items():
        weight = product.weights[name]
        assert not weight[~keep].any()
        assert np.count_nonzero(weight[keep]) > 0.99 * keep.sum()
    costs = PlanCosts(job.plan)
    assert product.metrics["size"] == mask.stored_bytes(costs.parameters(costs.units))
    assert product.metrics["size"] <= job.target.amount or job.target.policy == "accuracy"
    network = product.network(job.model, job.plan)
    found = evaluate(network, job.validation.images, job.validation.labels)
    assert found.accuracy == product.metrics["accuracy"]
    expected = {layer.tensor for layer in prunable_layers(job.model, job.plan, WORDS)}
    assert mask.tensors.keys() <= expected
    return mask, expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("pattern", "text"), [("unstructured", "30%"), ("2:4", "60%"), ("1:3", "45%")]
)
def test_single_weights_go_within_the_limit(job_for, method, pattern, text):
    job = job_for("memory", text)
    told = []
    product = method(training=FAST, pattern=pattern).prune(
        job, progress=lambda *step: told.append(step)
    )
    mask, expected = check(product, job)
    assert mask.tensors.keys() == expected
    if ":" in pattern:
        n, m = map(int, pattern.split(":"))
        assert all(of_m(keep, n, m) for keep in mask.tensors.values())
    else:
        # As large as the limit allows: one weight more would be over it.
        assert product.metrics["size"] > job.target.amount - 4
        shares = [keep.mean() for keep in mask.tensors.values()]
        assert max(shares) - min(shares) > 0.05
    assert told[8:] == [("sparse course", done, 8) for done in range(1, 9)]
    soft = {"soft_accuracy", "soft_share", "soft_to_hard_gap"}
    assert product.metrics["hard_accuracy"] == product.metrics["accuracy"]
    if method is PDP:
        assert 0 <= product.metrics["soft_share"] < 1
        gap = product.metrics["soft_accuracy"] - product.metrics["hard_accuracy"]
        assert product.metrics["soft_to_hard_gap"] == gap
    else:
        assert not soft & product.metrics.keys()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("pattern", "text"), [("unstructured", "40%"), ("2:4", "70%"), ("channels", "60%")]
)
def test_a_transformer_is_pruned_in_every_pattern(vit_job, method, pattern, text):
    job = vit_job("memory", text)
    product = method(training=FAST, pattern=pattern).prune(job)
    if pattern == "channels":
        assert product.weight_mask is None
        assert product.metrics["size"] <= job.target.amount
        kinds = {
            group.kind for group in job.plan.groups if not product.mask.groups[group.name].all()
        }
        assert "inner" in kinds
        network = product.network(job.model, job.plan)
        found = evaluate(network, job.validation.images, job.validation.labels)
        assert found.accuracy == product.metrics["accuracy"]
        return
    mask, expected = check(product, job)
    assert mask.tensors.keys() == expected
    assert "blocks.0.attention.qkv.weight" in expected


def test_the_units_that_stay_have_the_largest_norms(job_for):
    job = job_for("latency", "30%")
    for method in METHODS:
        product = method(training=FAST).prune(job)
        assert product.metrics["macs"] <= job.target.amount
        for name, kept in product.mask.groups.items():
            scores = product.scores.groups[name]
            assert kept.all() or scores[~kept].max() <= scores[kept].min()


def test_methods_and_softness_lead_to_other_networks(job_for):
    job = job_for("memory", "40%")
    soft, hardened, *others = (
        pruner.prune(job)
        for pruner in (
            PDP(training=FAST, kappa=0.5, hardening=1.0),
            PDP(training=FAST, kappa=0.5),
            PDP(training=FAST),
            PDP(training=FAST, tau=1e-4),
            PDP(training=FAST, start=0.3),
            GradualMagnitude(training=FAST),
        )
    )
    ends = [product.weights_bytes() for product in (soft, hardened, *others)]
    assert len(set(ends)) == len(ends)
    assert hardened.metrics["soft_share"] < soft.metrics["soft_share"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("pattern", "text"), [("unstructured", "30%"), ("2:4", "60%")])
def test_absent_weights_stay_absent_while_the_rest_is_finished(job_for, method, pattern, text):
    job = job_for("memory", text)
    cut = method(training=FAST, pattern=pattern)
    bare = cut.prune(job)
    for training in (FAST, replace(FAST, optimiser="adam", learning_rate=0.01)):
        # The finish trains with the same settings, so both runs are of the same course.
        told = []
        pruner = replace(cut, training=training, finish_epochs=2, finish_rate=1.0)
        product = pruner.prune(job, progress=lambda *step, told=told: told.append(step))
        mask, _ = check(product, job)
        assert told[-1] == ("fixed masks", 8, 8)
        if training is FAST:
            assert mask == bare.weight_mask
            moved = [
                name
                for name, keep in mask.tensors.items()
                if (product.weights[name] != bare.weights[name])[keep].mean() > 0.9
            ]
            assert moved == list(mask.tensors)
        network = product.network(job.model, job.plan)
        for name, keep in mask.tensors.items():
            zeros = network.get_parameter(name).detach().numpy()[~keep]
            assert not zeros.any()


def test_the_finish_of_cut_units_trains_the_small_network(job_for):
    job = job_for("memory", "40%")
    bare = PDP(training=FAST).prune(job)
    product = PDP(training=FAST, finish_epochs=1).prune(job)
    assert product.mask == bare.mask
    assert product.scores == bare.scores
    assert product.weights_bytes() != bare.weights_bytes()
    assert product.metrics["hard_accuracy"] == bare.metrics["accuracy"]


@pytest.mark.parametrize("method", METHODS)
def test_what_a_pattern_cannot_do_is_refused_before_any_training(job_for, method):
    for pattern in ("unstructured", "2:4"):
        for job in (
            job_for("latency", "50%"),
            job_for(target=Target("latency", 5.0, "ms"), latency_ms=lambda mask: 1.0),
        ):
            with pytest.raises(InfeasibleBudgetError, match="memory policy, or pattern=channels"):
                method(pattern=pattern).prune(job, progress=never)
    with pytest.raises(InfeasibleBudgetError, match="choose a pattern with more zeros"):
        method(pattern="2:4").prune(job_for("memory", "50%"), progress=never)
    with pytest.raises(InfeasibleBudgetError, match=r"raise cap \(now 0.98\)"):
        method(pattern="unstructured").prune(job_for("memory", "5%"), progress=never)
    with pytest.raises(InfeasibleBudgetError, match="raise the target"):
        method().prune(job_for("memory", "100"), progress=never)
    with pytest.raises(BudgetError, match="no layer has 999 inputs"):
        method(pattern="1:999").prune(job_for("memory", "90%"), progress=never)
    with pytest.raises(UnknownNameError, match=r"did you mean 'layer1'"):
        method(pattern="2:4", dense=("layr1",)).prune(job_for("memory", "90%"), progress=never)


def test_the_least_that_a_pattern_needs_is_met_exactly(job_for):
    """What the message says is needed is enough, and one byte less is not."""
    still = TrainConfig(epochs=0)
    for pattern in ("2:4", "unstructured"):
        pruner = PDP(pattern=pattern, training=still, train_first=False)
        with pytest.raises(InfeasibleBudgetError) as caught:
            pruner.prune(job_for("memory", "300"))
        least = int(str(caught.value).split(" needs ")[1].split(" bytes")[0].replace(",", ""))
        job = job_for("memory", str(least))
        assert pruner.prune(job).metrics["size"] == least
        with pytest.raises(InfeasibleBudgetError):
            pruner.prune(job_for("memory", str(least - 1)), progress=never)


def test_what_the_whole_network_meets_leaves_it_whole(job_for):
    product = PDP(pattern="unstructured", training=FAST).prune(job_for("memory", "100%"))
    assert product.weight_mask is None
    assert product.metrics["size"] == product.metrics["parameters"] * 4
    assert product.metrics["soft_to_hard_gap"] == 0


def test_the_accuracy_policy_seeks_the_fewest_weights(job_for):
    """Every network is good enough here, so every trial is smaller than the one before."""
    job = job_for("accuracy", "99%")
    product = PDP(training=FAST, pattern="unstructured", trials=3).prune(job)
    check(product, job)
    sizes = [line["size"] for line in product.settings["rounds_done"]]
    assert sizes == sorted(set(sizes), reverse=True)
    assert product.metrics["size"] == sizes[-1]
    # A pattern has one size: there is nothing to search.
    found = PDP(training=FAST, pattern="2:4", trials=3).prune(job)
    check(found, job)
    lines = found.settings["rounds_done"]
    assert [line["accepted"] for line in lines] == [True]
    assert found.metrics["size"] == lines[0]["size"]


def test_dense_layers_are_chosen_by_the_setting(job_for):
    job = job_for("memory", "60%")
    product = PDP(training=FAST, pattern="unstructured", dense=("layer1", "linear")).prune(job)
    names = product.weight_mask.tensors.keys()
    assert "conv1.weight" in names
    assert not any(name.startswith(("layer1", "linear")) for name in names)


def test_steps_are_counted_where_epochs_are_not(job_for):
    job = job_for("memory", "60%")
    training = TrainConfig(steps=3, batch_size=16, learning_rate=0.05)
    told = []
    PDP(training=training).prune(job, progress=lambda *step: told.append(step))
    assert told[3:] == [("sparse course", done, 3) for done in (1, 2, 3)]


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_leaves_weights_and_masks_in_full(job_for, method):
    job = job_for("memory", "70%")
    product = method(training=replace(FAST, bf16=True), pattern="2:4").prune(job)
    mask, _ = check(product, job)
    assert all(of_m(keep, 2, 4) for keep in mask.tensors.values())
    assert all(product.weights[name].dtype == np.float32 for name in mask.tensors)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("policy", "text", "pattern"),
    [
        ("memory", "40%", "channels"),
        ("memory", "40%", "unstructured"),
        ("accuracy", "0%", "2:4"),
    ],
)
def test_a_run_stopped_in_every_epoch_ends_as_one_that_was_not(
    job_for, stopped_in_every_epoch, method, policy, text, pattern
):
    pruner = method(training=FAST, pattern=pattern, finish_epochs=2, trials=2)
    # Two epochs of the whole network, two of the course and of the finish each.
    assert stopped_in_every_epoch(pruner, job_for(policy, text)) >= 6


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"pattern": "4:2"}, BudgetError),
        ({"pattern": "channel"}, BudgetError),
        ({"dense": ("first",)}, BudgetError),
        ({"pattern": "2:4", "protect": ("stream",)}, BudgetError),
        ({"cap": 1.0}, BudgetError),
        ({"cap": 0.9}, BudgetError),
        ({"cap": 0.9, "pattern": "2:4"}, BudgetError),
        ({"finish_epochs": -1}, BudgetError),
        ({"finish_rate": 0.0}, BudgetError),
        ({"start": 0.9}, TrainingError),
        ({"full": 1.5}, TrainingError),
        ({"trials": 0}, BudgetError),
    ],
)
def test_settings_out_of_range_are_refused(values, error):
    for method in METHODS:
        with pytest.raises(error):
            method(**values)
    for values in ({"kappa": 0}, {"tau": 0.0}, {"hardening": 0.0}, {"hardening": 1.5}):
        with pytest.raises(BudgetError):
            PDP(**values)


def test_tau_shrinks_geometrically_to_the_end():
    values, drop = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1])  # t = 1.5
    apart = (1.25 + 1.75 + 2.25) / 3  # squares from 2.25, at most 2.25
    for pruner, tau in (
        (PDP(kappa=0.5, hardening=0.01), 0.5 * apart),
        (PDP(tau=0.5, hardening=0.01), 0.5),
    ):
        for hardening, factor in ((0.0, 1), (0.5, 0.1), (1.0, 0.01)):
            mask = pruner.mask(values, drop, hardening)
            expected = (values.square() - 2.25) / (tau * factor)
            torch.testing.assert_close(mask, expected.clamp(-40, 40).sigmoid())
    constant = PDP(kappa=0.5, hardening=1.0)
    assert torch.equal(constant.mask(values, drop, 0.0), constant.mask(values, drop, 1.0))


def test_normalisation_of_the_whole_network_is_left_alone(job_for):
    """Trials begin with the same whole network: one that is made must not move its statistics."""
    job = job_for("memory", "50%")
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    assert any(isinstance(module, nn.BatchNorm2d) for module in job.model.modules())
    first = PDP(training=FAST, train_first=False).prune(job)
    again = PDP(training=FAST, train_first=False).prune(job)
    assert first.weights_bytes() == again.weights_bytes()
    for name, value in job.model.state_dict().items():
        assert torch.equal(value, before[name])
