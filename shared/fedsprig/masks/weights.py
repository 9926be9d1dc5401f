"""Weight masks: one bool per single weight of some tensors, True = keep.

What unstructured and N:M pruning leave: every tensor keeps its shape, and absent weights are zero.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedsprig.artifacts.container import Limits, pack, unpack
from fedsprig.artifacts.digest import digest
from fedsprig.errors import ArtifactError, PlanError
from fedsprig.masks.bits import Bools, pack_bits, unpack_bits
from fedsprig.masks.costs import BYTES_PER_PARAMETER

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]

_KIND: Final = "weight mask"
_VERSION: Final = "1"
_LIMITS: Final = Limits(total_bytes=64 << 20, tensors=1)
_MAX_TENSORS: Final = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class WeightMask:
    """Which weights of some tensors stay; immutable, equal by value.

    Attributes:
        tensors: parameter name -> bool of the parameter's shape, read-only, in the order of the
            names. Parameters that are not named stay whole.
        flat: bool ``[all weights under the mask]``, tensor after tensor, row-major, read-only.

    Raises:
        PlanError: a tensor that holds no bools, or nothing.
    """

    tensors: Mapping[str, Bools]
    flat: Bools = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, keep in self.tensors.items():
            if keep.dtype != np.bool_ or not keep.ndim or not keep.size:
                raise PlanError(
                    f"the weight mask of {name} is {keep.dtype} {keep.shape}: use bool of the "
                    "weight's shape"
                )
        shapes = {name: self.tensors[name].shape for name in sorted(self.tensors)}
        parts = [self.tensors[name].ravel() for name in shapes]
        flat = np.concatenate([np.zeros(0, np.bool_), *parts])
        flat.setflags(write=False)
        object.__setattr__(self, "tensors", MappingProxyType(_split(flat, shapes)))
        object.__setattr__(self, "flat", flat)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor under the mask, in the order of the names."""
        return {name: keep.shape for name, keep in self.tensors.items()}

    @property
    def size(self) -> int:
        """Weights under the mask, kept or not."""
        return int(self.flat.size)

    @property
    def kept(self) -> int:
        """Weights that stay."""
        return int(np.count_nonzero(self.flat))

    def stored_bytes(self, parameters: int) -> int:
        """What the network takes where it is stored.

        That is float32 for each weight that stays and each parameter that is not under the mask,
        and one bit for each that is, kept or not.

        Args:
            parameters: of the whole network, those under the mask included.
        """
        return BYTES_PER_PARAMETER * (parameters - self.size + self.kept) + -(-self.size // 8)

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse a mask that does not fit parameters, or leaves nothing of one.

        Args:
            shapes: of a model's parameters by name; those that the mask does not name stay whole.

        Raises:
            PlanError: a parameter is unknown or of another shape, or would vanish.
        """
        for name, keep in self.tensors.items():
            _check_shape(name, keep.shape, shapes)
            if not keep.any():
                raise PlanError(f"the weight mask drops all of {name}: keep at least one weight")

    def apply_(self, target: nn.Module | Mapping[str, Any]) -> None:
        """Make absent weights exactly zero, in place, whatever they were (infinite ones too).

        Args:
            target: a network, or tensors or writable arrays by parameter name; those that the mask
                does not name are left alone.

        Raises:
            PlanError: a parameter is absent, of another shape or would vanish; nothing is changed
                then.
        """
        if isinstance(target, Mapping):
            state: dict[str, Any] = {n: target[n] for n in self.tensors if n in target}
        else:
            own = dict(target.named_parameters(remove_duplicate=False))
            state = {name: own[name].data for name in self.tensors if name in own}
        self.check({name: tuple(value.shape) for name, value in state.items()})
        for name, keep in self.tensors.items():
            value = state[name]
            if isinstance(value, np.ndarray):
                value[~keep] = 0
            else:
                import torch

                with torch.no_grad():
                    value.masked_fill_(torch.from_numpy(~keep).to(value.device), 0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WeightMask):
            return NotImplemented
        return self.shapes == other.shapes and bool(np.array_equal(self.flat, other.flat))

    def __hash__(self) -> int:
        return hash((tuple(self.shapes.items()), self.flat.tobytes()))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of :meth:`to_bytes`."""
        return digest(self.to_bytes())

    def to_bytes(self) -> bytes:
        """One safetensors artefact with one bit per weight; equal masks give equal bytes.

        ``bits`` uint8: the flat array, eight weights a byte, the first in the lowest bit, the last
        byte padded with zeros. The metadata name the tensors and hold a digest of their shapes,
        which the reader knows.
        """
        names = json.dumps(list(self.tensors), separators=(",", ":"), ensure_ascii=False)
        metadata = {
            "kind": _KIND,
            "version": _VERSION,
            "tensors": names,
            "layout": _layout_digest(self.shapes),
        }
        return pack({"bits": pack_bits(self.flat)}, metadata)

    @classmethod
    def from_bytes(
        cls, data: bytes | bytearray | memoryview, shapes: Mapping[str, Sequence[int]]
    ) -> WeightMask:
        """Read what :meth:`to_bytes` wrote.

        Args:
            data: the bytes.
            shapes: of the model's parameters by name; more than those under the mask are welcome.

        Raises:
            TruncatedArtifactError: the bytes end too early.
            LimitError: larger than any mask.
            ArtifactError: no artefact, another kind, a malformed list of names, bits too many, or
                set ones in the padding.
            PlanError: a mask of other parameters.
        """
        arrays, metadata = unpack(data, limits=_LIMITS)
        if (metadata.get("kind"), metadata.get("version")) != (_KIND, _VERSION):
            raise ArtifactError(f"no weight mask of version {_VERSION}: write it with this release")
        own: dict[str, Shape] = {}
        for name in _read_names(metadata.get("tensors", "")):
            _check_shape(name, None, shapes)
            own[name] = tuple(shapes[name])
        if metadata.get("layout") != _layout_digest(own):
            raise PlanError(
                "the weight mask is of parameters of other shapes: use the network that it was "
                "made with"
            )
        size = sum(math.prod(shape) for shape in own.values())
        bits = unpack_bits(arrays.get("bits"), size, "the weight mask", "weights")
        return cls(_split(bits, own))


def _split(flat: Bools, shapes: Mapping[str, Shape]) -> dict[str, Bools]:
    """``[weights]`` -> views by tensor."""
    views: dict[str, Bools] = {}
    start = 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        views[name] = flat[start:end].reshape(shape)
        start = end
    return views


def _layout_digest(shapes: Mapping[str, Shape]) -> str:
    """Sixteen hexadecimal digits that differ for other tensors; they find mistakes, not attacks."""
    rows = [[name, *shape] for name, shape in shapes.items()]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()[:16]


def _read_names(text: str) -> list[str]:
    """The names of the tensors, believing nothing: printable, each once, in order."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list):
        raise ArtifactError("the weight mask has no list of tensors: write it anew")
    if len(names) > _MAX_TENSORS:
        raise ArtifactError(f"the weight mask has {len(names):,} tensors, over {_MAX_TENSORS:,}")
    for name in names:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ArtifactError(f"the weight mask has a bad tensor {name!r:.60}: write it anew")
    if any(first >= second for first, second in pairwise(names)):
        raise ArtifactError("the tensors of the weight mask are not in order: write it anew")
    return names


def _check_shape(name: str, shape: Shape | None, shapes: Mapping[str, Sequence[int]]) -> None:
    found = shapes.get(name)
    if found is None:
        raise PlanError(
            f"the weight mask names {name}, which is no parameter here: use the mask that was made "
            "for this network"
        )
    if shape is not None and tuple(found) != shape:
        raise PlanError(
            f"the weight mask is of {name} {list(shape)}, the network has {list(found)}: use the "
            "mask that was made for this network"
        )
