"""Training schedules that can begin in their middle: learning-rate rewinding.

Renda, Frankle and Carbin 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning",
arXiv 2003.02389: after a cut, the learning rate goes back to that of an earlier epoch, and the
weights go on from where they are (learning-rate rewinding) or go back too (weight rewinding).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from fedsprig.errors import TrainingError
from fedsprig.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Schedule(TrainConfig):
    """Training settings for a part of a schedule that is counted in epochs.

    Attributes:
        skipped: epochs of the whole schedule that lie before this part.
        whole: epochs of the whole schedule, which milestones count in too; by default ``skipped +
            epochs``.

    Raises:
        TrainingError: a setting out of its range.
    """

    skipped: int = 0
    whole: int | None = None

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if self.epochs is None:
            raise TrainingError("a schedule that is rewound counts epochs: give epochs, not steps")
        if self.skipped < 0 or (self.whole or self.skipped + self.epochs) < (
            self.skipped + self.epochs
        ):
            raise TrainingError(
                f"a schedule of {self.whole} epochs has no {self.epochs} after {self.skipped}"
            )

    def learning_rate_at(self, step: int, total: int) -> float:
        """The learning rate of one step of this part, ``0 <= step < total``."""
        each = total // max(1, self.epochs or 1)
        whole = self.whole or self.skipped + (self.epochs or 0)
        entire = TrainConfig(**{f.name: getattr(self, f.name) for f in fields(TrainConfig)})
        return replace(entire, epochs=whole).learning_rate_at(
            self.skipped * each + step, whole * each
        )


def part(config: TrainConfig, first: int, last: int | None = None) -> TrainConfig:
    """Epochs ``first`` to ``last`` (excluded; by default the end) of a schedule or of its part.

    Raises:
        TrainingError: the schedule counts steps, or has no such epochs.
    """
    if first == 0 and last is None:
        return config
    if config.epochs is None or not 0 <= first <= (last or config.epochs) <= config.epochs:
        raise TrainingError(
            f"cannot rewind to epoch {first} of {config.epochs}: choose an earlier one, and count "
            "the training in epochs"
        )
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    last = config.epochs if last is None else last
    before = config.skipped if isinstance(config, Schedule) else 0
    whole = (config.whole if isinstance(config, Schedule) else None) or before + config.epochs
    here = {"epochs": last - first, "skipped": before + first, "whole": whole}
    return Schedule(**{**values, **here})
