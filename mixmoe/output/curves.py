"""A curve with its bands as a record: what to draw, not how."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """One function of one variable with optional bands.

    Attributes
    ----------
    panel : str
        Curves with the same panel share an axes.
    label : str
        Legend entry.
    x, y : ndarray, shape (G,)
    lower, upper : ndarray, shape (G,), or None
        Pointwise limits.
    band_lower, band_upper : ndarray, shape (G,), or None
        Simultaneous limits.
    expert : int or None
        Expert counted from 1, which settles the colour.
    xlabel, ylabel : str
    categories : tuple of str
        Names of the places 0, 1 ... on the horizontal axis, if it has no numbers; the function is then drawn as points.
    levels : tuple of (float, str)
        Places on the vertical axis and their names, if it has no numbers.
    shade : int or None
        Which colour, counted from 1, if not that of the expert.
    thin : bool
        Whether it is one of many that are only to be seen together.
    limits, bands : str
        Legend entries of the two shades.
    """

    panel: str
    label: str
    x: Array
    y: Array
    lower: Array | None = None
    upper: Array | None = None
    band_lower: Array | None = None
    band_upper: Array | None = None
    expert: int | None = None
    xlabel: str = ""
    ylabel: str = ""
    categories: tuple[str, ...] = ()
    levels: tuple[tuple[float, str], ...] = ()
    shade: int | None = None
    thin: bool = False
    limits: str = ""
    bands: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """Observed series to be drawn thinly behind curves.

    Attributes
    ----------
    x, y : ndarray, shape (n,)
        Rows sorted by unit.
    codes : ndarray of int, shape (n,)
        Unit of each row, 0..N-1, non-decreasing.
    experts : ndarray of int, shape (N,)
        Most probable expert of each unit, counted from 1.
    """

    x: Array
    y: Array
    codes: NDArray[np.int64]
    experts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Marks:
    """Estimates with limits.

    Attributes
    ----------
    x, y, lower, upper : ndarray, shape (G,)
    expert : int or None
    label : str
    """

    x: Array
    y: Array
    lower: Array
    upper: Array
    expert: int | None = None
    label: str = ""
