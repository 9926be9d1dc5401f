"""What is known about a base model without building it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A base model's name and what its pictures must look like.

    Pictures are ``uint8`` RGB; the model takes ``(pixel / 255 - mean) / std``.

    Attributes:
        name: as :func:`fedsprig.models.build` takes it.
        input_size: height and width of its pictures, in pixels.
        mean: per colour channel.
        std: per colour channel.
        head: module path of the classifier.
        weights: names of the pretrained weights there are; a path to a ``.safetensors`` file of
            the right names and shapes is always possible too.
    """

    name: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    head: str
    weights: tuple[str, ...] = ()
