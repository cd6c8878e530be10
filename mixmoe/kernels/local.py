"""Kernel windows on a sorted index: who is near a grid point, local moments, interpolation between grid points.

The rows are sorted by the index, so the rows inside the support of the kernel at one grid point are a slice, and every
sum over a window is a product of two contiguous blocks. Nothing here checks its input.

References
----------
Fan, J. and Gijbels, I. (1996). Local Polynomial Modelling and Its Applications, chapter 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Array = NDArray[np.float64]
IntArray = NDArray[np.intp]

PAIRS_PER_BLOCK = 1 << 17  # (grid point, row) pairs handled at once: bounds the memory, fits the cache
PAIRS_KEPT = 1 << 21  # windows up to this size are kept between calls


def epanechnikov(t: Array) -> Array:
    """Epanechnikov kernel ``0.75 (1 - t^2)`` on [-1, 1], zero outside."""
    return 0.75 * np.clip(1.0 - t * t, 0.0, None)


@dataclass(frozen=True, slots=True)
class Block:
    """Windows of consecutive grid points, laid end to end.

    Attributes
    ----------
    first, last : int
        Grid points ``first <= g < last``.
    lo, hi : ndarray of int, shape (last - first,)
        Rows ``lo <= i < hi`` lie in the window of a grid point.
    offsets : ndarray of int, shape (last - first + 1,)
        Where each window starts in `t` and `kernel`.
    t : ndarray, shape (pairs,)
        ``(u_i - u_g) / h``.
    kernel : ndarray, shape (pairs,)
        Kernel weight ``K(t)``, not divided by h.
    rows : ndarray of int, shape (pairs,)
        Row of each pair.
    """

    first: int
    last: int
    lo: IntArray
    hi: IntArray
    offsets: IntArray
    t: Array
    kernel: Array
    rows: IntArray


@dataclass(frozen=True, slots=True)
class Windows:
    """Kernel windows of a whole grid.

    Attributes
    ----------
    index : ndarray, shape (n,)
        The index, ascending.
    grid : ndarray, shape (G,)
        Grid points, ascending.
    bandwidth : float
        Half-width of the kernel, in units of the index.
    lo, hi : ndarray of int, shape (G,)
        Rows ``lo <= i < hi`` have positive weight.
    kept : tuple of Block
        The blocks, if they are small enough to keep.
    """

    index: Array
    grid: Array
    bandwidth: float
    lo: IntArray
    hi: IntArray
    kept: tuple[Block, ...]

    @property
    def n_grid(self) -> int:
        """Number of grid points."""
        return len(self.grid)


def build_windows(index: Array, grid: Array, bandwidth: float) -> Windows:
    """Windows of the Epanechnikov kernel around each grid point.

    Parameters
    ----------
    index : ndarray, shape (n,)
        Ascending.
    grid : ndarray, shape (G,)
    bandwidth : float

    Returns
    -------
    Windows
    """
    lo = np.searchsorted(index, grid - bandwidth, side="right")
    hi = np.searchsorted(index, grid + bandwidth, side="left")
    bare = Windows(index, grid, float(bandwidth), lo, np.maximum(lo, hi), ())
    if int((bare.hi - bare.lo).sum()) > PAIRS_KEPT:
        return bare
    return Windows(index, grid, float(bandwidth), lo, bare.hi, tuple(_blocks(bare)))


def blocks(windows: Windows) -> Iterator[Block]:
    """The windows in blocks of bounded size, from memory or made again."""
    return iter(windows.kept) if windows.kept else _blocks(windows)


def _blocks(windows: Windows) -> Iterator[Block]:
    sizes = windows.hi - windows.lo
    first = 0
    while first < windows.n_grid:
        total = np.cumsum(sizes[first:])
        last = first + max(1, int(np.searchsorted(total, PAIRS_PER_BLOCK, side="right")))
        yield _block(windows, first, min(last, windows.n_grid))
        first = last


def _block(windows: Windows, first: int, last: int) -> Block:
    lo, hi = windows.lo[first:last], windows.hi[first:last]
    sizes = hi - lo
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    rows = np.arange(offsets[-1]) + np.repeat(lo - offsets[:-1], sizes)
    t = (windows.index[rows] - np.repeat(windows.grid[first:last], sizes)) / windows.bandwidth
    return Block(first, last, lo, hi, offsets, t, epanechnikov(t), rows)


def effective_rows(windows: Windows, weights: Array) -> Array:
    """Kish's effective number of rows ``(sum w K)^2 / sum (w K)^2`` at each grid point.

    Parameters
    ----------
    windows : Windows
    weights : ndarray, shape (n,)

    Returns
    -------
    ndarray, shape (G,)
        Zero where a window is empty.
    """
    out = np.zeros(windows.n_grid)
    for block in blocks(windows):
        for g, (a, b) in enumerate(zip(block.offsets[:-1], block.offsets[1:], strict=True)):
            w = block.kernel[a:b] * weights[block.lo[g] : block.hi[g]]
            out[block.first + g] = w.sum() ** 2 / max((w * w).sum(), np.finfo(float).tiny)
    return out


def local_predictor(block: Block, coef: Array, design: Array) -> Array:
    """Local polynomial predictors ``sum_s t^s x_i' b_gs`` for every pair of a block.

    Parameters
    ----------
    block : Block
    coef : ndarray, shape (g, S, C, p)
        Coefficients of the block's grid points: power of t, predictor, column.
    design : ndarray, shape (p, n)
        Columns of the design as rows.

    Returns
    -------
    ndarray, shape (C, pairs)
    """
    n_grid, n_powers, n_out, p = coef.shape
    flat = coef.reshape(n_grid, n_powers * n_out, p)
    raw = np.empty((n_powers * n_out, len(block.t)))
    for g in range(n_grid):
        np.matmul(flat[g], design[:, block.lo[g] : block.hi[g]], out=raw[:, block.offsets[g] : block.offsets[g + 1]])
    out = raw[-n_out:]
    for s in range(n_powers - 2, -1, -1):
        out = out * block.t + raw[s * n_out : (s + 1) * n_out]
    return out


def local_moments(block: Block, values: Array, rows: Array, n_powers: int) -> Array:
    """Window sums ``sum_i v_gi t_gi^s q_i`` for every grid point of a block.

    Parameters
    ----------
    block : Block
    values : ndarray, shape (C, pairs)
        Pair values, kernel included.
    rows : ndarray, shape (n, q)
    n_powers : int
        Powers ``s = 0 .. n_powers - 1``.

    Returns
    -------
    ndarray, shape (g, n_powers, C, q)
    """
    n_grid, n_values = block.last - block.first, values.shape[0]
    stacked = np.empty((n_powers * n_values, len(block.t)))
    stacked[:n_values] = values
    for s in range(1, n_powers):
        np.multiply(stacked[(s - 1) * n_values : s * n_values], block.t, out=stacked[s * n_values : (s + 1) * n_values])
    out = np.empty((n_grid, n_powers * n_values, rows.shape[1]))
    for g in range(n_grid):
        np.matmul(stacked[:, block.offsets[g] : block.offsets[g + 1]], rows[block.lo[g] : block.hi[g]], out=out[g])
    return out.reshape(n_grid, n_powers, n_values, rows.shape[1])


def hankel(moments: Array, degree: int) -> Array:
    """Normal matrices of the local polynomial basis from moments by power of t.

    Parameters
    ----------
    moments : ndarray, shape (g, 2 degree + 1, ..., p, p)
    degree : int

    Returns
    -------
    ndarray, shape (g, ..., (degree + 1) p, (degree + 1) p)
        Blocks (s, s') hold the moment of power s + s'.
    """
    rows = [np.concatenate([moments[:, s + r] for r in range(degree + 1)], axis=-1) for s in range(degree + 1)]
    return np.concatenate(rows, axis=-2)


def hermite_matrix(grid: Array, bandwidth: float, at: Array) -> sparse.csr_array:
    """Cubic Hermite interpolation of levels and local slopes, as a sparse matrix.

    Parameters
    ----------
    grid : ndarray, shape (G,)
    bandwidth : float
        Slopes are per bandwidth, as local fits report them.
    at : ndarray, shape (n,)
        Where to evaluate; outside the grid the nearest local line is continued.

    Returns
    -------
    csr_array, shape (n, 2 G)
        Column ``2 g`` multiplies the level at grid point g, column ``2 g + 1`` its slope.
    """
    n, n_grid = len(at), len(grid)
    if n_grid == 1:
        columns = np.tile([0, 1], n)
        values = np.column_stack([np.ones(n), (at - grid[0]) / bandwidth]).ravel()
        return sparse.csr_array((values, columns, np.arange(0, 2 * n + 1, 2)), shape=(n, 2))
    left = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, n_grid - 2)
    values = _hermite_values(grid[left], grid[left + 1], at) * np.array([1.0, 1.0 / bandwidth] * 2)
    columns = 2 * left[:, None] + np.arange(4)
    return sparse.csr_array((values.ravel(), columns.ravel(), np.arange(0, 4 * n + 1, 4)), shape=(n, 2 * n_grid))


def _hermite_values(left: Array, right: Array, at: Array) -> Array:
    """Weights of (left level, left slope, right level, right slope) at each point."""
    step = right - left
    s = (at - left) / step
    c = np.clip(s, 0.0, 1.0)
    blend = c * c * (3.0 - 2.0 * c)
    below, above = np.minimum(s, 0.0), np.maximum(s - 1.0, 0.0)
    slopes = (c * (1.0 - c) ** 2 + below, c * c * (c - 1.0) + above)
    return np.column_stack([1.0 - blend, step * slopes[0], blend, step * slopes[1]])


def linear_matrix(grid: Array, at: Array) -> sparse.csr_array:
    """Linear interpolation from a grid, as a sparse matrix (n, G)."""
    n = len(at)
    left = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, len(grid) - 2)
    share = np.clip((at - grid[left]) / (grid[left + 1] - grid[left]), 0.0, 1.0)
    values = np.column_stack([1.0 - share, share]).ravel()
    columns = np.column_stack([left, left + 1]).ravel()
    return sparse.csr_array((values, columns, np.arange(0, 2 * n + 1, 2)), shape=(n, len(grid)))
