"""From a sketch to a mask: find the neighbours, score the units, solve for the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsprig.masks import Budget, Mask, ScoreSet, solve
from fedsprig.tasks import (
    Evidence,
    Hit,
    Neighbour,
    SketchIndex,
    TaskSketch,
    embeddings,
    nearest,
    neighbour_weights,
)
from fedsprig_server.arms import ARMS, Described
from fedsprig_server.base import Base
from fedsprig_server.config import SelectionConfig
from fedsprig_server.library import Library

MAX_NEIGHBOURS = 1_000


@dataclass(frozen=True, slots=True)
class Found:
    """A library task near a new one, and its share of the new task's score mask.

    The share is that by similarity; what a learned score mask makes of each task is not told.
    """

    name: str
    similarity: float
    weight: float


def search(
    sketch: TaskSketch,
    library: Library,
    base: Base,
    selection: SelectionConfig,
    *,
    visible: int | None = None,
) -> tuple[SketchIndex, tuple[Hit, ...]]:
    """What was searched, and the nearest library tasks in it, best first.

    All entries take part (at most ``MAX_NEIGHBOURS``): the temperature, not a cut-off, decides how
    far the mask listens.

    Args:
        sketch: Of the new task.
        library: Where to look.
        base: Whose entries.
        selection: Similarity.
        visible: How many entries take part, in the order in which they were added; all when not
            given.
    """
    index = library.index(base.digest)
    if visible is not None:
        index = index.first(visible)
    evidence, count = Evidence(sketch), MAX_NEIGHBOURS
    return index, nearest(evidence, index, similarity=selection.similarity, count=count)


def shared_out(
    index: SketchIndex,
    hits: Sequence[Hit],
    library: Library,
    base: Base,
    selection: SelectionConfig,
) -> list[tuple[Found, Neighbour]]:
    """The scores of library tasks that were found, with their shares.

    Args:
        index: What was searched.
        hits: What was found, best first.
        library: Where the scores are.
        base: Whose entries.
        selection: Temperature.

    Raises:
        LibraryError: Nothing was found: the library has no entry for this base model.
    """
    shares = _shares(hits, selection)
    entries = library.entries_named([hit.name for hit in hits])
    places = index.positions([hit.name for hit in hits])
    found = []
    for hit, entry, share, vector in zip(
        hits, entries, shares, embeddings(index, places), strict=True
    ):
        scores = library.scores(entry, base.plan)
        neighbour = Neighbour(hit.name, hit.similarity, scores, vector, index.groups)
        found.append((Found(hit.name, hit.similarity, float(share)), neighbour))
    return found


def _shares(hits: Sequence[Hit], selection: SelectionConfig) -> NDArray[np.float64]:
    shares = neighbour_weights([hit.similarity for hit in hits], selection.temperature)
    if selection.score_mask == "mean":
        shares[:] = 1 / len(hits)
    if selection.score_mask == "nearest":
        shares[:] = 0
        shares[0] = 1
    return shares


def find(
    sketch: TaskSketch, library: Library, base: Base, selection: SelectionConfig
) -> list[tuple[Found, Neighbour]]:
    """:func:`search` and :func:`shared_out` in one, without asking a device."""
    index, hits = search(sketch, library, base, selection)
    return shared_out(index, hits, library, base, selection)


def arm_scores(
    arm: str,
    sketch: TaskSketch,
    neighbours: Sequence[Neighbour],
    base: Base,
    selection: SelectionConfig,
    *,
    seed: int,
    task: str,
) -> ScoreSet | None:
    """The score set of an arm; ``None`` where nothing is pruned."""
    made = ARMS[arm].scores
    known = Described(task, sketch, neighbours, base, selection, seed)
    return None if made is None else made(known)


def cut(
    scores: ScoreSet | None,
    base: Base,
    budget: Budget,
    selection: SelectionConfig,
    *,
    num_classes: int,
) -> Mask:
    """The mask for one budget; budgets that are nested get nested masks.

    Args:
        scores: Of all units; ``None`` keeps everything.
        base: What is cut.
        budget: What the network must fit into, with the head of its task.
        selection: Shape rules.
        num_classes: Of the task.

    Raises:
        InfeasibleBudgetError: No mask meets the budget.
    """
    if scores is None:
        return Mask.full(base.plan)
    return solve(
        scores,
        base.plan.with_num_classes(num_classes),
        budget,
        floor=selection.floor,
        round_to=selection.round_to,
        protect=selection.protect,
        peak_bytes=base.peak_bytes,
    )
