"""Self-attention whose heads can be removed one by one.

The usual modules tie the width of a head to ``embed_dim / num_heads``, so that dropping a head is
impossible. Here a head's width is its own: ``h`` heads of width ``d`` read ``[e]`` features and
write ``[e]`` features through an inner width ``h * d`` that shrinks with the heads. Parameter names
are those of the modules they replace, but for ``nn.MultiheadAttention``'s bare input projection
(:func:`own_names` translates a state). All projections are linear layers that are called as such,
so that they can be adapted, and the output projection's input, one block per head, be observed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Where the heads lie in an attention module's tensors (names within the module).

    Attributes:
        packed: tensors whose axis 0 is query, key and value, each ``[heads * width]``.
        projection: the module that maps ``[heads * width]`` back to the features.
        per_head: (tensor, axis) with one position per head.
    """

    packed: tuple[str, ...]
    projection: str
    per_head: tuple[tuple[str, int], ...] = ()


class PrunableAttention(nn.Module):
    """What the three attention modules share: how heads lie, and following a cut.

    Attributes:
        num_heads: heads that are left.
        head_dim: width of one head; constant.
    """

    layout: ClassVar[HeadLayout]
    num_heads: int
    head_dim: int

    def head_macs(self, shape: tuple[int, ...]) -> int:
        """MACs of one head's two products, ``q k^T`` and ``a v``.

        Args:
            shape: of the module's input, tokens ``[n, t, e]``.
        """
        batch, tokens = shape[0], shape[1]
        return 2 * batch * tokens * tokens * self.head_dim

    def follow_shapes(self) -> None:
        """Set the number of heads to what the output projection's width says."""
        self.num_heads = self._width() // self.head_dim

    def _width(self) -> int:
        projection = self.get_submodule(self.layout.projection)
        assert isinstance(projection, nn.Linear)  # noqa: S101 - by construction
        return projection.weight.shape[1]

    def _split(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[n, t, 3 h d]`` to query, key and value, each ``[n, h, t, d]``."""
        n, t, _ = packed.shape
        parts = packed.reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        return query, key, value


class SelfAttention(PrunableAttention):
    """Multi-head self-attention with linear ``qkv`` and ``proj`` (Vaswani et al. 2017, 3.2.2)."""

    layout = HeadLayout(packed=("qkv.weight", "qkv.bias"), projection="proj")

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"{embed_dim} features do not divide into {num_heads} heads")
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[n, t, e]`` to ``[n, t, e]``."""
        mixed = F.scaled_dot_product_attention(*self._split(self.qkv(x)))
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class PackedAttention(PrunableAttention):
    """Stands in for ``nn.MultiheadAttention(batch_first=True)`` where it is self-attention."""

    layout = HeadLayout(packed=("in_proj.weight", "in_proj.bias"), projection="out_proj")

    def __init__(self, source: nn.MultiheadAttention) -> None:
        """Take over the parameters of ``source``; they are shared, not copied."""
        super().__init__()
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.dropout = source.dropout
        weight, bias = source.in_proj_weight, source.in_proj_bias
        assert weight is not None  # noqa: S101 - what fits() says
        self.in_proj = _linear(weight, bias)
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias)

    @staticmethod
    def fits(source: nn.Module) -> bool:
        """Whether a module is an attention that this one can stand in for."""
        return (
            type(source) is nn.MultiheadAttention
            and source.batch_first
            and source.in_proj_weight is not None
            and source.bias_k is None
            and not source.add_zero_attn
        )

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = False
    ) -> tuple[Tensor, None]:
        """Map ``query``, which must be ``key`` and ``value`` too, ``[n, t, e]`` to ``[n, t, e]``.

        Raises:
            ValueError: another key or value, or the attention weights are asked for.
        """
        if key is not query or value is not query or need_weights:
            raise ValueError("only self-attention without its weights is supported")
        mixed = F.scaled_dot_product_attention(
            *self._split(self.in_proj(query)), dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class WindowAttention(PrunableAttention):
    """Stands in for torchvision's ``ShiftedWindowAttention`` (Liu et al. 2021, "Swin", 3.2)."""

    layout = HeadLayout(
        packed=("qkv.weight", "qkv.bias"),
        projection="proj",
        per_head=(("relative_position_bias_table", 1),),
    )

    relative_position_index: Tensor

    def __init__(self, source: nn.Module) -> None:
        """Take over the parameters of ``source``; they are shared, not copied."""
        super().__init__()
        known: Any = source
        self.window: tuple[int, int] = tuple(known.window_size)
        self.shift: tuple[int, int] = tuple(known.shift_size)
        self.num_heads = int(known.num_heads)
        self.head_dim = int(known.proj.in_features) // self.num_heads
        self.attention_dropout, self.dropout = known.attention_dropout, known.dropout
        self.qkv: nn.Linear = known.qkv
        self.proj: nn.Linear = known.proj
        self.relative_position_bias_table: nn.Parameter = known.relative_position_bias_table
        self.register_buffer("relative_position_index", known.relative_position_index)

    @staticmethod
    def fits(source: nn.Module) -> bool:
        """Whether a module is an attention that this one can stand in for."""
        kind = type(source)  # compared by name: torchvision need not be imported for this
        return (
            kind.__module__ == "torchvision.models.swin_transformer"
            and kind.__name__ == "ShiftedWindowAttention"
        )

    def head_macs(self, shape: tuple[int, ...]) -> int:
        """MACs of one head's two products over all windows; ``shape`` is ``[n, h, w, e]``."""
        batch, height, width = shape[0], shape[1], shape[2]
        rows, columns = (
            -(-size // side) for size, side in zip((height, width), self.window, strict=True)
        )
        tokens = self.window[0] * self.window[1]
        return 2 * batch * rows * columns * tokens * tokens * self.head_dim

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, h, w, e]`` to ``[n, h, w, e]``, attending within shifted windows."""
        n, height, width, _ = x.shape
        rows, columns = self.window
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        tall, wide = x.shape[1], x.shape[2]
        # A window as large as the picture has nothing to shift against.
        down = self.shift[0] if rows < tall else 0
        right = self.shift[1] if columns < wide else 0
        x = torch.roll(x, (-down, -right), (1, 2))
        tokens = _to_windows(x, rows, columns)
        bias = self._position_bias()
        if down or right:
            regions = _region_mask(tall, wide, rows, columns, down, right).to(x)
            bias = (bias + regions.unsqueeze(1)).repeat(n, 1, 1, 1)
        mixed = F.scaled_dot_product_attention(
            *self._split(self.qkv(tokens)),
            attn_mask=bias,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        out = self.proj(mixed.transpose(1, 2).flatten(2))
        out = F.dropout(out, self.dropout, self.training)
        out = _from_windows(out, n, tall, wide, rows, columns)
        return torch.roll(out, (down, right), (1, 2))[:, :height, :width].contiguous()

    def _position_bias(self) -> Tensor:
        """``[1, heads, tokens, tokens]``."""
        tokens = self.window[0] * self.window[1]
        bias = self.relative_position_bias_table[self.relative_position_index]
        return bias.view(tokens, tokens, -1).permute(2, 0, 1).unsqueeze(0)


def install_prunable_heads(model: nn.Module) -> nn.Module:
    """Replace the attention modules that have a prunable stand-in, in place; outputs stay.

    Returns:
        ``model`` itself.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if PackedAttention.fits(child):
                assert isinstance(child, nn.MultiheadAttention)  # noqa: S101 - what fits() says
                setattr(module, name, PackedAttention(child).train(child.training))
            elif WindowAttention.fits(child):
                setattr(module, name, WindowAttention(child).train(child.training))
    return model


def own_names(model: nn.Module, state: Mapping[str, _Value]) -> dict[str, _Value]:
    """A state by this model's names, where it was saved before its attention was replaced."""
    renamed = {}
    for path, module in model.named_modules():
        if isinstance(module, PackedAttention):
            prefix = f"{path}." if path else ""
            for name in ("weight", "bias"):
                renamed[f"{prefix}in_proj_{name}"] = f"{prefix}in_proj.{name}"
    return {renamed.get(name, name): tensor for name, tensor in state.items()}


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A plain linear layer of these parameters."""
    with torch.device("meta"):
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    plain.weight, plain.bias = cast(nn.Parameter, weight), cast(nn.Parameter, bias)
    return plain


def _to_windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """``[n, h, w, e]`` to ``[n * windows, rows * columns, e]``."""
    n, height, width, e = x.shape
    x = x.reshape(n, height // rows, rows, width // columns, columns, e)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, e)


def _from_windows(x: Tensor, n: int, height: int, width: int, rows: int, columns: int) -> Tensor:
    """The inverse of :func:`_to_windows`."""
    x = x.reshape(n, height // rows, width // columns, rows, columns, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, -1)


def _region_mask(height: int, width: int, rows: int, columns: int, down: int, right: int) -> Tensor:
    """``[windows, tokens, tokens]``: -100 between tokens that the shift brought together."""
    vertical = torch.zeros(height, dtype=torch.long)
    vertical[height - rows :] = 1
    vertical[height - down :] += 1
    horizontal = torch.zeros(width, dtype=torch.long)
    horizontal[width - columns :] = 1
    horizontal[width - right :] += 1
    region = (3 * vertical.unsqueeze(1) + horizontal.unsqueeze(0)).view(1, height, width, 1)
    labels = _to_windows(region, rows, columns).squeeze(-1)
    return torch.where(labels.unsqueeze(1) == labels.unsqueeze(2), 0.0, -100.0)
