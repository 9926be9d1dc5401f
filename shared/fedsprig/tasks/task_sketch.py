"""Task sketches: what a server learns of a device's task without seeing a picture.

A sketch holds the mean feature vector of every class, the number of its pictures, and (optionally)
the mean activation of every unit of the base model. Features are what enters the classifier of the
**probe**, a network that is the same for all devices; sketches of different probes live in
different spaces and never mix.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.artifacts.container import Limits, pack, unpack
from fedsprig.artifacts.digest import digest
from fedsprig.errors import ProbeMismatchError, SketchError
from fedsprig.tasks.prototype_head import pooled_variance

KIND: Final = "fedsprig.sketch.1"
MAX_CLASS_NAME: Final = 200
LIMITS: Final = Limits(total_bytes=256 << 20, header_bytes=8 << 20, tensors=3)


@dataclass(frozen=True, slots=True, eq=False)
class TaskSketch:
    """The description of a labelled task.

    Attributes:
        probe: Digest that names the network which made the features.
        prototypes: float32 ``[classes, features]``: mean feature vector of every class; zero for a
            class without pictures.
        counts: int64 ``[classes]``: pictures of every class, at least one in all.
        classes: Names by class, printable, up to 200 characters, each empty where the owner keeps
            it private.
        fingerprint: float32 ``[units]``: mean absolute activation of every unit of the plan's
            groups, in their order; empty when it was not measured.
        groups: Units of each of these groups, in the same order; empty where they are not known,
            as in sketches of before they were kept.
        spread: How far pictures lie from their class means along the directions between these
            (:func:`fedsprig.tasks.projected_variance`); 0 where it is not known.

    Raises:
        SketchError: Shapes, dtypes or values that contradict the above.
    """

    probe: str
    prototypes: NDArray[np.float32]
    counts: NDArray[np.int64]
    classes: tuple[str, ...]
    fingerprint: NDArray[np.float32]
    groups: tuple[int, ...] = ()
    spread: float = 0.0

    def __post_init__(self) -> None:
        """Check everything that the types cannot say."""
        _require(len(self.probe) == 64 and set(self.probe) <= set("0123456789abcdef"), "probe")
        _require(self.prototypes.dtype == np.float32 and self.prototypes.ndim == 2, "prototypes")
        _require(0 not in self.prototypes.shape, "prototypes")
        _require(bool(np.isfinite(self.prototypes).all()), "prototypes")
        size = len(self.prototypes)
        _require(self.counts.dtype == np.int64 and self.counts.shape == (size,), "counts")
        _require(bool((self.counts >= 0).all()) and bool(self.counts.any()), "counts")
        _require(len(self.classes) == size, "classes")
        _require(all(map(_is_class_name, self.classes)), "classes")
        _require(self.fingerprint.dtype == np.float32 and self.fingerprint.ndim == 1, "fingerprint")
        _require(bool(np.isfinite(self.fingerprint).all()), "fingerprint")
        if self.groups:
            _require(all(map(_is_size, self.groups)), "groups")
            _require(sum(self.groups) == self.fingerprint.size, "groups")
        _require(type(self.spread) is float and 0 <= self.spread < np.inf, "spread")

    @property
    def pictures(self) -> int:
        """Number of pictures that the sketch describes."""
        return int(self.counts.sum())

    @property
    def present(self) -> NDArray[np.float32]:
        """Prototypes of the classes that have pictures: float32 ``[present, features]``."""
        has = self.counts > 0
        return self.prototypes if has.all() else self.prototypes[has]

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`to_bytes`, hexadecimal."""
        return digest(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The sketch as an artefact; equal sketches give equal bytes."""
        arrays: dict[str, NDArray[Any]] = {"counts": self.counts, "prototypes": self.prototypes}
        if self.fingerprint.size:
            arrays["fingerprint"] = self.fingerprint
        metadata = {"kind": KIND, "probe": self.probe, "classes": _json(self.classes)}
        if self.groups:
            metadata["groups"] = _json(self.groups)
        if self.spread:
            metadata["spread"] = _json(self.spread)
        return pack(arrays, metadata)

    @classmethod
    def from_bytes(cls, data: bytes) -> TaskSketch:
        """Read what :meth:`to_bytes` wrote, checking everything.

        Raises:
            ArtifactError: The bytes are no artefact (truncated, too large, ...).
            SketchError: An artefact, but no sketch.
        """
        arrays, metadata = unpack(data, limits=LIMITS)
        if metadata.get("kind") != KIND or not {"counts", "prototypes"} <= arrays.keys():
            raise SketchError(f"the artefact is no {KIND}: describe the task again")
        classes, groups = (_read_json(metadata.get(key, "[]")) for key in ("classes", "groups"))
        _require(isinstance(classes, list), "classes")
        _require(isinstance(groups, list), "groups")
        return cls(
            probe=metadata.get("probe", ""),
            prototypes=arrays["prototypes"],
            counts=arrays["counts"],
            classes=tuple(classes),
            fingerprint=arrays.get("fingerprint", np.zeros(0, np.float32)),
            groups=tuple(groups),
            spread=_read_json(metadata.get("spread", "0.0")),
        )

    @classmethod
    def merge(cls, sketches: Sequence[TaskSketch]) -> TaskSketch:
        """Join the sketches of one task's devices into the sketch of all their pictures.

        Class ``c`` of the result is the mean over the pictures of class ``c`` on all devices, so
        that the result equals a sketch made of all pictures at once. A class name that some devices
        keep private is taken from those that do not. The spread is the mean over pictures of the
        devices that tell theirs (each around its own class means): one with a single class cannot.

        Raises:
            ProbeMismatchError: The sketches are of different probes.
            SketchError: There are none, or their classes, features or fingerprints differ.
        """
        if not sketches:
            raise SketchError("no sketch to merge: wait for at least one device")
        first = sketches[0]
        weights = np.array([item.counts for item in sketches], np.float64)
        for item in sketches[1:]:
            check_same_probe(first.probe, item.probe)
            if (
                item.prototypes.shape != first.prototypes.shape
                or item.fingerprint.shape != first.fingerprint.shape
                or item.groups != first.groups
            ):
                raise SketchError(
                    f"sketches of one task have prototypes {first.prototypes.shape} and "
                    f"{item.prototypes.shape}, fingerprints {first.fingerprint.shape} and "
                    f"{item.fingerprint.shape}: describe all with one list of classes"
                )
        totals = weights.sum(axis=0)
        sums = np.zeros(first.prototypes.shape)
        fingerprint = np.zeros(first.fingerprint.shape)
        shares = weights.sum(axis=1) / totals.sum()
        for counts, share, item in zip(weights, shares, sketches, strict=True):
            sums += counts[:, None] * item.prototypes
            fingerprint += share * item.fingerprint
        return cls(
            probe=first.probe,
            prototypes=(sums / np.maximum(totals, 1.0)[:, None]).astype(np.float32),
            counts=totals.astype(np.int64),
            classes=tuple(
                _one_name(names) for names in zip(*(s.classes for s in sketches), strict=True)
            ),
            fingerprint=fingerprint.astype(np.float32),
            groups=first.groups,
            spread=pooled_variance(
                [item.spread for item in sketches], [item.pictures for item in sketches]
            ),
        )


def check_same_probe(expected: str, found: str) -> None:
    """Refuse to compare sketches of different probes.

    Raises:
        ProbeMismatchError: The digests differ.
    """
    if expected != found:
        raise ProbeMismatchError(
            f"the sketch was made with probe {found[:12] or 'none'}, the others with "
            f"{expected[:12] or 'none'}: describe the task again with the server's probe"
        )


def _is_class_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= MAX_CLASS_NAME and name.isprintable()


def _is_size(units: object) -> bool:
    return type(units) is int and units > 0


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _read_json(text: str) -> Any:
    """What a text of the metadata says; ``None`` where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _one_name(names: tuple[str, ...]) -> str:
    given = sorted(set(names) - {""})
    if len(given) > 1:
        raise SketchError(
            f"one class is called {given[0]!r} and {given[1]!r}: give all devices one class list"
        )
    return given[0] if given else ""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise SketchError(f"the sketch's {what} are malformed: describe the task again")
