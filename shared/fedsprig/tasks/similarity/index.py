"""Many sketches as a few arrays, so that a search is a handful of matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import LibraryError, SketchError
from fedsprig.tasks.task_sketch import TaskSketch, check_same_probe

if TYPE_CHECKING:
    from fedsprig.masks.layout import Layout
    from fedsprig.masks.scores import ScoreSet


@dataclass(frozen=True, slots=True, eq=False)
class SketchIndex:
    """The sketches of one probe, entry after entry.

    Cosines are taken around the library's centre: features after a nonlinearity share a large
    common part, next to which all tasks look alike. Memory: ``4 * features * (classes + 1)`` bytes
    an entry, and 4 a unit of the fingerprint and of the scores.

    Attributes:
        names: Entry names.
        probe: Digest of the probe of all entries; empty while there are none.
        prototypes: float32 ``[P, features]``: prototypes of all classes that have pictures.
        starts: int64 ``[entries + 1]``: entry ``j`` owns rows ``starts[j]`` to ``starts[j + 1]``.
        centre: float32 ``[features]``: mean over the entries of their task means.
        means: float32 ``[entries, features]``: task mean (over classes) minus centre, at length 1;
            zero where it is the centre.
        spreads: float64 ``[entries]``: :attr:`TaskSketch.spread` of each; 0 where it is not known.
        fingerprints: float32 ``[entries, units]``; zero rows where a sketch has none.
        groups: Units of the fingerprint's groups; empty where no sketch tells them.
        scores: float32 ``[entries, all units]``, every group at a root mean square of 1, where
            :meth:`with_scores` put them.
        layout: Of these scores.
    """

    names: tuple[str, ...]
    probe: str
    prototypes: NDArray[np.float32]
    starts: NDArray[np.int64]
    centre: NDArray[np.float32]
    means: NDArray[np.float32]
    spreads: NDArray[np.float64]
    fingerprints: NDArray[np.float32]
    groups: tuple[int, ...] = ()
    scores: NDArray[np.float32] | None = None
    layout: Layout | None = None

    @classmethod
    def build(cls, names: Sequence[str], sketches: Sequence[TaskSketch]) -> SketchIndex:
        """Index sketches.

        Raises:
            ProbeMismatchError: They are of different probes.
            SketchError: Names repeat or do not match, or features or units differ in number.
        """
        empty = np.zeros((0, 0), np.float32)
        nothing = cls(
            names=(),
            probe="",
            prototypes=empty,
            starts=np.zeros(1, np.int64),
            centre=np.zeros(0, np.float32),
            means=empty,
            spreads=np.zeros(0),
            fingerprints=empty,
        )
        return nothing.extended(names, sketches)

    def extended(self, names: Sequence[str], sketches: Sequence[TaskSketch]) -> SketchIndex:
        """An index with further entries behind these; errors as in :meth:`build`.

        It has no scores: give it those of all entries again.
        """
        whole = (*self.names, *names)
        if len(names) != len(sketches) or len(set(whole)) != len(whole):
            raise SketchError("an index needs one name for every sketch, no name twice")
        if not sketches:
            return self
        probe = self.probe or sketches[0].probe
        features = (self.prototypes if len(self) else sketches[0].prototypes).shape[1]
        for name, item in zip(names, sketches, strict=True):
            check_same_probe(probe, item.probe)
            if item.prototypes.shape[1] != features:
                raise SketchError(
                    f"sketch {name!r} has {item.prototypes.shape[1]} features, the others "
                    f"{features}: describe the task again with the server's probe"
                )
        new = [item.present for item in sketches]
        old = [self.prototypes] if len(self) else []
        ends = self.starts[-1] + np.cumsum([len(rows) for rows in new])
        prototypes = np.concatenate(old + new)
        starts = np.concatenate([self.starts, ends]).astype(np.int64)
        centre, means = _means(prototypes, starts)
        fingerprints, groups = self._with_fingerprints(names, sketches)
        spreads = np.concatenate([self.spreads, [item.spread for item in sketches]])
        return SketchIndex(
            whole, probe, prototypes, starts, centre, means, spreads, fingerprints, groups
        )

    def _with_fingerprints(
        self, names: Sequence[str], sketches: Sequence[TaskSketch]
    ) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """The fingerprints and their groups with those of further sketches."""
        units = self.fingerprints.shape[1] or max(item.fingerprint.size for item in sketches)
        groups = self.groups
        rows = np.zeros((len(self) + len(sketches), units), np.float32)
        if self.fingerprints.size:
            rows[: len(self)] = self.fingerprints
        for place, (name, item) in enumerate(zip(names, sketches, strict=True), len(self)):
            if item.fingerprint.size not in (0, units) or len({groups, item.groups} - {()}) > 1:
                raise SketchError(
                    f"sketch {name!r} has {item.fingerprint.size} units in groups other than the "
                    "others': describe the task again with the server's probe"
                )
            groups = groups or item.groups
            if item.fingerprint.size:
                rows[place] = item.fingerprint
        return rows, groups

    def with_scores(self, scores: Sequence[ScoreSet]) -> SketchIndex:
        """The index with the unit scores of its entries, in their order.

        Raises:
            LibraryError: Another number of score sets than entries.
            PlanError: Score sets of different plans.
        """
        if len(scores) != len(self):
            raise LibraryError(f"{len(scores)} score sets for {len(self)} entries: give each its")
        if not scores:
            return self
        layout = scores[0].layout
        rows = np.zeros((len(self), layout.units), np.float32)
        for row, item in zip(rows, scores, strict=True):
            item.layout.check(layout, "an entry's score set")
            row[:] = item.normalised().flat
        return replace(self, scores=rows, layout=layout)

    def first(self, count: int) -> SketchIndex:
        """The index of the first ``count`` entries; itself when it has no more."""
        return self if count >= len(self) else self.subset(np.arange(max(count, 0)))

    def subset(self, positions: NDArray[np.int64]) -> SketchIndex:
        """The index that a library of these entries alone would have: its centre knows no other.

        Args:
            positions: int64, none twice; the entries come in this order.

        Raises:
            SketchError: A position twice.
        """
        if len(np.unique(positions)) < len(positions):
            raise SketchError("a subset of an index has each entry once: drop what is there twice")
        if not len(positions):
            return SketchIndex.build((), ())
        prototypes, begins = self.rows_of(positions)
        starts = np.append(begins, len(prototypes)).astype(np.int64)
        centre, means = _means(prototypes, starts)
        return SketchIndex(
            names=tuple(self.names[at] for at in positions),
            probe=self.probe,
            prototypes=prototypes,
            starts=starts,
            centre=centre,
            means=means,
            spreads=self.spreads[positions],
            fingerprints=self.fingerprints[positions],
            groups=self.groups,
            scores=None if self.scores is None else self.scores[positions],
            layout=self.layout,
        )

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.names)

    def check(self, query: TaskSketch) -> None:
        """Refuse a query that cannot be compared with the entries.

        Raises:
            ProbeMismatchError: It is of another probe.
            SketchError: It has another number of features, or other groups of units.
        """
        if not len(self):
            return
        check_same_probe(self.probe, query.probe)
        if query.prototypes.shape[1] != self.prototypes.shape[1]:
            raise SketchError(
                f"the sketch has {query.prototypes.shape[1]} features, the library "
                f"{self.prototypes.shape[1]}: describe the task again with the server's probe"
            )

        if query.groups and self.groups and query.groups != self.groups:
            raise SketchError(
                "the sketch's units are in other groups than the library's: describe the task "
                "again with the server's probe"
            )

    def positions(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Where entries of these names are: int64 ``[names]``.

        Raises:
            LibraryError: One of them is not there.
        """
        places = {name: place for place, name in enumerate(self.names)}
        for name in names:
            if name not in places:
                raise LibraryError(f"the library has no entry {name!r:.80}: list its entries")
        return np.array([places[name] for name in names], np.int64)

    def rows_of(self, entries: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Prototypes of some entries, copied, and where each of the entries begins among them."""
        first, sizes = self.starts[entries], np.diff(self.starts)[entries]
        begins = np.cumsum(sizes) - sizes
        rows = np.arange(int(sizes.sum())) + np.repeat(first - begins, sizes)
        return self.prototypes[rows], begins.astype(np.int64)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale the rows of ``[n, features]`` to length 1 in place; zero rows stay zero."""
    lengths = np.sqrt(np.einsum("nf,nf->n", vectors, vectors))
    vectors /= np.where(lengths > 0, lengths, 1)[:, None]
    return vectors


def _means(
    prototypes: NDArray[np.float32], starts: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    # Every sketch has at least one class with pictures, so no segment is empty (reduceat would
    # return the wrong row for one).
    means = np.add.reduceat(prototypes, starts[:-1], axis=0)
    means /= np.diff(starts)[:, None]
    centre = means.mean(axis=0, dtype=np.float64).astype(np.float32)
    means -= centre
    return centre, unit(means)
