"""Mixtures of normal and t laws, one per row: what a fitted mixture says of a response or of a subject's mean."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtr, stdtrit
from scipy.stats import norm

from mixmoe._typing import Array

_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class MixtureLaw:
    """A normal or t mixture per row.

    Attributes
    ----------
    weights, means : ndarray, shape (n, K)
    sd : ndarray, shape (n, K)
        Standard deviations, or for t the scales.
    df : ndarray, shape (n, K), or None
        Degrees of freedom; None for normal components.
    """

    weights: Array
    means: Array
    sd: Array
    df: Array | None = None

    @property
    def mean(self) -> Array:
        """Means of the mixtures, shape (n,)."""
        return np.asarray((self.weights * self.means).sum(axis=1))

    @property
    def deviation(self) -> Array:
        """Standard deviations of the mixtures, infinite where they do not exist, shape (n,)."""
        inside = self.sd**2
        if self.df is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                inside = np.where(self.df > 2, inside * self.df / (self.df - 2), np.inf)
        return np.sqrt((self.weights * (inside + (self.means - self.mean[:, None]) ** 2)).sum(axis=1))

    def below(self, y: Array) -> Array:
        """Probability of a value below each of `y`, shape (n,)."""
        z = self._standardised(y)
        return np.asarray((self.weights * (ndtr(z) if self.df is None else stdtr(self.df, z))).sum(axis=1))

    def beyond(self, y: Array) -> Array:
        """Probability of a value above each of `y`, shape (n,), without loss of digits."""
        z = self._standardised(-y, sign=-1.0)
        return np.asarray((self.weights * (ndtr(z) if self.df is None else stdtr(self.df, z))).sum(axis=1))

    def quantile(self, level: float) -> Array:
        """Quantiles, shape (n,), by bisection."""
        tail = min(level, 1 - level) / 2
        reach = (norm.isf(tail) if self.df is None else -stdtrit(self.df, tail)) + 1
        low = (self.means - reach * self.sd).min(axis=1)
        high = (self.means + reach * self.sd).max(axis=1)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            under = self.below(middle) < level
            low, high = np.where(under, middle, low), np.where(under, high, middle)
        return 0.5 * (low + high)

    def _standardised(self, y: Array, sign: float = 1.0) -> Array:
        scale = np.maximum(self.sd, np.finfo(float).tiny)
        with np.errstate(over="ignore"):  # without random effects a subject's mean has no spread within an expert
            return np.asarray((y[:, None] - sign * self.means) / scale)
