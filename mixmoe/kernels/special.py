"""Derivatives of the digamma function at positive arguments, several times faster than through the zeta function."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SHIFT = 10  # terms taken off by recurrence; the series behind is then exact to rounding
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)  # B_2, B_4, ...


def trigamma(x: Array) -> Array:
    """First derivative of the digamma function.

    Notes
    -----
    ``psi'(x) = sum_k<m (x + k)^-2 + psi'(x + m)``, the rest by its asymptotic series ``1/z + 1/(2 z^2) + sum_j B_2j /
    z^(2j+1)``.

    References
    ----------
    Abramowitz & Stegun (1964), Handbook of Mathematical Functions, 6.4.6 and 6.4.12.
    """
    total, z = np.zeros_like(x), x
    for _ in range(_SHIFT):
        total += 1.0 / (z * z)
        z = z + 1.0
    inverse = 1.0 / z
    square = inverse * inverse
    series = np.zeros_like(z)
    for b in reversed(_BERNOULLI):
        series = (series + b) * square
    return total + inverse * (1.0 + 0.5 * inverse + series)


def tetragamma(x: Array) -> Array:
    """Second derivative of the digamma function; see `trigamma`."""
    total, z = np.zeros_like(x), x
    for _ in range(_SHIFT):
        total += 2.0 / (z * z * z)
        z = z + 1.0
    inverse = 1.0 / z
    square = inverse * inverse
    series = np.zeros_like(z)
    for j in range(len(_BERNOULLI), 0, -1):
        series = (series + (2 * j + 1) * _BERNOULLI[j - 1]) * square
    return -(total + square * (1.0 + inverse + series))
