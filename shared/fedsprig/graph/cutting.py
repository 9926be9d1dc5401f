"""From a base model and a mask to a physically small module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedsprig.errors import WeightsError
from fedsprig.graph.heads import follow_heads, head_layout
from fedsprig.graph.index import KeptIndex, UnitMask, kept_index, restrict
from fedsprig.graph.plan import GroupPlan
from fedsprig.graph.rebuild import check_fits, rebuild
from fedsprig.models.cifar_resnet import BasicBlock, PadShortcut


def materialize(model: nn.Module, plan: GroupPlan, mask: UnitMask) -> nn.Module:
    """Cut a copy of a model down to what a mask keeps.

    Works on any device; on ``"meta"`` it gives the small module's shapes, for
    :func:`load_small`, and never holds a full weight. Adapter tensors are cut with their layers.

    Args:
        model: the plan's base model, adapters attached or not; left as it is.
        plan: its groups.
        mask: what to keep.

    Returns:
        A module of the same class whose tensors, and the attributes that speak of their sizes
        (``out_channels``, ``groups``, ``num_heads``, ...), are small.

    Raises:
        PlanError: the plan does not fit the model, or the mask the plan.
    """
    index = kept_index(plan, mask)
    check_fits(model, plan, index)
    tensors: dict[str, Tensor] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        cut = restrict({name: tensor.detach()}, index)[name]
        if cut.shape != tensor.shape:
            tensors[name] = cut
    small = rebuild(model, tensors)
    originals = dict(model.named_modules())
    for path, module in small.named_modules():
        _follow_shapes(module, originals[path], path, index)
    return small


def load_small(model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
    """Give a small module on the meta device its tensors.

    Args:
        model: from :func:`materialize` on the meta device; changed in place.
        state: every tensor by name, numpy arrays or torch tensors, in any float type;
            ``num_batches_tracked`` may be absent. Values keep the module's dtypes.

    Returns:
        ``model`` itself.

    Raises:
        WeightsError: a tensor is missing, unknown or of another shape.
    """
    ready: dict[str, Tensor] = {}
    own = model.state_dict()
    for name, tensor in own.items():
        if name in state:
            value = torch.as_tensor(state[name])
        elif name.endswith("num_batches_tracked"):
            value = torch.zeros(tensor.shape, dtype=tensor.dtype)
        else:
            raise WeightsError(f"the sub-network's weights lack {name}: send them again")
        if value.shape != tensor.shape:
            raise WeightsError(
                f"{name} has shape {tuple(value.shape)}, the mask leaves {tuple(tensor.shape)}"
            )
        ready[name] = value.to(tensor.dtype)
    if unknown := sorted(state.keys() - own.keys()):
        raise WeightsError(f"the sub-network has no {unknown[0]}: another mask or base was meant")
    model.load_state_dict(ready, assign=True)
    return model


def _follow_shapes(module: nn.Module, original: nn.Module, path: str, index: KeptIndex) -> None:
    """Make a module's attributes say what its tensors are."""
    if head_layout(module) is not None:
        follow_heads(module)
    for kind, follow in _FOLLOW:
        if isinstance(module, kind):
            follow(module, original, path, index)


def _follow_conv(module: nn.Module, original: nn.Module, path: str, index: KeptIndex) -> None:
    conv, old = cast(nn.Conv2d, module), cast(nn.Conv2d, original)
    axis_out = 1 if conv.transposed else 0
    out, into = conv.weight.shape[axis_out], conv.weight.shape[1 - axis_out]
    # Only whole convolution groups are ever dropped, so their number shrinks with the outputs.
    if old.groups > 1:
        conv.groups = old.groups * out // old.weight.shape[axis_out]
    conv.out_channels, conv.in_channels = out, into * conv.groups


def _follow_linear(module: nn.Module, original: nn.Module, path: str, index: KeptIndex) -> None:
    linear = cast(nn.Linear, module)
    linear.out_features, linear.in_features = linear.weight.shape


def _follow_norm(module: nn.Module, original: nn.Module, path: str, index: KeptIndex) -> None:
    norm = cast(nn.BatchNorm2d, module)
    for vector in (norm.weight, norm.running_mean):
        if vector is not None:
            norm.num_features = vector.shape[0]


def _follow_prelu(module: nn.Module, original: nn.Module, path: str, index: KeptIndex) -> None:
    prelu = cast(nn.PReLU, module)
    prelu.num_parameters = prelu.weight.shape[0]


def _follow_pad(module: nn.Module, original: nn.Module, path: str, index: KeptIndex) -> None:
    """Pad as many channels on each side as the block's output stream keeps there."""
    shortcut, old = cast(BasicBlock, module).shortcut, cast(BasicBlock, original)
    kept = index.get(f"{path}.bn2.weight", {}).get(0)
    if isinstance(shortcut, PadShortcut) and kept is not None:
        end = old.bn2.num_features - shortcut.after
        shortcut.before = int((kept < shortcut.before).sum())
        shortcut.after = int((kept >= end).sum())


_Follow = Callable[[nn.Module, nn.Module, str, KeptIndex], None]
_FOLLOW: tuple[tuple[type[nn.Module], _Follow], ...] = (
    (nn.modules.conv._ConvNd, _follow_conv),
    (nn.Linear, _follow_linear),
    (nn.modules.batchnorm._NormBase, _follow_norm),
    (nn.PReLU, _follow_prelu),
    (BasicBlock, _follow_pad),
)
