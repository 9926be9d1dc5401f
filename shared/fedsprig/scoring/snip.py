"""SNIP's connection sensitivity, summed per unit.

Lee, Ajanthan and Torr 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
arXiv 1810.02340, equations 4 and 6: ``|w * dL/dw|`` for every weight, L the mean loss of the
pictures. Their division by the sum over all weights changes no order and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedsprig.errors import LabelRangeError, PlanError, ScoreError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.scores import ScoreSet


def score_snip(
    model: nn.Module,
    plan: GroupPlan,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> ScoreSet:
    """Score units by the sum of ``|w * dL/dw|`` over all weights that produce them.

    The gradient is that of the mean loss over all pictures, so that their division into batches
    changes nothing. Biases and normalisation do not count.

    Args:
        model: the base model with the head of the task.
        plan: its groups.
        batches: pictures ``[n, channels, h, w]`` and labels int64 ``[n]``.

    Raises:
        PlanError: the model lacks a tensor of the plan, or has it at another width.
        LabelRangeError: a label that the head does not have.
        ScoreError: no pictures, scores that are not finite, or all zero (a head of zeros).
    """
    weights = {n: w.detach().requires_grad_() for n, w in _producers(model, plan).items()}
    gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    pictures = 0
    for images, labels in batches:
        with torch.enable_grad():
            # The same numbers under a name of their own: the model's requires_grad is not touched.
            logits = functional_call(model, weights, (images,))
            if labels.min() < 0 or labels.max() >= logits.shape[1]:
                raise LabelRangeError(
                    f"labels run from {int(labels.min())} to {int(labels.max())}, the head has "
                    f"classes 0 to {logits.shape[1] - 1}: give the model a head of the task's"
                )
            loss = F.cross_entropy(logits, labels, reduction="sum")
            found = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        for total, gradient in zip(gradients.values(), found, strict=True):
            total += gradient
        pictures += len(images)
    if not pictures:
        raise ScoreError("the SNIP score needs pictures: pass at least one batch")
    if gradients and not any(total.any() for total in gradients.values()):
        raise ScoreError(
            "the loss does not depend on any unit: give the model a head that is not zero"
        )
    scores = {}
    for group in plan.groups:
        sums = torch.zeros(group.units, dtype=torch.float64)
        for item in plan.producers(group):
            change = (weights[item.tensor].detach() * gradients[item.tensor]).double().abs()
            rows = change.movedim(item.axis, 0).flatten(1).sum(1).cpu()
            sums += rows[torch.tensor(item.positions, dtype=torch.int64)].sum(1)
        scores[group.name] = (sums / pictures).numpy()
    return ScoreSet(scores)


def _producers(model: nn.Module, plan: GroupPlan) -> dict[str, Tensor]:
    """The weights that produce units, by name."""
    parameters = dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for group in plan.groups:
        for item in plan.producers(group):
            weight = parameters.get(item.tensor)
            if weight is None or weight.shape[item.axis] != plan.shapes[item.tensor][item.axis]:
                raise PlanError(
                    f"the model has no {item.tensor} of full width: score the plan's base model"
                )
            found[item.tensor] = weight
    return found
