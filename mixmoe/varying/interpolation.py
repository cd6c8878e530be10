"""Functions between grid points: sparse matrices from values on the grid to values at the rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mixmoe._typing import Array
from mixmoe.varying.circle import LINE, once_round

IntArray = NDArray[np.intp]


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
