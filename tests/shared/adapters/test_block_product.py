"""Products block by block, projections and gradients of blocks against dense products."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.adapters.block_grid import BlockGrid
from fedsprig.adapters.block_product import (
    correlate,
    describe,
    is_sparse,
    least_rows,
    multiply,
    multiply_back,
)
from fedsprig.adapters.prototypes import (
    beside,
    beside_back,
    change,
    merge,
    prefers_blocks,
    prefers_merging,
    through_blocks,
    through_projections,
)

sides = st.integers(1, 24)


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def grid_of(out, inputs, block, keep, seed=0, cut=1.0):
    """Some blocks of some of the rows and columns of an ``[out, inputs]`` weight."""
    rng = np.random.default_rng(seed)
    size = (-(-out // block[0]), -(-inputs // block[1]))
    kept = rng.random(size) < keep
    kept.flat[rng.integers(kept.size)] = True
    lines = [
        np.sort(rng.permutation(length)[: max(1, round(cut * length))]) for length in (out, inputs)
    ]
    at = torch.from_numpy(np.stack(np.nonzero(kept)))
    return BlockGrid(block, (out, inputs), at, *map(torch.from_numpy, lines))


grids = st.builds(
    grid_of,
    sides,
    sides,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.floats(0, 1),
    st.integers(0, 999),
    st.floats(0.2, 1),
)


def slow_join(blocks, grid):
    """Block by block into the uncut matrix, of which then the rows and columns are taken."""
    (p, q), (down, across) = grid.block, grid.size
    whole = blocks.new_zeros(down * p, across * q)
    for block, (i, j) in zip(blocks, grid.at.t().tolist(), strict=True):
        whole[i * p : (i + 1) * p, j * q : (j + 1) * q] = block
    return whole[grid.rows][:, grid.columns]


def kept_elements(grid):
    return slow_join(torch.ones(grid.kept, *grid.block), grid).bool()


@given(grid=grids)
@settings(max_examples=100)
def test_blocks_and_matrices(grid):
    blocks = noise(grid.kept, *grid.block)
    matrix = grid.join(blocks)
    assert torch.equal(matrix, slow_join(blocks, grid))
    other = noise(*matrix.shape, seed=1)
    assert torch.equal(grid.join(grid.split(other)), other * kept_elements(grid))
    torch.testing.assert_close(grid.mask(other), other * kept_elements(grid))
    values = noise(2, grid.kept, seed=2)
    spread = grid.spread(values)
    assert spread.shape == (2, *grid.size)
    assert torch.equal(spread[:, grid.at[0], grid.at[1]], values)
    assert spread.count_nonzero() == 2 * grid.kept
    # split is the transpose of join: what is cropped is zero
    assert float((grid.split(other) * blocks).sum()) == pytest.approx(float((matrix * other).sum()))
    x = noise(3, len(grid.columns))
    assert torch.equal(grid.from_slabs_in(grid.slabs_in(x)), x)
    assert grid.slabs_in(x).shape == (grid.size[1], 3, grid.block[1])
    g = noise(3, len(grid.rows))
    assert torch.equal(grid.from_slabs_out(grid.slabs_out(g)), g)
    assert grid.slabs_out(g).shape == (grid.size[0], 3, grid.block[0])


@given(grid=grids, rows=st.integers(0, 5), biased=st.booleans())
@settings(max_examples=100)
def test_products_block_by_block_are_the_dense_ones(grid, rows, biased):
    blocks = noise(grid.kept, *grid.block)
    dense = slow_join(blocks, grid)
    x, g = noise(rows, len(grid.columns), seed=1), noise(rows, len(grid.rows), seed=2)
    bias = noise(len(grid.rows), seed=3) if biased else None
    expected = x @ dense.T + (0 if bias is None else bias)
    torch.testing.assert_close(multiply(x, blocks, bias, grid), expected)
    torch.testing.assert_close(multiply_back(g, blocks, grid), g @ dense)


@given(grid=grids, rows=st.integers(1, 5))
@settings(max_examples=50)
def test_correlated_blocks_are_those_of_the_dense_gradient(grid, rows):
    x, g = noise(rows, len(grid.columns), seed=1), noise(rows, len(grid.rows), seed=2)
    torch.testing.assert_close(correlate(g, x, grid), grid.split(g.T @ x))


@pytest.mark.parametrize("cut", [1, 0.9])
def test_few_of_many_blocks_are_correlated_one_by_one(cut):
    grid = grid_of(300, 270, (32, 32), 0.02, cut=cut)
    x, g = noise(50, len(grid.columns), seed=1), noise(50, len(grid.rows), seed=2)
    assert is_sparse(x, 50, grid)
    torch.testing.assert_close(correlate(g, x, grid), grid.split(g.T @ x))


@given(
    grid=grids,
    rows=st.sampled_from([1, 4, 300]),
    count=st.integers(1, 4),
    rank=st.integers(1, 3),
    needs=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
@settings(max_examples=100)
def test_both_ways_to_the_gradients_of_the_factors_agree(grid, rows, count, rank, needs):
    p = noise(count, grid.block[0], rank, seed=1)
    q = noise(count, grid.block[1], rank, seed=2)
    b = noise(count, grid.kept, seed=3)
    x, g = noise(rows, len(grid.columns), seed=4), noise(rows, len(grid.rows), seed=5)
    one = through_blocks(g, x, b, p, q, grid, needs)
    two = through_projections(g, x, b, p, q, grid, needs)
    for left, right, needed, factor in zip(one, two, needs, (b, p, q), strict=True):
        assert (left is not None) == (right is not None) == needed
        if needed:
            assert left.shape == factor.shape
            torch.testing.assert_close(left, right)


@given(grid=grids, rows=st.integers(0, 5), count=st.integers(1, 4), rank=st.integers(1, 3))
@settings(max_examples=100)
def test_the_change_beside_is_that_of_the_merged_weight(grid, rows, count, rank):
    p = noise(count, grid.block[0], rank, seed=1)
    q = noise(count, grid.block[1], rank, seed=2)
    b = noise(count, grid.kept, seed=3)
    weight = noise(len(grid.rows), len(grid.columns), seed=4)
    change_of = slow_join(change(b, p, q), grid)
    merged = merge(weight, b, p, q, grid)
    torch.testing.assert_close(merged, weight * kept_elements(grid) + change_of)
    assert not merged[~kept_elements(grid)].any()
    x, g = noise(rows, len(grid.columns), seed=5), noise(rows, len(grid.rows), seed=6)
    torch.testing.assert_close(beside(x, b, p, q, grid), x @ change_of.T)
    torch.testing.assert_close(beside_back(g, b, p, q, grid), g @ change_of)


def test_weights_are_merged_for_many_rows():
    grid = grid_of(768, 768, (32, 32), 1)
    p = torch.zeros(64, 32, 1)
    assert prefers_merging(2048, p, grid)
    assert not prefers_merging(16, p, grid)


def ways(size, block, keep, prototypes, rows=512, trains=True):
    grid = grid_of(size, size, block, keep)
    b = torch.zeros(prototypes, grid.kept)
    p = torch.zeros(prototypes, block[0], 1)
    return prefers_blocks(torch.zeros(rows, size), b, p, grid, (True, trains, trains))


def test_the_shorter_way_is_taken():
    """Where it is plain which one it is."""
    assert not ways(768, (32, 32), 1, 8)
    assert not ways(768, (32, 32), 1, 64, trains=False)
    assert ways(768, (32, 32), 0.02, 64)
    assert ways(768, (4, 4), 1, 64)
    assert ways(64, (32, 32), 1, 64)


# Which product


def test_products_are_block_sparse_where_few_blocks_and_many_rows_make_it_worth_it():
    def least(keep, size=768):
        return least_rows(grid_of(size, size, (32, 32), keep))

    assert least(1) is None
    assert least(0.95) is None
    assert least(0.05) is not None
    assert least(0.02) <= least(0.05) <= least(0.2)
    # ... in layers large enough: the layout of inputs and outputs has a price, too.
    assert least(0.05, size=64) is None
    assert least_rows(grid_of(256, 256, (2, 2), 0.05)) > 1000
    grid = grid_of(768, 768, (32, 32), 0.05)
    rows = least(0.05)
    x = torch.zeros(1, 768)
    assert is_sparse(x, rows, grid)
    assert not is_sparse(x, rows - 1, grid)
    assert not is_sparse(x.bfloat16(), rows, grid)
    assert not is_sparse(x.to("meta"), rows, grid)


def test_more_threads_make_dense_products_the_better_choice():
    grid = grid_of(768, 768, (32, 32), 0.1)
    threads = torch.get_num_threads()
    try:
        least = []
        for count in (1, 2):
            torch.set_num_threads(count)
            least.append(least_rows(grid))
    finally:
        torch.set_num_threads(threads)
    assert least[0] < least[1]


def test_the_description_says_which():
    few, all_ = grid_of(768, 768, (32, 32), 0.02), grid_of(64, 64, (32, 32), 1)
    assert describe(few) == (
        f"{few.kept} of 576 blocks of 32x32: block-sparse from {least_rows(few)} rows on, "
        "dense below"
    )
    assert describe(all_) == "4 of 4 blocks of 32x32: dense, block-sparse would be slower"
