"""Federated AAP: the networks of a cohort go on shrinking while it trains."""

from fedsprig_server.pruning.cut import Shrinking
from fedsprig_server.pruning.sizes import Sizes

__all__ = ["Shrinking", "Sizes"]
