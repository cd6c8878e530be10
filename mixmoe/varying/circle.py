"""An index that runs round a circle: distances, positions of rows, and where its grid begins.

Rows are sorted from an origin once round. A window that reaches over the origin goes on counting: row -1 is the last
row, row n the first one of the next turn, so that every window is a run of consecutive numbers.

References
----------
Di Marzio, M., Panzera, A. and Taylor, C. C. (2009). Local polynomial regression for circular predictors. Statist.
Probab. Lett. 79, 2066-2075.
"""

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array

IntArray = NDArray[np.intp]
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
