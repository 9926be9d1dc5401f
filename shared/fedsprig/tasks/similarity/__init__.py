"""Finding the library tasks that are like a new one, by their sketches."""

from fedsprig.tasks.similarity.index import SketchIndex
from fedsprig.tasks.similarity.prototypes import prototypes
from fedsprig.tasks.similarity.search import SIMILARITIES, Hit, Similarity, nearest

__all__ = ["SIMILARITIES", "Hit", "Similarity", "SketchIndex", "nearest", "prototypes"]
