"""Criteria for blocks of weight matrices: how much each block matters, with and without data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedsprig.errors import LabelRangeError, PlanError, ScoreError, UnknownNameError
from fedsprig.masks.block_layout import BlockLayout
from fedsprig.masks.block_scores import BlockScores
from fedsprig.training.modes import keeping_modes


def score_blocks_by_magnitude(
    model: nn.Module, layout: BlockLayout, *, norm: Literal["rms", "l1"] = "rms"
) -> BlockScores:
    """Score blocks by the size of their weights.

    Args:
        model: the base model; adapters are to be merged first, or they are not seen.
        layout: its blocks.
        norm: ``"rms"``, the root mean square, in which a block that the edge of its matrix crops
            compares with whole ones; or ``"l1"``, the sum of the absolute values.

    Raises:
        UnknownNameError: another norm.
        PlanError: the model lacks a weight of the layout, or has it in another shape.
        ScoreError: a weight that is not finite.
    """
    if norm not in ("rms", "l1"):
        raise UnknownNameError(f"the magnitude score has no norm {norm!r:.20}: use rms or l1")
    layers = {}
    for name, weight in _weights(model, layout).items():
        matrix = weight.detach().flatten(1).double().cpu()
        if norm == "l1":
            layers[name] = _block_sums(matrix.abs(), layout, name).numpy()
        else:
            squares = _block_sums(matrix.square(), layout, name)
            layers[name] = (squares / torch.from_numpy(layout.weights(name))).sqrt().numpy()
    return BlockScores(layers, layout)


def score_blocks_by_taylor(
    model: nn.Module, layout: BlockLayout, batches: Iterable[tuple[Tensor, Tensor]]
) -> BlockScores:
    """Score blocks by the first-order change of the cross-entropy when they are removed.

    ``mean over batches of |sum over the block of w * dL/dw|``, L the mean loss of the batch, every
    batch weighted by its pictures: the Taylor criterion of :mod:`fedsprig.scoring.taylor` with the
    block's weights in place of an activation. Signs cancel within a batch but not between batches.

    Args:
        model: the base model with the head of the task; left as it is.
        layout: its blocks.
        batches: pictures ``[n, channels, h, w]`` and labels int64 ``[n]``, on the model's device.

    Raises:
        PlanError: the model lacks a weight of the layout, or has it in another shape.
        LabelRangeError: a label that the head does not have.
        ScoreError: no pictures, scores that are not finite, or all zero (a head of zeros).
    """
    # The same numbers under a name of their own: the model's requires_grad is not touched.
    weights = {n: w.detach().requires_grad_() for n, w in _weights(model, layout).items()}
    totals = {name: torch.zeros(layout.grid(name), dtype=torch.float64) for name in layout.names}
    pictures = 0
    with keeping_modes(model), torch.enable_grad():
        model.eval()
        for images, labels in batches:
            logits = functional_call(model, weights, (images,))
            if labels.min() < 0 or labels.max() >= logits.shape[1]:
                raise LabelRangeError(
                    f"labels run from {int(labels.min())} to {int(labels.max())}, the head has "
                    f"classes 0 to {logits.shape[1] - 1}: give the model a head of the task's"
                )
            loss = F.cross_entropy(logits, labels)
            found = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
            for (name, weight), gradient in zip(weights.items(), found, strict=True):
                products = (weight.detach() * gradient).flatten(1).double().cpu()
                totals[name] += _block_sums(products, layout, name).abs() * len(images)
            pictures += len(images)
    if not pictures:
        raise ScoreError("the Taylor score needs pictures: pass at least one batch")
    if totals and not any(total.any() for total in totals.values()):
        raise ScoreError(
            "the loss does not depend on any block: give the model a head that is not zero"
        )
    return BlockScores({name: (t / pictures).numpy() for name, t in totals.items()}, layout)


def _weights(model: nn.Module, layout: BlockLayout) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    for name, out, inputs in layout.layers:
        found = parameters.get(name)
        if found is None or found.numel() != out * inputs or found.shape[:2] != (out, inputs):
            raise PlanError(
                f"the model has no {name} of shape [{out}, {inputs}]: score the model that the "
                "layout was made from"
            )
    return {name: parameters[name] for name in layout.names}


def _block_sums(values: Tensor, layout: BlockLayout, name: str) -> Tensor:
    """Sums over blocks of ``[out, in]``, ``[rows, columns]`` of blocks."""
    (down, across), (p, q) = layout.grid(name), layout.block
    whole = F.pad(values, (0, across * q - values.shape[1], 0, down * p - values.shape[0]))
    return whole.view(down, p, across, q).sum((1, 3))
