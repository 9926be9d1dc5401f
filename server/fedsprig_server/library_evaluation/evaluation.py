"""Every task left out in turn, predicted by every way, and compared with its own mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsprig.masks import Mask
from fedsprig.pruning import silent
from fedsprig_server.library_evaluation.overlap import (
    group_overlap,
    overlap,
    rank_correlation,
    reshuffled,
)
from fedsprig_server.library_evaluation.subject import Bools, Subject
from fedsprig_server.library_evaluation.ways import (
    Progress,
    Similarities,
    Way,
    predictions,
    similarities,
    ways,
)

Floats64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How near the predicted masks come to the tasks' own.

    Attributes:
        subject: What was evaluated; ``left out`` below are its rows.
        ways: What was tried, the plain mean first.
        overlaps: Intersection over union of all units, ``[ways, left out]``.
        group_overlaps: The same, averaged over the groups, ``[ways, left out]``.
        floor: ``overlaps`` of random masks with the widths of the own ones, ``[left out]``.
        group_floor: ``group_overlaps`` of those.
        correlations: By similarity, the rank correlation of a task's similarities to the others
            with the overlaps of their own masks, ``[left out]``.
        own: The own masks ``[entries, units]``.
        known: The similarities, from which a way's scores can be had again.
    """

    subject: Subject
    ways: tuple[Way, ...]
    overlaps: Floats64
    group_overlaps: Floats64
    floor: Floats64
    group_floor: Floats64
    correlations: Mapping[str, Floats64]
    own: Bools
    known: Similarities

    def masks(self, way: Way, rows: Sequence[int]) -> list[Mask]:
        """The masks that a way gives the tasks of these rows of those left out.

        All rows are predicted at once: ask for those that are needed together.
        """
        scores = predictions(self.subject, way, self.known)
        return [self.subject.mask(scores[row], int(self.subject.rows[row])) for row in rows]

    def own_mask(self, row: int) -> Mask:
        """The mask of that task's own scores."""
        return Mask(self.subject.layout.split(self.own[self.subject.rows[row]]))

    def random_mask(self, row: int) -> Mask:
        """The drawn mask of the own one's widths that ``floor`` is of."""
        return _random_mask(self.subject, self.own, int(self.subject.rows[row]))


def evaluate(subject: Subject, progress: Progress = silent) -> Evaluation:
    """Leave out every chosen task in turn.

    Scores are predicted for all tasks at once, by products of a few arrays; what takes time is the
    solving of masks, one for every way and task.

    Args:
        subject: The entries and the budget.
        progress: Told of every step.

    Raises:
        InfeasibleBudgetError: No mask meets the budget.
    """
    count, layout, rows = len(subject.names), subject.layout, subject.rows
    own = np.zeros(subject.values.shape, np.bool_)
    for entry in range(count):
        own[entry] = subject.mask(subject.values[entry], entry).flat
        progress("solving the tasks' own masks", entry + 1, count)
    known = similarities(subject, progress)
    tried = ways(tuple(known))
    shape = (len(tried), len(rows))
    whole, by_group = np.zeros(shape), np.zeros(shape)
    for number, way in enumerate(tried):
        scores = predictions(subject, way, known)
        for row, entry in enumerate(rows):
            made = subject.mask(scores[row], int(entry)).flat
            whole[number, row] = overlap(made, own[entry])
            by_group[number, row] = group_overlap(made, own[entry], layout)
            done = number * len(rows) + row + 1
            progress("predicting masks", done, len(tried) * len(rows))
    drawn = [_random_mask(subject, own, int(entry)).flat for entry in rows]
    return Evaluation(
        subject=subject,
        ways=tried,
        overlaps=whole,
        group_overlaps=by_group,
        floor=overlap(np.stack(drawn), own[rows]),
        group_floor=group_overlap(np.stack(drawn), own[rows], layout),
        correlations={name: _correlations(subject, values, own) for name, values in known.items()},
        own=own,
        known=known,
    )


def _random_mask(subject: Subject, own: Bools, entry: int) -> Mask:
    rng = np.random.default_rng([subject.seed, entry])
    return Mask(subject.layout.split(reshuffled(own[entry], subject.layout, rng)))


def _correlations(subject: Subject, near: Floats64, own: Bools) -> Floats64:
    found = np.zeros(len(subject.rows))
    for row, entry in enumerate(subject.rows):
        others = subject.others(entry)
        found[row] = rank_correlation(near[row, others], overlap(own[others], own[entry]))
    return found
