"""Counts with more zeros than their distribution has: zero for certain with some probability, else a count.

References
----------
Lambert, D. (1992). Zero-inflated Poisson regression, with an application to defects in manufacturing. Technometrics 34,
1-14.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit, gammaln

from mixmoe._typing import Array
from mixmoe.responses.distribution import Curvature, Derivatives, Family, FurtherTerms, LogLink, Outcome, Third


@dataclass(frozen=True, slots=True)
class ZeroInflated(LogLink):
    """Counts that are zero for certain with probability ``expit(delta)``, else of a base distribution with a log link.

    Attributes
    ----------
    name : str
    base : Family
        Without a dispersion, or with the one fixed here.
    log_theta : float or ndarray, shape (K, 1)
        Log dispersion of the base, one number for all rows, or one for each expert.

    Notes
    -----
    With the probability pi of a certain zero and p_0 that of the base, a zero is a certain one with probability ``r =
    pi / (pi + (1 - pi) p_0)``, the logistic function of ``delta - log p_0``. Derivatives are in terms of r.
    """

    name: str
    base: Family
    log_theta: float | Array = 0.0
    has_dispersion: bool = field(default=True, init=False)
    discrete: bool = field(default=True, init=False)

    def _fixed(self, eta: Array) -> Array:
        return np.full_like(eta, self.log_theta)

    def _certain(self, out: Outcome, eta: Array, delta: Array) -> Array:
        """Probability that a response is a certain zero, shape (K, n)."""
        nothing = np.zeros_like(out.y)
        empty = self.base.log_density(Outcome(nothing, out.trials, nothing), eta, self._fixed(eta))
        return np.where(out.y == 0.0, expit(delta - empty), 0.0)

    def constant(self, y: Array, trials: Array) -> Array:
        """``-log y!``."""
        return -gammaln(y + 1.0)

    def log_density(self, out: Outcome, eta: Array, delta: Array) -> Array:
        """Log density, shape (K, n)."""
        # log(1 - pi) and log pi without the loss of digits where pi is near one or zero.
        counted = self.base.log_density(out, eta, self._fixed(eta)) - np.logaddexp(0.0, delta)
        return np.where(out.y == 0.0, np.logaddexp(counted, -np.logaddexp(0.0, -delta)), counted)

    def derivatives(self, out: Outcome, eta: Array, delta: Array) -> Derivatives:
        """First derivatives and minus the second ones."""
        parts = self.base.derivatives(out, eta, self._fixed(eta))
        r, pi = self._certain(out, eta, delta), expit(delta)
        both = r * (1.0 - r)
        return Derivatives(
            (1.0 - r) * parts.eta,
            r - pi,
            (1.0 - r) * parts.eta_eta - both * parts.eta**2,
            both * parts.eta,
            pi * (1.0 - pi) - both,
        )

    def scoring(self, out: Outcome, eta: Array, delta: Array) -> tuple[Array, Array]:
        """Score and information of a row that is counted with the probability that it is no certain zero."""
        score, information = self.base.scoring(out, eta, self._fixed(eta))
        counted = 1.0 - self._certain(out, eta, delta)
        return counted * score, counted * information

    def curvature(self, out: Outcome, eta: Array, delta: Array) -> Curvature:
        """Log density, slope and weight in one pass."""
        parts = self.derivatives(out, eta, delta)
        return Curvature(self.log_density(out, eta, delta) - out.constant, parts.eta, parts.eta_eta)

    def third(self, out: Outcome, eta: Array, delta: Array) -> Third:
        """Third derivatives."""
        parts, base = (
            self.base.derivatives(out, eta, self._fixed(eta)),
            self.base.third(out, eta, self._fixed(eta)),
        )
        r = self._certain(out, eta, delta)
        both, a, b = r * (1.0 - r), parts.eta, -parts.eta_eta
        return Third(
            (1.0 - r) * base.eta + 3.0 * both * a * b - both * (1.0 - 2.0 * r) * a**3,
            both * ((1.0 - 2.0 * r) * a**2 - b),
        )

    def in_theta(self, out: Outcome, eta: Array, delta: Array) -> FurtherTerms:
        """Derivatives in the log dispersion of the base.

        Notes
        -----
        Where the response is zero the log density is ``log(e^delta + e^b)`` up to what does not move, b the log density
        of the base, whose share ``c = 1 - r`` has the derivative ``r c`` in b, and ``r c`` the derivative
        ``-(1 - 2 r) r c``.
        """
        parts = self.base.derivatives(out, eta, self._fixed(eta))
        r = self._certain(out, eta, delta)
        both = r * (1.0 - r)
        slope, bend, tau, mixed = parts.eta, -parts.eta_eta, parts.delta, -parts.eta_delta
        through = bend * tau + 2.0 * slope * mixed - (1.0 - 2.0 * r) * slope**2 * tau
        return FurtherTerms(
            (1.0 - r) * tau,
            (1.0 - r) * mixed + both * slope * tau,
            (1.0 - r) * self.base.third(out, eta, self._fixed(eta)).delta + both * through,
        )

    def variance(self, mean: Array, delta: Array, trials: Array) -> Array:
        """Variance of the response given its expectation, certain zeros included."""
        counted = expit(-delta)
        inner = mean / counted
        return counted * (self.base.variance(inner, self._fixed(inner), trials) + inner**2) - mean**2

    def deviance(self, out: Outcome, mean: Array, delta: Array) -> Array:
        """Twice the log density lost; a zero that is a certain one loses nothing."""
        inner = mean / expit(-delta)
        lost = self.base.deviance(out, inner, self._fixed(inner))
        return np.where(out.y == 0.0, -2.0 * self.log_density(out, np.log(inner), delta), lost)

    def cdf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Distribution function."""
        counted = expit(-delta) * self.base.cdf(y, eta, self._fixed(eta), trials)
        return np.where(y < 0.0, 0.0, expit(delta) + counted)

    def sf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Probability of a larger response."""
        return np.where(y < 0.0, 1.0, expit(-delta) * self.base.sf(y, eta, self._fixed(eta), trials))

    def start_predictor(self, out: Outcome) -> Array:
        """Log of the count plus a half."""
        return np.log(out.y + 0.5)

    def draw(self, rng: np.random.Generator, eta: Array, delta: Array, trials: Array) -> Array:
        """Counts, some of them zero for certain."""
        counts = self.base.draw(rng, eta, self._fixed(eta), trials)
        return np.where(rng.uniform(size=eta.shape) < expit(delta), 0.0, counts)


def expected(family: Family, eta: Array, delta: Array, trials: Array) -> Array:
    """Expected response, shape (K, n), certain zeros included."""
    mean = family.mean(eta, trials)
    return mean * expit(-delta) if isinstance(family, ZeroInflated) else mean


def shown_dispersion(family: Family, delta: Array) -> Array:
    """A dispersion as it is reported: sigma, theta, or the probability of a certain zero."""
    with np.errstate(over="ignore"):  # a theta that nothing bounds from above has an infinite limit
        return np.asarray(expit(delta) if isinstance(family, ZeroInflated) else np.exp(delta))


def shown_slope(family: Family, delta: Array) -> Array:
    """Derivative of `shown_dispersion`."""
    return np.asarray(expit(delta) * expit(-delta) if isinstance(family, ZeroInflated) else np.exp(delta))
