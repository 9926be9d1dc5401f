"""The interface of all similarities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedsprig.tasks.similarity.evidence import Evidence
from fedsprig.tasks.similarity.index import SketchIndex


class Similarity(Protocol):
    """How alike a task and library entries are; greater is more alike."""

    def __call__(
        self, evidence: Evidence, index: SketchIndex, entries: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Similarity with the entries at these positions, or with all: float64 ``[entries]``."""
        ...


@dataclass(frozen=True, slots=True)
class SimilarityMethod:
    """A way to compare tasks.

    Attributes:
        name: Its name in ``SIMILARITIES``.
        compare: The comparison.
        needs: What it needs beside the class prototypes of the task's sketch: ``"fingerprint"``
            (of the sketch), ``"features"`` (of the pictures, so that it runs on the device) or
            ``"scores"`` (the task's own, and those of the library).
    """

    name: str
    compare: Similarity
    needs: frozenset[str] = frozenset()

    @property
    def by_sketch(self) -> bool:
        """Whether a sketch is all that it needs, so that the server can do it alone."""
        return self.needs <= {"fingerprint"}
