"""The server's own pictures, in files by size."""

import numpy as np

from fedsprig.training import ImageSet, read
from fedsprig_server.library_build import LibraryTask
from fedsprig_sim.own_pictures import write_own_pictures


def task(name, count, height, width, shade):
    images = np.full((count, height, width, 3), shade, np.uint8)
    return LibraryTask(name, ImageSet(images, np.zeros(count, np.int64), ("one", "two")))


def test_pictures_of_one_size_share_a_file(tmp_path):
    tasks = [task("a", 2, 8, 6, 1), task("b", 3, 4, 4, 2), task("c", 1, 8, 6, 3)]
    files = write_own_pictures(tasks, tmp_path / "pictures")
    assert [file.rsplit("/", 1)[1] for file in files] == ["4x4.npz", "6x8.npz"]
    small, large = (read("npz", file) for file in files)
    assert small.images.shape == (3, 4, 4, 3)
    assert large.images[:, 0, 0, 0].tolist() == [1, 1, 3]
    assert large.labels.tolist() == [0, 0, 2]
