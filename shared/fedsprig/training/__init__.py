"""Pictures, local training and its measures."""

from fedsprig.training.cameras import CAMERAS, camera
from fedsprig.training.config import TrainConfig
from fedsprig.training.loop import TrainReport, fit
from fedsprig.training.metrics import Evaluation, evaluate, features
from fedsprig.training.modes import labelled_batches
from fedsprig.training.normalisation import recalibrate
from fedsprig.training.pictures import ImageSet, hold_out, require_classes
from fedsprig.training.preprocess import to_tensor
from fedsprig.training.readers import READERS, read

__all__ = [
    "CAMERAS",
    "READERS",
    "Evaluation",
    "ImageSet",
    "TrainConfig",
    "TrainReport",
    "camera",
    "evaluate",
    "features",
    "fit",
    "hold_out",
    "labelled_batches",
    "read",
    "recalibrate",
    "require_classes",
    "to_tensor",
]
