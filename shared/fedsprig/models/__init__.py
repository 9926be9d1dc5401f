"""Base models by name.

``build("sprig20", num_classes=10, weights="shipped")``,
``build("torchvision/resnet50", num_classes=100)``, ``build("timm/vit_tiny_patch16_224", ...)``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fedsprig.errors import WeightsError
from fedsprig.models.attention import install_prunable_heads
from fedsprig.models.card import ModelCard
from fedsprig.models.catalogue import OWN, Make, find, make_shapes
from fedsprig.models.head import replace_head as _replace_head
from fedsprig.models.weights import load_weights, read_weights

__all__ = ["ModelCard", "build", "describe", "names", "replace_head"]


def build(
    name: str,
    *,
    num_classes: int,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
) -> nn.Module:
    """Build a base model, in evaluation mode, with attention modules whose heads can be pruned.

    Without weights, the parameters are drawn from seed 0, whatever the caller's generator: equal
    calls give equal models. Weights with another number of classes get a fresh head, drawn from
    seed 0 (:func:`replace_head`). On the ``"meta"`` device there are shapes only, and weights are
    neither read nor checked.

    Args:
        name: one of :func:`names`, ``"torchvision/<builder>"`` or ``"timm/<name>"``.
        num_classes: width of the classifier.
        weights: None, one of the card's (``"shipped"``, ``"imagenet"``), or a path to a
            ``.safetensors`` file.
        device: where the parameters shall be.
        image_size: only for models whose position embeddings fix it (vision transformers); others
            take any size.

    Raises:
        UnknownModelError: no such model; names the nearest ones.
        WeightsError: weights that are absent or do not fit, or ``num_classes`` below 1.
    """
    builder = find(name)
    if num_classes < 1:
        raise WeightsError(f"a classifier needs at least 1 class, not {num_classes}")
    if torch.device(device).type == "meta":
        model = make_shapes(builder.make, num_classes, image_size)
    elif weights is None:
        model = _seeded(builder.make, num_classes, image_size)
    else:
        state = read_weights(builder.card, weights)
        head = state.get(f"{builder.card.head}.weight")
        if head is None:
            raise WeightsError(f"the weights {weights} have no head {builder.card.head!r}")
        model = _seeded(builder.make, head.shape[0], image_size)
        load_weights(model, state, str(weights))
        if head.shape[0] != num_classes:
            replace_head(model, builder.card, num_classes)
    return install_prunable_heads(model).to(device).eval()


def describe(name: str) -> ModelCard:
    """What is known about a model without building it.

    Raises:
        UnknownModelError: no such model; names the nearest ones.
    """
    return find(name).card


def names() -> tuple[str, ...]:
    """The models that fedsprig brings itself, sorted."""
    return tuple(sorted(OWN))


def replace_head(
    model: nn.Module, name_or_card: str | ModelCard, num_classes: int, seed: int = 0
) -> nn.Module:
    """Put a fresh classifier in place of the old one, in place; see :mod:`fedsprig.models.head`.

    Raises:
        UnknownModelError: no such model.
        WeightsError: the model has no such classifier, or ``num_classes`` is below 1.
    """
    card = name_or_card if isinstance(name_or_card, ModelCard) else describe(name_or_card)
    return _replace_head(model, card.head, num_classes, seed=seed)


def _seeded(make: Make, num_classes: int, image_size: int | None) -> nn.Module:
    """Builders draw from torch's global generator: give them seed 0, and the caller his state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make(num_classes, image_size)
