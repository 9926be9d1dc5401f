"""The rival that computes twenty times as much: the device prunes for itself, cut by cut."""

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
FINAL: Final = 4
"""Trainings after the last cut, where there is one after each of the others."""

Train = Callable[[nn.Module, str], None]
"""Trains a network in place, as long as one-shot networks are trained; the text names the part."""


def pruned(
    known: Known, budget: Callable[[GroupPlan], Budget], train: Train
) -> tuple[nn.Module, Mask, float]:
    """The network that Taylor pruning on the device leaves, all weights trained all along.

    Args:
        known: The task.
        budget: What the last network must fit into.
        train: Of every part.

    Returns:
        The network, its mask, and the trainings' length in multiply-accumulates: one training of
        the whole base is 1.
    """
    images, labels = known.tensors
    network = known.whole().requires_grad_(True)
    plan = known.side.base.plan.with_num_classes(len(known.task.train.classes))
    whole = plan_macs(plan, Mask.full(plan))
    train(network, "whole")
    mask, trained = Mask.full(plan), 1.0
    for cut in range(1, CUTS + 1):
        small = shrink_plan(plan, mask)
        scores = score("taylor", network, small, labelled_batches(images, labels, SCORING_BATCH))
        inner = solve(scores, small, _on_the_way(budget(plan), plan, cut / CUTS))
        network = materialize(network, small, inner).requires_grad_(True)
        mask = lifted(mask, inner)
        recalibrate(network, images)
        for part in range(FINAL if cut == CUTS else 1):
            train(network, f"{cut} {part}")
            trained += plan_macs(plan, mask) / whole
    return network, mask, trained


def _on_the_way(budget: Budget, plan: GroupPlan, part: float) -> Budget:
    """The limits after a part of the cuts: each takes the same share of what is left."""

    def limit(last: int | None, whole: int) -> int | None:
        return None if last is None else int(whole * (last / whole) ** part)

    full = Mask.full(plan)
    return Budget(
        macs=limit(budget.macs, plan_macs(plan, full)),
        weight_bytes=limit(budget.weight_bytes, 4 * plan_parameters(plan, full)),
    )
