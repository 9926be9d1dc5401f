"""Score sets: one float per unit, higher = keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.artifacts.container import Limits, pack, unpack
from fedsprig.artifacts.digest import digest
from fedsprig.errors import ArtifactError, PlanError, ScoreError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.layout import Layout, levelled

Floats = NDArray[np.float32]

_KIND: Final = "score set"
_VERSION: Final = "1"
_LIMITS: Final = Limits(total_bytes=256 << 20, tensors=1)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreSet:
    """How much each unit matters; immutable, finite, equal by value.

    Attributes:
        groups: group name -> float32 ``[units]``, read-only. Other real dtypes are converted when
            given.
        layout: the canonical order of the groups.
        flat: float32 ``[all units]`` in that order, read-only.

    Raises:
        ScoreError: a NaN or an infinity, or a number that float32 cannot hold.
        PlanError: a group that is not a vector of real numbers with at least one unit.
    """

    groups: Mapping[str, Floats]
    layout: Layout = field(init=False, repr=False)
    flat: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, values in self.groups.items():
            if values.dtype.kind not in "fiu" or values.ndim != 1 or not values.size:
                raise PlanError(
                    f"the scores of {name} are {values.dtype} {values.shape}: use float [units]"
                )
        layout = Layout.of(self.groups)
        parts: list[NDArray[Any]] = [self.groups[name] for name in layout.names]
        with np.errstate(over="ignore"):
            flat = np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float32)
        flat += np.float32(0)  # -0.0 becomes 0.0: equal score sets must have equal bytes
        if not np.isfinite(flat).all():
            bad = int(np.flatnonzero(~np.isfinite(flat))[0])
            group = int(np.searchsorted(layout.starts, bad, side="right")) - 1
            unit = bad - int(layout.starts[group])
            raise ScoreError(
                f"unit {unit} of group {layout.names[group]} has the score {flat[bad]}: "
                "score again with finite weights and pictures"
            )
        flat.setflags(write=False)
        views = layout.split(flat)
        object.__setattr__(self, "groups", {name: views[name] for name in self.groups})
        object.__setattr__(self, "layout", layout)
        object.__setattr__(self, "flat", flat)

    def check(self, plan: GroupPlan) -> None:
        """Refuse scores of other groups than the plan's.

        Raises:
            PlanError: groups or sizes differ.
        """
        self.layout.check(Layout.of_plan(plan), "the score set")

    def normalised(self) -> ScoreSet:
        """Every group divided by its root mean square, so that groups can be ranked together.

        Molchanov et al. 2017 (arXiv 1611.06440, section 2.2) divide by the L2 norm. That makes a
        unit's score fall with the width of its group, and a global ranking then strips wide layers
        to their floors; with the root mean square, groups of every width compare unit by unit
        (docs/experiments.md, "Normalising scores"). A group of zeros stays zero.
        """
        values = levelled(self.flat[None], self.layout.sizes)[0]
        return ScoreSet(self.layout.split(values.astype(np.float32)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreSet):
            return NotImplemented
        return self.layout == other.layout and bool(np.array_equal(self.flat, other.flat))

    def __hash__(self) -> int:
        return hash((self.layout, self.flat.tobytes()))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of :meth:`to_bytes`."""
        return digest(self.to_bytes())

    def to_bytes(self) -> bytes:
        """One safetensors artefact with the flat array; equal score sets give equal bytes."""
        metadata = {"kind": _KIND, "version": _VERSION, "layout": self.layout.digest.hex()}
        return pack({"scores": self.flat}, metadata)

    @classmethod
    def from_bytes(cls, data: bytes, plan: GroupPlan) -> ScoreSet:
        """Read what :meth:`to_bytes` wrote for the same groups.

        Raises:
            ArtifactError: no artefact, or one of another kind (its subclasses: truncated, too
            large).
            PlanError: scores of other groups.
            ScoreError: a score that is not finite.
        """
        arrays, metadata = unpack(data, limits=_LIMITS)
        if (metadata.get("kind"), metadata.get("version")) != (_KIND, _VERSION):
            raise ArtifactError(f"no score set of version {_VERSION}: write it with this release")
        layout = Layout.of_plan(plan)
        if metadata.get("layout") != layout.digest.hex():
            raise PlanError("the scores are of another plan: use the plan that they were made with")
        flat = arrays.get("scores")
        if flat is None or flat.dtype != np.float32 or flat.shape != (layout.units,):
            raise ArtifactError(f"the score set holds no float32 [{layout.units}]: fetch it again")
        views = layout.split(flat)
        return cls({group.name: views[group.name] for group in plan.groups})


def weighted_sum(sets: Sequence[ScoreSet], weights: Sequence[float] | NDArray[Any]) -> ScoreSet:
    """``sum_j weights[j] * sets[j]``, accumulated in float64 in the order given.

    Args:
        sets: at least one, all of the same groups; normalise them first where their scales differ.
        weights: one per set; they need not sum to 1.

    Raises:
        ScoreError: no set, another number of weights, or a weight that is not finite.
        PlanError: sets of different groups.
    """
    factors = np.asarray(weights, np.float64)
    if not sets or factors.shape != (len(sets),):
        raise ScoreError(
            f"{len(sets)} score sets and {factors.size} weights: give one for each, at least one"
        )
    if not np.isfinite(factors).all():
        raise ScoreError("a weight of a score set is not finite: check the similarities")
    total = np.zeros(sets[0].flat.size, np.float64)
    for scores, factor in zip(sets, factors, strict=True):
        scores.layout.check(sets[0].layout, "a score set")
        total += factor * scores.flat
    with np.errstate(over="ignore"):  # refused just below, by name
        flat = total.astype(np.float32)
    return ScoreSet(sets[0].layout.split(flat))
