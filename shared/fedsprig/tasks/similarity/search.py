"""The search: a coarse exact stage over the whole library, then the similarity proper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.spelling import lookup
from fedsprig.tasks.similarity.evidence import Evidence
from fedsprig.tasks.similarity.index import SketchIndex, unit
from fedsprig.tasks.similarity.method import SimilarityMethod
from fedsprig.tasks.similarity.prototypes import prototypes
from fedsprig.tasks.task_sketch import TaskSketch

SHORTLIST: Final = 200


SIMILARITIES: Final[Mapping[str, SimilarityMethod]] = MappingProxyType(
    {method.name: method for method in (SimilarityMethod("prototypes", prototypes),)}
)


@dataclass(frozen=True, slots=True)
class Hit:
    """A library entry that a search found."""

    name: str
    similarity: float


def nearest(
    evidence: Evidence,
    index: SketchIndex,
    *,
    similarity: str = "prototypes",
    count: int = SHORTLIST,
) -> tuple[Hit, ...]:
    """The entries most alike to a task, best first; equal ones by name.

    Libraries of up to ``max(count, 200)`` entries are compared whole. In larger ones that many
    candidates are chosen first, by the cosine of the task means (one product with ``[entries,
    features]``, exact, no approximate index), and only they are compared class by class.

    Args:
        evidence: What is known of the new task; as much as the similarity needs.
        index: The library's sketches.
        similarity: A name of ``SIMILARITIES``.
        count: How many entries to return at most.

    Raises:
        UnknownNameError: No such similarity.
        ProbeMismatchError: The task was described by another probe than the library.
        SketchError: The similarity needs more than is known of the task.
    """
    method = lookup(SIMILARITIES, similarity, "similarity")
    index.check(evidence.sketch)
    candidates = _shortlist(evidence.sketch, index, max(count, SHORTLIST))
    values = method.compare(evidence, index, candidates)
    found = [Hit(index.names[j], float(v)) for j, v in zip(candidates, values, strict=True)]
    found.sort(key=lambda hit: (-hit.similarity, hit.name))
    return tuple(found[: max(count, 0)])


def _shortlist(query: TaskSketch, index: SketchIndex, size: int) -> NDArray[np.int64]:
    if len(index) <= size:
        return np.arange(len(index))
    mean = query.present.mean(axis=0, keepdims=True) - index.centre
    coarse = index.means @ unit(mean)[0]
    return np.sort(np.argpartition(-coarse, size)[:size]).astype(np.int64)
