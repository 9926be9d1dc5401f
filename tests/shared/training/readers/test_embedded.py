import hashlib
import re
import runpy
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from fedsprig.errors import MissingSplitError, UnknownNameError
from fedsprig.training import READERS, read

FOLDER = files("fedsprig.training") / "embedded"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SCRIPT = Path(__file__).parents[4] / "simulations" / "benchmarks" / "make_embedded.py"


@pytest.mark.parametrize(
    ("name", "split", "count", "per_class", "side"),
    [
        ("fashion", "train", 5000, {500}, 28),
        ("fashion", "test", 2000, {200}, 28),
        ("digits", "train", 1297, set(range(124, 134)), 8),
        ("digits", "test", 500, {50}, 8),
    ],
)
def test_holds_ten_classes_of_grey_pictures(name, split, count, per_class, side):
    image_set = read("embedded", name, split=split)
    assert image_set.images.shape == (count, side, side, 3)
    assert set(image_set.counts().tolist()) <= per_class
    assert len(image_set.classes) == 10
    assert (image_set.images == image_set.images[..., :1]).all()
    assert (image_set.images.min(), image_set.images.max()) == (0, 255)


@pytest.mark.parametrize("name", ["fashion", "digits"])
def test_no_picture_is_in_both_splits(name):
    train, test = (
        {picture.tobytes() for picture in read("embedded", name=name, split=split).images}
        for split in ("train", "test")
    )
    assert not train & test


def test_the_notice_has_the_digest_of_each_file_and_they_stay_small():
    notice = FOLDER.joinpath("NOTICE.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"\| (\w+\.npz) \|.*`([0-9a-f]{64})` \|", notice))
    blobs = {
        f"{name}.npz": FOLDER.joinpath(f"{name}.npz").read_bytes() for name in ("fashion", "digits")
    }
    assert stated == {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}
    assert sum(map(len, blobs.values())) <= 5_000_000


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_is_what_the_script_makes_of_the_original():
    made = runpy.run_path(str(SCRIPT))["fashion"](DEBIAN)
    image_set = read("embedded", "fashion")
    assert (image_set.images == made["x_train"][..., None]).all()
    assert image_set.labels.tolist() == made["y_train"].tolist()


def test_digits_are_what_the_script_makes_of_the_original():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    made = runpy.run_path(str(SCRIPT))["digits"]()
    image_set = read("embedded", "digits", split="test")
    assert (image_set.images == made["x_test"][..., None]).all()
    both = np.concatenate([made["x_train"], made["x_test"]]).astype(float) * 16 / 255
    original = {picture.tobytes() for picture in datasets.load_digits().images}
    assert {np.rint(picture).tobytes() for picture in both} == original


def test_refuses_unknown_names():
    with pytest.raises(UnknownNameError, match="did you mean 'fashion'"):
        read("embedded", "fashoin")
    with pytest.raises(UnknownNameError, match="unknown reader 'foldr': did you mean 'folder'"):
        read("foldr", "x")
    assert sorted(READERS) == ["embedded", "folder", "npz", "torchvision"]
    with pytest.raises(MissingSplitError):
        read("embedded", "fashion", split="val")
