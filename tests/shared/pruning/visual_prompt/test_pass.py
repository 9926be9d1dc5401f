"""PASS as a whole: what learns and what stands still, ablations, resumption, limits."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedsprig.errors import BudgetError, DataError, InfeasibleBudgetError
from fedsprig.graph import apply_mask, trace_groups
from fedsprig.masks import Budget, Mask, plan_macs
from fedsprig.models.vit import SprigViT
from fedsprig.pruning import PASS, Target
from fedsprig.pruning.input_frame import INPUT_FRAME, add_to_input
from fedsprig.pruning.visual_prompt.search import Search, SearchCourse
from fedsprig.seeds import derive_seed
from fedsprig.training import TrainConfig, evaluate

FAST = TrainConfig(epochs=1, batch_size=16, learning_rate=0.05)
SEARCH = TrainConfig(epochs=2, batch_size=16, learning_rate=0.01, optimiser="adam")
QUICK = PASS(training=FAST, search=SEARCH, width=8, score_pictures=32)


def never(stage, done, steps):
    raise AssertionError("training began")


@pytest.fixture(scope="module")
def vit_job(job_for):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SprigViT(
            num_classes=3, image_size=8, embed_dim=16, depth=2, num_heads=4, mlp_dim=24
        ).eval()
    plan = trace_groups(model, torch.zeros(1, 3, 8, 8), name="tiny-vit")
    return job_for(model=model, plan=plan, target=Target.parse("latency", "60%", plan))


def begun(job, method=QUICK, seed=0):
    return Search(
        job.model,
        method.selection(job),
        method.first_scorer(job.model, job, seed),
        method.first_prompt(job, seed),
    )


@pytest.mark.parametrize("recurrent", [True, False])
def test_prompt_encoder_and_hyper_network_learn_and_weights_stand_still(job_for, recurrent):
    job = job_for("latency", "40%")
    search = begun(job, replace(QUICK, recurrent=recurrent))
    search.budget = job.target.budget
    search.prompt.randomise_(torch.Generator().manual_seed(1))  # convolutions learn nothing of zero
    F.cross_entropy(search.train()(job.train.images), job.train.labels).backward()
    for name, value in search.named_parameters():
        if name.startswith(("scorer.", "prompt.", "network.linear.")):
            assert value.grad.any(), name
            assert torch.isfinite(value.grad).all()
        else:
            assert not value.requires_grad, name
    assert {name.split(".")[0] for name in search.learnt()} == {"scorer", "prompt", "network"}


def test_the_prompt_is_heard_by_the_hyper_network_too(job_for):
    """Not only at the input: the encoder's own gradient reaches the pixels of the frame."""
    search = begun(job_for("latency", "40%"))
    sum(s.sum() for s in search.scorer(search.prompt())).backward()
    frame = search.prompt.values.grad * search.prompt.border
    assert torch.equal(frame, search.prompt.values.grad)
    assert frame.any()


def test_a_search_computes_as_the_masked_network_does(vit_job, job_for):
    for job in (vit_job, job_for("latency", "40%")):
        search = begun(job).eval()
        search.budget = job.target.budget
        mask = search.selection.mask(search.scores(), job.target.budget)
        assert 0 < plan_macs(job.plan, mask) <= job.target.amount
        masked = apply_mask(job.model, job.plan, mask).eval()
        with torch.no_grad():
            torch.testing.assert_close(
                search(job.train.images), masked(job.train.images), rtol=0, atol=1e-5
            )


def test_scores_keep_all_their_bits_where_the_network_computes_with_half(job_for):
    job = job_for("latency", "40%")
    found = []

    class Noting(type(QUICK.selection(job))):
        def gates(self, scores, budget):
            found.append([values.detach().clone() for values in scores])
            return super().gates(scores, budget)

    search = begun(job)
    search.selection = Noting(plan=job.plan, floor=0.05)
    for half in (True, False):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            assert search(job.train.images[:2]).dtype == (torch.bfloat16 if half else torch.float32)
    assert all(map(torch.equal, *found))


def test_a_search_finds_what_the_loss_asks_for(job_for):
    """It ends at a lower loss on the training pictures than the mask that it began with."""
    job = job_for("latency", "40%")
    search = begun(job)
    search.budget = job.target.budget
    losses = []
    course = SearchCourse(config=replace(SEARCH, epochs=15), budget=job.target.budget, seed=1)
    for learn in (False, True):
        if learn:
            head = {n: v.clone() for n, v in search.network.linear.state_dict().items()}
            course.run(search, job.train)
            search.network.linear.load_state_dict(head)  # what the head learnt does not count
            assert search.budget == job.target.budget
        with torch.no_grad():
            losses.append(F.cross_entropy(search.train()(job.train.images), job.train.labels))
    assert losses[1] < losses[0]


def test_ablations_are_of_the_same_code(job_for):
    job = job_for("latency", "40%")
    for recurrent in (True, False):
        search = begun(job, replace(QUICK, prompt="none", recurrent=recurrent))
        assert search.prompt is None
        assert search.scorer.encoder is None
        assert not any("prompt" in name or "encoder" in name for name in search.learnt())
    fixed = begun(job, replace(QUICK, prompt="fixed"))
    before = fixed.frame()
    assert before.any()
    SearchCourse(config=SEARCH, budget=job.target.budget, seed=0).run(fixed, job.train)
    np.testing.assert_array_equal(fixed.frame(), before)
    assert any("encoder" in name for name in fixed.learnt())
    learned = begun(job)
    assert not learned.frame().any()
    SearchCourse(config=SEARCH, budget=job.target.budget, seed=0).run(learned, job.train)
    assert learned.frame().any()


