"""Kernel windows along the index, sums and polynomials within them, interpolation between grid points.

The rows are sorted by the index, so the rows inside the support of the kernel at one grid point are a slice, and every
sum over a window is a product of two contiguous blocks. Nothing here checks its input.

References
----------
Fan, J. and Gijbels, I. (1996). Local Polynomial Modelling and Its Applications, chapter 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy import sparse

from mixmoe._typing import Array, IntArray

LINE = 0.0  # the period of an index that has none


def wrapped(difference: Array, period: float) -> Array:
    """Differences of index values, on a circle by the shorter way round."""
    return difference - period * np.rint(difference / period) if period else difference


def positions(index: Array, at: Array, side: str, period: float) -> IntArray:
    """How many rows lie before each value, on a circle counted on from turn to turn.

    Parameters
    ----------
    index : ndarray, shape (n,)
        Ascending, within one period.
    at : ndarray, shape (G,)
    side : {"left", "right"}
        As in `numpy.searchsorted`.
    period : float
    """
    if not period:
        return np.searchsorted(index, at, side=side)  # type: ignore[call-overload]
    turn = np.floor((at - index[0]) / period)
    inside = np.searchsorted(index, at - turn * period, side=side)  # type: ignore[call-overload]
    return np.asarray(inside + len(index) * turn.astype(np.intp), dtype=np.intp)


def origin(index: Array, response: Array, period: float) -> float:
    """Where the grid of a circle begins: opposite to where the response is largest, by its first harmonic.

    Parameters
    ----------
    index, response : ndarray, shape (n,)
    period : float

    Notes
    -----
    A grid from zero on would lie differently to the rows when the circle gets another origin, and so would the folds of
    a cross-validation. What the data single out turns with them. An index itself may not: full hours all alike.
    """
    turn = 2.0 * np.pi / period
    away = response - response.mean()
    first = np.angle(-(away * np.exp(1j * turn * index)).sum())
    return float(np.mod(first / turn, period))


def once_round(index: Array, start: float, period: float) -> Array:
    """Index values between an origin and one period beyond."""
    out = start + np.mod(index - start, period)
    # The remainder of a tiny negative number is rounded up to the period itself, which is the origin again.
    return np.where(out >= start + period, start, out)


def hermite_matrix(grid: Array, bandwidth: float, at: Array, period: float = LINE) -> sparse.csr_array:
    """Cubic Hermite interpolation of levels and local slopes, as a sparse matrix.

    Parameters
    ----------
    grid : ndarray, shape (G,)
    bandwidth : float
        Slopes are per bandwidth, as local fits report them.
    at : ndarray, shape (n,)
        Where to evaluate; outside the grid the nearest local line is continued, on a circle the next turn begins.
    period : float

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
    # As a sparse matrix made once: interpolation of all functions to all rows is then one product per E-step.
    here = _neighbours(grid, at, period)
    values = _hermite_values(here.left, here.right, here.at) * np.array([1.0, 1.0 / bandwidth] * 2)
    columns = (2 * here.points[:, :, None] + np.arange(2)).reshape(n, 4)
    return sparse.csr_array((values.ravel(), columns.ravel(), np.arange(0, 4 * n + 1, 4)), shape=(n, 2 * n_grid))


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """Grid points on each side of some values.

    Attributes
    ----------
    points : ndarray of int, shape (n, 2)
    left, right, at : ndarray, shape (n,)
        Index values of the two grid points and of the values, on a circle all in the same turn.
    """

    points: IntArray
    left: Array
    right: Array
    at: Array


def _neighbours(grid: Array, at: Array, period: float) -> _Neighbours:
    if not period:
        left = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, len(grid) - 2)
        return _Neighbours(np.column_stack([left, left + 1]), grid[left], grid[left + 1], at)
    at = once_round(at, float(grid[0]), period)
    left = np.searchsorted(grid, at, side="right") - 1
    closed = np.append(grid, grid[0] + period)
    return _Neighbours(np.column_stack([left, (left + 1) % len(grid)]), grid[left], closed[left + 1], at)


