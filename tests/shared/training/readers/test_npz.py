import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsprig.errors import (
    DataError,
    FedsprigError,
    LabelRangeError,
    LimitError,
    MissingSplitError,
    TooFewClassesError,
)
from fedsprig.training import read
from fedsprig.training.readers import Source
from fedsprig.training.readers.npz import read_archive


def pictures(n=4, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture
def save(tmp_path):
    def save(compressed=False, **arrays):
        path = tmp_path / "data.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return path

    return save


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_the_split_that_is_asked_for(save, compressed):
    train, test = pictures(4, 5, 6, 3), pictures(2, 5, 6, 3, seed=1)
    path = save(
        compressed,
        x_train=train,
        y_train=np.array([2, 0, 1, 2], np.uint8),
        x_test=test,
        y_test=np.array([[1], [0]], np.int32),
        classes=np.array(["ant", "bee", "cat"]),
    )
    image_set = read("npz", path)
    assert (image_set.images == train).all()
    assert image_set.labels.tolist() == [2, 0, 1, 2]
    assert image_set.labels.dtype == np.int64
    assert image_set.classes == ("ant", "bee", "cat")
    assert (read("npz", path, split="test").images == test).all()
    assert read("npz", path, split="test").labels.tolist() == [1, 0]
    whole = read("npz", path, split="all")
    assert sorted(whole.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(MissingSplitError, match="but 'test', 'train'"):
        read("npz", path, split="val")


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels")])
def test_an_undivided_archive_is_for_training(save, names):
    path = save(**{names[0]: pictures(3, 4, 4, 3), names[1]: np.array([0, 1, 1])})
    assert read("npz", path).classes == ("0", "1")
    assert len(read("npz", path, split="all")) == 3
    with pytest.raises(MissingSplitError, match="hold pictures out"):
        read("npz", path, split="test")


def test_unnamed_classes_are_those_of_all_splits(save):
    path = save(
        x_train=pictures(2, 4, 4, 3),
        y_train=np.array([0, 3]),
        x_test=pictures(1, 4, 4, 3),
        y_test=np.array([1]),
    )
    assert read("npz", path, split="test").classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1)])
def test_grey_becomes_three_equal_channels(save, shape):
    grey = pictures(4, *shape)
    image_set = read("npz", save(x=grey, y=np.array([0, 1, 0, 1])))
    assert image_set.images.shape == (4, 5, 6, 3)
    assert (image_set.images == grey.reshape(4, 5, 6, 1)).all()


def test_a_size_resizes(save):
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    images[:, :4] = 100
    image_set = read("npz", save(x=images, y=np.array([0, 1])), size=2)
    assert image_set.images.shape == (2, 2, 2, 3)
    assert (image_set.images[:, 0] > 80).all()
    assert (image_set.images[:, 1] < 20).all()


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 1, -1, 0], [0, 1, 2**40, 0]])
def test_refuses_labels_that_no_class_has(save, labels):
    path = save(x=pictures(4, 4, 4, 3), y=np.array(labels), classes=np.array(["a", "b", "c"]))
    with pytest.raises(LabelRangeError):
        read("npz", path)


def test_a_huge_label_without_names_takes_no_memory(save):
    with pytest.raises(LabelRangeError):
        read("npz", save(x=pictures(2, 4, 4, 3), y=np.array([0, 2**62])))
    with pytest.raises(LabelRangeError):
        read("npz", save(x=pictures(2, 4, 4, 3), y=np.array([0, 2**64 - 1], np.uint64)))


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": pictures(2, 4, 4, 3) / 255, "y": np.array([0, 1])},
        {"x": pictures(2, 3, 4, 4), "y": np.array([0, 1])},
        {"x": pictures(2, 4), "y": np.array([0, 1])},
        {"x": pictures(2, 4, 4, 3), "y": np.array([0.0, 1.0])},
        {"x": pictures(2, 4, 4, 3), "y": np.eye(2, dtype=int)},
        {"x": pictures(2, 4, 4, 3), "y": np.array([0, 1, 1])},
        {"x": pictures(2, 4, 4, 3), "y": np.array([0, 1]), "classes": np.array([["a", "b"]])},
        {"x": pictures(2, 4, 4, 3), "y": np.array([0, 1]), "classes": np.array([0.5, 1])},
    ],
)
def test_refuses_arrays_of_another_kind(save, arrays):
    with pytest.raises(DataError) as caught:
        read("npz", save(**arrays))
    assert "\n" not in str(caught.value)


def test_refuses_an_archive_without_pictures_or_with_one_class(save, tmp_path):
    with pytest.raises(MissingSplitError, match="holds weights: store x_train and y_train"):
        read("npz", save(weights=np.zeros(3)))
    with pytest.raises(TooFewClassesError, match=r"1 class\(es\)"):
        read("npz", save(x=pictures(2, 4, 4, 3), y=np.array([0, 0])))
    with pytest.raises(DataError, match="there is no file"):
        read("npz", tmp_path / "nothing.npz")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_never_unpickles(save, tmp_path):
    trap = np.array([Trap()], dtype=object)
    for arrays in (
        {"x": trap, "y": np.array([0])},
        {"x": pictures(1, 4, 4, 3), "y": trap},
        {"x": pictures(2, 4, 4, 3), "y": np.array([0, 1]), "classes": trap},
    ):
        with pytest.raises(DataError, match="pickled: store it as plain"):
            read("npz", save(**arrays))
    path = tmp_path / "raw.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x.npy", "y.npy"):
            archive.writestr(name, pickle.dumps(Trap()))
    with pytest.raises(DataError, match="cannot read"):
        read("npz", path)


def test_refuses_a_size_that_a_small_file_claims(tmp_path):
    """A header may claim any shape; nothing is allocated for it."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000, 3)}
    )
    labels = io.BytesIO()
    np.save(labels, np.array([0, 1]))
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue())
        archive.writestr("y.npy", labels.getvalue())
    with pytest.raises(LimitError, match=r"3000\.00 GB"):
        read("npz", path)


def test_refuses_more_than_the_limit_counting_three_colours(save):
    path = save(x=pictures(4, 5, 5), y=np.array([0, 1, 0, 1]))
    assert len(read("npz", path, max_bytes=300)) == 4
    with pytest.raises(LimitError):
        read("npz", path, max_bytes=299)


def archive_bytes(compressed):
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(
        stream, x_train=pictures(3, 4, 4), y_train=np.array([0, 1, 1]), classes=["ant", "bee"]
    )
    return stream.getvalue()


ARCHIVES = [archive_bytes(False), archive_bytes(True)]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damage_never_raises_anything_but_a_named_error(data):
    blob = bytearray(data.draw(st.sampled_from(ARCHIVES)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(blob) - 1))
        blob[place] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.one_of(st.just(len(blob)), st.integers(0, len(blob))))]
    refusal = ""
    try:
        image_set = read_archive(io.BytesIO(blob), Source("damaged", max_bytes=1 << 20))
    except FedsprigError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert refusal or image_set.images.shape[3] == 3
