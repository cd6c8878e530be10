"""Positive responses and shares: gamma and beta distributions by mean and precision."""

from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, digamma, expit, gammainc, gammaincc, gammaln

from mixmoe._typing import Array
from mixmoe.responses.distribution import (
    ETA_LIMIT,
    Curvature,
    Derivatives,
    LogLink,
    Outcome,
    Third,
    tetragamma,
    trigamma,
)


@dataclass(frozen=True, slots=True)
class Gamma(LogLink):
    """Positive responses with variance ``mu^2 / shape``, log link; the dispersion is ``log shape``."""

    name: str = "gamma"
    has_dispersion: bool = True
    discrete: bool = False

    def constant(self, y: Array, trials: Array) -> Array:
        """``-log y``."""
        return -np.log(y)

    def log_density(self, out: Outcome, eta: Array, delta: Array) -> Array:
        """Log density, shape (K, n)."""
        return out.constant + self.curvature(out, eta, delta).value

    def derivatives(self, out: Outcome, eta: Array, delta: Array) -> Derivatives:
        """First derivatives and minus the second ones."""
        shape, ratio = np.exp(delta), self._ratio(out, eta)
        slope = shape * (ratio - 1.0)
        first = shape * (delta + 1.0 - digamma(shape) + np.log(out.y) - eta - ratio)
        return Derivatives(slope, first, shape * ratio, -slope, -first - shape * (1.0 - shape * trigamma(shape)))

    def scoring(self, out: Outcome, eta: Array, delta: Array) -> tuple[Array, Array]:
        """Score and information."""
        shape = np.exp(delta) + np.zeros_like(eta)
        return shape * (self._ratio(out, eta) - 1.0), shape

    def curvature(self, out: Outcome, eta: Array, delta: Array) -> Curvature:
        """Log density, slope and weight in one pass."""
        shape, ratio = np.exp(delta), self._ratio(out, eta)
        value = shape * (delta + np.log(out.y) - eta - ratio) - gammaln(shape)
        return Curvature(value, shape * (ratio - 1.0), shape * ratio)

    def third(self, out: Outcome, eta: Array, delta: Array) -> Third:
        """Third derivatives."""
        weight = np.exp(delta) * self._ratio(out, eta)
        return Third(weight, -weight)

    @staticmethod
    def _ratio(out: Outcome, eta: Array) -> Array:
        """Response over its mean."""
        return np.asarray(out.y * np.exp(-np.maximum(eta, -10 * ETA_LIMIT)))

    def variance(self, mean: Array, delta: Array, trials: Array) -> Array:
        """``mu^2 / shape``."""
        return mean**2 * np.exp(-delta)

    def deviance(self, out: Outcome, mean: Array, delta: Array) -> Array:
        """Twice the log density lost."""
        return 2.0 * np.exp(delta) * ((out.y - mean) / mean - np.log(out.y / mean))

    def cdf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Distribution function."""
        shape = np.exp(delta)
        return np.asarray(gammainc(shape, shape * np.maximum(y, 0.0) * np.exp(-np.maximum(eta, -ETA_LIMIT))))

    def sf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Probability of a larger response."""
        shape = np.exp(delta)
        return np.asarray(gammaincc(shape, shape * np.maximum(y, 0.0) * np.exp(-np.maximum(eta, -ETA_LIMIT))))

    def start_predictor(self, out: Outcome) -> Array:
        """Logarithm of the response."""
        return np.log(out.y)

    def draw(self, rng: np.random.Generator, eta: Array, delta: Array, trials: Array) -> Array:
        """Gamma draws."""
        shape = np.exp(delta)
        return rng.gamma(shape, np.exp(np.minimum(eta, ETA_LIMIT)) / shape)


