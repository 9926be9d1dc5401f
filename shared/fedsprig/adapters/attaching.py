"""Attaching an adapter to a model, and merging it into plain modules again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Set
from typing import Final, Literal

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from fedsprig.adapters.full import Full
from fedsprig.adapters.layer import AdapterKind, AdapterLayer
from fedsprig.adapters.ranks import RANK_RULES
from fedsprig.adapters.sites import describe_site
from fedsprig.adapters.splopa import SPLoPA
from fedsprig.adapters.splora import SPLoRA
from fedsprig.adapters.sppara import SPPaRA
from fedsprig.errors import AdapterError
from fedsprig.graph.index import KeptIndex
from fedsprig.models.head import is_of_head
from fedsprig.spelling import lookup, some, unknown

ADAPTERS: Final[Mapping[str, AdapterKind]] = {
    "splora": SPLoRA(),
    "sppara": SPPaRA(),
    "splopa": SPLoPA(),
    "full": Full(),
}

Unadapted = Literal["refuse", "freeze"]

_NORMS: Final = (
    nn.modules.batchnorm._NormBase,  # batch and instance normalisation, any dimension
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
_TRAINABLE: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BIASED: Final = (nn.Linear, nn.modules.conv._ConvNd)
_MARK: Final = "fedsprig_adapter"
"""The attribute that says that something is attached; it is copied with the model."""


def attach(
    model: nn.Module,
    *,
    kind: str | AdapterKind = "splora",
    rank: int = 8,
    rank_rule: str = "layer",
    seed: int = 0,
    train_a: bool = False,
    head: str | None = None,
    kept: KeptIndex | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    unadapted: Unadapted = "refuse",
) -> nn.Module:
    """Attach an adapter in place, without changing what the model computes.

    Afterwards ``requires_grad`` says what trains: the adapter, the biases of convolutions and
    linear layers, the normalisation's own parameters and the head; everything else is frozen
    (:func:`attach_report` lists it). On an error the model is as it was.

    Args:
        model: Changed in place; its layers keep their names, so ``x.weight`` stays and
            ``x.adapter_a``, ``x.adapter_b`` come beside it.
        kind: A name in ``ADAPTERS``, or a kind with settings of its own.
        rank: Of the low-rank product.
        rank_rule: A name in ``RANK_RULES``: where a layer gets less. Rules that look at what the
            mask has left need ``kept``; before cutting everything is left.
        seed: A is drawn from it and the layer's path, the same on every machine.
        train_a: Whether A trains (and travels) too.
        head: Module path of the classifier, which stays dense and trains whole. ``None`` takes the
            last linear layer, an empty text says that there is none. A weight of the body that is
            tied to it trains with it.
        kept: What the mask has left of the base's tensors, if the model is cut already.
        shapes: Shapes of the uncut base's tensors (``plan.shapes``); needed with ``kept``.
        unadapted: What becomes of layers with weights that the kind cannot adapt (transposed
            convolutions, embeddings, recurrent layers, subclasses that compute something else):
            they are refused by name, or stay frozen. No such weight ever trains, unless it is the
            head's too. Scales, tokens, positions and tables of biases are no weights and stay
            frozen either way.

    Returns:
        ``model``.

    Raises:
        AdapterError: One is attached already, the model is masked by parametrisations, the head
            does not exist, the rank is no positive integer, there are layers that the kind cannot
            adapt, the kept positions are malformed, or the layers are not those of the mask.
        UnknownNameError: There is no such kind or rule.
    """
    adapter = lookup(ADAPTERS, kind, "adapter") if isinstance(kind, str) else kind
    rule = lookup(RANK_RULES, rank_rule, "rank rule")
    if _is_attached(model):
        raise AdapterError("an adapter is attached already: merge() it before attaching another")
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise AdapterError("the model has parametrisations: attach before apply_mask, not after")
    if type(rank) is not int or rank < 1:
        raise AdapterError(f"rank {rank!r:.20} is no integer of at least 1")
    if kept and shapes is None:
        raise AdapterError("kept positions need the uncut shapes: pass shapes=plan.shapes too")
    classifier = _head_modules(model, _last_linear(model) if head is None else head)
    body = {path: module for path, module in model.named_modules() if module not in classifier}
    of_head = {id(parameter) for module in classifier for parameter in module.parameters()}
    if unadapted not in ("refuse", "freeze"):
        raise AdapterError(f"unadapted is {unadapted!r:.20}: use 'refuse' or 'freeze'")
    _refuse_untrainable(model, adapter)
    if unadapted == "refuse" and adapter.freezes:
        _refuse_unadapted(body, adapter, of_head)
    layers = {
        path: (
            module,
            describe_site(
                path,
                module,
                rank=rank,
                rule=rule,
                seed=seed,
                train_a=train_a,
                kept=kept or {},
                shapes=shapes,
            ),
        )
        for path, module in body.items()
        if adapter.fits(module)
    }
    own = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    frozen = [
        parameter
        for module in body.values()
        for name, parameter in module.named_parameters(recurse=False)
        if adapter.freezes and parameter.is_floating_point() and not _trains(module, name)
        if id(parameter) not in of_head
    ]
    adapter.adapt_(layers)  # the last that may refuse
    for parameters, trains in ((own, True), (frozen, False)):
        for parameter in parameters:
            parameter.requires_grad = trains
    setattr(model, _MARK, True)
    return model


def attach_report(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that neither train nor have an adapter beside them.

    Raises:
        AdapterError: No adapter is attached.
    """
    require_attached(model)
    adapted = {
        part
        for module in model.modules()
        if isinstance(module, AdapterLayer)
        for part in module.modules()
    }
    return tuple(
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not parameter.requires_grad and module not in adapted
    )


