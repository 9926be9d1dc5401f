"""Adapted layers whose change lies at the centre tap of the kernel."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.adapters.frozen import adapted_conv, adapted_linear, geometry, merge_tap
from fedsprig.adapters.layer import AdapterLayer


class TapLayer(AdapterLayer):
    """A layer that acts by ``W + D``, D at the tap ``(height // 2, width // 2, ...)``."""

    plain: ClassVar[type[nn.Module]]

    @abstractmethod
    def change(self) -> tuple[Tensor, Tensor | None]:
        """Return ``(B, A)`` with ``D = B A``, or ``(D, None)``; D is ``[out, in / groups]``."""

    def merged_weight(self) -> Tensor:
        """Return ``W + D``, of the shape of W."""
        return merge_tap(self.weight, *self.change())

    def to_plain_(self) -> None:
        """Fold D into the weight and become the plain layer again, in place."""
        merged = self.merged_weight().detach()
        for name in [name for name in self._parameters if name.startswith("adapter_")]:
            delattr(self, name)
        self.weight = nn.Parameter(merged)
        self.__class__ = self.plain  # type: ignore[assignment]


class TapConv(TapLayer):
    """A convolution of any stride, padding, dilation and grouping."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[n, in, *space]`` (or ``[in, *space]``) as the plain layer does."""
        assert isinstance(self, nn.modules.conv._ConvNd)  # noqa: S101 - by construction
        space = len(self.kernel_size)
        x = input if input.ndim == space + 2 else input[None]
        # Twice for every axis, last axis first, as F.pad takes it: before and after may differ.
        pads = tuple(self._reversed_padding_repeated_twice)
        padding = pads[::-2]
        if self.padding_mode != "zeros":
            x = F.pad(x, pads, mode=self.padding_mode)
            padding = (0,) * space
        elif padding != pads[-2::-2]:
            x = F.pad(x, pads)
            padding = (0,) * space
        how = geometry(self.kernel_size, self.stride, padding, self.dilation, self.groups)
        out = adapted_conv(x, self.weight, self.bias, *self.change(), how)
        return out if x.ndim == input.ndim else out[0]


class TapLinear(TapLayer):
    """A linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        assert isinstance(self, nn.Linear)  # noqa: S101 - by construction
        return adapted_linear(input, self.weight, self.bias, *self.change())
