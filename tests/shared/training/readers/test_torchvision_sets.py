import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from fedsprig.errors import (
    DataError,
    LimitError,
    MissingSplitError,
    UnknownNameError,
    UnreadablePictureError,
)
from fedsprig.training import read

pytest.importorskip("torchvision")


def idx(array):
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path):
    """Fashion-MNIST as torchvision stores it, with five and three pictures."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 5), ("t10k", 3)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (raw / f"{prefix}-{name}-ubyte").write_bytes(idx(array))
            (raw / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
        arrays[prefix] = images
    return tmp_path, arrays


def test_reads_a_set_that_says_train_or_not(fashion):
    root, arrays = fashion
    train = read("torchvision", root, name="FashionMNIST")
    assert (train.images == arrays["train"][..., None]).all()
    assert train.labels.tolist() == [0, 1, 2, 3, 4]
    assert train.classes[9] == "Ankle boot"
    assert len(train.classes) == 10
    test = read("torchvision", root, name="FashionMNIST", split="test", size=14)
    assert test.images.shape == (3, 14, 14, 3)
    whole = read("torchvision", root, name="FashionMNIST", split="all")
    assert (whole.images[5:] == arrays["t10k"][..., None]).all()


def test_reads_a_set_without_splits(tmp_path):
    for name in ("AnnualCrop", "Forest"):
        (tmp_path / "eurosat" / "2750" / name).mkdir(parents=True)
        picture = Image.fromarray(np.full((8, 8, 3), len(name), dtype=np.uint8))
        picture.save(tmp_path / "eurosat" / "2750" / name / "a.png")
    image_set = read("torchvision", tmp_path, name="EuroSAT")
    assert image_set.classes == ("AnnualCrop", "Forest")
    assert image_set.images[:, 0, 0, 0].tolist() == [10, 6]
    with pytest.raises(MissingSplitError, match="hold pictures out"):
        read("torchvision", tmp_path, name="EuroSAT", split="test")


def test_refuses_unknown_sets_and_splits(fashion):
    root, _ = fashion
    for name, message in (
        ("FashionMINST", "FashionMNIST"),
        ("", "CIFAR10"),
        ("FakeData", "unknown data"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            read("torchvision", root, name=name)
    with pytest.raises(MissingSplitError, match="'train', 'test'"):
        read("torchvision", root, name="FashionMNIST", split="val")
    with pytest.raises(MissingSplitError, match="'colour'"):
        read("torchvision", root, name="SVHN", split="colour")


def test_refuses_what_is_not_downloaded_or_too_large(fashion, tmp_path):
    root, _ = fashion
    with pytest.raises(DataError, match="download it into that folder first") as caught:
        read("torchvision", tmp_path / "nowhere", name="CIFAR10")
    assert "\n" not in str(caught.value)
    with pytest.raises(LimitError):
        read("torchvision", root, name="FashionMNIST", max_bytes=1000)


def test_refuses_sets_without_class_numbers(tmp_path):
    """Boxes are no class."""
    year = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / name).mkdir(parents=True)
    (year / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (year / "Annotations" / "a.xml").write_text("<annotation><object/></annotation>")
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(year / "JPEGImages" / "a.jpg")
    with pytest.raises(DataError, match="has a dict for a label, no class number"):
        read("torchvision", tmp_path, name="VOCDetection")


def test_names_an_unreadable_picture_by_its_number(tmp_path):
    folder = tmp_path / "eurosat" / "2750" / "Forest"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.raises(UnreadablePictureError, match="cannot read picture 1 of torchvision's Euro"):
        read("torchvision", tmp_path, name="EuroSAT")
