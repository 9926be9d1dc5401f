"""Where models come from by name: our own, torchvision's and timm's builders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from fedsprig.errors import UnknownModelError
from fedsprig.models.card import ModelCard
from fedsprig.models.cifar_resnet import CifarResNet
from fedsprig.models.efficientnet_lite import EfficientNetLite0
from fedsprig.models.vit import SprigViT
from fedsprig.spelling import unknown

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
# EfficientNet-Lite takes (pixel - 127) / 128.
_LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
_HALF = ((0.5,) * 3, (0.5,) * 3)


Make = Callable[[int, int | None], nn.Module]


@dataclass(frozen=True, slots=True)
class Builder:
    """A model's card and how to build it.

    ``make(num_classes, image_size)`` builds it with random weights on the default device;
    ``image_size`` is None where the card's is meant.
    """

    card: ModelCard
    make: Make


def _own(
    name: str,
    size: int,
    pixels: tuple[tuple[float, float, float], tuple[float, float, float]],
    head: str,
    weights: tuple[str, ...],
    make: Make,
) -> Builder:
    return Builder(ModelCard(name, size, *pixels, head, weights), make)


OWN: Mapping[str, Builder] = {
    builder.card.name: builder
    for builder in (
        _own(
            "cifar_resnet20",
            32,
            _IMAGENET,
            "linear",
            (),
            lambda classes, _: CifarResNet(20, num_classes=classes),
        ),
        _own(
            "cifar_resnet56",
            32,
            _IMAGENET,
            "linear",
            (),
            lambda classes, _: CifarResNet(56, num_classes=classes),
        ),
        _own(
            "efficientnet_lite0",
            224,
            _LITE,
            "_fc",
            ("imagenet",),
            lambda classes, _: EfficientNetLite0(num_classes=classes),
        ),
        _own(
            "sprig20",
            32,
            _CIFAR100,
            "linear",
            ("shipped",),
            lambda classes, _: CifarResNet(20, num_classes=classes, width=32, shortcut="conv"),
        ),
        _own(
            "sprig_vit",
            32,
            _HALF,
            "head",
            (),
            lambda classes, size: SprigViT(num_classes=classes, image_size=size or 32),
        ),
    )
}


def find(name: str) -> Builder:
    """How to build a model.

    Raises:
        UnknownModelError: no such model; names the nearest ones.
    """
    if name in OWN:
        return OWN[name]
    family, _, builder = name.partition("/")
    if family == "torchvision" and builder:
        return _torchvision(builder)
    if family == "timm" and builder:
        return _timm(builder)
    raise _unknown(name, (*OWN, "torchvision/resnet50", "timm/vit_tiny_patch16_224"))


def _unknown(name: str, known: tuple[str, ...]) -> UnknownModelError:
    return UnknownModelError(unknown("base model", name, known, most=3))


@lru_cache(maxsize=64)
def _torchvision(builder: str) -> Builder:
    from torchvision import models  # only where a model of it is meant: it is slow to import

    known = models.list_models(module=models)
    if builder not in known:
        raise _unknown(f"torchvision/{builder}", tuple(f"torchvision/{name}" for name in known))

    def make(num_classes: int, image_size: int | None) -> nn.Module:
        sized = {"image_size": image_size} if image_size and builder.startswith("vit") else {}
        model: nn.Module = models.get_model(builder, weights=None, num_classes=num_classes, **sized)
        return model

    pixels: Any = models.get_model_weights(builder).DEFAULT.transforms()
    card = ModelCard(
        f"torchvision/{builder}",
        int(pixels.crop_size[0]),
        _triple(pixels.mean),
        _triple(pixels.std),
        _last_classifier(make),
        ("imagenet",),
    )
    return Builder(card, make)


@lru_cache(maxsize=64)
def _timm(builder: str) -> Builder:
    try:
        import timm
    except ImportError:
        raise UnknownModelError(f"timm/{builder} needs timm: pip install 'fedsprig[zoo]'") from None
    if not timm.is_model(builder):
        raise _unknown(f"timm/{builder}", tuple(f"timm/{name}" for name in timm.list_models()))

    template: Any = make_shapes(lambda *_: timm.create_model(builder, pretrained=False), 1000)
    config: dict[str, Any] = dict(template.default_cfg)

    def make(num_classes: int, image_size: int | None) -> nn.Module:
        sized: dict[str, Any] = (
            {"img_size": image_size} if image_size and config.get("fixed_input_size") else {}
        )
        model: nn.Module = timm.create_model(
            builder, pretrained=False, num_classes=num_classes, **sized
        )
        return model

    head = config.get("classifier")
    card = ModelCard(
        f"timm/{builder}",
        int(config["input_size"][-1]),
        _triple(config["mean"]),
        _triple(config["std"]),
        head if isinstance(head, str) else _last_classifier(make),
        ("imagenet",),
    )
    return Builder(card, make)


def make_shapes(make: Make, num_classes: int, image_size: int | None = None) -> nn.Module:
    """Build on the meta device; builders that compute with tensors go by way of the CPU."""
    try:
        with torch.device("meta"):
            return make(num_classes, image_size)
    except (NotImplementedError, RuntimeError):
        return make(num_classes, image_size).to("meta")


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _last_classifier(make: Make) -> str:
    """The last layer, in the order of definition, that is as wide as there are classes."""
    classes = 1009  # no layer of a vision model happens to be this wide
    model = make_shapes(make, classes)
    wide = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == classes
    ]
    return wide[-1] if wide else ""
