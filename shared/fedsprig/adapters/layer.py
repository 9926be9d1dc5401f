"""What every adapter kind has in common: where it sits, and what an adapted layer can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from fedsprig.graph.index import Kept


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One layer that is to be adapted.

    Attributes:
        path: Module path in the model.
        shape: Shape of the layer's weight in the uncut base model.
        kept: Kept positions of that weight by axis, where the layer has been cut.
        rank: Of this layer, after the rule for ranks.
        seed: What the fixed or initial factors are drawn from, together with ``path``.
        train_a: Whether the inner factor trains too.
    """

    path: str
    shape: tuple[int, ...]
    kept: Mapping[int, Kept]
    rank: int
    seed: int
    train_a: bool


class AdapterKind(Protocol):
    """One way to adapt a model; ``fedsprig.adapters.ADAPTERS`` lists them.

    A kind with settings of its own is a frozen dataclass of them.
    """

    freezes: bool
    """Whether the base's weights stay fixed beside the adapter."""

    factors: bool
    """Whether a layer's change is the product of ``adapter_b`` and ``adapter_a``."""

    def fits(self, module: nn.Module) -> bool:
        """Whether this kind adapts the module."""
        ...

    def adapt_(self, layers: Mapping[str, tuple[nn.Module, Site]]) -> None:
        """Turn modules that fit into adapted layers, in place, keeping their function.

        Args:
            layers: All layers of a model that are adapted, by path.
        """
        ...


class AdapterLayer(nn.Module, ABC):
    """A layer with an adapter: its own ``weight``, frozen, and the adapter beside.

    All that the adapter adds to the plain layer has a name that begins with ``adapter_``.

    Attributes:
        plain: The class of the plain layer.
    """

    plain: ClassVar[type[nn.Module]]
    weight: Tensor

    @abstractmethod
    def merged_weight(self) -> Tensor:
        """Return the weight that the layer acts by, of the shape of ``weight``."""

    def to_plain_(self, weight: Tensor) -> None:
        """Turn back into the plain layer, with this weight, in place."""
        for names in (self._parameters, self._buffers, self._modules, self.__dict__):
            for name in [name for name in names if name.startswith("adapter_")]:
                delattr(self, name)
        self.weight = nn.Parameter(weight.detach())
        self.__class__ = self.plain  # type: ignore[assignment]
