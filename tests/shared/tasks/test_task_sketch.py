"""Sketches as values: round trips, merging, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedsprig.artifacts import pack, unpack
from fedsprig.errors import ArtifactError, ProbeMismatchError, SketchError, TruncatedArtifactError
from fedsprig.tasks import TaskSketch

PROBE = "0123456789abcdef" * 4
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)

names = st.text(max_size=8).filter(str.isprintable)


@st.composite
def sketches(draw: st.DrawFn) -> TaskSketch:
    classes, features = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    counts = draw(st.lists(st.integers(0, 9), min_size=classes, max_size=classes).filter(any))
    fingerprint = draw(npst.arrays(np.float32, st.integers(0, 6), elements=finite))
    cut = draw(st.integers(0, fingerprint.size))
    sizes = tuple(size for size in (cut, fingerprint.size - cut) if size)
    return TaskSketch(
        probe=PROBE,
        prototypes=draw(npst.arrays(np.float32, (classes, features), elements=finite)),
        counts=np.array(counts, np.int64),
        classes=tuple(draw(st.lists(names, min_size=classes, max_size=classes))),
        fingerprint=fingerprint,
        groups=draw(st.sampled_from([(), sizes])),
        spread=draw(st.floats(0, allow_infinity=False)),
    )


def sketch(**changes: Any) -> TaskSketch:
    made = TaskSketch(
        probe=PROBE,
        prototypes=np.array([[1, 2], [3, 4], [0, 0]], np.float32),
        counts=np.array([2, 1, 0], np.int64),
        classes=("cat", "", "dog"),
        fingerprint=np.array([1, 0.5], np.float32),
    )
    return replace(made, **changes)


@settings(deadline=None, max_examples=50)
@given(sketches())
def test_a_round_trip_is_exact(made: TaskSketch) -> None:
    again = TaskSketch.from_bytes(made.to_bytes())
    assert again.to_bytes() == made.to_bytes()
    assert again.digest == made.digest
    assert (again.probe, again.classes) == (made.probe, made.classes)
    np.testing.assert_array_equal(again.prototypes, made.prototypes)
    np.testing.assert_array_equal(again.counts, made.counts)
    np.testing.assert_array_equal(again.fingerprint, made.fingerprint)
    assert (again.groups, again.spread) == (made.groups, made.spread)


def test_the_format_has_not_changed() -> None:
    # Libraries hold sketches of this digest; another one needs another KIND and a way to read both.
    assert sketch().digest == "2eb42dd0484670d949b2ea9c40bda642462f0917cc9c50db5e1114a7e2dea654"


def test_what_a_sketch_counts() -> None:
    assert sketch().pictures == 3
    np.testing.assert_array_equal(sketch().present, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"probe": "p"}, "probe"),
        ({"probe": PROBE.upper()}, "probe"),
        ({"prototypes": np.zeros((3, 2))}, "prototypes"),
        ({"prototypes": np.zeros((3, 0), np.float32)}, "prototypes"),
        ({"prototypes": np.full((3, 2), np.nan, np.float32)}, "prototypes"),
        ({"prototypes": np.zeros(3, np.float32)}, "prototypes"),
        ({"counts": np.zeros(3, np.int64)}, "counts"),
        ({"counts": np.array([1, -1, 3])}, "counts"),
        ({"counts": np.ones(2, np.int64)}, "counts"),
        ({"classes": ("cat", "dog")}, "classes"),
        ({"classes": ("cat", "dog", 3)}, "classes"),
        ({"classes": ("cat", "dog", "\x1b[2J")}, "classes"),
        ({"classes": ("cat", "dog", "x" * 201)}, "classes"),
        ({"fingerprint": np.array([np.inf], np.float32)}, "fingerprint"),
        ({"fingerprint": np.zeros((1, 2), np.float32)}, "fingerprint"),
        ({"groups": (1,)}, "groups"),
        ({"groups": (1, 1, 0)}, "groups"),
        ({"groups": (1, True)}, "groups"),
        ({"spread": -1.0}, "spread"),
        ({"spread": float("nan")}, "spread"),
        ({"spread": float("inf")}, "spread"),
        ({"spread": None}, "spread"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: Any, what: str) -> None:
    with pytest.raises(SketchError, match=what):
        sketch(**changes)


def test_bytes_that_are_no_sketch_are_refused() -> None:
    data = sketch().to_bytes()
    with pytest.raises(TruncatedArtifactError):
        TaskSketch.from_bytes(data[:-1])
    with pytest.raises(SketchError, match="no fedsprig"):
        TaskSketch.from_bytes(pack({"x": np.zeros(2)}))
    with pytest.raises(SketchError, match="probe"):
        TaskSketch.from_bytes(data.replace(PROBE.encode(), PROBE.upper().encode()))
    for names in (b'"[\\"cat\\",\\"\\",3      ]"', b'"[\\"cat\\",\\"\\",{\\"d\\":1', b'"7'):
        with pytest.raises((SketchError, ArtifactError)):
            TaskSketch.from_bytes(data.replace(b'"[\\"cat\\",\\"\\",\\"dog\\"]"', names.ljust(24)))


@pytest.mark.parametrize("key", ["classes", "groups"])
@pytest.mark.parametrize("text", ["[1", "{}", "null", "7"])
def test_a_malformed_list_is_named(key: str, text: str) -> None:
    arrays, metadata = unpack(sketch().to_bytes())
    with pytest.raises(SketchError, match=f"the sketch's {key} are malformed"):
        TaskSketch.from_bytes(pack(arrays, metadata | {key: text}))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_merged_sketches_are_the_sketch_of_all_pictures(seed: int, devices: int) -> None:
    rng = np.random.default_rng(seed)
    parts, everything, labels_of_all = [], [], []
    for _ in range(devices):
        n = int(rng.integers(1, 20))
        features, labels = rng.normal(size=(n, 3)), rng.integers(0, 4, n)
        parts.append(_of(features, labels))
        everything.append(features)
        labels_of_all.append(labels)
    merged = TaskSketch.merge(parts)
    whole = _of(np.concatenate(everything), np.concatenate(labels_of_all))
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_allclose(merged.prototypes, whole.prototypes, atol=1e-5)
    np.testing.assert_allclose(merged.fingerprint, whole.fingerprint, atol=1e-5)


def test_the_spread_of_all_devices_is_the_mean_over_their_pictures() -> None:
    one, two = sketch(spread=2.0), sketch(spread=6.0, counts=np.array([7, 1, 1]))
    assert TaskSketch.merge([one, two]).spread == pytest.approx((3 * 2 + 9 * 6) / 12)
    # A device with one class knows no spread; the others do.
    assert TaskSketch.merge([one, sketch(), two]).spread == pytest.approx((3 * 2 + 9 * 6) / 12)
    assert TaskSketch.merge([sketch(), sketch()]).spread == 0
    with pytest.raises(SketchError, match="describe all"):
        TaskSketch.merge([one, sketch(groups=(1, 1))])


def _of(features: np.ndarray, labels: np.ndarray) -> TaskSketch:
    counts = np.bincount(labels, minlength=4)
    means = [features[labels == c].mean(0) if counts[c] else np.zeros(3) for c in range(4)]
    return TaskSketch(
        PROBE,
        np.array(means, np.float32),
        counts.astype(np.int64),
        ("",) * 4,
        np.abs(features).mean(0).astype(np.float32),
    )


def test_one_sketch_merges_to_itself() -> None:
    assert TaskSketch.merge([sketch()]).to_bytes() == sketch().to_bytes()


def test_a_private_class_name_is_taken_from_those_who_tell() -> None:
    other = sketch(classes=("", "bird", "dog"))
    assert TaskSketch.merge([sketch(), other]).classes == ("cat", "bird", "dog")
    with pytest.raises(SketchError, match="'bird' and 'fish'"):
        TaskSketch.merge([other, sketch(classes=("", "fish", ""))])


def test_sketches_that_do_not_belong_together_are_not_merged() -> None:
    with pytest.raises(ProbeMismatchError):
        TaskSketch.merge([sketch(), sketch(probe="f" * 64)])
    with pytest.raises(SketchError, match="one list of classes"):
        TaskSketch.merge([sketch(), sketch(prototypes=np.zeros((3, 5), np.float32))])
    with pytest.raises(SketchError, match="one list of classes"):
        TaskSketch.merge([sketch(), sketch(fingerprint=np.zeros(0, np.float32))])
    with pytest.raises(SketchError, match="no sketch"):
        TaskSketch.merge([])
