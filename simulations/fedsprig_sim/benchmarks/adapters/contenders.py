"""Who is timed: ways to train one network, ours and other libraries'.

All of them train normalisation, biases and the classifier beside what makes them different.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from fedsprig.adapters import attach

HEAD: Final = "fc"
OURS: Final = "fedsprig"
OURS_WITH_A: Final = "fedsprig, A trained"
OUR_WAYS: Final = (OURS, OURS_WITH_A)
FROZEN: Final = "frozen"
FULL: Final = "full"
SPA: Final = "structured-pruning-adapters"
PEFT: Final = "peft"


def frozen(model: nn.Module, rank: int) -> nn.Module:
    """The limit: convolutions stay as they are."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.requires_grad_(False)
    return model


def full(model: nn.Module, rank: int) -> nn.Module:
    """Fine-tuning of everything."""
    return copy.deepcopy(model)


def ours(model: nn.Module, rank: int) -> nn.Module:
    """SPLoRA with A fixed, as the system trains it."""
    return attach(copy.deepcopy(model), rank=rank, head=HEAD)


def ours_with_a(model: nn.Module, rank: int) -> nn.Module:
    """SPLoRA with A trained too, as the libraries beside it do."""
    return attach(copy.deepcopy(model), rank=rank, head=HEAD, train_a=True)


def structured_pruning_adapters(model: nn.Module, rank: int) -> nn.Module:
    """SPLoRA of the paper's own library.

    Raises:
        ImportError: It is not installed.
    """
    from sp_adapters import SPLoRA

    return _unconverted(SPLoRA(copy.deepcopy(model), rank=rank), model)


def _unconverted(adapted: nn.Module, model: nn.Module) -> nn.Module:
    """Give the classifier back as it was: the library adapts it too."""
    setattr(adapted, HEAD, copy.deepcopy(model.get_submodule(HEAD)))
    return adapted


def peft(model: nn.Module, rank: int) -> nn.Module:
    """LoRA of Hugging Face's peft on all convolutions.

    Raises:
        ImportError: It is not installed.
    """
    from peft import LoraConfig, get_peft_model

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, modules_to_save=[HEAD])
    adapted: nn.Module = get_peft_model(copy.deepcopy(model), settings)
    for module in adapted.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(True)
    return adapted


CONTENDERS: Final[Mapping[str, Callable[[nn.Module, int], nn.Module]]] = {
    FROZEN: frozen,
    FULL: full,
    OURS: ours,
    OURS_WITH_A: ours_with_a,
    SPA: structured_pruning_adapters,
    PEFT: peft,
}


def difference_to_library(model: nn.Module, rank: int, x: Tensor) -> float:
    """How far our forward pass is from the paper's library with the same A, B and cut weights.

    Returns:
        The largest difference of an output, over the largest output.

    Raises:
        ImportError: The library is not installed.
    """
    mine: Any = ours(model, rank).eval()
    theirs: Any = structured_pruning_adapters(model, rank).eval()
    generator = torch.Generator().manual_seed(0)
    layers = dict(theirs.named_modules())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, module in mine.named_modules():
            if not hasattr(module, "adapter_b"):
                continue
            module.adapter_b.normal_(std=0.02, generator=generator)
            adapter = layers[path].adapter
            used = min(module.adapter_b.shape[1], adapter.cols.shape[2])
            adapter.cols.zero_()
            adapter.rows.zero_()
            adapter.cols[0, :, :used] = module.adapter_b
            adapter.rows[0, :used] = module.adapter_a
        expected, found = theirs(x), mine(x)
    return float((found - expected).abs().max() / expected.abs().max())
