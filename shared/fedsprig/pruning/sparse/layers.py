"""Which weights of a network may be pruned one by one, and which stay dense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torch import nn
from torch.nn.modules.conv import _ConvNd

from fedsprig.errors import PlanError, UnknownNameError
from fedsprig.graph.plan import GroupPlan
from fedsprig.spelling import unknown

WORDS: Final = ("first", "depthwise", "head")
PROJECTIONS: Final = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True, slots=True)
class Layer:
    """The weight of a convolution or linear layer.

    Attributes:
        tensor: its parameter name.
        axis: of its inputs.
        shape: of the weight.
    """

    tensor: str
    axis: int
    shape: tuple[int, ...]


def prunable_layers(model: nn.Module, plan: GroupPlan, dense: tuple[str, ...]) -> tuple[Layer, ...]:
    """All convolutions and linear layers, attention's projections among them, but the dense ones.

    Args:
        model: the whole network.
        plan: its groups; names the head.
        dense: module paths, or words: ``"first"`` is the first convolution (the first linear layer
            where there is none), ``"depthwise"`` those whose every filter reads one channel,
            ``"head"`` the classifier.

    Raises:
        UnknownNameError: a path or word that the network does not have.
        PlanError: nothing is left to prune.
    """
    modules = dict(model.named_modules())
    for word in dense:
        if word not in WORDS and word not in modules:
            raise UnknownNameError(unknown("dense layer", word, [*WORDS, *modules]))
    weights = list(_weights(modules))
    paths = [path for path, _, _ in weights]
    first = next((p for p in paths if isinstance(modules[p], _ConvNd)), next(iter(paths), ""))
    kept = {path for path in dense if path not in WORDS}
    if "first" in dense:
        kept.add(first)
    if "head" in dense and plan.head:
        kept.add(plan.head)
    if "depthwise" in dense:
        kept |= {path for path in paths if _is_depthwise(modules[path])}
    found = tuple(
        Layer(f"{path}.{name}" if path else name, _input_axis(modules[path]), tuple(weight.shape))
        for path, name, weight in weights
        if not any(path == other or path.startswith(f"{other}.") for other in kept)
    )
    if not found:
        raise PlanError("every layer is kept dense: name fewer in dense=, nothing is left to prune")
    return found


def _weights(modules: dict[str, nn.Module]) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Module path, name and weight of all layers; what several share is left to the first."""
    seen: set[int] = set()
    for path, module in modules.items():
        for name in _names(module):
            weight = getattr(module, name)
            if weight is not None and id(weight) not in seen:
                seen.add(id(weight))
                yield path, name, weight


def _names(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, _ConvNd | nn.Linear):
        return ("weight",)
    # torch's own attention has its first projections as bare parameters, together or apart.
    return PROJECTIONS if isinstance(module, nn.MultiheadAttention) else ()


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels


def _input_axis(module: nn.Module) -> int:
    return 0 if isinstance(module, _ConvNd) and module.transposed else 1
