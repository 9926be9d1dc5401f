"""The server's own pictures of a scenario, in files that a server in another process can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedsprig_server.library_build import LibraryTask


def write_own_pictures(tasks: Sequence[LibraryTask], folder: Path) -> tuple[str, ...]:
    """Write the pictures of the library's tasks, those of one size into one file.

    The label of a picture is the number of its task: who heals needs none.

    Args:
        tasks: With their pictures, as the library's owner sees them.
        folder: Made if it is not there.

    Returns:
        The files, from the smallest pictures to the largest.
    """
    sizes: dict[tuple[int, ...], list[int]] = {}
    for number, task in enumerate(tasks):
        sizes.setdefault(task.pictures.images.shape[1:3], []).append(number)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for (height, width), numbers in sorted(sizes.items()):
        path = folder / f"{width}x{height}.npz"
        np.savez(
            path,
            x_train=np.concatenate([tasks[number].pictures.images for number in numbers]),
            y_train=np.concatenate(
                [np.full(len(tasks[number].pictures), number, np.int64) for number in numbers]
            ),
        )
        files.append(str(path.resolve()))
    return tuple(files)
