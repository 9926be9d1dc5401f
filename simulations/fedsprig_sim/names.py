"""The names in a scenario against the registries, before any work is done.

Not part of reading a scenario, because the registries import torch.
"""

from __future__ import annotations

from collections.abc import Collection

from fedsprig.adapters import ADAPTERS
from fedsprig.errors import ScenarioError, UnknownNameError
from fedsprig.models import describe
from fedsprig.scoring import SCORERS
from fedsprig.spelling import unknown
from fedsprig.tasks import SCORE_MASKS
from fedsprig.tasks.similarity import HEAD_VALUES, SIMILARITIES
from fedsprig.training.cameras import camera
from fedsprig.updates.codecs import CODECS
from fedsprig_server.config import AUTO, by_similarity
from fedsprig_sim.scenario import Scenario


def check_names(scenario: Scenario) -> None:
    """Check every name that a registry must know.

    Raises:
        ScenarioError: A scorer, adapter, codec, similarity or score mask that does not exist, or
            devices asked for what the score mask does not read.
        UnknownNameError: A base model or a camera that does not exist.
    """
    describe(scenario.base.model)
    for key, name, known in _registered(scenario):
        if name not in known:
            raise ScenarioError(f"{scenario.name}: {unknown(key, name, known)}")
    chosen = scenario.selection
    if chosen.rerank and chosen.score_mask not in by_similarity():
        raise ScenarioError(
            f"{scenario.name}: selection.rerank with score_mask {chosen.score_mask!r}, which does "
            f"not read what devices say: use {', '.join(by_similarity())}, or leave rerank away"
        )
    library = scenario.library
    named = [(task.name, task.camera) for task in (*library.tasks, *scenario.tasks)]
    draws = (*library.draws, *scenario.draws)
    named += [(draw.prefix, name) for draw in draws for name in draw.cameras]
    for task, name in named:
        try:
            camera(name)
        except UnknownNameError as error:
            raise UnknownNameError(f"{scenario.name}: task {task}: {error}") from None


def _registered(scenario: Scenario) -> list[tuple[str, str, Collection[str]]]:
    by_sketch = [method.name for method in SIMILARITIES.values() if method.by_sketch]
    return [
        ("library.method", scenario.library.method, SCORERS),
        ("adapter.kind", scenario.adapter.kind, ADAPTERS),
        ("codecs.update", scenario.codecs.update, CODECS),
        ("codecs.adapter", scenario.codecs.adapter, CODECS),
        ("codecs.weights", scenario.codecs.weights, CODECS),
        ("selection.similarity", scenario.selection.similarity, by_sketch),
        ("selection.rerank", scenario.selection.rerank, ("", *HEAD_VALUES)),
        ("selection.score_mask", scenario.selection.score_mask, (AUTO, *SCORE_MASKS)),
    ]
