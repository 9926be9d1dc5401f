"""Preparing and healing: what they train, what they leave alone, and that they can be repeated."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from fedsprig.artifacts import state_digest
from fedsprig.errors import DataError, LabelRangeError, NonFiniteLossError, TrainingError
from fedsprig.graph import materialize
from fedsprig.masks import Mask, ScoreSet
from fedsprig.preparing import (
    HealConfig,
    NestedMasks,
    Preparation,
    PrepareConfig,
    base_features,
    heal,
    prepare,
)
from fedsprig.preparing.teacher import Teacher, feature_distance
from fedsprig.training.head_input import HeadInput

SHORT = PrepareConfig(steps=6, batch_size=8, whole_every=2, learning_rate=0.05)


@torch.no_grad()
def distance(small, mask, base, images):
    """Of a cut network's features to the base's, by the materialised networks themselves."""
    with HeadInput(small.eval(), "linear") as said, HeadInput(base.eval(), "linear") as wanted:
        small(images)
        base(images)
    kept = np.flatnonzero(mask.groups[stream_of(mask)])
    return float(feature_distance(said.take(), wanted.take()[:, kept]))


def stream_of(mask):
    """The group of the features: that of the last stage's residual stream."""
    return max(
        (name for name in mask.groups if "layer3" in name), key=lambda n: len(mask.groups[n])
    )


@pytest.mark.parametrize("order", ["nested", "varied"])
def test_the_same_seed_prepares_the_same_base_and_another_does_not(
    order, tiny, tiny_plan, pictures
):
    digests = []
    for seed in (1, 1, 2):
        base = copy.deepcopy(tiny)
        torch.manual_seed(len(digests))  # nothing is drawn from torch's global generator
        config = dataclasses.replace(SHORT, order=order)
        prepare(base, tiny_plan, *pictures, config, seed=seed)
        digests.append(state_digest(base.state_dict()))
    assert digests[0] == digests[1] != digests[2]


def test_a_nested_order_trains_under_its_own_masks_and_no_other(tiny, tiny_plan, pictures):
    rng = np.random.default_rng(3)
    scores = [
        ScoreSet({group.name: rng.random(group.units) for group in tiny_plan.groups})
        for _ in range(3)
    ]
    own = NestedMasks(tiny_plan, SHORT.ratios, scores)
    masks = [own.draw(ratio, rng) for ratio in SHORT.ratios]
    digests = []
    for config, given in (
        (SHORT, ()),
        (dataclasses.replace(SHORT, order="varied", given_share=1.0), masks),
        (dataclasses.replace(SHORT, order="varied"), ()),
    ):
        base = copy.deepcopy(tiny)
        prepare(base, tiny_plan, *pictures, config, seed=1, masks=given, scores=scores)
        digests.append(state_digest(base.state_dict()))
    assert digests[0] == digests[1] != digests[2]


def test_masks_beside_a_nested_order_are_refused(tiny, tiny_plan, pictures):
    with pytest.raises(TrainingError, match='use order="varied"'):
        prepare(tiny, tiny_plan, *pictures, SHORT, seed=1, masks=[Mask.full(tiny_plan)])


def test_all_but_the_head_is_trained_and_modes_stay(tiny, tiny_plan, pictures):
    base = copy.deepcopy(tiny)
    base.conv1.weight.requires_grad_(False)
    seen = []
    report = prepare(
        base, tiny_plan, *pictures, SHORT, seed=1, progress=lambda *step: seen.append(step)
    )
    for name, value in base.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, tiny.state_dict()[name]) == name.startswith("linear"), name
    assert not base.training
    assert not base.conv1.weight.requires_grad
    assert base.linear.weight.requires_grad
    assert all(parameter.grad is None for parameter in base.parameters())
    assert [step[:2] for step in seen] == [(n, 6) for n in range(1, 7)]
    assert [step[2] for step in seen] == list(report.losses)