@dataclass(frozen=True, slots=True)
class Beta:
    """Shares between 0 and 1 with variance ``mu (1 - mu) / (1 + phi)``, logit link; the dispersion is ``log phi``."""

    name: str = "beta"
    has_dispersion: bool = True
    discrete: bool = False

    def constant(self, y: Array, trials: Array) -> Array:
        """``-log(y (1 - y))``."""
        return -np.log(y) - np.log1p(-y)

    def log_density(self, out: Outcome, eta: Array, delta: Array) -> Array:
        """Log density, shape (K, n)."""
        a, b = self._shapes(eta, delta)
        return out.constant + gammaln(a + b) - gammaln(a) - gammaln(b) + a * np.log(out.y) + b * np.log1p(-out.y)

    def derivatives(self, out: Outcome, eta: Array, delta: Array) -> Derivatives:
        """First derivatives and minus the second ones."""
        c, (a, b), phi = self.curvature(out, eta, delta), self._shapes(eta, delta), np.exp(delta)
        logs = a * np.log(out.y) + b * np.log1p(-out.y)
        first = phi * digamma(phi) - a * digamma(a) - b * digamma(b) + logs
        second = phi**2 * trigamma(phi) - a**2 * trigamma(a) - b**2 * trigamma(b)
        turn = a * b / phi * (a * trigamma(a) - b * trigamma(b))
        return Derivatives(c.slope, first, c.weight, turn - c.slope, -first - second)

    def scoring(self, out: Outcome, eta: Array, delta: Array) -> tuple[Array, Array]:
        """Score and information."""
        a, b = self._shapes(np.clip(eta, -ETA_LIMIT, ETA_LIMIT), delta)
        spread = (a * b / np.exp(delta)) ** 2
        return self.curvature(out, eta, delta).slope, spread * (trigamma(a) + trigamma(b))

    def curvature(self, out: Outcome, eta: Array, delta: Array) -> Curvature:
        """Log density, slope and weight in one pass."""
        (a, b), phi = self._shapes(eta, delta), np.exp(delta)
        spread = a * b / phi  # phi mu (1 - mu)
        gap = self._gap(out, a, b)
        weight = spread**2 * (trigamma(a) + trigamma(b)) - spread * (b - a) / phi * gap
        return Curvature(self.log_density(out, eta, delta) - out.constant, spread * gap, weight)

    def third(self, out: Outcome, eta: Array, delta: Array) -> Third:
        """Third derivatives."""
        (a, b), phi = self._shapes(eta, delta), np.exp(delta)
        m, tilt, gap = a * b / phi**2, (b - a) / phi, self._gap(out, a, b)
        one, two = trigamma(a) + trigamma(b), tetragamma(a) - tetragamma(b)
        in_eta = phi * (m * tilt**2 - 2 * m**2) * gap - 3 * phi**2 * one * m**2 * tilt - phi**3 * two * m**3
        turn = a * trigamma(a) - b * trigamma(b)
        bend = a * tetragamma(a) + b * tetragamma(b)
        return Third(in_eta, phi * m * tilt * (gap - turn) - phi**2 * m**2 * (2 * one + bend))

    @staticmethod
    def _shapes(eta: Array, delta: Array) -> tuple[Array, Array]:
        """Shape parameters mu phi and (1 - mu) phi."""
        phi = np.exp(delta)
        inside = np.clip(eta, -ETA_LIMIT, ETA_LIMIT)
        return phi * expit(inside), phi * expit(-inside)

    @staticmethod
    def _gap(out: Outcome, a: Array, b: Array) -> Array:
        """Logit of the response minus its expectation."""
        return np.asarray(np.log(out.y) - np.log1p(-out.y) - digamma(a) + digamma(b))

    def mean(self, eta: Array, trials: Array) -> Array:
        """Expected share."""
        return np.asarray(expit(eta))

    def mean_slope(self, eta: Array, trials: Array) -> Array:
        """Derivative of the mean in the predictor."""
        return np.asarray(expit(eta) * expit(-eta))

    def link(self, mean: Array, trials: Array) -> Array:
        """Logit."""
        return np.log(mean) - np.log1p(-mean)

    def variance(self, mean: Array, delta: Array, trials: Array) -> Array:
        """``mu (1 - mu) / (1 + phi)``."""
        return mean * (1.0 - mean) / (1.0 + np.exp(delta))

    def deviance(self, out: Outcome, mean: Array, delta: Array) -> Array:
        """Twice the log density lost against an expectation equal to the response."""
        best = self.log_density(out, self.link(out.y, out.trials), delta)
        return 2.0 * (best - self.log_density(out, self.link(mean, out.trials), delta))

    def cdf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Distribution function."""
        a, b = self._shapes(eta, delta)
        return np.asarray(betainc(a, b, np.clip(y, 0.0, 1.0)))

    def sf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Probability of a larger response."""
        a, b = self._shapes(eta, delta)
        return np.asarray(betainc(b, a, np.clip(1.0 - y, 0.0, 1.0)))

    def start_predictor(self, out: Outcome) -> Array:
        """Logit of the response."""
        return np.log(out.y) - np.log1p(-out.y)

    def draw(self, rng: np.random.Generator, eta: Array, delta: Array, trials: Array) -> Array:
        """Beta draws."""
        a, b = self._shapes(eta, delta)
        return rng.beta(a, b)
