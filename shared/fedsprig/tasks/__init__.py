"""Tasks: describing them, finding like ones, and turning those into a score mask.

Needs no torch until a model is run or scores are combined.
"""

from fedsprig.tasks.prototype_head import (
    class_means,
    pooled_variance,
    projected_variance,
    prototype_head,
)
from fedsprig.tasks.score_mask import (
    SCORE_MASKS,
    Neighbour,
    embedding,
    embeddings,
    neighbour_weights,
    score_mask,
)
from fedsprig.tasks.similarity import (
    SIMILARITIES,
    Evidence,
    Features,
    Hit,
    Similarity,
    SimilarityMethod,
    SketchIndex,
    nearest,
)
from fedsprig.tasks.sketch import observe
from fedsprig.tasks.task_sketch import TaskSketch

__all__ = [
    "SCORE_MASKS",
    "SIMILARITIES",
    "Evidence",
    "Features",
    "Hit",
    "Neighbour",
    "Similarity",
    "SimilarityMethod",
    "SketchIndex",
    "TaskSketch",
    "class_means",
    "embedding",
    "embeddings",
    "nearest",
    "neighbour_weights",
    "observe",
    "pooled_variance",
    "projected_variance",
    "prototype_head",
    "score_mask",
]
