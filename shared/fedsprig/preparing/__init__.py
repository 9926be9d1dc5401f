"""Where a sub-network starts: a base prepared for cutting, and cut networks that are healed."""

from fedsprig.preparing.config import Distance, HealConfig, PrepareConfig
from fedsprig.preparing.heal import base_features, heal
from fedsprig.preparing.masks import MaskSource, NestedMasks, mean_order
from fedsprig.preparing.prepare import Preparation, PrepareReport, prepare
from fedsprig.preparing.sliced import SlicedNetwork, skeleton_of

__all__ = [
    "Distance",
    "HealConfig",
    "MaskSource",
    "NestedMasks",
    "Preparation",
    "PrepareConfig",
    "PrepareReport",
    "SlicedNetwork",
    "base_features",
    "heal",
    "mean_order",
    "prepare",
    "skeleton_of",
]
