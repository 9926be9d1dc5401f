"""Attention heads as units: explicit rules, one for every kind of attention that can lose heads.

Heads couple nothing outside their module, so a rule needs only the layout of the module's own
tensors. Our attention modules state theirs; timm's ``Attention`` is described here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from fedsprig.graph.plan import AxisMap, Group, Tap
from fedsprig.models.attention import HeadLayout, PrunableAttention

_TIMM = HeadLayout(packed=("qkv.weight", "qkv.bias"), projection="proj")

# Attention that cannot lose heads, by name (none of these packages need be imported):
# (weight that writes the features, weight that reads them).
_WHOLE = {
    "torch.nn.modules.activation.MultiheadAttention": ("out_proj.weight", "in_proj_weight"),
    "torchvision.models.swin_transformer.ShiftedWindowAttention": ("proj.weight", "qkv.weight"),
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": ("proj.weight", "qkv.weight"),
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": (
        "merge.weight",
        "to_qkv.weight",
    ),
    "timm.layers.attention.Attention": ("proj.weight", "qkv.weight"),
    "timm.models.beit.Attention": ("proj.weight", "qkv.weight"),
    "timm.models.swin_transformer.WindowAttention": ("proj.weight", "qkv.weight"),
}


def head_layout(module: nn.Module) -> HeadLayout | None:
    """Where the heads of a module lie; None if it is no attention that can lose heads."""
    if isinstance(module, PrunableAttention):
        return module.layout
    return _TIMM if _is_timm_attention(module) else None


def why_whole(module: nn.Module) -> str | None:
    """Why an attention module must keep all its heads; None for every other module."""
    if head_layout(module) is None and _kind(module) in _WHOLE:
        return f"{type(module).__name__} cannot run with fewer heads"
    return None


def feature_ports(module: nn.Module) -> tuple[str, str] | None:
    """(weight that writes the features, weight that reads them) of an attention module.

    None for every other module, and for attention that nothing is known of.
    """
    layout = head_layout(module)
    if layout is not None:
        return f"{layout.projection}.weight", layout.packed[0]
    ports = _WHOLE.get(_kind(module))
    return ports if ports and ports[1] in dict(module.named_parameters()) else None


def head_macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """MACs of one head's two products for an input of ``shape``."""
    if isinstance(module, PrunableAttention):
        return module.head_macs(shape)
    known: Any = module
    batch, tokens = shape[0], shape[1]
    return 2 * batch * tokens * tokens * int(known.head_dim)


def follow_heads(module: nn.Module) -> None:
    """Set a module's head count to what its tensors say, in place."""
    if isinstance(module, PrunableAttention):
        module.follow_shapes()
    elif _is_timm_attention(module):
        known: Any = module
        known.attn_dim = known.proj.weight.shape[1]
        known.num_heads = known.attn_dim // known.head_dim


def head_group(name: str, module: nn.Module, layout: HeadLayout) -> Group:
    """The heads of one attention module as a group, named by the module's path."""
    known: Any = module
    heads, width = int(known.num_heads), int(known.head_dim)
    inner = np.arange(heads * width, dtype=np.int32).reshape(heads, width)
    packed = np.concatenate([inner + part * heads * width for part in range(3)], axis=1)
    own = dict(module.named_parameters())
    axes = [
        AxisMap(f"{name}.{tensor}", 0, packed, "out")
        for tensor in layout.packed
        if tensor in own  # a bias may be absent
    ]
    axes.append(AxisMap(f"{name}.{layout.projection}.weight", 1, inner, "in"))
    single = np.arange(heads, dtype=np.int32)[:, None]
    axes += [AxisMap(f"{name}.{tensor}", axis, single, "in") for tensor, axis in layout.per_head]
    tap = Tap(f"{name}.{layout.projection}", "input", -1, inner)
    return Group(name, heads, "heads", tuple(axes), (tap,))


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_timm_attention(module: nn.Module) -> bool:
    # Compared by name: timm is optional. A gate or a norm over all heads would couple them.
    if _kind(module) != "timm.layers.attention.Attention":
        return False
    known: Any = module
    return known.gate is None and isinstance(known.norm, nn.Identity)
