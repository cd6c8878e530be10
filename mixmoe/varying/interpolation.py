"""Functions between grid points, on a line or a circle: sparse matrices from the grid to the rows."""

from dataclasses import dataclass

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
