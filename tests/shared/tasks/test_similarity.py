"""Similarity and search against a slow reference, class by class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import LibraryError, ProbeMismatchError, SketchError, UnknownNameError
from fedsprig.tasks import SIMILARITIES, Evidence, SketchIndex, TaskSketch
from fedsprig.tasks import nearest as search_by
from fedsprig.tasks.similarity import Hit, cosines, rerank, search

PROBE = "a" * 64


def prototypes(query: TaskSketch, index: SketchIndex, *rest: Any) -> np.ndarray:
    return SIMILARITIES["prototypes"].compare(Evidence(query), index, *rest)


def nearest(query: TaskSketch, index: SketchIndex, **options: Any) -> tuple[Hit, ...]:
    return search_by(Evidence(query), index, **options)


def sketch(rng: np.random.Generator, features: int = 6, classes: int | None = None) -> TaskSketch:
    """Features with a large common part, as after a ReLU; some classes without pictures."""
    count = classes or int(rng.integers(1, 5))
    counts = rng.integers(0, 3, count)
    counts[rng.integers(count)] = 1
    values = 10 + rng.normal(size=(count, features))
    values[counts == 0] = 0
    return TaskSketch(
        PROBE,
        values.astype(np.float32),
        counts.astype(np.int64),
        ("",) * count,
        np.zeros(0, np.float32),
    )


def reference(query: TaskSketch, others: list[TaskSketch]) -> list[float]:
    def rows(item: TaskSketch) -> list[np.ndarray]:
        return [
            row.astype(np.float64)
            for row, count in zip(item.prototypes, item.counts, strict=True)
            if count
        ]

    centre = np.mean([np.mean(rows(item), axis=0) for item in others], axis=0)

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        x, y = x - centre, y - centre
        lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
        return float(x @ y) / lengths if lengths > 1e-5 else 0.0

    result = []
    for item in others:
        forward = np.mean([max(cosine(q, p) for p in rows(item)) for q in rows(query)])
        backward = np.mean([max(cosine(q, p) for q in rows(query)) for p in rows(item)])
        result.append(float(forward + backward) / 2)
    return result


def names(count: int) -> list[str]:
    return [f"t{number:03}" for number in range(count)]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(2, 12))
def test_it_is_the_centred_cosine_of_best_matching_classes(seed: int, entries: int) -> None:
    rng = np.random.default_rng(seed)
    others = [sketch(rng) for _ in range(entries)]
    query = sketch(rng)
    index = SketchIndex.build(names(entries), others)
    values = prototypes(query, index)
    np.testing.assert_allclose(values, reference(query, others), atol=2e-4)
    chosen = rng.permutation(entries)[:2]
    np.testing.assert_allclose(prototypes(query, index, chosen), values[chosen], atol=1e-6)
    assert (np.abs(values) <= 1).all()


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    others = [sketch(rng) for _ in range(11)]
    index, query = SketchIndex.build(names(11), others), sketch(rng)
    whole = prototypes(query, index)
    monkeypatch.setattr(cosines, "CHUNK_ENTRIES", 4)
    np.testing.assert_allclose(prototypes(query, index), whole, atol=1e-6)


def test_a_task_is_most_like_itself() -> None:
    rng = np.random.default_rng(1)
    others = [sketch(rng, classes=3) for _ in range(20)]
    index = SketchIndex.build(names(20), others)
    for name, item in zip(index.names, others, strict=True):
        first = nearest(item, index)[0]
        assert first.name == name
        assert first.similarity == pytest.approx(1, abs=1e-4)


def test_a_single_entry_of_one_class_is_its_own_centre() -> None:
    only = sketch(np.random.default_rng(0), classes=1)
    index = SketchIndex.build(["x"], [only])
    assert prototypes(only, index).tolist() == [0.0]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_an_extended_index_is_the_one_built_at_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    others = [sketch(rng) for _ in range(7)]
    cut = int(rng.integers(0, 8))
    grown = SketchIndex.build(names(7)[:cut], others[:cut]).extended(names(7)[cut:], others[cut:])
    whole = SketchIndex.build(names(7), others)
    assert (grown.names, grown.probe, len(grown)) == (whole.names, PROBE, 7)
    for field in ("prototypes", "starts", "centre", "means"):
        np.testing.assert_array_equal(getattr(grown, field), getattr(whole, field))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_the_search_is_exact_in_a_small_library(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    others = [sketch(rng) for _ in range(30)]
    index, query = SketchIndex.build(names(30), others), sketch(rng)
    hits = nearest(query, index, count=count)
    values = prototypes(query, index)
    order = sorted(range(30), key=lambda j: (-values[j], index.names[j]))
    assert [hit.name for hit in hits] == [index.names[j] for j in order[:count]]
    assert [hit.similarity for hit in hits] == [values[j] for j in order[:count]]


def test_a_large_library_is_searched_by_task_mean_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SHORTLIST", 5)
    rng = np.random.default_rng(3)
    others = [sketch(rng, classes=2) for _ in range(60)]
    index, query = SketchIndex.build(names(60), others), sketch(rng, classes=2)
    own = query.present.mean(0) - index.centre
    means = [item.present.mean(0) - index.centre for item in others]
    coarse = [float(own @ m / np.linalg.norm(own) / np.linalg.norm(m)) for m in means]
    best = np.sort(np.argsort(coarse)[-5:])
    values = prototypes(query, index, best)
    expected = sorted(zip(-values, (index.names[j] for j in best), strict=True))
    hits = nearest(query, index, count=3)
    assert [hit.name for hit in hits] == [name for _, name in expected[:3]]
    # Asking for more widens the first stage.
    assert len(nearest(query, index, count=50)) == 50


def test_equal_entries_come_by_name() -> None:
    rng = np.random.default_rng(3)
    same, other = sketch(rng), sketch(rng)
    index = SketchIndex.build(["b", "z", "a"], [same, other, same])
    hits = nearest(same, index)
    assert [hit.name for hit in hits[:2]] == ["a", "b"]


def test_an_empty_library_has_no_neighbours() -> None:
    index = SketchIndex.build([], [])
    query = sketch(np.random.default_rng(0))
    assert nearest(query, index) == ()
    assert prototypes(query, index).shape == (0,)


def test_what_cannot_be_compared_is_refused() -> None:
    rng = np.random.default_rng(0)
    one, strange = sketch(rng), replace(sketch(rng), probe="b" * 64)
    index = SketchIndex.build(["one"], [one])
    for call in (nearest, prototypes):
        with pytest.raises(ProbeMismatchError, match="probe bbbb"):
            call(strange, index)
        with pytest.raises(SketchError, match="9 features"):
            call(sketch(rng, features=9), index)
    with pytest.raises(ProbeMismatchError):
        SketchIndex.build(["one", "two"], [one, strange])
    with pytest.raises(ProbeMismatchError):
        index.extended(["two"], [strange])
    with pytest.raises(SketchError, match="'two' has 9 features"):
        index.extended(["two"], [sketch(rng, features=9)])
    with pytest.raises(SketchError, match="no name twice"):
        index.extended(["one"], [one])
    with pytest.raises(UnknownNameError, match="did you mean 'prototypes'"):
        nearest(one, index, similarity="prototype")


def test_a_second_stage_orders_the_best_anew_and_drops_the_others() -> None:
    hits = [Hit(name, 1 - number / 10) for number, name in enumerate("cbad")]
    assert rerank(hits, [0.5, 0.7, 0.5]) == (Hit("b", 0.7), Hit("a", 0.5), Hit("c", 0.5))
    assert rerank(hits, []) == ()
    with pytest.raises(LibraryError, match="5 values for 4 hits"):
        rerank(hits, [0.0] * 5)
    with pytest.raises(LibraryError, match="finite"):
        rerank(hits, [0.5, float("nan")])


def test_all_similarities_have_one_interface_and_say_what_they_need() -> None:
    rng = np.random.default_rng(0)
    query = sketch(rng)
    index = SketchIndex.build(["one"], [sketch(rng)])
    assert all(name == method.name for name, method in SIMILARITIES.items())
    by_sketch = {name for name, method in SIMILARITIES.items() if method.by_sketch}
    assert by_sketch == {"prototypes", "transport", "fingerprints"}
    for method in SIMILARITIES.values():
        if method.needs - {"fingerprint"}:
            with pytest.raises(SketchError):
                method.compare(Evidence(query), index)
        else:
            assert method.compare(Evidence(query), index).shape == (1,)
