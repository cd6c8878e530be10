"""Quantile residuals, and the envelope within which their ordered values should lie."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import beta

Array = NDArray[np.float64]

_TINY = 1e-300
_CHECKED = 200  # order statistics at which the simultaneous level is settled
_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where each response lies in its fitted distribution.

    Attributes
    ----------
    below, at : ndarray, shape (n,)
        ``P(Y < y)`` and ``P(Y <= y)``; equal if the response is continuous.
    beyond, above : ndarray, shape (n,)
        ``P(Y >= y)`` and ``P(Y > y)``, one minus the former without loss of digits.
    """

    below: Array
    at: Array
    beyond: Array
    above: Array


def continuous(at: Array, above: Array) -> Distribution:
    """Distribution of a continuous response from ``P(Y <= y)`` and ``P(Y > y)``."""
    return Distribution(at, at, above, above)


def placed(cdf: Callable[[Array], Array], sf: Callable[[Array], Array], y: Array, discrete: bool) -> Distribution:
    """Where responses lie, from ``P(Y <= y)`` and ``P(Y > y)`` as functions of y; steps lie one apart."""
    at, above = cdf(y), sf(y)
    return Distribution(cdf(y - 1.0), at, sf(y - 1.0), above) if discrete else continuous(at, above)


def quantile_residuals(where: Distribution, rng: np.random.Generator) -> Array:
    """Standard normal under the model, shape (n,); randomised where the response is discrete.

    Parameters
    ----------
    where : Distribution
    rng : numpy.random.Generator
        Not used if the response is continuous.

    Returns
    -------
    ndarray, shape (n,)

    References
    ----------
    Dunn & Smyth (1996), Journal of Computational and Graphical Statistics 5, 236-244.
    """
    jumps = bool((where.at > where.below).any())
    share = rng.random(len(where.at)) if jumps else np.zeros(len(where.at))
    low = where.below + share * (where.at - where.below)
    high = where.beyond - share * (where.beyond - where.above)
    upper = low > 0.5
    return np.asarray(np.where(upper, -1.0, 1.0) * ndtri(np.maximum(np.where(upper, high, low), _TINY)))


@dataclass(frozen=True, slots=True)
class Ordered:
    """Ordered residuals beside what they should be.

    Attributes
    ----------
    expected : ndarray, shape (n,)
        Normal quantiles at ``i / (n + 1)``.
    observed : ndarray, shape (n,)
    lower, upper : ndarray, shape (n,)
        Simultaneous envelope: with probability `level` n independent normal residuals lie within everywhere.
    level : float
    """

    expected: Array
    observed: Array
    lower: Array
    upper: Array
    level: float


def ordered_residuals(residuals: Array, alpha: float, rng: np.random.Generator) -> Ordered:
    """Ordered residuals with a simultaneous envelope of equal local levels.

    Parameters
    ----------
    residuals : ndarray, shape (n,)
    alpha : float
        One minus the level of the envelope.
    rng : numpy.random.Generator
        For the level at each point.

    Returns
    -------
    Ordered

    References
    ----------
    Aldor-Noiman et al. (2013), The American Statistician 67, 249-260.
    """
    n = len(residuals)
    rank = np.arange(1, n + 1)
    local = local_level(n, alpha, rng)
    lower, upper = (beta.ppf(level, rank, n + 1 - rank) for level in (local / 2, 1 - local / 2))
    return Ordered(ndtri(rank / (n + 1)), np.sort(residuals), ndtri(lower), ndtri(upper), 1 - alpha)


def local_level(n: int, alpha: float, rng: np.random.Generator) -> float:
    """Level at each order statistic of n uniforms at which all of them leave their limits with probability `alpha`."""
    rank = np.unique(np.linspace(1, n, min(n, _CHECKED)).round().astype(int))
    smallest = np.empty(_DRAWS)
    for i in range(_DRAWS):
        cumulated = np.cumsum(rng.standard_exponential(n + 1))
        p = beta.cdf(cumulated[rank - 1] / cumulated[-1], rank, n + 1 - rank)
        smallest[i] = 2 * np.minimum(p, 1 - p).min()
    return float(np.quantile(smallest, alpha))
