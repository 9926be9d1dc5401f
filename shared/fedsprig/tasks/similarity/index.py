"""Many sketches as a few arrays, so that a search is a handful of matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import SketchError
from fedsprig.tasks.task_sketch import TaskSketch, check_same_probe


@dataclass(frozen=True, slots=True, eq=False)
class SketchIndex:
    """The sketches of one probe, entry after entry.

    Cosines are taken around the library's centre: features after a nonlinearity share a large
    common part, next to which all tasks look alike. Memory: ``4 * features * (classes + 1)`` bytes
    an entry.

    Attributes:
        names: Entry names.
        probe: Digest of the probe of all entries; empty while there are none.
        prototypes: float32 ``[P, features]``: prototypes of all classes that have pictures.
        starts: int64 ``[entries + 1]``: entry ``j`` owns rows ``starts[j]`` to ``starts[j + 1]``.
        centre: float32 ``[features]``: mean over the entries of their task means.
        means: float32 ``[entries, features]``: task mean (over classes) minus centre, at length 1;
            zero where it is the centre.
    """

    names: tuple[str, ...]
    probe: str
    prototypes: NDArray[np.float32]
    starts: NDArray[np.int64]
    centre: NDArray[np.float32]
    means: NDArray[np.float32]

    @classmethod
    def build(cls, names: Sequence[str], sketches: Sequence[TaskSketch]) -> SketchIndex:
        """Index sketches.

        Raises:
            ProbeMismatchError: They are of different probes.
            SketchError: Names repeat or do not match, or features differ in number.
        """
        empty = np.zeros((0, 0), np.float32)
        nothing = cls((), "", empty, np.zeros(1, np.int64), np.zeros(0, np.float32), empty)
        return nothing.extended(names, sketches)

    def extended(self, names: Sequence[str], sketches: Sequence[TaskSketch]) -> SketchIndex:
        """An index with further entries behind these; errors as in :meth:`build`."""
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
        return SketchIndex(whole, probe, prototypes, starts, centre, means)

    def first(self, count: int) -> SketchIndex:
        """The index as it was when it had ``count`` entries; itself when it has no more."""
        if count >= len(self):
            return self
        if count <= 0:
            return SketchIndex.build((), ())
        starts = self.starts[: count + 1]
        prototypes = self.prototypes[: starts[-1]]
        centre, means = _means(prototypes, starts)
        return SketchIndex(self.names[:count], self.probe, prototypes, starts, centre, means)

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.names)

    def check(self, query: TaskSketch) -> None:
        """Refuse a query that cannot be compared with the entries.

        Raises:
            ProbeMismatchError: It is of another probe.
            SketchError: It has another number of features.
        """
        if not len(self):
            return
        check_same_probe(self.probe, query.probe)
        if query.prototypes.shape[1] != self.prototypes.shape[1]:
            raise SketchError(
                f"the sketch has {query.prototypes.shape[1]} features, the library "
                f"{self.prototypes.shape[1]}: describe the task again with the server's probe"
            )

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
