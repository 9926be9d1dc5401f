"""The search: a coarse exact stage over the whole library, then the similarity proper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import LibraryError
from fedsprig.spelling import lookup
from fedsprig.tasks.similarity.evidence import Evidence
from fedsprig.tasks.similarity.fingerprints import fingerprints
from fedsprig.tasks.similarity.first_scores import first_scores
from fedsprig.tasks.similarity.h_score import H_SCORE
from fedsprig.tasks.similarity.heads import HeadValue
from fedsprig.tasks.similarity.index import SketchIndex, unit
from fedsprig.tasks.similarity.leep import LEEP
from fedsprig.tasks.similarity.method import SimilarityMethod
from fedsprig.tasks.similarity.prototypes import prototypes
from fedsprig.tasks.similarity.transport import transport
from fedsprig.tasks.task_sketch import TaskSketch

SHORTLIST: Final = 200


SIMILARITIES: Final[Mapping[str, SimilarityMethod]] = MappingProxyType(
    {
        method.name: method
        for method in (
            SimilarityMethod("prototypes", prototypes),
            SimilarityMethod("transport", transport),
            SimilarityMethod("fingerprints", fingerprints, frozenset({"fingerprint"})),
            *(
                SimilarityMethod(value.name, value.compare, frozenset({"features"}))
                for value in (LEEP, H_SCORE)
            ),
            SimilarityMethod("first_scores", first_scores, frozenset({"scores"})),
        )
    }
)

HEAD_VALUES: Final[Mapping[str, HeadValue]] = MappingProxyType(
    {value.name: value for value in (LEEP, H_SCORE)}
)
"""What a device can tell of the library's classifiers, for :func:`rerank`."""


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
    features]``, exact, no approximate index), and only they are compared by the similarity itself.
    For a second stage on the best of them see :func:`rerank`.

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
    found.sort(key=_best_first)
    return tuple(found[: max(count, 0)])


def rerank(hits: Sequence[Hit], values: Sequence[float]) -> tuple[Hit, ...]:
    """The best hits of a search in the order of another similarity, equal ones by name.

    Args:
        hits: Of a search, best first.
        values: The other similarity of the first of them, as many as were asked about.

    Returns:
        Those hits, with the new values; the others are left out.

    Raises:
        LibraryError: More values than hits, or one that is not finite.
    """
    if len(values) > len(hits) or not np.isfinite(np.asarray(values, np.float64)).all():
        raise LibraryError(f"{len(values)} values for {len(hits)} hits: give finite ones, one each")
    again = [Hit(hit.name, float(value)) for hit, value in zip(hits, values, strict=False)]
    return tuple(sorted(again, key=_best_first))


def _best_first(hit: Hit) -> tuple[float, str]:
    return -hit.similarity, hit.name


def _shortlist(query: TaskSketch, index: SketchIndex, size: int) -> NDArray[np.int64]:
    if len(index) <= size:
        return np.arange(len(index))
    mean = query.present.mean(axis=0, keepdims=True) - index.centre
    coarse = index.means @ unit(mean)[0]
    return np.sort(np.argpartition(-coarse, size)[:size]).astype(np.int64)