def test_masks_learn_what_the_original_says(tiny, tiny_plan, pictures):
    images, labels = pictures
    rng = np.random.default_rng(0)
    mask = Mask.random(tiny_plan, 0.6, rng)
    config = PrepareConfig(
        steps=60,
        batch_size=24,
        learning_rate=0.05,
        ratios=(0.5,),
        order="varied",
        fresh_masks=0,
        whole_every=0,
        given_share=1.0,
        augment="none",
    )
    base = copy.deepcopy(tiny)
    report = prepare(base, tiny_plan, images, labels, config, seed=1, masks=[mask])
    # Both networks normalise by the statistics of these pictures.
    before, after = materialize(tiny, tiny_plan, mask), materialize(base, tiny_plan, mask)
    for network in (before, after):
        heal(network, mask, tiny, tiny_plan, images, HealConfig(steps=0), seed=0)
    assert distance(after, mask, tiny, images) < distance(before, mask, tiny, images)
    assert np.mean(report.smallest[-5:]) < np.mean(report.smallest[:5])


def test_the_whole_trains_every_so_many_steps(tiny, tiny_plan, pictures):
    config = PrepareConfig(steps=4, batch_size=8, whole_every=3, fresh_masks=2)
    run = Preparation(tiny, tiny_plan, *pictures, config, seed=1)
    assert [len(run.step(number)) for number in range(4)] == [4, 3, 3, 4]


def test_a_step_follows_from_weights_momenta_and_its_number(tiny, tiny_plan, pictures):
    """So a preparation can go on in another process."""
    straight = copy.deepcopy(tiny)
    prepare(straight, tiny_plan, *pictures, SHORT, seed=1)
    broken = copy.deepcopy(tiny)
    run = Preparation(broken, tiny_plan, *pictures, SHORT, seed=1)
    for number in range(3):
        run.step(number)
    weights, momenta = copy.deepcopy(broken.state_dict()), copy.deepcopy(run.momenta())
    again = copy.deepcopy(tiny)
    run = Preparation(again, tiny_plan, *pictures, SHORT, seed=1)
    again.load_state_dict(weights)
    run.remember(momenta)
    for number in range(3, 6):
        run.step(number)
    run.finish()
    assert state_digest(again.state_dict()) == state_digest(straight.state_dict())


@pytest.mark.parametrize("kind", ["squared", "direction"])
def test_healing_brings_the_features_nearer_and_touches_nothing_else(
    kind, tiny, tiny_plan, pictures
):
    images = pictures[0]
    mask = Mask.random(tiny_plan, 0.5, np.random.default_rng(2))
    base = copy.deepcopy(tiny.state_dict())
    small = materialize(tiny, tiny_plan, mask)
    small.linear.weight.requires_grad_(False)
    untrained = copy.deepcopy(small)
    heal(untrained, mask, tiny, tiny_plan, images, HealConfig(steps=0), seed=0)
    head = small.linear.weight.clone()
    config = HealConfig(steps=40, batch_size=24, learning_rate=0.05, augment="none", distance=kind)
    losses = heal(small, mask, tiny, tiny_plan, images, config, seed=0)
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    if kind == "squared":  # which follows the lengths too
        assert distance(small, mask, tiny, images) < 0.7 * distance(untrained, mask, tiny, images)
    assert torch.equal(small.linear.weight, head)
    assert not small.linear.weight.requires_grad
    assert small.conv1.weight.requires_grad
    assert not any(module.training for module in small.modules())
    assert all(torch.equal(base[name], value) for name, value in tiny.state_dict().items())


def test_the_same_seed_heals_alike(tiny, tiny_plan, pictures):
    mask = Mask.random(tiny_plan, 0.5, np.random.default_rng(2))
    config = HealConfig(steps=3, batch_size=8)
    digests = []
    for seed in (1, 1, 2):
        small = materialize(tiny, tiny_plan, mask)
        heal(small, mask, tiny, tiny_plan, pictures[0], config, seed=seed)
        digests.append(state_digest(small.state_dict()))
    assert digests[0] == digests[1] != digests[2]


def test_a_loss_that_is_not_finite_is_named(tiny, tiny_plan, pictures):
    images = torch.full_like(pictures[0], torch.nan)
    mask = Mask.full(tiny_plan)
    with pytest.raises(NonFiniteLossError, match="before the first step"):
        heal(
            materialize(tiny, tiny_plan, mask), mask, tiny, tiny_plan, images, HealConfig(), seed=0
        )


