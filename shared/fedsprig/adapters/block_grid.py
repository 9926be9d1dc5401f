"""Where the kept blocks of a weight lie, and the way between blocks and matrices."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class BlockGrid:
    """The blocks of one layer's weight ``[out, in]``, in the coordinates of the uncut weight.

    The uncut weight is thought to be filled up to whole blocks. Where the layer has been cut, or
    the blocks do not divide it, only some rows and columns of that are there.

    Attributes:
        block: ``(p, q)``: outputs and inputs of a block.
        shape: of the uncut weight, ``(out, in)``.
        at: int64 ``[2, kept]``, row and column of every kept block, row by row.
        rows: int64 ``[out]``, increasing: where each output lies in the uncut weight.
        columns: int64 ``[in]``, increasing: where each input lies there.
    """

    block: tuple[int, int]
    shape: tuple[int, int]
    at: Tensor
    rows: Tensor
    columns: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    @property
    def kept(self) -> int:
        """Number of kept blocks."""
        return self.at.shape[1]

    @property
    def whole(self) -> bool:
        """Whether all blocks are kept."""
        return self.kept == self.size[0] * self.size[1]

    def spread(self, values: Tensor) -> Tensor:
        """``[d, kept]`` -> ``[d, rows, columns]`` of blocks, zero where pruned."""
        if self.whole:
            return values.view(len(values), *self.size)
        empty = values.new_zeros(len(values), self.size[0] * self.size[1])
        places = self.at[0] * self.size[1] + self.at[1]
        return empty.index_copy(1, places, values).view(len(values), *self.size)

    def mask(self, matrix: Tensor) -> Tensor:
        """``[out, in]`` of finite numbers with pruned blocks set to zero."""
        if self.whole:
            return matrix
        (p, q), (down, across) = self.block, self.size
        keep = self.spread(matrix.new_ones(1, self.kept))[0]
        if matrix.shape == (down * p, across * q):
            blocks = matrix.reshape(down, p, across, q)
            return (blocks * keep[:, None, :, None]).view_as(matrix)
        return matrix * keep[(self.rows // p)[:, None], self.columns // q]

    def split(self, matrix: Tensor) -> Tensor:
        """``[out, in]`` -> its kept blocks ``[kept, p, q]``, zero where the matrix has nothing."""
        (p, q), (down, across) = self.block, self.size
        blocks = self._fill_in(self._fill_out(matrix, 0), 1).reshape(down, p, across, q)
        blocks = blocks.transpose(1, 2)
        return blocks.flatten(0, 1) if self.whole else blocks[self.at[0], self.at[1]]

    def join(self, blocks: Tensor) -> Tensor:
        """Kept blocks ``[kept, p, q]`` -> ``[out, in]``, exactly zero elsewhere."""
        (p, q), (down, across) = self.block, self.size
        if not self.whole:
            empty = blocks.new_zeros(down, across, p, q)
            blocks = empty.index_put((self.at[0], self.at[1]), blocks)
        filled = blocks.view(down, across, p, q).transpose(1, 2).reshape(down * p, across * q)
        return _take(_take(filled, 0, self.rows, self.shape[0]), 1, self.columns, self.shape[1])

    def add(self, matrix: Tensor, blocks: Tensor) -> Tensor:
        """``[out, in]`` plus all blocks, ``[rows * columns, p, q]``, row by row."""
        (p, q), (down, across) = self.block, self.size
        laid = blocks.view(down, across, p, q).transpose(1, 2)
        if matrix.shape == (down * p, across * q):
            return (matrix.reshape(laid.shape) + laid).reshape(matrix.shape)
        filled = laid.reshape(down * p, across * q)
        rows = _take(filled, 0, self.rows, self.shape[0])
        return matrix + _take(rows, 1, self.columns, self.shape[1])

    def slabs_out(self, g: Tensor) -> Tensor:
        """``[n, out]`` -> ``[rows of blocks, n, p]``, contiguous."""
        return _slabs(self._fill_out(g, 1), self.block[0])

    def slabs_in(self, x: Tensor) -> Tensor:
        """``[n, in]`` -> ``[columns of blocks, n, q]``, contiguous."""
        return _slabs(self._fill_in(x, 1), self.block[1])

    def from_slabs_out(self, slabs: Tensor) -> Tensor:
        """``[rows of blocks, n, p]`` -> ``[n, out]``."""
        return _take(slabs.transpose(0, 1).flatten(1), 1, self.rows, self.shape[0])

    def from_slabs_in(self, slabs: Tensor) -> Tensor:
        """``[columns of blocks, n, q]`` -> ``[n, in]``."""
        return _take(slabs.transpose(0, 1).flatten(1), 1, self.columns, self.shape[1])

    def _fill_out(self, tensor: Tensor, axis: int) -> Tensor:
        return _fill(tensor, axis, self.rows, self.shape[0], self.size[0] * self.block[0])

    def _fill_in(self, tensor: Tensor, axis: int) -> Tensor:
        return _fill(tensor, axis, self.columns, self.shape[1], self.size[1] * self.block[1])


def _slabs(matrix: Tensor, width: int) -> Tensor:
    """``[n, blocks * width]`` -> ``[blocks, n, width]``: memory that small products can walk."""
    blocks = matrix.reshape(len(matrix), matrix.shape[1] // width, width)
    return blocks.transpose(0, 1).contiguous()


def _fill(tensor: Tensor, axis: int, positions: Tensor, uncut: int, length: int) -> Tensor:
    """Put what lies along an axis where it was, with zeros between and up to ``length``."""
    if tensor.shape[axis] == length:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = length
    filled = tensor.new_zeros(shape)
    if len(positions) < uncut:
        return filled.index_copy(axis, positions, tensor)
    filled.narrow(axis, 0, uncut).copy_(tensor)
    return filled


def _take(tensor: Tensor, axis: int, positions: Tensor, uncut: int) -> Tensor:
    """Undo :func:`_fill`."""
    if len(positions) < uncut:
        return tensor.index_select(axis, positions)
    return tensor.narrow(axis, 0, uncut).contiguous()
