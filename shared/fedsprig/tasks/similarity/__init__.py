"""Finding the library tasks that are like a new one, by what is known of it."""

from fedsprig.tasks.similarity.evidence import Evidence, Features
from fedsprig.tasks.similarity.index import SketchIndex
from fedsprig.tasks.similarity.method import Similarity, SimilarityMethod
from fedsprig.tasks.similarity.prototypes import prototypes
from fedsprig.tasks.similarity.search import SIMILARITIES, Hit, nearest

__all__ = [
    "SIMILARITIES",
    "Evidence",
    "Features",
    "Hit",
    "Similarity",
    "SimilarityMethod",
    "SketchIndex",
    "nearest",
    "prototypes",
]
