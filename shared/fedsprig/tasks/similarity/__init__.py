"""Finding the library tasks that are like a new one, by what is known of it."""

from fedsprig.tasks.similarity.evidence import Evidence, Features
from fedsprig.tasks.similarity.heads import Head, HeadValue, entry_heads, head_values
from fedsprig.tasks.similarity.index import SketchIndex
from fedsprig.tasks.similarity.method import Similarity, SimilarityMethod
from fedsprig.tasks.similarity.search import HEAD_VALUES, SIMILARITIES, Hit, nearest, rerank

__all__ = [
    "HEAD_VALUES",
    "SIMILARITIES",
    "Evidence",
    "Features",
    "Head",
    "HeadValue",
    "Hit",
    "Similarity",
    "SimilarityMethod",
    "SketchIndex",
    "entry_heads",
    "head_values",
    "nearest",
    "rerank",
]
