"""Soft masks against hand-computed values, the published gradient and an obvious slow form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import BudgetError, TrainingError
from fedsprig.pruning import PDP
from fedsprig.pruning.sparse.soft import (
    Softness,
    border,
    hard_mask,
    ramped,
    soft_mask,
    softly,
)

softnesses = st.sampled_from([Softness(), Softness(kappa=0.5), Softness(tau=0.3)])
seeds = st.integers(0, 2**32)


def drawn(rows, length, seed, *, ties=False):
    """Values of both signs, and how many each row drops (from none to all but one)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, length)
    if ties:
        values = torch.randint(-2, 3, shape, generator=generator).double()
    else:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values, torch.randint(0, length, (rows,), generator=generator)


def slow_soft(row, drop, softness):
    """One row, written from the formula."""
    if drop == 0:
        return [1.0] * len(row)
    ordered = sorted(abs(w) for w in row)
    t = (ordered[drop - 1] + ordered[drop]) / 2
    tau = softness.tau or softness.kappa * slow_distance(row, t)
    if tau == 0:
        return [0.5 if w == 0 else 1.0 for w in row]
    return [1 / (1 + math.exp(min(700, (t * t - w * w) / tau))) for w in row]


def slow_distance(row, t):
    """How far squares lie from t^2, at most t^2 each, and a thousandth of it at least."""
    return max(1e-3 * t * t, sum(min(abs(w * w - t * t), t * t) for w in row) / len(row))


def slow_hard(row, drop):
    """The indices that go: the smallest, of equal ones the first."""
    gone = sorted(range(len(row)), key=lambda i: (abs(row[i]), i))[:drop]
    return [i not in gone for i in range(len(row))]


def test_a_row_computed_by_hand():
    values, drop = torch.tensor([[3.0, -1.0, 2.0, -4.0]]), torch.tensor([2])
    assert border(values, drop).item() == 2.5
    mask = soft_mask(values, drop, Softness(tau=5.0))
    # (9 - 6.25) / 5, (1 - 6.25) / 5, (4 - 6.25) / 5, (16 - 6.25) / 5
    expected = [1 / (1 + math.exp(-z)) for z in (0.55, -1.05, -0.45, 1.95)]
    assert mask[0].tolist() == pytest.approx(expected)
    assert softly([mask]) == 1.0
    # The mean of 2.75, 5.25, 2.25 and 6.25 (9.75 is beyond t^2) is 4.125: tau is 3.3.
    relative = soft_mask(values, drop, Softness(kappa=0.8))
    expected = [1 / (1 + math.exp(-z / 3.3)) for z in (2.75, -5.25, -2.25, 9.75)]
    assert relative[0].tolist() == pytest.approx(expected)
    assert hard_mask(values, drop).tolist() == [[True, False, False, True]]


def test_the_border_itself_is_even():
    values = torch.tensor([[1.0, 2.0, 3.0]])
    for softness in (Softness(), Softness(tau=0.1)):
        mask = soft_mask(torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([2]), softness)
        assert mask[0, 1:].tolist() == [0.5, 0.5]
        assert soft_mask(values, torch.tensor([1]), softness)[0, 0] < 0.5


@given(rows=st.integers(1, 6), length=st.integers(1, 9), seed=seeds, softness=softnesses)
@settings(max_examples=100)
def test_masks_are_those_of_the_formula(rows, length, seed, softness):
    for ties in (False, True):
        values, drop = drawn(rows, length, seed, ties=ties)
        soft, hard = soft_mask(values, drop, softness), hard_mask(values, drop)
        for row in range(rows):
            line, gone = values[row].tolist(), int(drop[row])
            assert soft[row].tolist() == pytest.approx(slow_soft(line, gone, softness), abs=1e-12)
            assert hard[row].tolist() == slow_hard(line, gone)


@given(rows=st.integers(1, 5), length=st.integers(2, 9), seed=seeds, softness=softnesses)
@settings(max_examples=100)
def test_the_gradient_is_the_published_one(rows, length, seed, softness):
    """d(m w)/dw = m + 2 w^2 / tau m (1 - m), with t and tau constant."""
    values, drop = drawn(rows, length, seed)
    values.requires_grad_(True)
    mask = soft_mask(values, drop, softness)
    (mask * values).sum().backward()
    t = border(values, drop)
    far = [slow_distance(row, float(at)) for row, at in zip(values.tolist(), t, strict=True)]
    tau = softness.tau or softness.kappa * torch.tensor(far, dtype=torch.float64).unsqueeze(1)
    w, m = values.detach(), mask.detach()
    boosted = m + 2 * w.square() / tau * m * (1 - m)
    expected = torch.where(drop.unsqueeze(1) > 0, boosted, 1.0)
    torch.testing.assert_close(values.grad, expected, rtol=1e-9, atol=1e-9)
    if drop.any():
        assert not torch.equal(expected, m)


