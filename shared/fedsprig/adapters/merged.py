"""Adapted layers that act by one merged weight: W and a change at the centre of its kernel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.adapters.frozen import adapted_conv, adapted_linear, merge_delta
from fedsprig.adapters.layer import AdapterLayer, Site
from fedsprig.adapters.pointwise import Geometry


class MergedLayer(AdapterLayer):
    """A layer that acts by ``W + D``, D at the centre ``(height // 2, width // 2, ...)``."""

    @classmethod
    @abstractmethod
    def adopt_(cls, source: nn.Module, site: Site) -> None:
        """Make an adapted layer of a plain one, in place.

        The module stays the same object, with its hooks, its mode and whoever holds it; the adapter
        has its dtype and device. On the meta device it is shapes, like the rest.
        """

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
        none = (0,) * space
        padding = none if isinstance(self.padding, str) else self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = none
        elif self.padding == "same":
            sides = zip(self.kernel_size, self.dilation, strict=True)
            totals = [step * (taps - 1) for taps, step in sides]
            padding = tuple(total // 2 for total in totals)
            # An even kernel needs one more at the end; F.pad takes the last axis first.
            if any(total % 2 for total in totals):
                x = F.pad(x, [side for total in reversed(totals) for side in (0, total % 2)])
        how = Geometry(self.stride, padding, self.dilation, self.groups)
        out = adapted_conv(x, self.weight, self.bias, *self.delta(), how)
        return out if x.ndim == input.ndim else out[0]


class MergedLinear(MergedLayer):
    """A linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        assert isinstance(self, nn.Linear)  # noqa: S101 - by construction
        return adapted_linear(input, self.weight, self.bias, *self.delta())


class MergedKind:
    """A kind that adapts plain convolutions and linear layers, each by a class of its own.

    A subclass of theirs may compute something else by its weight or be read by another module (the
    output projection of ``nn.MultiheadAttention`` is), so only the exact types are taken.

    Attributes:
        layers: Type of the plain layer -> that of the adapted one. Both are written out in a
            module, not made by a function: adapted networks are copied and pickled.
    """

    layers: ClassVar[Mapping[type[nn.Module], type[MergedLayer]]]
    freezes = True

    def fits(self, module: nn.Module) -> bool:
        """Whether the module is a plain convolution or linear layer."""
        return type(module) in self.layers

    def adapt_(self, layers: Mapping[str, tuple[nn.Module, Site]]) -> None:
        """Put the adapter beside every layer."""
        for module, site in layers.values():
            self.layers[type(module)].adopt_(module, site)
