"""PASS: masks from a visual prompt by a recurrent hyper-network (arXiv 2407.17412)."""

from __future__ import annotations

from fedsprig.pruning.visual_prompt.joint import prompt_for, trained_together
from fedsprig.pruning.visual_prompt.method import PASS
from fedsprig.pruning.visual_prompt.predictor import MaskPredictor

__all__ = ["PASS", "MaskPredictor", "prompt_for", "trained_together"]
