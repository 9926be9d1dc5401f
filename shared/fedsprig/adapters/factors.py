"""The two factors of a low-rank adapter, by name, and which of them train at a time.

A layer's product ``B A`` is linear in either factor while the other stays as it is: then the mean
of what devices trained is the mean of their products, exactly.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal, get_args

Trains = Literal["a", "b", "both"]
TRAINS: Final[tuple[Trains, ...]] = get_args(Trains)

_SUFFIXES: Final = {"a": "adapter_a", "b": "adapter_b"}
_OTHER: Final = {"adapter_a": "adapter_b", "adapter_b": "adapter_a"}


def is_factor(name: str) -> bool:
    """Whether a state name is that of A or B."""
    return name.rpartition(".")[2] in _OTHER


def partner(name: str) -> str:
    """The name of A for that of its B, and of B for that of its A."""
    module, dot, suffix = name.rpartition(".")
    return module + dot + _OTHER[suffix]


def held(names: Collection[str], trains: str) -> frozenset[str]:
    """Names of the factors that stay as they are, in layers that have both among ``names``.

    A layer that has one factor there, since the other never changes, trains that one whatever
    ``trains`` says; so does an adapter of another form.

    Args:
        names: Of everything that can train.
        trains: One of ``TRAINS``.
    """
    if trains == "both":
        return frozenset()
    return frozenset(
        name
        for name in names
        if is_factor(name)
        and name.rpartition(".")[2] != _SUFFIXES[trains]
        and partner(name) in names
    )
