"""Classifiers on their way to a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.artifacts import pack, unpack
from fedsprig.errors import ArtifactError, LimitError, TruncatedArtifactError
from fedsprig.tasks.similarity import Head
from fedsprig.tasks.similarity.packed_heads import (
    MAX_CLASSES,
    MAX_CLASSES_IN_ALL,
    MAX_HEADS,
    pack_heads,
    that_travel,
    unpack_heads,
)


def heads_of(rng: np.random.Generator, sizes: tuple[int, ...], scale: float = 1.0) -> list[Head]:
    return [
        Head(
            (scale * rng.normal(size=(size, 5))).astype(np.float32),
            (scale * rng.normal(size=size)).astype(np.float32),
        )
        for size in sizes
    ]


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from([1e-12, 1.0, 1e9]),
    st.binary(max_size=20),
)
def test_a_round_trip_rounds_weights_and_nothing_else(
    seed: int, sizes: list[int], scale: float, probe: bytes
) -> None:
    heads = heads_of(np.random.default_rng(seed), tuple(sizes), scale)
    again, found = unpack_heads(pack_heads(heads, probe))
    assert found == probe
    assert len(again) == len(heads)
    for before, after in zip(heads, again, strict=True):
        np.testing.assert_array_equal(after.bias, before.bias)
        # Half precision has 11 bits.
        largest = np.abs(before.weight).max()
        np.testing.assert_allclose(after.weight, before.weight, atol=largest * 2**-11)
        assert after.weight.dtype == np.float32


def test_a_classifier_without_weights_stays_one() -> None:
    head = Head(np.zeros((1, 3), np.float32), np.ones(1, np.float32))
    (again,), _ = unpack_heads(pack_heads([head]))
    np.testing.assert_array_equal(again.weight, head.weight)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": None},
        {"other": np.zeros(1)},
        {"weights": np.zeros((3, 5), np.float32)},
        {"weights": np.zeros((3, 0), np.float16)},
        {"weights": np.zeros(3, np.float16)},
        {"weights": np.full((3, 5), np.nan, np.float16)},
        {"biases": np.zeros(2, np.float32)},
        {"biases": np.full(3, np.inf, np.float32)},
        {"scales": np.zeros(3, np.float32)},
        {"scales": np.full(2, np.nan, np.float32)},
        {"sizes": np.array([2, 2])},
        {"sizes": np.array([3, 0])},
        {"sizes": np.array([-1, 4])},
        {"sizes": np.array([2**62, 2**62])},
        {"sizes": np.zeros(0, np.int64), "scales": np.zeros(0, np.float32)},
    ],
)
def test_what_is_no_classifiers_is_refused(changes: dict[str, Any]) -> None:
    arrays: dict[str, Any]
    arrays, _ = unpack(pack_heads(heads_of(np.random.default_rng(0), (2, 1))))
    changed = {name: value for name, value in (arrays | changes).items() if value is not None}
    with pytest.raises(ArtifactError, match="send them again"):
        unpack_heads(pack(changed))


def test_bytes_that_end_early_are_refused() -> None:
    data = pack_heads(heads_of(np.random.default_rng(0), (2,)))
    with pytest.raises(TruncatedArtifactError):
        unpack_heads(data[:-1])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([MAX_CLASSES + 1], "1,001 classes"),
        ([1] * (MAX_HEADS + 1), "1,001 classifiers"),
        ([MAX_CLASSES] * (MAX_CLASSES_IN_ALL // MAX_CLASSES) + [1], "20,001 classes in all"),
    ],
)
def test_a_device_is_not_asked_for_more_than_it_can_hold(sizes: list[int], message: str) -> None:
    total = sum(sizes)
    arrays: dict[str, Any] = {
        "weights": np.zeros((total, 1), np.float16),
        "scales": np.ones(len(sizes), np.float32),
        "biases": np.zeros(total, np.float32),
        "sizes": np.array(sizes, np.int64),
    }
    with pytest.raises(LimitError, match=message):
        unpack_heads(pack(arrays))
    fits = that_travel(sizes)
    assert fits == [at for at in range(len(sizes)) if sizes[at] <= MAX_CLASSES][: len(fits)]
    assert len(fits) == min(len(sizes) - 1, MAX_HEADS)
    heads = [Head(np.ones((size, 1), np.float32), np.zeros(size, np.float32)) for size in sizes]
    with pytest.raises(LimitError, match=message):
        pack_heads(heads)
    if fits:
        assert len(unpack_heads(pack_heads([heads[at] for at in fits]))[0]) == len(fits)


def test_what_is_too_large_lets_later_ones_travel() -> None:
    assert that_travel([2, MAX_CLASSES + 1, 3]) == [0, 2]
    full = [MAX_CLASSES] * (MAX_CLASSES_IN_ALL // MAX_CLASSES - 1)
    assert that_travel([*full, 999, 2, 1]) == [*range(len(full) + 1), len(full) + 2]


def test_weights_that_their_scale_makes_infinite_are_refused() -> None:
    arrays, _ = unpack(pack_heads(heads_of(np.random.default_rng(0), (2, 1))))
    largest = np.finfo(np.float32).max
    whole = unpack_heads(pack(arrays | {"scales": np.full(2, largest, np.float32)}))[0]
    assert all(np.isfinite(head.weight).all() for head in whole)
    arrays["weights"] *= np.float16(2)
    with pytest.raises(ArtifactError, match="send them again"):
        unpack_heads(pack(arrays | {"scales": np.full(2, largest, np.float32)}))