def merge(model: nn.Module) -> nn.Module:
    """Return a copy with the adapter folded in: plain modules, all parameters trainable again.

    Masks of ``graph.apply_mask`` are folded in as well, as zeros.

    Raises:
        AdapterError: No adapter is attached.
    """
    require_attached(model)
    merged = copy.deepcopy(model)
    for module in list(merged.modules()):
        # Read before masks are baked: a layer may apply that of its weight to the whole change.
        weight = module.merged_weight().detach() if isinstance(module, AdapterLayer) else None
        if parametrize.is_parametrized(module):
            _bake_(module)
        if isinstance(module, AdapterLayer) and weight is not None:
            module.to_plain_(weight)
    for module in merged.modules():
        if hasattr(module, _MARK):
            delattr(module, _MARK)
    for parameter in merged.parameters():
        parameter.requires_grad = parameter.is_floating_point()
    return merged


def _bake_(module: nn.Module) -> None:
    """Turn parametrised tensors into plain parameters of their present values, in place.

    ``parametrize.remove_parametrizations`` would also do so, but it takes the properties off the
    module's class, which every copy of the module shares: the model that was copied would break.
    """
    values = {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
    plain = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = plain
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def require_attached(model: nn.Module) -> None:
    """Refuse a model without an adapter."""
    if not _is_attached(model):
        raise AdapterError("no adapter is attached: attach() one first")


def _is_attached(model: nn.Module) -> bool:
    return any(hasattr(m, _MARK) or isinstance(m, AdapterLayer) for m in model.modules())


def _last_linear(model: nn.Module) -> str:
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return paths[-1] if paths else ""


def _head_modules(model: nn.Module, head: str) -> set[nn.Module]:
    """The head and what is in it."""
    # By every path that a module has: the body may use the head's under another name.
    paths = dict(model.named_modules(remove_duplicate=False))
    if head and head not in paths:
        raise AdapterError(unknown("head", head, paths))
    return {module for path, module in paths.items() if is_of_head(path, head)}


def _trains(module: nn.Module, name: str) -> bool:
    """Whether a parameter outside head and adapter trains."""
    return isinstance(module, _NORMS) or (isinstance(module, _BIASED) and name == "bias")


def _refuse_untrainable(model: nn.Module, adapter: AdapterKind) -> None:
    """Name what no adapter can be trained beside, before anything is changed."""
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            what = f"{path}.{name}" if path else name
            if isinstance(parameter, UninitializedParameter):
                raise AdapterError(f"{what} has no shape yet: run the model once before attaching")
            if parameter is not None and parameter.is_inference():
                raise AdapterError(
                    f"{what} was made in inference mode and cannot be trained beside: "
                    "build the model outside of torch.inference_mode"
                )
        if not adapter.fits(module):
            continue
        weight = module._parameters.get("weight")
        what = f"{path}.weight" if path else "weight"
        if weight is None:
            raise AdapterError(
                f"{what} is no plain parameter: remove weight_norm, spectral_norm or pruning first"
            )
        if weight.dtype not in _TRAINABLE:
            raise AdapterError(
                f"{what} is {weight.dtype}: adapters are trained beside real floating point weights"
            )
        if weight.numel() == 0:
            raise AdapterError(f"{what} has shape {list(weight.shape)}: an empty layer has no use")
    if torch.is_inference_mode_enabled():
        raise AdapterError("attach outside of torch.inference_mode: what it makes could not train")


def _refuse_unadapted(
    body: Mapping[str, nn.Module], adapter: AdapterKind, of_head: Set[int]
) -> None:
    """Name the weights that would neither train nor have an adapter."""
    left = [
        f"{path}.{name}" if path else name
        for path, module in body.items()
        if not isinstance(module, _NORMS) and not adapter.fits(module)
        for name, parameter in module.named_parameters(recurse=False)
        if not _is_constant(name, parameter) and id(parameter) not in of_head
    ]
    if left:
        raise AdapterError(
            f"{type(adapter).__name__} cannot adapt {some(left)}: pass unadapted='freeze' to leave "
            "them frozen, or choose another kind"
        )


def _is_constant(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is added or multiplied as it is, and so no weight between units.

    Those are biases, by their name (also Swin's tables of them); scales, which have one axis that
    is longer than 1; and tokens and positions, whose first axis is the batch's, of length 1.
    """
    sizes = parameter.shape
    return "bias" in name or sum(n > 1 for n in sizes) <= 1 or (len(sizes) > 2 and sizes[0] == 1)