def test_a_last_step_that_spoils_the_weights_is_caught(tiny, tiny_plan, pictures):
    mask = Mask.full(tiny_plan)
    small = materialize(tiny, tiny_plan, mask)
    spoiling = {"steps": 1, "learning_rate": 3e38, "weight_decay": 1e10}
    with pytest.raises(NonFiniteLossError, match="after 1 of 1 steps: lower learning_rate"):
        heal(small, mask, tiny, tiny_plan, pictures[0], HealConfig(**spoiling), seed=0)
    config = dataclasses.replace(SHORT, **spoiling)
    with pytest.raises(NonFiniteLossError, match="after 1 of 1 steps: lower learning_rate"):
        prepare(copy.deepcopy(tiny), tiny_plan, *pictures, config, seed=0)
    # Who writes a checkpoint after a step can ask before.
    run = Preparation(tiny, tiny_plan, *pictures, dataclasses.replace(config, steps=9), seed=0)
    run.check(0)
    run.step(0)
    with pytest.raises(NonFiniteLossError, match="after 1 of 9 steps: lower learning_rate"):
        run.check(1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"ratios": ()}, "ratios"),
        ({"ratios": (0.5, 0.1)}, "ascending"),
        ({"ratios": (0.5, 1.0)}, "shares of the MACs"),
        ({"whole_every": -1}, "whole_every"),
        ({"random_share": 1.5}, "random_share"),
        ({"noise": float("nan")}, "noise"),
        ({"feature_weight": 0, "logit_weight": 0}, "nothing to learn"),
        ({"temperature": 0}, "temperature"),
        ({"order": "any"}, "use nested, varied"),
        ({"distance": "far"}, "use squared, direction"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"momentum": 1}, "momentum"),
        ({"batch_size": 1}, "batch_size"),
        ({"clip_norm": -1}, "clip_norm"),
        ({"augment": "turn"}, "augment"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(TrainingError, match=message):
        PrepareConfig(**setting)


@pytest.mark.parametrize(
    ("count", "labels", "error"),
    [
        (1, [0], TrainingError),
        (24, [0] * 23, DataError),
        (24, [-1] * 24, LabelRangeError),
    ],
    ids=["one", "few", "negative"],
)
def test_pictures_and_labels_that_do_not_fit_are_refused_as_in_local_training(
    tiny, tiny_plan, pictures, count, labels, error
):
    with pytest.raises(error):
        prepare(tiny, tiny_plan, pictures[0][:count], torch.tensor(labels), SHORT, seed=0)


def test_targets_that_are_known_heal_as_those_that_are_asked_for(tiny, tiny_plan, pictures):
    images = pictures[0]
    mask = Mask.random(tiny_plan, 0.5, np.random.default_rng(2))
    config = HealConfig(steps=4, batch_size=8, augment="none")
    losses = [
        heal(
            materialize(tiny, tiny_plan, mask),
            mask,
            tiny,
            tiny_plan,
            images,
            config,
            seed=1,
            targets=targets,
        )
        for targets in (None, base_features(tiny, tiny_plan, images))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_known_targets_need_no_copy_of_the_base(tiny, tiny_plan, pictures):
    images, mask = pictures[0], Mask.full(tiny_plan)
    small, targets = materialize(tiny, tiny_plan, mask), base_features(tiny, tiny_plan, images)

    def refuse(_):
        raise AssertionError("the base was copied")

    tiny.__deepcopy__ = refuse
    config = HealConfig(steps=1, augment="none")
    assert heal(small, mask, tiny, tiny_plan, images, config, seed=0, targets=targets)


def test_targets_are_as_exact_as_those_that_are_asked_for(tiny, tiny_plan, pictures):
    images = pictures[0]
    short = base_features(tiny, tiny_plan, images, bf16=True)
    with torch.autocast("cpu", torch.bfloat16):
        asked = Teacher(tiny, tiny_plan.head).features(images)
    torch.testing.assert_close(short, asked, rtol=0.02, atol=0.02)
    assert short.dtype == torch.float32
    assert torch.equal(short, short.bfloat16().float())
    exact = base_features(tiny, tiny_plan, images)
    assert not torch.equal(exact, exact.bfloat16().float())


@pytest.mark.parametrize(("count", "augment"), [(23, "none"), (24, "flip")])
def test_targets_of_other_pictures_are_refused(tiny, tiny_plan, pictures, count, augment):
    mask = Mask.full(tiny_plan)
    small = materialize(tiny, tiny_plan, mask)
    targets = base_features(tiny, tiny_plan, pictures[0])[:count]
    config = HealConfig(steps=1, augment=augment)
    with pytest.raises(TrainingError, match=f"{count} targets for 24 pictures"):
        heal(small, mask, tiny, tiny_plan, pictures[0], config, seed=0, targets=targets)
