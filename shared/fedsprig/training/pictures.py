"""A labelled set of pictures in memory, checked when it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsprig.errors import DataError, LabelRangeError, TooFewClassesError, UnknownNameError
from fedsprig.spelling import unknown


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Pictures of one size with one label each.

    Attributes:
        images: ``uint8 [n, h, w, 3]``, red, green, blue.
        labels: ``int64 [n]``, indices into ``classes``.
        classes: Names of the classes. A class may have no picture here.

    Raises:
        DataError: Arrays of another dtype or shape.
        LabelRangeError: A label below zero or beyond ``classes``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_images(self.images)
        if self.labels.dtype != np.int64 or self.labels.ndim != 1:
            raise DataError(
                f"labels are {self.labels.dtype} {list(self.labels.shape)}: pass int64 [n]"
            )
        if len(self.labels) != len(self.images):
            raise DataError(
                f"{len(self.images)} pictures have {len(self.labels)} labels: pass one label each"
            )
        check_labels(self.labels, len(self.classes))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: ArrayLike) -> ImageSet:
        """The pictures at ``index`` (integers or a bool per picture), in its order; a copy."""
        chosen = np.asarray(index)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        return ImageSet(self.images[chosen], self.labels[chosen], self.classes)

    def only(self, classes: Sequence[str | int]) -> ImageSet:
        """The pictures of some classes, in their present order, relabelled ``0 .. len(classes)-1``.

        Args:
            classes: Names or numbers; the first becomes class 0, and so on.

        Raises:
            UnknownNameError: A class that the set does not have, or a name that two classes share.
            DataError: A class that is given twice.
        """
        numbers = [self._number(wanted) for wanted in classes]
        if len(set(numbers)) != len(numbers):
            raise DataError(f"a class is given twice in {list(classes)!r}: give each once")
        relabel = np.full(len(self.classes), -1, dtype=np.int64)
        relabel[numbers] = np.arange(len(numbers))
        labels = relabel[self.labels]
        kept = np.flatnonzero(labels >= 0)
        return ImageSet(
            self.images[kept], labels[kept], tuple(self.classes[number] for number in numbers)
        )

    def counts(self) -> NDArray[np.int64]:
        """Pictures of each class, ``[classes]``."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def _number(self, wanted: str | int) -> int:
        if not isinstance(wanted, str):
            if 0 <= wanted < len(self.classes):
                return int(wanted)
            raise UnknownNameError(
                f"no class {wanted}: the classes are numbered 0 to {len(self.classes) - 1}"
            )
        if self.classes.count(wanted) == 1:
            return self.classes.index(wanted)
        if wanted in self.classes:
            raise UnknownNameError(f"two classes are called {wanted!r}: give the class's number")
        raise UnknownNameError(unknown("class", wanted, self.classes))


def check_images(images: NDArray[np.uint8]) -> None:
    """Refuse what is not ``uint8 [n, h, w, 3]`` with at least one pixel.

    Raises:
        DataError: Another dtype or shape.
    """
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] != 3
        or 0 in images.shape[1:]
    ):
        raise DataError(
            f"pictures are {images.dtype} {list(images.shape)}: pass uint8 [n, height, width, 3]"
        )


def check_labels(labels: NDArray[np.int64], classes: int) -> None:
    """Refuse labels outside ``0 .. classes - 1``.

    Raises:
        LabelRangeError: Names the first such label.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        first = int(wrong[0])
        raise LabelRangeError(
            f"picture {first} has label {int(labels[first])}, {len(wrong)} in all are outside "
            f"0 to {classes - 1}: number the classes from 0 or name all of them"
        )


def require_classes(image_set: ImageSet, minimum: int = 2) -> None:
    """Refuse a set whose pictures are of fewer than ``minimum`` classes.

    Raises:
        TooFewClassesError: Says which classes have pictures.
    """
    present = np.flatnonzero(image_set.counts())
    if len(present) < minimum:
        names = ", ".join(image_set.classes[number] for number in present) or "none"
        raise TooFewClassesError(
            f"pictures of {len(present)} class(es) ({names}): give at least {minimum} classes"
        )


def hold_out(image_set: ImageSet, fraction: float, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """Divide every class at random: the rest and the held-out part, each in the set's order.

    A class of two or more pictures has at least one in each part; a single one stays in the rest.

    Args:
        image_set: What to divide.
        fraction: Share of each class that is held out, above 0 and below 1.
        seed: The same seed gives the same parts.

    Raises:
        DataError: A fraction outside its range.
    """
    if not 0 < fraction < 1:
        raise DataError(f"cannot hold out a fraction of {fraction}: choose one between 0 and 1")
    rng = np.random.default_rng(seed)
    held = np.zeros(len(image_set), dtype=np.bool_)
    for number in range(len(image_set.classes)):
        of_class = rng.permutation(np.flatnonzero(image_set.labels == number))
        if len(of_class) > 1:
            count = min(max(round(fraction * len(of_class)), 1), len(of_class) - 1)
            held[of_class[:count]] = True
    return image_set.subset(~held), image_set.subset(held)
