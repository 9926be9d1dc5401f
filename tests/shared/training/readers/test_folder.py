import numpy as np
import pytest
from PIL import Image

from fedsprig.errors import (
    DataError,
    LimitError,
    MissingSplitError,
    TooFewClassesError,
    UnreadablePictureError,
)
from fedsprig.training import read
from fedsprig.training.readers import decode


def pixels(shade, height=6, width=6):
    image = np.full((height, width, 3), shade, dtype=np.uint8)
    image[0, 0] = (255, 0, 0)
    return image


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)


@pytest.fixture
def animals(tmp_path):
    for name, shades in (("bee", (10, 20)), ("ant", (30,)), ("cat", (40, 50, 60))):
        for number, shade in enumerate(shades):
            write(tmp_path / name / f"{number}.png", pixels(shade))
    return tmp_path


def test_reads_classes_and_pictures_in_the_order_of_their_names(animals):
    image_set = read("folder", animals)
    assert image_set.classes == ("ant", "bee", "cat")
    assert image_set.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert image_set.images[:, 5, 5, 0].tolist() == [30, 10, 20, 40, 50, 60]
    assert image_set.images[:, 0, 0].tolist() == [[255, 0, 0]] * 6
    assert (read("folder", str(animals), split="all").images == image_set.images).all()


def test_passes_over_what_is_hidden_or_no_picture(animals):
    (animals / ".git").mkdir()
    (animals / "__MACOSX").mkdir()
    (animals / "README.md").write_text("no picture")
    (animals / "ant" / "Thumbs.db").write_bytes(b"x")
    (animals / "ant" / "._0.png").write_bytes(b"x")
    assert len(read("folder", animals)) == 6


def test_reads_one_split_with_the_classes_of_all(tmp_path):
    for name in ("train/ant", "train/bee", "test/bee", "test/cat"):
        write(tmp_path / name / "a.png", pixels(len(name)))
    train, test, whole = (read("folder", tmp_path, split=s) for s in ("train", "test", "all"))
    assert train.classes == test.classes == whole.classes == ("ant", "bee", "cat")
    assert train.labels.tolist() == [0, 1]
    assert test.labels.tolist() == [1, 2]
    assert whole.labels.tolist() == [1, 2, 0, 1]
    with pytest.raises(MissingSplitError, match="no split 'val' but 'test', 'train'"):
        read("folder", tmp_path, split="val")


def test_an_undivided_folder_has_no_test_split(animals, tmp_path):
    with pytest.raises(MissingSplitError, match="hold pictures out"):
        read("folder", animals, split="test")


def test_a_single_split_of_any_name_is_for_training(tmp_path):
    for name in ("all/ant", "all/bee"):
        write(tmp_path / name / "a.png", pixels(1))
    assert len(read("folder", tmp_path)) == 2
    with pytest.raises(MissingSplitError, match="'all'"):
        read("folder", tmp_path, split="test")


def test_a_class_may_be_called_train(tmp_path):
    for name in ("car", "train"):
        write(tmp_path / name / "a.png", pixels(1))
    assert read("folder", tmp_path).classes == ("car", "train")


@pytest.mark.parametrize(
    ("folders", "found"), [([], "no class"), (["ant"], "one class \\('ant'\\)")]
)
def test_refuses_fewer_than_two_classes(tmp_path, folders, found):
    for name in folders:
        write(tmp_path / name / "a.png", pixels(1))
    with pytest.raises(TooFewClassesError, match=f"holds {found}: give one folder"):
        read("folder", tmp_path)


