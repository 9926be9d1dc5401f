"""The course of a sparse training: dense at first, then sparser at every step, then full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fedsprig.errors import TrainingError
from fedsprig.pruning.sparse.soft import ramped
from fedsprig.pruning.sparse.subjects import Rows, Subject

Ramp = Literal["linear", "cubic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramping:
    """How the ratio of what is pruned grows.

    Attributes:
        start: share of the training's steps that are dense.
        full: share of them after which the ratio is that of the end.
        ramp: ``"linear"`` (PDP), or ``"cubic"``: ``1 - (1 - x)^3`` (Zhu and Gupta 2017, arXiv
            1710.01878, equation 1): fast while there is much to spare.

    Raises:
        TrainingError: shares out of order.
    """

    start: float
    full: float
    ramp: Ramp

    def __post_init__(self) -> None:
        if self.ramp not in get_args(Ramp):
            raise TrainingError(f"ramp is {self.ramp!r:.40}: use {', '.join(get_args(Ramp))}")
        if not 0 <= self.start < self.full <= 1:
            raise TrainingError(
                f"pruning starts at {self.start} of the steps and is full at {self.full}: choose "
                "0 <= start < full <= 1"
            )

    def progress(self, done: int, total: int) -> float:
        """How far from start to full the step after ``done`` of ``total`` is, 0 to 1."""
        if done >= total:
            return 1.0
        x = ((done + 1) / total - self.start) / (self.full - self.start)
        return min(1.0, max(0.0, x))

    def hardening(self, done: int, total: int) -> float:
        """How far from full to the end the step after ``done`` of ``total`` is, 0 to 1."""
        if done >= total:
            return 1.0
        return max(0.0, ((done + 1) / total - self.full) / max(1e-9, 1 - self.full))

    def factor(self, progress: float) -> float:
        """The share of the final ratio, 0 to 1."""
        return progress if self.ramp == "linear" else 1 - (1 - progress) ** 3


class Course:
    """From the parameters that are trained to those that a step computes with.

    What each row loses in the end is decided at the first step that prunes, from the weights as
    they are then; what it loses now follows from the step; which ones, from the weights of now.
    """

    def __init__(
        self,
        subject: Subject,
        ramping: Ramping,
        total: int,
        *,
        mask: Callable[[Tensor, Tensor, float], Tensor],
        decide: Callable[[Mapping[str, Tensor]], dict[str, int]],
        drops: dict[str, int] | None = None,
    ) -> None:
        """Begin, or go on.

        Args:
            subject: what is pruned.
            ramping: how the ratio grows.
            total: steps of the training.
            mask: from rows of values, what each row drops and :meth:`Ramping.hardening` to masks.
            decide: what each row loses in the end, from the parameters.
            drops: what was decided before.
        """
        self.done = 0
        self.drops = drops
        self._subject, self._ramping, self._total = subject, ramping, total
        self._mask, self._decide = mask, decide

    def begin(self, done: int) -> None:
        """Go on with the step after ``done``."""
        self.done = done

    def __call__(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The parameters that the step after ``done`` computes with."""
        masks = self.masks(parameters)
        return parameters if masks is None else self._subject.masked(parameters, masks)

    def masks(self, parameters: Mapping[str, Tensor]) -> Rows | None:
        """The masks of the step after ``done``; ``None`` while the network is dense."""
        progress = self._ramping.progress(self.done, self._total)
        if progress == 0:
            return None
        if self.drops is None:
            with torch.no_grad():
                self.drops = self._decide(parameters)
        hardening = self._ramping.hardening(self.done, self._total)
        found = {}
        for name, values in self._subject.rows(parameters).items():
            drop = ramped(values, self.drops[name], self._ramping.factor(progress))
            if hardening > 0 and self._subject.settles:
                values = values.detach()
            found[name] = self._mask(values, drop, hardening)
        return found
