"""Which masks are drawn."""

import numpy as np
import pytest

from fedsprig.errors import PlanError, TrainingError
from fedsprig.masks import Budget, Mask, ScoreSet, plan_macs, solve
from fedsprig.preparing import MaskSource, NestedMasks
from fedsprig.tasks import Neighbour, TaskSketch, score_mask


def ramp(plan):
    return ScoreSet({group.name: np.arange(1.0, group.units + 1) for group in plan.groups})


def test_masks_fit_their_ratio_and_differ(tiny_plan):
    source = MaskSource(tiny_plan, (0.3, 0.6), scores=[ramp(tiny_plan)], random_share=0.5)
    rng = np.random.default_rng(0)
    whole = plan_macs(tiny_plan, Mask.full(tiny_plan))
    drawn = [source.draw(ratio, rng) for ratio in (0.3, 0.6) * 10]
    assert len(set(drawn)) > 10
    for mask, ratio in zip(drawn, (0.3, 0.6) * 10, strict=True):
        assert 0.5 * ratio * whole < plan_macs(tiny_plan, mask) <= ratio * whole


def test_without_noise_a_biased_mask_is_that_of_its_scores(tiny_plan):
    scores = ramp(tiny_plan)
    source = MaskSource(tiny_plan, (0.4,), scores=[scores], random_share=0, noise=0)
    expected = solve(scores, tiny_plan, Budget.fraction(tiny_plan, macs=0.4))
    assert source.draw(0.4, np.random.default_rng(0)) == expected


def test_noise_moves_a_mask_away_from_its_scores(tiny_plan):
    scores = ramp(tiny_plan)
    expected = solve(scores, tiny_plan, Budget.fraction(tiny_plan, macs=0.4)).flat

    def agreement(noise):
        source = MaskSource(tiny_plan, (0.4,), scores=[scores], random_share=0, noise=noise)
        rng = np.random.default_rng(0)
        return np.mean([(source.draw(0.4, rng).flat == expected).mean() for _ in range(30)])

    assert 1 > agreement(0.3) > agreement(3.0)


def test_given_masks_are_drawn_at_the_ratio_they_are_next_to(tiny_plan):
    near = [
        solve(ramp(tiny_plan), tiny_plan, Budget.fraction(tiny_plan, macs=ratio))
        for ratio in (0.26, 0.7)
    ]
    source = MaskSource(tiny_plan, (0.25, 0.6), given=near, given_share=1.0)
    rng = np.random.default_rng(0)
    assert [source.draw(0.25, rng), source.draw(0.6, rng)] == near


def test_a_ratio_without_given_masks_is_drawn_anew(tiny_plan):
    mask = solve(ramp(tiny_plan), tiny_plan, Budget.fraction(tiny_plan, macs=0.6))
    source = MaskSource(tiny_plan, (0.2, 0.6), given=[mask], given_share=1.0)
    assert source.draw(0.2, np.random.default_rng(0)) != mask


@pytest.mark.parametrize(
    "source",
    [
        lambda plan: MaskSource(plan, (0.5,)),
        lambda plan: NestedMasks(plan, (0.5,), [ramp(plan)]),
    ],
    ids=["varied", "nested"],
)
def test_a_ratio_that_was_not_announced_is_refused(source, tiny_plan):
    with pytest.raises(TrainingError, match="add it to ratios"):
        source(tiny_plan).draw(0.4, np.random.default_rng(0))


def test_nested_masks_are_those_of_tasks_that_take_the_mean(tiny_plan):
    rng = np.random.default_rng(4)
    scores = [
        ScoreSet({group.name: scale * rng.random(group.units) for group in tiny_plan.groups})
        for scale in (1.0, 100.0)
    ]
    task = TaskSketch(
        probe="0" * 64,
        prototypes=np.ones((2, 3), np.float32),
        counts=np.array([4, 4]),
        classes=("", ""),
        fingerprint=np.zeros(0, np.float32),
        groups=(),
        spread=1.0,
    )
    neighbours = [Neighbour(str(i), i / 2, one) for i, one in enumerate(scores)]
    mean = score_mask(task, neighbours, method="mean")
    source = NestedMasks(tiny_plan, (0.3, 0.6), scores)
    small, large = (source.draw(ratio, rng) for ratio in (0.3, 0.6))
    assert small == solve(mean, tiny_plan, Budget.fraction(tiny_plan, macs=0.3))
    assert large == solve(mean, tiny_plan, Budget.fraction(tiny_plan, macs=0.6))
    assert small != large == small | large
    assert source.draw(0.3, rng) == small


def test_scores_of_another_plan_have_no_nested_masks(tiny_plan):
    with pytest.raises(PlanError):
        NestedMasks(tiny_plan, (0.5,), [ScoreSet({"other": np.ones(3)})])
