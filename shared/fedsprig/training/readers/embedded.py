"""The pictures that come with the package; ``embedded/NOTICE.md`` has sources and licences."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fedsprig.errors import UnknownNameError
from fedsprig.spelling import unknown
from fedsprig.training.pictures import ImageSet
from fedsprig.training.readers.npz import read_archive
from fedsprig.training.readers.source import Source

EMBEDDED: Final = ("fashion", "digits")


def read_embedded(source: Source) -> ImageSet:
    """Read ``fashion`` (10 classes of 28x28 clothes) or ``digits`` (10 classes of 8x8 digits).

    Both are grey and have the splits ``train`` and ``test``. The name may stand in for the path.

    Raises:
        UnknownNameError: Another name.
        MissingSplitError: Another split.
    """
    name = source.name or str(source.path)
    if name not in EMBEDDED:
        raise UnknownNameError(unknown("embedded pictures", name, EMBEDDED))
    with (files("fedsprig.training") / "embedded" / f"{name}.npz").open("rb") as stream:
        return read_archive(stream, source)