def test_refuses_a_missing_folder_and_an_empty_class(animals):
    with pytest.raises(DataError, match="there is no folder"):
        read("folder", animals / "nowhere")
    (animals / "dog").mkdir()
    with pytest.raises(DataError, match="dog' holds no picture: add some or remove it"):
        read("folder", animals)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_names_an_unreadable_picture(animals, damage):
    file = animals / "cat" / "1.png"
    good = file.read_bytes()
    middle = len(good) // 2
    file.write_bytes(
        {
            "empty": b"",
            "text": b"this is no picture",
            "cut": good[: middle + 10],
            "flipped": good[:middle] + bytes(255 - b for b in good[middle:]),
        }[damage]
    )
    with pytest.raises(UnreadablePictureError) as caught:
        read("folder", animals)
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith("replace or remove it")
    assert "\n" not in str(caught.value)


def test_refuses_a_huge_picture_before_decoding_it(animals, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 35)
    with pytest.raises(UnreadablePictureError, match="6x6 pixels are too many"):
        read("folder", animals)


def test_refuses_more_pixels_than_the_limit(animals):
    assert len(read("folder", animals, max_bytes=6 * 108)) == 6
    with pytest.raises(LimitError, match="raise max_bytes"):
        read("folder", animals, max_bytes=6 * 108 - 1)


def test_pictures_of_several_sizes_need_a_size(animals):
    write(animals / "cat" / "9.png", pixels(70, 12, 9))
    with pytest.raises(DataError, match=r"9\.png' has 9x12 pixels, .* 6x6: read them with a size"):
        read("folder", animals)
    image_set = read("folder", animals, size=4)
    assert image_set.images.shape == (7, 4, 4, 3)
    assert image_set.images[6, 3, 3].tolist() == [70, 70, 70]
    for size in (0, 5000):
        with pytest.raises(DataError, match="out of range"):
            read("folder", animals, size=size)


def test_a_size_takes_the_central_square(animals):
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = 200
    for old in animals.glob("*/*.png"):
        write(old, wide)
    assert (read("folder", animals, size=4).images == 200).all()
    assert (read("folder", animals, size=2).images == 200).all()


def one_of(tmp_path, picture, name="a.png", **options):
    write(tmp_path / "one" / name, picture, **options)
    write(tmp_path / "two" / "b.png", np.zeros((*picture.size[::-1], 3), dtype=np.uint8))
    return read("folder", tmp_path).images[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_picture_mode_becomes_rgb(tmp_path, mode):
    grey = np.zeros((4, 4), dtype=np.uint8)
    grey[:2] = 255
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert(mode)
    assert picture.mode == mode
    name = "a.tif" if mode == "CMYK" else "a.png"
    assert (one_of(tmp_path, picture, name)[:, :, 1] == grey).all()


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    deep = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4097
    seen = one_of(tmp_path, Image.fromarray(deep))
    assert seen[:, :, 0].tolist() == (deep // 256).tolist()


def test_transparent_pixels_are_white(tmp_path):
    image = np.zeros((2, 2, 4), dtype=np.uint8)
    image[..., 3] = [[0, 255], [128, 0]]
    assert one_of(tmp_path, Image.fromarray(image))[:, :, 2].tolist() == [[255, 0], [127, 255]]


def test_a_turned_photograph_is_put_upright(tmp_path):
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    image[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    seen = one_of(tmp_path, Image.fromarray(image), exif=exif)
    assert seen[:, 0, 0].tolist() == [0, 0, 0, 255]


def test_floating_point_pictures_are_refused(tmp_path):
    picture = Image.fromarray(np.zeros((4, 4), dtype=np.float32))
    with pytest.raises(UnreadablePictureError, match="floating point, convert"):
        one_of(tmp_path, picture, "a.tif")


def test_large_photographs_shrink_to_their_mean_colours(tmp_path):
    """Decoded at reduced detail, which must not move anything."""
    image = np.zeros((512, 512, 3), dtype=np.uint8)
    image[:256, :256] = 240
    for name in ("one", "two"):
        write(tmp_path / name / "a.jpg", image, quality=95)
    seen = read("folder", tmp_path, size=16).images[0].astype(int)
    assert (seen[:7, :7] > 230).all()
    assert (seen[9:, :] < 10).all()
    assert (seen[:, 9:] < 10).all()
