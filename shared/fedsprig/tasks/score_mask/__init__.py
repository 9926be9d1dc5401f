"""The one-shot score mask: what the library says about the units that a new task needs.

The idea is that of "One-Shot Pruning for Fast-adapting Pre-trained Models on Devices" (Zhao et al.,
arXiv 2307.04365): a score mask from the pruned models of similar tasks, then a single round of
pruning. Only its abstract could be read; the ways below are this project's own
(docs/experiments.md).

One way a file, all ``(sketch, neighbours, settings) -> Prior``.
"""

from fedsprig.tasks.score_mask.combine import SCORE_MASKS, ScoreMask, score_mask
from fedsprig.tasks.score_mask.embedding import embedding, embeddings
from fedsprig.tasks.score_mask.neighbour import Neighbour, Settings
from fedsprig.tasks.score_mask.prior import Prior
from fedsprig.tasks.score_mask.ridge import Ridge
from fedsprig.tasks.score_mask.shrinkage import shrunk, spread_of
from fedsprig.tasks.score_mask.weights import neighbour_weights

__all__ = [
    "SCORE_MASKS",
    "Neighbour",
    "Prior",
    "Ridge",
    "ScoreMask",
    "Settings",
    "embedding",
    "embeddings",
    "neighbour_weights",
    "score_mask",
    "shrunk",
    "spread_of",
]
