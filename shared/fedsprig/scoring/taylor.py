"""The Taylor criterion: how much the loss would change, to first order, if a unit were removed.

Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference",
arXiv 1611.06440, equations 6 to 8: ``|mean over pictures and pixels of a * dL/da|``, then
each layer divided by its L2 norm, in place of which :meth:`ScoreSet.normalised` divides by the root
mean square. Two forms:

* ``"sum"``, the default: ``mean over pictures of |sum over pixels of a * g|``. Signs cancel inside
  a picture, where the sum is the first-order change of that picture's loss, but not between
  pictures; this ranking is far more stable from one sample of pictures to the next (the project's
  first trial: overlap of masks .72 against .42).
* ``"paper"``: ``|mean over pictures of sum over pixels of a * g|``. Sum and mean over pixels differ
  by a factor per tap, which the normalisation of :meth:`ScoreSet.normalised` removes for groups
  seen at one resolution.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.errors import LabelRangeError, ScoreError, UnknownNameError
from fedsprig.graph.plan import Group, GroupPlan, Tap
from fedsprig.masks.scores import ScoreSet
from fedsprig.scoring.taps import owners, per_picture, visiting


def score_taylor(
    model: nn.Module,
    plan: GroupPlan,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    form: Literal["sum", "paper"] = "sum",
) -> ScoreSet:
    """Score units by the first-order change of the cross-entropy when they are removed.

    Every unit gets a gate per picture, one gate for all its taps and positions, that multiplies its
    activation by 1. The derivative of the loss by the gate *is* ``sum over taps, positions and
    pixels of a * g`` for that picture, so one backward pass gives it without storing any
    activation, and the network's weights need no gradient.

    Args:
        model: the base model with the head of the task.
        plan: its groups.
        batches: pictures ``[n, channels, h, w]`` and labels int64 ``[n]``.
        form: ``"sum"`` or ``"paper"``, see above.

    Raises:
        UnknownNameError: another form.
        LabelRangeError: a label that the head does not have.
        ScoreError: no pictures, scores that are not finite, or all zero (a head of zeros).
    """
    return score_taylor_with_error(model, plan, batches, form=form)[0]


def score_taylor_with_error(
    model: nn.Module,
    plan: GroupPlan,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    form: Literal["sum", "paper"] = "sum",
) -> tuple[ScoreSet, ScoreSet]:
    """The scores of :func:`score_taylor`, and how far they may lie from those of many pictures.

    A score is a mean over pictures; its standard error is the standard deviation of a picture's
    value (over ``pictures - 1``) divided by the root of their number. It is that of the mean before
    its sign is dropped in the form ``"paper"``, and 0 for a single picture, which tells nothing of
    others.

    Args:
        model: as there; in evaluation mode.
        plan: as there.
        batches: as there.
        form: as there.

    Returns:
        Scores and standard errors, in one scale.

    Raises:
        UnknownNameError: as there, as all that follows.
        LabelRangeError: as there.
        ScoreError: as there.
    """
    if form not in ("sum", "paper"):
        raise UnknownNameError(f"the Taylor score has no form {form!r}: use sum or paper")
    totals = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in plan.groups}
    squares = {name: torch.zeros_like(total) for name, total in totals.items()}
    pictures = 0
    for images, labels in batches:
        gradients = _gate_gradients(model, plan, images, labels)
        for group, gradient in zip(plan.groups, gradients, strict=True):
            change = gradient.double().cpu()
            totals[group.name] += (change.abs() if form == "sum" else change).sum(0)
            squares[group.name] += change.square().sum(0)
        pictures += len(images)
    if not pictures:
        raise ScoreError("the Taylor score needs pictures: pass at least one batch")
    if plan.groups and not any(total.any() for total in totals.values()):
        raise ScoreError(
            "the loss does not depend on any unit: give the model a head that is not zero"
        )
    errors = {}
    for name, total in totals.items():
        deviations = (squares[name] - total.square() / pictures).clamp(min=0)
        errors[name] = (deviations / max(1, pictures - 1) / pictures).sqrt().numpy()
    scores = {name: (total.abs() / pictures).numpy() for name, total in totals.items()}
    return ScoreSet(scores), ScoreSet(errors)


def _gate_gradients(
    model: nn.Module, plan: GroupPlan, images: Tensor, labels: Tensor
) -> tuple[Tensor, ...]:
    """Derivative of each picture's loss by each unit's gate: ``[pictures, units]`` by group."""
    count = len(images)
    gates = {
        group.name: torch.ones(count, group.units, device=images.device, requires_grad=True)
        for group in plan.groups
    }
    always = torch.ones(count, 1, device=images.device)

    def gate(group: Group, tap: Tap, value: Tensor) -> Tensor:
        axis = tap.axis % value.ndim
        owner = owners(tap, value.shape[axis]).to(value.device)
        factor = torch.cat([gates[group.name], always], 1).index_select(1, owner).to(value.dtype)
        rows = per_picture(value, count)
        shape = [count] + [1] * (rows.ndim - 1)
        shape[axis + 1] = len(owner)
        return (rows * factor.view(shape)).flatten(0, 1)

    with torch.enable_grad(), visiting(model, plan, gate):
        logits = model(images)
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise LabelRangeError(
                f"labels run from {int(labels.min())} to {int(labels.max())}, the head has classes "
                f"0 to {logits.shape[1] - 1}: give the model a head of the task's classes"
            )
        # The sum, not the mean, over pictures: each picture's gradient is that of its own loss.
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return torch.autograd.grad(
            loss, list(gates.values()), allow_unused=True, materialize_grads=True
        )
