"""Where adapters sit: a layer and what a mask has left of it, checked before any change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from fedsprig.adapters.layer import Site
from fedsprig.adapters.ranks import RankRule
from fedsprig.errors import AdapterError
from fedsprig.graph.index import Kept, KeptIndex


def describe_site(
    path: str,
    module: nn.Module,
    *,
    rank: int,
    rule: RankRule,
    seed: int,
    train_a: bool,
    kept: KeptIndex,
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> Site:
    """Describe a layer of a model that has been cut as ``kept`` says; see ``attach``.

    Raises:
        AdapterError: The kept positions are malformed, or the layer is not what they leave.
    """
    name = f"{path}.weight" if path else "weight"
    found = tuple(module.get_parameter("weight").shape)
    full = found if shapes is None else shapes.get(name)
    if full is None:
        raise AdapterError(f"the shapes know no {name}: pass those of this model's plan")
    axes = _positions(name, kept.get(name, {}), full)
    expected = tuple(len(axes[i]) if i in axes else length for i, length in enumerate(full))
    if found != expected:
        raise AdapterError(
            f"{name} has shape {list(found)}, the mask leaves {list(expected)}: "
            "pass kept and shapes of the mask that cut this model"
        )
    return Site(
        path=path,
        shape=full,
        kept=axes,
        rank=rule(rank, full, found),
        seed=seed,
        train_a=train_a,
    )


def _positions(name: str, axes: Any, full: tuple[int, ...]) -> dict[int, Kept]:
    """The kept positions of a weight by axis, int64, believing nothing."""
    mend = "pass what graph.kept_index gives for the mask that cut this model"
    if not isinstance(axes, Mapping):
        raise AdapterError(f"the kept positions of {name} are not by axis: {mend}")
    checked: dict[int, Kept] = {}
    for axis, positions in axes.items():
        if type(axis) is not int or not 0 <= axis < len(full):
            raise AdapterError(f"{name} has no axis {axis!r:.20} to keep positions of: {mend}")
        what = f"the kept positions of {name} along axis {axis}"
        if not isinstance(positions, np.ndarray) or positions.dtype.kind not in "iu":
            raise AdapterError(f"{what} are no array of integers: {mend}")
        if positions.ndim != 1 or not positions.size:
            raise AdapterError(f"{what} have shape {list(positions.shape)}: {mend}")
        if (positions[1:] <= positions[:-1]).any():
            raise AdapterError(f"{what} do not rise from one to the next: {mend}")
        if positions[0] < 0 or positions[-1] >= full[axis]:
            raise AdapterError(
                f"{what} go from {positions[0]} to {positions[-1]}, the axis of shape "
                f"{list(full)} from 0 to {full[axis] - 1}: {mend}"
            )
        checked[axis] = positions.astype(np.int64)
    return checked
