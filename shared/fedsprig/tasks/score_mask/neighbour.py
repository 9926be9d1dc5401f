"""What a score mask is made of: library entries near a task, and how they are listened to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import LibraryError

if TYPE_CHECKING:
    from fedsprig.masks.scores import ScoreSet


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A library entry with its similarity to the new task and its scores.

    Attributes:
        name: Of the entry.
        similarity: To the new task; greater is more alike.
        scores: Its score set, of any scale.
        embedding: See :func:`fedsprig.tasks.score_mask.embedding`; ``"ridge"`` needs it.
        groups: Those of the index that the embedding is from; those of the new task's sketch when
            not given.
    """

    name: str
    similarity: float
    scores: ScoreSet
    embedding: NDArray[np.float32] | None = None
    groups: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the ways are told beside the neighbours; each reads what concerns it.

    Attributes:
        temperature: How far those listen that weigh by similarity; see ``neighbour_weights``.
        count: This many of the nearest neighbours are heard; ``None``: all.
        keep: Share of all units that a neighbour votes for.

    Raises:
        LibraryError: A count that is no whole number from 1 up, or a share that is not above 0 and
            at most 1.
    """

    temperature: float = 0.5
    count: int | None = None
    keep: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges; the temperature is checked where it is used."""
        if self.count is not None and (type(self.count) is not int or self.count < 1):
            raise LibraryError(f"count {self.count}: use a whole number of neighbours from 1 up")
        if not 0 < self.keep <= 1:
            raise LibraryError(f"keep {self.keep}: use a share of units above 0, at most 1")


def closest(neighbours: Sequence[Neighbour], count: int | None) -> NDArray[np.int64]:
    """Where the ``count`` most similar are, best first, equal ones by name; all for ``None``.

    Returns:
        int64 positions; for ``None`` in the order given, whatever their similarity.

    Raises:
        LibraryError: A similarity that is not finite, where it decides.
    """
    if count is None:
        return np.arange(len(neighbours))
    if not np.isfinite([item.similarity for item in neighbours]).all():
        raise LibraryError("neighbours need one finite similarity each: compare them first")
    order = sorted(
        range(len(neighbours)), key=lambda at: (-neighbours[at].similarity, neighbours[at].name)
    )
    return np.array(order[:count], np.int64)
