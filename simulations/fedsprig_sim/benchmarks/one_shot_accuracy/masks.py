"""The score masks that are compared: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from fedsprig.masks import ScoreSet
from fedsprig.scoring import score
from fedsprig.seeds import derive_seed
from fedsprig.tasks import Neighbour, score_mask
from fedsprig.tasks.score_mask import embeddings
from fedsprig.tasks.similarity import SIMILARITIES
from fedsprig_sim.benchmarks.one_shot_accuracy.side import SCORING_BATCH, Known

Scores = Callable[[Known], ScoreSet]
ALL: Final = -1


@dataclass(frozen=True, slots=True)
class ScoreMask:
    """Where unit scores come from.

    Attributes:
        name: In tables and options.
        scores: For a task.
        probed: Passes of the device's pictures through the probe.
        whole: Passes of them through the whole base, forward alone: statistics, class means.
        gradients: Pictures that the device runs forward and back through the whole base; ``ALL``
            that it has.
    """

    name: str
    scores: Scores
    probed: int = 1
    whole: int = 0
    gradients: int = 0


def neighbours(
    known: Known, similarity: str, *, entries: int | None = None, farthest: int = 0
) -> list[Neighbour]:
    """Library entries with their similarity.

    Args:
        known: The new task.
        similarity: A name of ``SIMILARITIES``.
        entries: How many of the library's entries there are, drawn for the task; all by default.
        farthest: Only so many, the least similar ones, where it is not 0.
    """
    shown = known.shown(entries)
    scores = [known.side.scores[at] for at in shown]
    # What is hidden has no part in the library's centre either.
    index = known.side.index.subset(shown).with_scores(scores)
    values = SIMILARITIES[similarity].compare(known.evidence(similarity), index)
    near = [
        Neighbour(name, float(value), own, place, index.groups)
        for name, value, own, place in zip(
            index.names, values, scores, embeddings(index), strict=True
        )
    ]
    return sorted(near, key=lambda item: item.similarity)[:farthest] if farthest else near


def library(
    method: str, similarity: str = "prototypes", *, entries: int | None = None, **settings: Any
) -> Scores:
    """Scores from the library alone; settings are those of :func:`fedsprig.tasks.score_mask`."""

    def scores(known: Known) -> ScoreSet:
        near = neighbours(known, similarity, entries=entries)
        return score_mask(known.sketch, near, method=method, **settings)

    return scores


def _random(known: Known) -> ScoreSet:
    seed = derive_seed(known.task.seed, "random", known.task.name)
    return score("random", known.side.base.module, known.side.base.plan, (), seed=seed)


def _magnitude(known: Known) -> ScoreSet:
    return score("magnitude", known.side.base.module, known.side.base.plan, ())


def _farthest(known: Known) -> ScoreSet:
    near = neighbours(known, "prototypes", farthest=5)
    return score_mask(known.sketch, near, method="mean")


def _own(scorer: str, pictures: int | None = None) -> Scores:
    return lambda known: known.own(scorer, pictures=pictures)[0]


def _with_own(method: str, scorer: str, pictures: int | None = None) -> Scores:
    """The library's prior and the device's own score, each unit by its variances."""

    def scores(known: Known) -> ScoreSet:
        own, error = known.own(scorer, pictures=pictures)
        near = neighbours(known, "prototypes")
        return score_mask(known.sketch, near, method=method, own=own, own_error=error)

    return scores


def _half_attention(known: Known) -> ScoreSet:
    """The library's say and, at equal weight, the device's own attention: forward passes alone."""
    near = neighbours(known, "prototypes")
    own = known.own("attention")[0]
    return score_mask(known.sketch, near, method="ridge", own=own, own_weight=0.5)


_STARTED: Final = 2
"""Passes through the base before it can score: one for statistics, one for class means."""
_LIST: Final = (
    ScoreMask("random", _random, probed=0),
    ScoreMask("magnitude", _magnitude, probed=0),
    ScoreMask("mean", library("mean"), probed=0),
    ScoreMask("farthest five", _farthest),
    ScoreMask("nearest", library("nearest")),
    ScoreMask("weighted", library("weighted")),
    ScoreMask("weighted, sharper", library("weighted", temperature=0.25)),
    ScoreMask("weighted, fingerprints", library("weighted", "fingerprints")),
    ScoreMask("weighted, transport", library("weighted", "transport")),
    ScoreMask("weighted, leep", library("weighted", "leep")),
    ScoreMask("weighted, h-score", library("weighted", "h_score")),
    ScoreMask(
        "weighted, first scores",
        library("weighted", "first_scores"),
        whole=_STARTED,
        gradients=SCORING_BATCH,
    ),
    ScoreMask("votes", library("votes")),
    ScoreMask("importance votes", library("importance_votes")),
    ScoreMask("ridge", library("ridge")),
    ScoreMask("own taylor", _own("taylor"), probed=0, whole=_STARTED, gradients=ALL),
    ScoreMask(
        "own taylor, one batch",
        _own("taylor", SCORING_BATCH),
        probed=0,
        whole=_STARTED,
        gradients=SCORING_BATCH,
    ),
    ScoreMask("own attention", _own("attention"), probed=0, whole=1 + _STARTED),
    ScoreMask("ridge + own taylor", _with_own("ridge", "taylor"), whole=_STARTED, gradients=ALL),
    ScoreMask(
        "ridge + one batch",
        _with_own("ridge", "taylor", SCORING_BATCH),
        whole=_STARTED,
        gradients=SCORING_BATCH,
    ),
    ScoreMask("ridge + attention", _half_attention, whole=1 + _STARTED),
    *(
        ScoreMask(f"{method}, {count} entries", library(method, entries=count))
        for count in (5, 10, 20, 50)
        for method in ("mean", "ridge", "weighted")
    ),
)

MASKS: Final[Mapping[str, ScoreMask]] = MappingProxyType({item.name: item for item in _LIST})
