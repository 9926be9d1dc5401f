"""The search: a coarse exact stage over the whole library, then the similarity proper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsprig.spelling import lookup
from fedsprig.tasks.similarity.index import SketchIndex, unit
from fedsprig.tasks.similarity.prototypes import prototypes
from fedsprig.tasks.task_sketch import TaskSketch

SHORTLIST: Final = 200


class Similarity(Protocol):
    """How alike a task and library entries are; greater is more alike."""

    def __call__(
        self, query: TaskSketch, index: SketchIndex, entries: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Similarity with the entries at these positions, or with all."""
        ...


SIMILARITIES: Final[Mapping[str, Similarity]] = MappingProxyType({"prototypes": prototypes})


@dataclass(frozen=True, slots=True)
class Hit:
    """A library entry that a search found."""

    name: str
    similarity: float


def nearest(
    query: TaskSketch, index: SketchIndex, *, similarity: str = "prototypes", count: int = SHORTLIST
) -> tuple[Hit, ...]:
    """The entries most alike to a task, best first; equal ones by name.

    Libraries of up to ``max(count, 200)`` entries are compared whole. In larger ones that many
    candidates are chosen first, by the cosine of the task means (one product with ``[entries,
    features]``, exact, no approximate index), and only they are compared class by class.

    Args:
        query: The new task's sketch.
        index: The library's sketches.
        similarity: A name of ``SIMILARITIES``.
        count: How many entries to return at most.

    Raises:
        UnknownNameError: No such similarity.
        ProbeMismatchError: The query is of another probe than the library.
    """
    compare = lookup(SIMILARITIES, similarity, "similarity")
    index.check(query)
    candidates = _shortlist(query, index, max(count, SHORTLIST))
    values = compare(query, index, candidates)
    found = [Hit(index.names[j], float(v)) for j, v in zip(candidates, values, strict=True)]
    found.sort(key=lambda hit: (-hit.similarity, hit.name))
    return tuple(found[: max(count, 0)])


def _shortlist(query: TaskSketch, index: SketchIndex, size: int) -> NDArray[np.int64]:
    if len(index) <= size:
        return np.arange(len(index))
    mean = query.present.mean(axis=0, keepdims=True) - index.centre
    coarse = index.means @ unit(mean)[0]
    return np.sort(np.argpartition(-coarse, size)[:size]).astype(np.int64)