@pytest.mark.parametrize("softness", [Softness(), Softness(tau=1e-4)])
@pytest.mark.parametrize(
    "row",
    [
        [0.0] * 6,
        [0.3] * 6,
        [0.0, 0.0, 0.0, 0.0, 1e15, -1e15],
        [1e-44, 1e-44, 1e-44, 1e-44, 1.0, 2.0],
        [1e-30, 2e-30, 3e-30, 4e-30, 5e-30, 6e-30],
        [1e15, 2e15, 3e15, 4e15, 5e15, -6e15],
    ],
    ids=["zeros", "equal", "zero border", "subnormal border", "tiny", "huge"],
)
def test_odd_rows_have_finite_masks_and_gradients(row, softness):
    values = torch.tensor([row, row], requires_grad=True)
    drop = torch.tensor([3, 5])
    mask = soft_mask(values, drop, softness)
    (mask * values).sum().backward()
    assert torch.isfinite(mask).all()
    assert ((mask >= 0) & (mask <= 1)).all()
    assert torch.isfinite(values.grad).all()
    assert hard_mask(values, drop).sum(1).tolist() == [3, 1]
    single = soft_mask(values[:1], drop[:1], softness)
    torch.testing.assert_close(single, mask[:1])


@given(seed=seeds, scale=st.floats(-25, 15))
@settings(max_examples=50)
def test_kappa_does_not_know_the_scale_of_the_weights(seed, scale):
    values, drop = drawn(3, 8, seed)
    values = values.float()
    scaled = values * 10**scale
    found = soft_mask(scaled, drop, Softness())
    torch.testing.assert_close(found, soft_mask(values, drop, Softness()), rtol=1e-3, atol=1e-5)


def test_kappa_does_not_know_how_close_together_values_lie():
    """The norms of a layer's units differ by a few per cent; no more of them may be soft for it."""
    values = torch.rand(1, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = []
    for spread in (0.3, 0.03, 0.003):
        mask = soft_mask(1 + spread * (values - 0.5), torch.tensor([1000]), Softness())
        shares.append(softly([mask]))
    assert shares == pytest.approx([shares[0]] * 3, rel=0.2)
    assert 0.02 < shares[0] < 0.2


def test_half_precision_is_computed_wider():
    values, drop = drawn(4, 16, 1)
    half = values.bfloat16()
    mask = soft_mask(half, drop, Softness())
    assert mask.dtype == torch.bfloat16
    wide = soft_mask(half.float(), drop, Softness())
    assert float((mask.float() - wide).abs().max()) <= 2**-8
    assert torch.equal(hard_mask(half, drop), hard_mask(half.float(), drop))


def test_nothing_dropped_is_left_alone_and_a_whole_row_is_refused():
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2)
    none = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(soft_mask(values, none, Softness()), torch.ones(2, 4))
    assert hard_mask(values, none).all()
    mixed = soft_mask(values, torch.tensor([0, 2]), Softness(kappa=1.0))
    assert torch.equal(mixed[0], torch.ones(4))
    assert (mixed[1] < 1).all()
    for drop in ([4, 0], [-1, 0], [1]):
        for masked in (lambda d: soft_mask(values, d, Softness()), lambda d: hard_mask(values, d)):
            with pytest.raises(BudgetError, match="keep at least one"):
                masked(torch.tensor(drop))


@given(rows=st.integers(1, 6), length=st.integers(2, 6), seed=seeds, factor=st.floats(0, 1))
@settings(max_examples=100)
def test_on_the_way_the_smallest_of_what_will_go_are_gone(rows, length, seed, factor):
    for ties in (False, True):
        values, _ = drawn(rows, length, seed, ties=ties)
        drop = 1 + seed % (length - 1)
        found = ramped(values, drop, factor)
        assert int(found.sum()) == int(factor * rows * drop)
        candidates = sorted(
            (abs(w), row, place)
            for row, line in enumerate(values.tolist())
            for place, w in enumerate(sorted(line, key=abs)[:drop])
        )
        gone = [row for _, row, _ in candidates[: int(factor * rows * drop)]]
        assert found.tolist() == [gone.count(row) for row in range(rows)]
        assert torch.equal(ramped(values, drop, 1.0), torch.full((rows,), drop))
        assert not ramped(values, drop, 0.0).any()


def test_the_soft_fraction_counts_what_is_neither():
    masks = [torch.tensor([[0.0, 0.05, 0.06, 0.5]]), torch.tensor([[0.94, 0.95], [1.0, 1.0]])]
    assert softly(masks) == 3 / 8
    assert softly([]) == 0


@pytest.mark.parametrize(
    "values", [{"kappa": 0.0}, {"kappa": 1.5}, {"tau": 0.0}, {"tau": math.nan}, {"tau": math.inf}]
)
def test_softness_out_of_range_is_refused(values):
    with pytest.raises(BudgetError, match="choose kappa"):
        Softness(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"kappa": 1e-200},
        {"hardening": 1e-320},
        {"kappa": 1e-8, "hardening": 1e-8},
        {"tau": 1e-320},
        {"finish_epochs": 10**8},
    ],
)
def test_what_would_leave_the_range_of_numbers_is_refused_at_once(values):
    with pytest.raises((BudgetError, TrainingError)):
        PDP(**values)