def _hermite_values(left: Array, right: Array, at: Array) -> Array:
    """Weights of (left level, left slope, right level, right slope) at each point."""
    step = right - left
    s = (at - left) / step
    # Cubic between the points, and beyond the ends the line of the end point, without bends of the cubic.
    c = np.clip(s, 0.0, 1.0)
    blend = c * c * (3.0 - 2.0 * c)
    below, above = np.minimum(s, 0.0), np.maximum(s - 1.0, 0.0)
    slopes = (c * (1.0 - c) ** 2 + below, c * c * (c - 1.0) + above)
    return np.column_stack([1.0 - blend, step * slopes[0], blend, step * slopes[1]])


def linear_matrix(grid: Array, at: Array, period: float = LINE) -> sparse.csr_array:
    """Linear interpolation from a grid, as a sparse matrix (n, G)."""
    n, here = len(at), _neighbours(grid, at, period)
    share = np.clip((here.at - here.left) / (here.right - here.left), 0.0, 1.0)
    values = np.column_stack([1.0 - share, share]).ravel()
    return sparse.csr_array((values, here.points.ravel(), np.arange(0, 2 * n + 1, 2)), shape=(n, len(grid)))


def interpolated(at: Array, grid: Array, values: Array, period: float) -> Array:
    """Values at grid points (G,) between these, constant beyond the ends of a line."""
    return np.asarray(np.interp(at, grid, values, period=period or None), dtype=np.float64)


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
    lo : ndarray of int, shape (last - first,)
        First row in the window of a grid point; on a circle counted on from turn to turn.
    offsets : ndarray of int, shape (last - first + 1,)
        Where each window starts in `t` and `kernel`.
    spans : tuple of slice
        Pairs of each window.
    parts : tuple of slice or of ndarray of int
        Rows of each window.
    t : ndarray, shape (pairs,)
        ``(u_i - u_g) / h``, with the bandwidth h as unit.
    kernel : ndarray, shape (pairs,)
        Kernel weight ``K((u_i - u_g) / h_g)``, not divided by the half-width h_g.
    rows : ndarray of int, shape (pairs,)
        Row of each pair.
    n : int
        Number of rows.
    """

    first: int
    last: int
    lo: IntArray
    offsets: IntArray
    spans: tuple[slice, ...]
    parts: tuple[slice | IntArray, ...]
    t: Array
    kernel: Array
    rows: IntArray
    n: int


@dataclass(frozen=True)  # not slotted: what follows from the attributes is kept
class Windows:
    """Kernel windows of a whole grid.

    Attributes
    ----------
    index : ndarray, shape (n,)
        The index, ascending.
    grid : ndarray, shape (G,)
        Grid points, ascending.
    bandwidth : float
        Half-width of the kernel, in units of the index, and the unit of slopes; the median one with a span.
    widths : ndarray, shape (G,)
        Half-width at each grid point, all the same but with a span.
    lo, hi : ndarray of int, shape (G,)
        Rows ``lo <= i < hi`` have positive weight; on a circle counted on from turn to turn.
    kept : tuple of Block
        The blocks, if they are small enough to keep.
    period : float
        Of an index on a circle, else `LINE`.
    share : float
        Of the rows that each window holds, if that settles its width, else zero.
    """

    index: Array
    grid: Array
    bandwidth: float
    widths: Array
    lo: IntArray
    hi: IntArray
    kept: tuple[Block, ...]
    period: float = LINE
    share: float = 0.0

    @cached_property
    def n_grid(self) -> int:
        """Number of grid points."""
        return len(self.grid)

    @cached_property
    def relative(self) -> float:
        """Bandwidth over the range of the index, with a span that in ranks."""
        return 0.5 * self.share if self.share else self.bandwidth / self.span

    def words(self, g: int) -> str:
        """What the window of a grid point is called in messages."""
        return f"span {self.share:.4g}" if self.share else f"bandwidth {self.widths[g]:.4g}"

    @cached_property
    def span(self) -> float:
        """Length of the index that the grid covers."""
        return self.period or float(np.ptp(self.grid))

    @cached_property
    def shown(self) -> Array:
        """Grid points as a reader knows them, on a circle from zero to the period."""
        return np.mod(self.grid, self.period) if self.period else self.grid

    @cached_property
    def parts(self) -> tuple[slice | IntArray, ...]:
        """Rows in the window of each grid point."""
        n, ends = len(self.index), zip(self.lo.tolist(), self.hi.tolist(), strict=True)
        # Slices are views; only the few windows that reach over the origin of a circle have to be gathered.
        return tuple(slice(lo, hi) if lo >= 0 and hi <= n else np.arange(lo, hi) % n for lo, hi in ends)

    def with_grid(self, grid: Array, factor: float = 1.0) -> "Windows":
        """Windows of the same width, or that times a factor, around other grid points."""
        widths = factor * interpolated(grid, self.grid, self.widths, self.period)
        h, share = factor * self.bandwidth, factor * self.share
        return build_windows(self.index, grid, h, self.period, widths, share)


def build_windows(
    index: Array, grid: Array, bandwidth: float, period: float = LINE, widths: Array | None = None, share: float = 0.0
) -> Windows:
    """Windows of the Epanechnikov kernel around each grid point.

    Parameters
    ----------
    index : ndarray, shape (n,)
        Ascending.
    grid : ndarray, shape (G,)
    bandwidth : float
        On a circle at most half the period, so that no row is in a window twice.
    period : float
    widths : ndarray, shape (G,), optional
        Half-width at each grid point, by default the bandwidth.
    share : float
        Of the rows, if these are the widths of a span.

    Returns
    -------
    Windows
    """
    reach = np.full(len(grid), float(bandwidth)) if widths is None else widths
    lo = positions(index, grid - reach, "right", period)
    hi = positions(index, grid + reach, "left", period)
    bare = Windows(index, grid, float(bandwidth), reach, lo, np.maximum(lo, hi), (), period, share)
    if int((bare.hi - bare.lo).sum()) > PAIRS_KEPT:
        return bare
    return replace(bare, kept=tuple(blocks(bare)))


def blocks(windows: Windows) -> Iterator[Block]:
    """The windows in blocks of bounded size, from memory or made again."""
    if windows.kept:
        yield from windows.kept
        return
    sizes, first = windows.hi - windows.lo, 0
    while first < windows.n_grid:
        total = np.cumsum(sizes[first:])
        last = min(first + max(1, int(np.searchsorted(total, PAIRS_PER_BLOCK, side="right"))), windows.n_grid)
        lo, own = windows.lo[first:last], sizes[first:last]
        offsets = np.concatenate([[0], np.cumsum(own)])
        turn, rows = np.divmod(np.arange(offsets[-1]) + np.repeat(lo - offsets[:-1], own), len(windows.index))
        at = windows.index[rows] + windows.period * turn
        away = at - np.repeat(windows.grid[first:last], own)
        kernel = epanechnikov(away / np.repeat(windows.widths[first:last], own))
        spans = tuple(slice(a, b) for a, b in pairwise(offsets.tolist()))
        t, parts = away / windows.bandwidth, windows.parts[first:last]
        yield Block(first, last, lo, offsets, spans, parts, t, kernel, rows, len(windows.index))
        first = last


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
        for g, (span, rows) in enumerate(zip(block.spans, block.parts, strict=True)):
            w = block.kernel[span] * weights[rows]
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
        np.matmul(flat[g], design[:, block.parts[g]], out=raw[:, block.spans[g]])
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
        np.matmul(stacked[:, block.spans[g]], rows[block.parts[g]], out=out[g])
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
