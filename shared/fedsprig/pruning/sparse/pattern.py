"""What is pruned: single weights anywhere, N of every M in a row, or whole units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from fedsprig.errors import BudgetError

Kind = Literal["unstructured", "n:m", "channels"]

_RATIO: Final = re.compile(r"([0-9]{1,6}):([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of zeros, and how a tensor lies in rows that are pruned each by themselves.

    **Unstructured:** a tensor is one row. **N:M:** of every ``M`` consecutive weights along the
    input axis, ``N`` stay: input channels at one position of a kernel, as NVIDIA's sparse tensor
    cores count them for channels-last convolutions, or input features. Inputs beyond the last whole
    row stay whole. **Channels:** whole units go, and nothing is zero.

    Attributes:
        kind: which of the three.
        kept: N of N:M, else 0.
        of: M of N:M, else 0.
    """

    kind: Kind
    kept: int = 0
    of: int = 0

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``unstructured``, ``channels``, or ``2:4``.

        Raises:
            BudgetError: a text that is none of these.
        """
        if text in ("unstructured", "channels"):
            return cls(text)  # type: ignore[arg-type]
        found = _RATIO.fullmatch(text)
        if found is None:
            raise BudgetError(
                f"the pattern is {text!r:.40}: write unstructured, channels or N:M, as in 2:4"
            )
        kept, of = int(found[1]), int(found[2])
        if not 1 <= kept < of:
            raise BudgetError(f"the pattern {text} keeps {kept} of {of}: keep 1 up to M - 1, 2:4")
        return cls("n:m", kept, of)

    @property
    def single(self) -> bool:
        """Whether single weights go, so that tensors keep their shapes."""
        return self.kind != "channels"

    def rows(self, weight: Tensor, axis: int) -> Tensor:
        """A weight in rows ``[rows, length]``; no row where it has fewer than ``M`` inputs.

        Args:
            weight: of any shape.
            axis: of its inputs.
        """
        if self.kind != "n:m":
            return weight.reshape(1, -1)
        inputs = weight.movedim(axis, -1)
        whole = inputs.shape[-1] // self.of * self.of
        return inputs[..., :whole].reshape(-1, self.of)

    def spread(self, rows: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
        """A mask ``[rows, length]`` in the shape of its weight; 1 beyond the rows.

        Args:
            rows: in the order of :meth:`rows`.
            shape: of the weight.
            axis: of its inputs.
        """
        if self.kind != "n:m":
            return rows.reshape(shape)
        outer = shape[:axis] + shape[axis + 1 :]
        whole = shape[axis] // self.of * self.of
        mask = rows.reshape(*outer, whole)
        if whole < shape[axis]:
            mask = torch.cat([mask, mask.new_ones(*outer, shape[axis] - whole)], -1)
        return mask.movedim(-1, axis)
