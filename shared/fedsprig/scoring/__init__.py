"""Scoring: what each unit of the base model is worth for a task, one criterion a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedsprig.errors import ScoreError, UnknownNameError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.scores import ScoreSet
from fedsprig.scoring.attention import score_attention
from fedsprig.scoring.blocks import score_blocks_by_magnitude, score_blocks_by_taylor
from fedsprig.scoring.fpgm import score_fpgm
from fedsprig.scoring.magnitude import score_magnitude
from fedsprig.scoring.random import score_random
from fedsprig.scoring.snip import score_snip
from fedsprig.scoring.taylor import score_taylor, score_taylor_with_error
from fedsprig.spelling import lookup, unknown
from fedsprig.training.modes import keeping_modes

Batch = tuple[Tensor, Tensor]
Scorer = Callable[..., ScoreSet]
"""``(model, plan, batches, **options) -> ScoreSet`` with the raw scores; higher = keep."""

SCORERS: dict[str, Scorer] = {
    "attention": score_attention,
    "fpgm": score_fpgm,
    "magnitude": score_magnitude,
    "random": score_random,
    "snip": score_snip,
    "taylor": score_taylor,
}

__all__ = [
    "SCORERS",
    "Batch",
    "Scorer",
    "score",
    "score_blocks_by_magnitude",
    "score_blocks_by_taylor",
    "score_taylor_with_error",
]


def score(
    name: str,
    model: nn.Module,
    plan: GroupPlan,
    batches: Iterable[Batch] = (),
    **options: Any,
) -> ScoreSet:
    """Score every unit of a plan by the criterion of that name.

    The model is in evaluation mode meanwhile and unchanged afterwards. Scores are raw: groups
    become comparable by :meth:`ScoreSet.normalised`.

    Args:
        name: a key of ``SCORERS``.
        model: the base model at full width, with the head of the task where the criterion reads
            labels.
        plan: its groups.
        batches: pictures ``[n, channels, h, w]`` as the model takes them, and labels int64 ``[n]``;
            moved to the model's device. They are read once.
        **options: the criterion's own.

    Raises:
        UnknownNameError: no such criterion, or no such option of it.
        ScoreError: no pictures where the criterion needs them, or scores that are not finite.
        PlanError: the plan is not of this model.
    """
    scorer = lookup(SCORERS, name, "criterion")
    known = inspect.signature(scorer).parameters
    accepted = [key for key, value in known.items() if value.kind is value.KEYWORD_ONLY]
    for option in options:
        if option not in accepted:
            raise UnknownNameError(unknown(f"option of {name}", option, accepted))
    with keeping_modes(model):
        model.eval()
        return scorer(model, plan, _checked(batches, model), **options)


def _checked(batches: Iterable[Batch], model: nn.Module) -> Iterator[Batch]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for images, labels in batches:
        if labels.shape != (len(images),) or not len(images):
            raise ScoreError(
                f"a batch has {len(images)} pictures and labels of shape {tuple(labels.shape)}: "
                "give every picture one label, and every batch a picture"
            )
        yield images.to(device), labels.to(device)
