"""Where a task lies among others: one vector, from what its sketch says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import SketchError
from fedsprig.masks.layout import levelled
from fedsprig.tasks.task_sketch import TaskSketch

if TYPE_CHECKING:
    from fedsprig.tasks.similarity.index import SketchIndex


def embedding(sketch: TaskSketch, groups: tuple[int, ...] | None = None) -> NDArray[np.float32]:
    """The task mean (over the classes with pictures) of the prototypes, then the fingerprint.

    Every group of the fingerprint has a root mean square of 1, so that bright pictures are not a
    task of their own; where groups are not known, all units are one. Nothing is centred: that
    depends on the library, and :class:`Ridge` does it.

    Args:
        sketch: The task.
        groups: Those of the index whose :func:`embeddings` this one is to lie among, empty where it
            knows none; the sketch's own when not given.

    Returns:
        float32 ``[features + units]``; ``[features]`` for a sketch without a fingerprint.

    Raises:
        SketchError: A fingerprint of other units than the groups'.
    """
    mean = sketch.present.mean(axis=0, dtype=np.float64)
    prints, groups = sketch.fingerprint, sketch.groups if groups is None else groups
    if prints.size and sum(groups) not in (0, prints.size):
        raise SketchError(
            f"the sketch's fingerprint has {prints.size} units, the library's groups "
            f"{sum(groups)}: describe the task again with the server's probe"
        )
    if prints.size:
        prints = levelled(prints[None], groups or (prints.size,))[0].astype(np.float32)
    return np.concatenate([mean.astype(np.float32), prints])


def embeddings(index: SketchIndex, entries: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """The :func:`embedding` of entries of an index: float32 ``[entries, features + units]``.

    Units are left out where not all of these entries have a fingerprint.

    Args:
        index: The library.
        entries: int64: their positions; all of them when ``None``.
    """
    if entries is None:
        entries = np.arange(len(index))
    if not len(entries):
        return np.zeros((0, 0), np.float32)
    rows, begins = index.rows_of(entries)
    counts = np.diff(np.append(begins, len(rows)))[:, None]
    means = (np.add.reduceat(rows.astype(np.float64), begins, axis=0) / counts).astype(np.float32)
    prints = index.fingerprints[entries]
    # An entry without a fingerprint has a row of zeros.
    if not prints.shape[1] or not prints.any(axis=1).all():
        return means
    prints = levelled(prints, index.groups or (prints.shape[1],)).astype(np.float32)
    return np.concatenate([means, prints], axis=1)


def space_of(
    vectors: NDArray[np.float32], features: int
) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64], slice], ...]:
    """Centre, scale and columns of the parts of embeddings: prototypes, then fingerprint if any.

    A feature keeps its scale. A unit of the fingerprint is divided by its spread over the library:
    a few units vary by far more than all others, and would speak for them.

    Args:
        vectors: Of the library ``[entries, features + units]``.
        features: Of a prototype.
    """
    parts = [slice(0, features)]
    if vectors.shape[1] > features:
        parts.append(slice(features, vectors.shape[1]))
    found = []
    for part in parts:
        values = vectors[:, part].astype(np.float64)
        spread = values.std(axis=0)
        scale = np.ones(values.shape[1]) if part.start == 0 else np.where(spread > 0, spread, 1)
        found.append((values.mean(axis=0), scale, part))
    return tuple(found)


def placed(
    vectors: NDArray[np.float32],
    space: tuple[tuple[NDArray[np.float64], NDArray[np.float64], slice], ...],
) -> list[NDArray[np.float64]]:
    """The parts of embeddings ``[n, features + units]``, centred, scaled and at length 1.

    A vector that is the centre stays zero: it is like nothing.
    """
    made = []
    for centre, scale, part in space:
        values = (vectors[:, part].astype(np.float64) - centre) / scale
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        made.append(values / np.where(lengths > 0, lengths, 1))
    return made
