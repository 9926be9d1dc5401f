import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsprig.errors import DataError, LabelRangeError, TooFewClassesError, UnknownNameError
from fedsprig.training import ImageSet, hold_out, require_classes


def numbered(labels, classes=("ant", "bee", "cat", "dog")):
    """Pictures of one pixel that carry their own number."""
    labels = np.asarray(labels, dtype=np.int64)
    images = np.zeros((len(labels), 1, 1, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return ImageSet(images, labels, classes)


def numbers(image_set):
    return image_set.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("images", "labels", "error"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros(2, np.int64), DataError),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64), DataError),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int64), DataError),
        (np.zeros((2, 0, 4, 3), np.uint8), np.zeros(2, np.int64), DataError),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32), DataError),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 1), np.int64), DataError),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64), DataError),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 2]), LabelRangeError),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([-1, 0]), LabelRangeError),
    ],
)
def test_refuses_what_is_no_labelled_set(images, labels, error):
    with pytest.raises(error) as caught:
        ImageSet(images, labels, ("a", "b"))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_names_the_first_label_out_of_range():
    with pytest.raises(LabelRangeError, match="picture 2 has label 7, 2 in all are outside 0 to 3"):
        numbered([0, 3, 7, -1])


def test_only_relabels_in_the_order_asked_for():
    image_set = numbered([2, 0, 1, 2, 3])
    some = image_set.only(["cat", 0])
    assert some.classes == ("cat", "ant")
    assert some.labels.tolist() == [0, 1, 0]
    assert numbers(some) == [0, 1, 3]


@given(st.lists(st.integers(0, 3), max_size=30), st.permutations(range(4)), st.integers(1, 4))
def test_only_keeps_exactly_the_pictures_of_its_classes(labels, order, count):
    image_set, chosen = numbered(labels), order[:count]
    some = image_set.only(chosen)
    assert numbers(some) == [i for i, label in enumerate(labels) if label in chosen]
    assert [chosen[new] for new in some.labels] == [label for label in labels if label in chosen]


def test_only_refuses_unknown_doubled_and_ambiguous_classes():
    image_set = numbered([0, 1], classes=("crane", "crane", "tabby"))
    assert image_set.only([1, "tabby"]).classes == ("crane", "tabby")
    for wanted, message in (
        ("crane", "two classes are called 'crane'"),
        ("taby", "did you mean 'tabby'"),
        (3, "numbered 0 to 2"),
        (-1, "numbered 0 to 2"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            image_set.only([wanted])
    with pytest.raises(DataError, match="given twice"):
        image_set.only([2, "tabby"])


def test_subset_takes_positions_or_a_choice_per_picture():
    image_set = numbered([0, 1, 2, 3])
    assert numbers(image_set.subset([2, 0])) == [2, 0]
    assert numbers(image_set.subset(np.array([True, False, False, True]))) == [0, 3]
    assert len(image_set.subset([])) == 0
    assert image_set.subset([2]).classes == image_set.classes


def test_counts_classes_without_a_picture_too():
    assert numbered([3, 3, 0]).counts().tolist() == [1, 0, 0, 2]


def test_require_classes_counts_those_with_pictures():
    require_classes(numbered([0, 3]))
    with pytest.raises(TooFewClassesError, match=r"1 class\(es\) \(bee\)"):
        require_classes(numbered([1, 1]))
    with pytest.raises(TooFewClassesError, match="none"):
        require_classes(numbered([]))
    with pytest.raises(TooFewClassesError, match="at least 3"):
        require_classes(numbered([0, 1]), minimum=3)


@given(
    st.lists(st.integers(0, 3), max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_hold_out_divides_every_class(labels, fraction, seed):
    image_set = numbered(labels)
    rest, held = hold_out(image_set, fraction, seed=seed)
    assert sorted(numbers(rest) + numbers(held)) == list(range(len(labels)))
    assert numbers(rest) == sorted(numbers(rest))
    for number, count in enumerate(image_set.counts()):
        in_held = held.counts()[number]
        assert abs(in_held - fraction * count) <= 1
        assert not count or rest.counts()[number]
        assert count < 2 or in_held
    again = hold_out(image_set, fraction, seed=seed)
    assert numbers(again[1]) == numbers(held)


def test_hold_out_depends_on_the_seed_and_refuses_wrong_fractions():
    image_set = numbered([0] * 50)
    parts = {tuple(numbers(hold_out(image_set, 0.5, seed=seed)[1])) for seed in range(3)}
    assert len(parts) == 3
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(DataError, match="between 0 and 1"):
            hold_out(image_set, fraction, seed=0)
