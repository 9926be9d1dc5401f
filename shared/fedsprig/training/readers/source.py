"""What a reader is asked for, and the checks that all readers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedsprig.errors import DataError, LimitError, MissingSplitError

DEFAULT_MAX_BYTES: Final = 4 << 30
MAX_SIZE: Final = 4096


@dataclass(frozen=True, slots=True)
class Source:
    """A request to a reader.

    Attributes:
        path: File or folder.
        split: Name of the part to read; ``"all"`` is everything.
        size: Side of the square that every picture is made to fit, or ``None`` to leave it.
        name: Which data set, where the path does not say.
        max_bytes: Pixels beyond this are refused before any memory is taken.
    """

    path: Path
    split: str = "train"
    size: int | None = None
    name: str = ""
    max_bytes: int = DEFAULT_MAX_BYTES

    def __post_init__(self) -> None:
        if self.size is not None and not 1 <= self.size <= MAX_SIZE:
            raise DataError(f"size {self.size} is out of range: choose 1 to {MAX_SIZE} pixels")

    def check_bytes(self, wanted: int) -> None:
        """Refuse to hold more than ``max_bytes``.

        Raises:
            LimitError: Says both figures.
        """
        if wanted > self.max_bytes:
            raise LimitError(
                f"the pictures of {self.path} take {wanted / 1e9:.2f} GB, the limit is "
                f"{self.max_bytes / 1e9:.2f} GB: read them smaller with size or raise max_bytes"
            )

    def splits_to_read(self, present: Sequence[str]) -> tuple[str, ...]:
        """Which of the splits that are present answer the request.

        A source with a single split has it for ``"train"`` too: its owner has not divided it.

        Raises:
            MissingSplitError: Names the splits that there are.
        """
        if self.split in present:
            return (self.split,)
        if self.split == "all" or (self.split == "train" and len(present) == 1):
            return tuple(present)
        raise MissingSplitError(
            f"{self.path} has no split {self.split!r} but {', '.join(map(repr, present))}: "
            "read one of these, or hold pictures out of it"
        )