@pytest.mark.parametrize("prompt", ["learned", "fixed", "none"])
def test_the_product_says_how_it_was_found(job_for, prompt):
    job = job_for("latency", "40%")
    product = replace(QUICK, prompt=prompt, statistics=("mean", "std")).prune(job)
    assert product.metrics["macs"] <= job.target.amount
    assert 0 <= product.metrics["accuracy_cut"] <= 1
    assert ("prompt" in product.state) == (prompt != "none")
    assert INPUT_FRAME not in product.state
    for name, kept in product.mask.groups.items():
        scores = product.scores.groups[name]
        assert (scores > 0).all()
        assert (scores < 1).all()
        if not kept.all():
            assert scores[~kept].max() <= scores[kept].min()


def test_a_transformer_loses_heads_and_hidden_units(vit_job):
    product = QUICK.prune(vit_job)
    assert product.metrics["macs"] <= vit_job.target.amount
    network = product.network(vit_job.model, vit_job.plan)
    found = evaluate(network, vit_job.validation.images, vit_job.validation.labels)
    assert found.accuracy == product.metrics["accuracy"]


def test_a_kept_prompt_is_a_part_of_the_network(job_for):
    job = job_for("memory", "40%")
    product = replace(QUICK, keep_prompt=True, border=2).prune(job)
    frame = product.state[INPUT_FRAME]
    np.testing.assert_array_equal(frame, product.state["prompt"])
    assert product.metrics["size"] + 4 * np.count_nonzero(frame) <= job.target.amount
    network = product.network(job.model, job.plan)
    images, labels = job.validation
    assert evaluate(network, images, labels).accuracy == product.metrics["accuracy"]
    plain = replace(product, state={}).network(job.model, job.plan)
    with torch.no_grad():
        assert torch.equal(network(images), plain(images + torch.from_numpy(frame)))
        assert not torch.equal(network(images), plain(images))
        with pytest.raises(DataError, match="resize the pictures"):
            network(images[:, :, 1:])
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_a_frame_is_copied_with_its_network(job_for, small_net):
    frame = torch.ones(3, 8, 8)
    network = add_to_input(copy.deepcopy(small_net), frame)
    frame.zero_()
    images = job_for().train.images
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(network)(images), small_net(images + 1))


def test_a_kept_prompt_counts_before_any_training(job_for):
    """What just fits without the frame does not fit with it."""
    job = job_for("memory", "100%")
    least = Mask({g.name: np.arange(g.units) < 1 for g in job.plan.groups})
    tight = job_for(target=Target("memory", job.size(least) + 100, "bytes"))
    method = replace(QUICK, floor=0)
    assert method.prune(tight).metrics["size"] <= tight.target.amount
    with pytest.raises(InfeasibleBudgetError, match="raise the target"):
        replace(method, keep_prompt=True).prune(tight, progress=never)


def test_milliseconds_are_met_as_measured(job_for, small_plan):
    measured = []

    def latency_ms(mask):
        measured.append(mask)
        return float(mask.flat.sum())

    limit = 0.5 * small_plan.units
    job = job_for(target=Target("latency", limit, "ms"), latency_ms=latency_ms)
    product = QUICK.prune(job)
    assert measured
    assert product.mask.flat.sum() <= limit


def test_the_smallest_network_within_a_loss_is_found(job_for):
    job = job_for("accuracy", "50%")
    product = replace(QUICK, trials=2).prune(job)
    assert product.metrics["accuracy_whole"] - product.metrics["accuracy"] <= 0.5 + 1e-12
    assert product.metrics["rounds"] == 2


@pytest.mark.parametrize(
    ("policy", "text", "changes"),
    [
        ("latency", "40%", {}),
        ("memory", "50%", {"keep_prompt": True, "prompt": "fixed"}),
        ("accuracy", "40%", {"trials": 2, "recurrent": False}),
    ],
)
def test_a_run_stopped_in_every_epoch_ends_as_one_that_was_not(
    job_for, stopped_in_every_epoch, policy, text, changes
):
    method = replace(QUICK, search=replace(SEARCH, epochs=3), **changes)
    # Once in the whole network's training, thrice in a search, once in the fine-tuning.
    assert stopped_in_every_epoch(method, job_for(policy, text)) >= 5


def test_a_search_that_counts_steps_is_one_part(job_for):
    job = job_for("latency", "40%")
    search = TrainConfig(steps=3, batch_size=16, learning_rate=0.01, optimiser="adam")
    told = []
    replace(QUICK, search=search).prune(job, progress=lambda *step: told.append(step))
    assert [step for step in told if step[0] == "search"] == [("search", n, 3) for n in (1, 2, 3)]


def test_without_a_step_the_mask_is_that_of_the_untrained_hyper_network(job_for):
    job = job_for("latency", "40%")
    still = TrainConfig(epochs=0)
    method = replace(QUICK, search=still, training=still, train_first=False)
    product = method.prune(job)
    search = begun(job, method, seed=derive_seed(job.seed, "trial", "1"))
    assert product.scores == search.scores()
    # The search's own mask, and what still fits beside it.
    assert search.selection.mask(search.scores(), job.target.budget).is_subset_of(product.mask)
    assert product.metrics["macs"] <= job.target.amount


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "absent"},
        {"prompt": None},
        {"statistics": ()},
        {"statistics": ("mean", "norm")},
        {"width": 0},
        {"border": 0},
        {"keep_prompt": True, "prompt": "none"},
        {"trials": 0},
    ],
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(BudgetError):
        PASS(**values)


def test_a_search_begins_with_the_whole_network(job_for):
    job = job_for("latency", "40%")
    search = begun(job)
    gates = search.selection.gates(search.scorer(search.prompt()), search.budget)
    assert all(bool((gate == 1).all()) for gate in gates.values())
    assert search.budget == Budget(macs=plan_macs(job.plan, Mask.full(job.plan)))
