"""The rival that computes far more: the device prunes for itself, cut by cut.

The whole base trains once, every network on the way once and the last one ``FINAL`` times. At a
quarter of the multiply-accumulates that is 18 times the training of a one-shot network, at a tenth
29 times; the scores that it cuts by come on top.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import nn

from fedsprig.graph import GroupPlan, materialize, shrink_plan
from fedsprig.masks import Budget, Mask, plan_macs, plan_parameters, solve
from fedsprig.pruning.nesting import lifted
from fedsprig.scoring import score
from fedsprig.training import labelled_batches, recalibrate
from fedsprig_sim.benchmarks.one_shot_accuracy.side import SCORING_BATCH, Known

CUTS: Final = 4
"""From the whole base to the budget, each by the same factor."""
FINAL: Final = 8
"""Trainings after the last cut, where there is one after each of the others."""

Train = Callable[[nn.Module, str], None]
"""Trains a network in place, as long as one-shot networks are trained; the text names the part."""


def pruned(
    known: Known, budget: Callable[[GroupPlan], Budget], train: Train
) -> tuple[nn.Module, Mask, float, float]:
    """The network that Taylor pruning on the device leaves, all weights trained all along.

    Args:
        known: The task.
        budget: What the last network must fit into.
        train: Of every part.

    Returns:
        The network; its mask; the trainings, where one of the whole base is 1; and the scorings,
        where one of the whole base is 1.
    """
    images, labels = known.tensors
    network = known.whole().requires_grad_(True)
    plan = known.side.base.plan.with_num_classes(len(known.task.train.classes))
    whole = plan_macs(plan, Mask.full(plan))
    train(network, "whole")
    mask, trained, scored = Mask.full(plan), 1.0, 0.0
    for cut in range(1, CUTS + 1):
        small = shrink_plan(plan, mask)
        scored += plan_macs(plan, mask) / whole
        scores = score("taylor", network, small, labelled_batches(images, labels, SCORING_BATCH))
        inner = solve(scores, small, _on_the_way(budget(plan), plan, cut / CUTS))
        network = materialize(network, small, inner).requires_grad_(True)
        mask = lifted(mask, inner)
        recalibrate(network, images)
        for part in range(FINAL if cut == CUTS else 1):
            train(network, f"{cut} {part}")
            trained += plan_macs(plan, mask) / whole
    return network, mask, trained, scored


def _on_the_way(budget: Budget, plan: GroupPlan, part: float) -> Budget:
    """The limits after a part of the cuts: each takes the same share of what is left."""

    def limit(last: int | None, whole: int) -> int | None:
        return None if last is None else int(whole * (last / whole) ** part)

    full = Mask.full(plan)
    return Budget(
        macs=limit(budget.macs, plan_macs(plan, full)),
        weight_bytes=limit(budget.weight_bytes, 4 * plan_parameters(plan, full)),
    )
