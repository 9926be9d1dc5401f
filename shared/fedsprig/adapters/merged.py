"""Adapted layers that act by one merged weight: W and a change at the centre of its kernel."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.adapters.frozen import adapted_conv, adapted_linear, merge_delta
from fedsprig.adapters.layer import AdapterLayer
from fedsprig.adapters.pointwise import Geometry


class MergedLayer(AdapterLayer):
    """A layer that acts by ``W + D``, D at the centre ``(height // 2, width // 2, ...)``."""

    @abstractmethod
    def delta(self) -> tuple[Tensor, Tensor | None]:
        """Return ``(B, A)`` with ``D = B A``, or ``(D, None)``; D is ``[out, in / groups]``."""

    def merged_weight(self) -> Tensor:
        """Return ``W + D``, of the shape of W."""
        return merge_delta(self.weight, *self.delta())


class MergedConv(MergedLayer):
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
        how = Geometry(self.stride, padding, self.dilation, self.groups)
        out = adapted_conv(x, self.weight, self.bias, *self.delta(), how)
        return out if x.ndim == input.ndim else out[0]


class MergedLinear(MergedLayer):
    """A linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        assert isinstance(self, nn.Linear)  # noqa: S101 - by construction
        return adapted_linear(input, self.weight, self.bias, *self.delta())
