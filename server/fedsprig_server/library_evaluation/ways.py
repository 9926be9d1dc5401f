"""The ways to predict a task's scores from the others, as products of a few arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.tasks import SIMILARITIES, Evidence, SketchIndex, embeddings, neighbour_weights
from fedsprig.tasks.score_mask import Ridge, Settings
from fedsprig.tasks.score_mask.votes import importance_votes_of, votes_of
from fedsprig_server.library_evaluation.subject import Floats32, Subject

TEMPERATURES: Final = (0.2, 0.5, 1.0)
FARTHEST: Final = 5

Progress = Callable[[str, int, int], None]
Similarities = Mapping[str, NDArray[np.float64]]
"""By name, ``[left out, entries]``; not a number between a task and itself."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way from the other tasks to a task's scores.

    Attributes:
        score_mask: A name of ``SCORE_MASKS``, or ``"farthest"``: the mean of the least similar.
        similarity: What it weighs by; empty where it reads none.
        temperature: With which; 0 where it reads none.
    """

    score_mask: str
    similarity: str = ""
    temperature: float = 0.0

    @property
    def offered(self) -> bool:
        """Whether it is there to be chosen; the farthest ones are a check."""
        return self.score_mask != "farthest"

    @property
    def label(self) -> str:
        """In tables."""
        return " ".join(
            [self.score_mask, *([f"{self.temperature:g}"] if self.temperature else [])]
            + ([f"({self.similarity})"] if self.similarity else [])
        )


MEAN: Final = Way("mean")


def ways(similarities: Sequence[str]) -> tuple[Way, ...]:
    """All of them, the plain mean first."""
    found = [MEAN, Way("ridge")]
    middle = TEMPERATURES[len(TEMPERATURES) // 2]
    for name in similarities:
        found += [Way("weighted", name, temperature) for temperature in TEMPERATURES]
        found += [Way(way, name, middle) for way in ("votes", "importance_votes")]
        found += [Way("nearest", name), Way("farthest", name)]
    return tuple(found)


def similarities(subject: Subject, progress: Progress) -> Similarities:
    """What every similarity that needs sketches alone says of each task left out.

    The library is indexed without the task: its centre must not know it.
    """
    methods = [
        method
        for method in SIMILARITIES.values()
        if method.by_sketch and (subject.has_fingerprints or not method.needs)
    ]
    found = {
        method.name: np.full((len(subject.rows), len(subject.names)), np.nan) for method in methods
    }
    whole = SketchIndex.build(subject.names, subject.sketches)
    for row, entry in enumerate(subject.rows):
        others = subject.others(entry)
        index = whole.subset(others)
        evidence = Evidence(subject.sketches[entry])
        for method in methods:
            found[method.name][row, others] = method.compare(evidence, index)
        progress("comparing tasks", row + 1, len(subject.rows))
    return found


def predictions(subject: Subject, way: Way, known: Similarities) -> Floats32:
    """The scores that a way gives every task left out: ``[left out, units]``."""
    if way.score_mask == "ridge":
        return _learned(subject)
    values = subject.values
    if way.score_mask in _BALLOTS:
        values = _BALLOTS[way.score_mask](values, subject.layout, Settings().keep)
    shares = np.zeros((len(subject.rows), len(subject.names)), np.float32)
    for row, entry in enumerate(subject.rows):
        others = subject.others(entry)
        near = known[way.similarity][row, others] if way.similarity else np.zeros(len(others))
        names = [subject.names[other] for other in others]
        shares[row, others] = _shares(way, near, names)
    return np.asarray(shares @ values, np.float32)


_BALLOTS: Final = {"votes": votes_of, "importance_votes": importance_votes_of}


def _shares(way: Way, near: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
    """What each of the others counts, ``[others]``."""
    count = len(near)
    if way.score_mask == "mean":
        return np.full(count, 1 / count)
    if way.score_mask in ("nearest", "farthest"):
        # Best first, equal ones by name, as a search has them.
        order = sorted(range(count), key=lambda at: (-near[at], names[at]))
        taken = order[:1] if way.score_mask == "nearest" else order[-FARTHEST:]
        shares = np.zeros(count)
        shares[taken] = 1 / len(taken)
        return shares
    return neighbour_weights(near, way.temperature)


def _learned(subject: Subject) -> Floats32:
    index = SketchIndex.build(subject.names, subject.sketches)
    features = subject.sketches[0].prototypes.shape[1]
    return Ridge(embeddings(index), features, subject.values).left_out(subject.rows)
