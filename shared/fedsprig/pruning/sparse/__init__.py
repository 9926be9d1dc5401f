"""Methods that prune while they train, by masks that follow from the weights' own sizes."""

from fedsprig.pruning.sparse.gradual_magnitude import GradualMagnitude
from fedsprig.pruning.sparse.pattern import Pattern
from fedsprig.pruning.sparse.pdp import PDP

__all__ = ["PDP", "GradualMagnitude", "Pattern"]
