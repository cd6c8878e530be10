"""Response distributions of an expert: log density and its derivatives in predictor and log dispersion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.special import betainc, digamma, expit, gammaln, ndtr, pdtr, pdtrc, stdtr, xlogy

from mixmoe._typing import Array
from mixmoe.errors import ArgumentError, meant
from mixmoe.responses.bounded import Beta, Gamma
from mixmoe.responses.distribution import ETA_LIMIT, Curvature, Derivatives, Family, LogLink, Outcome, Third, trigamma
from mixmoe.responses.zero_inflated import ZeroInflated

SMALL_RATIO = 1e-6  # of mean to theta, whose third powers are then lost beside the squares
FAMILIES = ("gaussian", "binomial", "poisson", "negbinomial", "zipoisson", "zinegbinomial")


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Normal response, identity link; the dispersion is ``log sigma``."""

    name: str = "gaussian"
    has_dispersion: bool = True
    discrete: bool = False

    def constant(self, y: Array, trials: Array) -> Array:
        """``-log(2 pi) / 2``."""
        return np.full(len(y), -0.5 * np.log(2.0 * np.pi))

    def log_density(self, out: Outcome, eta: Array, delta: Array) -> Array:
        """Log density, shape (K, n)."""
        z = (out.y - eta) * np.exp(-delta)
        return out.constant - delta - 0.5 * z * z

    def derivatives(self, out: Outcome, eta: Array, delta: Array) -> Derivatives:
        """First derivatives and minus the second ones."""
        precision = np.exp(-2.0 * delta)
        e = out.y - eta
        z2 = e * e * precision
        return Derivatives(e * precision, z2 - 1.0, precision, 2.0 * e * precision, 2.0 * z2)

    def scoring(self, out: Outcome, eta: Array, delta: Array) -> tuple[Array, Array]:
        """Residual and one: least squares within a window, whatever sigma does inside it."""
        return out.y - eta, np.ones_like(eta)

    def curvature(self, out: Outcome, eta: Array, delta: Array) -> Curvature:
        """Log density, slope and weight in one pass."""
        precision = np.exp(-2.0 * delta) + np.zeros_like(eta)
        e = out.y - eta
        return Curvature(-delta - 0.5 * e * e * precision, e * precision, precision)

    def third(self, out: Outcome, eta: Array, delta: Array) -> Third:
        """Third derivatives."""
        return Third(np.zeros_like(eta), 2.0 * np.exp(-2.0 * delta) + np.zeros_like(eta))

    def mean(self, eta: Array, trials: Array) -> Array:
        """The linear predictor."""
        return eta

    def mean_slope(self, eta: Array, trials: Array) -> Array:
        """Derivative of the mean in the predictor."""
        return np.ones_like(eta)

    def link(self, mean: Array, trials: Array) -> Array:
        """The mean."""
        return mean

    def variance(self, mean: Array, delta: Array, trials: Array) -> Array:
        """``sigma^2``."""
        return np.exp(2.0 * delta) + np.zeros_like(mean)

    def deviance(self, out: Outcome, mean: Array, delta: Array) -> Array:
        """Twice the log density lost."""
        return ((out.y - mean) * np.exp(-delta)) ** 2

    def cdf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Distribution function."""
        return ndtr((y - eta) * np.exp(-delta))

    def sf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Probability of a larger response."""
        return ndtr((eta - y) * np.exp(-delta))

    def start_predictor(self, out: Outcome) -> Array:
        """The response."""
        return out.y

    def draw(self, rng: np.random.Generator, eta: Array, delta: Array, trials: Array) -> Array:
        """Normal draws."""
        return eta + np.exp(delta) * rng.standard_normal(eta.shape)


@dataclass(frozen=True, slots=True)
class StudentT(Gaussian):
    """Response with t errors, identity link; the dispersion is the log of the scale sigma.

    Attributes
    ----------
    df : float
        Degrees of freedom.

    Notes
    -----
    Of a standardised residual z a row has the weight ``w = (df + 1) / (df + z^2)`` of a normal one (Lange, Little and
    Taylor 1989, JASA 84, 881-896).
    """

    df: float = 5.0

    def constant(self, y: Array, trials: Array) -> Array:
        """Log of what the density is at its middle for sigma = 1."""
        half = 0.5 * self.df
        return np.full(len(y), gammaln(half + 0.5) - gammaln(half) - 0.5 * np.log(np.pi * self.df))

    def precision_weights(self, out: Outcome, eta: Array, delta: Array) -> Array:
        """Weights of the rows, (K, n), of which one step of the EM makes least squares."""
        z = (out.y - eta) * np.exp(-delta)
        return np.asarray((self.df + 1.0) / (self.df + z * z))

    def log_density(self, out: Outcome, eta: Array, delta: Array) -> Array:
        """Log density, shape (K, n)."""
        z = (out.y - eta) * np.exp(-delta)
        return out.constant - delta - 0.5 * (self.df + 1.0) * np.log1p(z * z / self.df)

    def derivatives(self, out: Outcome, eta: Array, delta: Array) -> Derivatives:
        """First derivatives and minus the second ones."""
        unit, e = np.exp(-delta), out.y - eta
        z2 = (e * unit) ** 2
        weight = (self.df + 1.0) / (self.df + z2)
        share = self.df / (self.df + z2)  # z^2 / (df + z^2) is what it lacks to one
        pull = weight * e * unit * unit
        return Derivatives(
            pull,
            weight * z2 - 1.0,
            weight * unit * unit * (2.0 * share - 1.0),
            2.0 * pull * share,
            2.0 * weight * z2 * share,
        )

    def scoring(self, out: Outcome, eta: Array, delta: Array) -> tuple[Array, Array]:
        """Weighted residual and weight: one step of the EM is least squares."""
        weight = self.precision_weights(out, eta, delta)
        return weight * (out.y - eta), weight

    def curvature(self, out: Outcome, eta: Array, delta: Array) -> Curvature:
        """Log density, slope and weight in one pass."""
        parts = self.derivatives(out, eta, delta)
        return Curvature(self.log_density(out, eta, delta) - out.constant, parts.eta, parts.eta_eta)

    def third(self, out: Outcome, eta: Array, delta: Array) -> Third:
        """Third derivatives."""
        unit = np.exp(-delta)
        z = (out.y - eta) * unit
        near = self.df + z * z
        first = (self.df + 1.0) * (self.df - z * z) / near**2
        second = 2.0 * (self.df + 1.0) * z * (z * z - 3.0 * self.df) / near**3
        return Third(second * unit**3, (z * second + 2.0 * first) * unit**2)

    def variance(self, mean: Array, delta: Array, trials: Array) -> Array:
        """``sigma^2 df / (df - 2)``, infinite up to two degrees of freedom."""
        larger = self.df / (self.df - 2.0) if self.df > 2.0 else np.inf
        return np.exp(2.0 * delta) * larger + np.zeros_like(mean)

    def deviance(self, out: Outcome, mean: Array, delta: Array) -> Array:
        """Twice the log density lost."""
        return np.asarray((self.df + 1.0) * np.log1p(((out.y - mean) * np.exp(-delta)) ** 2 / self.df))

    def cdf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Distribution function."""
        return stdtr(self.df, (y - eta) * np.exp(-delta))

    def sf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Probability of a larger response."""
        return stdtr(self.df, (eta - y) * np.exp(-delta))

    def draw(self, rng: np.random.Generator, eta: Array, delta: Array, trials: Array) -> Array:
        """T draws."""
        return eta + np.exp(delta) * rng.standard_t(self.df, eta.shape)


@dataclass(frozen=True, slots=True)
class Binomial:
    """Successes out of trials, logit link."""

    name: str = "binomial"
    has_dispersion: bool = False
    discrete: bool = True

    def constant(self, y: Array, trials: Array) -> Array:
        """Log binomial coefficient."""
        return gammaln(trials + 1.0) - gammaln(y + 1.0) - gammaln(trials - y + 1.0)

    def log_density(self, out: Outcome, eta: Array, delta: Array) -> Array:
        """Log density, shape (K, n)."""
        # log(1 + e^eta) without overflow: at eta of 800 e^eta is infinite, the logarithm 800.
        return out.constant + out.y * eta - out.trials * np.logaddexp(0.0, eta)

    def derivatives(self, out: Outcome, eta: Array, delta: Array) -> Derivatives:
        """First derivatives and minus the second ones."""
        mu = expit(eta)
        zero = np.zeros_like(eta)
        return Derivatives(out.y - out.trials * mu, zero, out.trials * mu * (1.0 - mu), zero, zero)

    def scoring(self, out: Outcome, eta: Array, delta: Array) -> tuple[Array, Array]:
        """Score and information."""
        mu = expit(np.clip(eta, -ETA_LIMIT, ETA_LIMIT))
        return out.y - out.trials * mu, out.trials * mu * (1.0 - mu)

    def curvature(self, out: Outcome, eta: Array, delta: Array) -> Curvature:
        """Log density, slope and weight in one pass."""
        # One exponential, of a negative number, serves probability, variance and logarithm on both sides.
        small = np.exp(-np.abs(eta))
        inverse = 1.0 / (1.0 + small)
        mu = np.where(eta >= 0.0, inverse, small * inverse)
        value = out.y * eta - out.trials * (np.maximum(eta, 0.0) + np.log1p(small))
        return Curvature(value, out.y - out.trials * mu, out.trials * (small * inverse * inverse))

    def third(self, out: Outcome, eta: Array, delta: Array) -> Third:
        """Third derivatives."""
        mu = expit(eta)
        return Third(-out.trials * mu * (1.0 - mu) * (1.0 - 2.0 * mu), np.zeros_like(eta))

    def mean(self, eta: Array, trials: Array) -> Array:
        """Expected successes."""
        return trials * expit(eta)

    def mean_slope(self, eta: Array, trials: Array) -> Array:
        """Derivative of the mean in the predictor."""
        # expit(-eta), not 1 - expit(eta), which is zero from eta = 37 on.
        return trials * expit(eta) * expit(-eta)

    def link(self, mean: Array, trials: Array) -> Array:
        """Logit of the probability."""
        return np.log(mean) - np.log(trials - mean)

    def variance(self, mean: Array, delta: Array, trials: Array) -> Array:
        """``trials p (1 - p)``."""
        return mean * (1.0 - mean / trials)

    def deviance(self, out: Outcome, mean: Array, delta: Array) -> Array:
        """Twice the log density lost."""
        failures = out.trials - out.y
        return 2.0 * (xlogy(out.y, out.y / mean) + xlogy(failures, failures / (out.trials - mean)))

    def cdf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Distribution function."""
        between = (y >= 0.0) & (y < trials)
        whole = np.where(between, np.floor(y), 0.0)
        # The incomplete beta function is smooth in the probability, and exact where a sum of terms would be long.
        return np.where(between, betainc(trials - whole, whole + 1.0, expit(-eta)), y >= trials)

    def sf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Probability of a larger response."""
        between = (y >= 0.0) & (y < trials)
        whole = np.where(between, np.floor(y), 0.0)
        return np.where(between, betainc(whole + 1.0, trials - whole, expit(eta)), y < 0.0)

    def start_predictor(self, out: Outcome) -> Array:
        """Empirical logit."""
        # Half a success and half a failure more: finite at none or all, and least biased (Haldane 1955, Anscombe 1956).
        return np.log((out.y + 0.5) / (out.trials - out.y + 0.5))

    def draw(self, rng: np.random.Generator, eta: Array, delta: Array, trials: Array) -> Array:
        """Binomial draws."""
        return rng.binomial(trials.astype(int), expit(eta)).astype(float)


@dataclass(frozen=True, slots=True)
class Poisson(LogLink):
    """Counts, log link."""

    name: str = "poisson"
    has_dispersion: bool = False
    discrete: bool = True

    def constant(self, y: Array, trials: Array) -> Array:
        """``-log y!``."""
        return -gammaln(y + 1.0)

    def log_density(self, out: Outcome, eta: Array, delta: Array) -> Array:
        """Log density, shape (K, n)."""
        limited = np.minimum(eta, ETA_LIMIT)  # in both terms: a density that rises without end beyond would be a mode
        return out.constant + out.y * limited - np.exp(limited)

    def derivatives(self, out: Outcome, eta: Array, delta: Array) -> Derivatives:
        """First derivatives and minus the second ones."""
        mu = np.exp(np.minimum(eta, ETA_LIMIT))
        zero = np.zeros_like(eta)
        return Derivatives(out.y - mu, zero, mu, zero, zero)

    def scoring(self, out: Outcome, eta: Array, delta: Array) -> tuple[Array, Array]:
        """Score and information."""
        mu = np.exp(np.clip(eta, -ETA_LIMIT, ETA_LIMIT))
        return self.held(eta, out.y - mu, mu)

    def curvature(self, out: Outcome, eta: Array, delta: Array) -> Curvature:
        """Log density, slope and weight in one pass."""
        mu = np.exp(np.minimum(eta, ETA_LIMIT))
        return Curvature(out.y * eta - mu, out.y - mu, mu)

    def third(self, out: Outcome, eta: Array, delta: Array) -> Third:
        """Third derivatives."""
        return Third(-np.exp(np.minimum(eta, ETA_LIMIT)), np.zeros_like(eta))

    def variance(self, mean: Array, delta: Array, trials: Array) -> Array:
        """The mean."""
        return mean

    def deviance(self, out: Outcome, mean: Array, delta: Array) -> Array:
        """Twice the log density lost."""
        return 2.0 * (xlogy(out.y, out.y / mean) - (out.y - mean))

    def cdf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Distribution function."""
        return np.where(y < 0.0, 0.0, pdtr(np.maximum(y, 0.0), np.exp(np.minimum(eta, ETA_LIMIT))))

    def sf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Probability of a larger response."""
        return np.where(y < 0.0, 1.0, pdtrc(np.maximum(y, 0.0), np.exp(np.minimum(eta, ETA_LIMIT))))

    def start_predictor(self, out: Outcome) -> Array:
        """Log of the count plus a half."""
        # A half: finite at zero counts.
        return np.log(out.y + 0.5)

    def draw(self, rng: np.random.Generator, eta: Array, delta: Array, trials: Array) -> Array:
        """Poisson draws."""
        return rng.poisson(np.exp(np.minimum(eta, ETA_LIMIT))).astype(float)


_STIRLING = 50.0  # from which on three terms of the series are exact to rounding


def _log_rising(y: Array, theta: Array) -> Array:
    """``log Gamma(y + theta) - log Gamma(theta)``, whose rounding does not grow with theta.

    Towards the Poisson, of infinite theta, the two terms grow like theta log theta and their difference does not.
    """
    plain = gammaln(y + theta) - gammaln(theta)
    if not np.any(theta >= _STIRLING):
        return np.asarray(plain)
    x = np.maximum(theta, _STIRLING)
    series = y * np.log(x) + (y + x - 0.5) * np.log1p(y / x) - y + _beyond_stirling(y + x) - _beyond_stirling(x)
    return np.where(theta >= _STIRLING, series, plain)


def _beyond_stirling(x: Array) -> Array:
    """What Stirling's formula leaves of ``log Gamma(x)``."""
    square = x**-2.0
    return np.asarray((1 / 12 - square * (1 / 360 - square / 1260)) / x)


def _digamma_rise(y: Array, theta: Array) -> Array:
    """Derivative of `_log_rising` by theta."""
    plain = digamma(y + theta) - digamma(theta)
    if not np.any(theta >= _STIRLING):
        return np.asarray(plain)
    x = np.maximum(theta, _STIRLING)
    series = np.log1p(y / x) + 0.5 * y / (x * (y + x)) + _digamma_beyond(y + x) - _digamma_beyond(x)
    return np.where(theta >= _STIRLING, series, plain)


def _digamma_beyond(x: Array) -> Array:
    """What ``log x - 1 / (2 x)`` leaves of ``digamma(x)``."""
    square = x**-2.0
    return np.asarray(-square * (1 / 12 - square * (1 / 120 - square / 252)))


@dataclass(frozen=True, slots=True)
class NegativeBinomial(LogLink):
    """Counts with variance ``mu + mu^2 / theta``, log link; the dispersion is ``log theta``."""

    name: str = "negbinomial"
    has_dispersion: bool = True
    discrete: bool = True

    def constant(self, y: Array, trials: Array) -> Array:
        """``-log y!``."""
        return -gammaln(y + 1.0)

    def log_density(self, out: Outcome, eta: Array, delta: Array) -> Array:
        """Log density, shape (K, n)."""
        theta, limited = np.exp(delta), np.minimum(eta, ETA_LIMIT)  # in both terms, as for the Poisson
        ratio = limited - delta
        return out.constant + _log_rising(out.y, theta) + out.y * ratio - (out.y + theta) * np.logaddexp(0.0, ratio)

    def derivatives(self, out: Outcome, eta: Array, delta: Array) -> Derivatives:
        """First derivatives and minus the second ones."""
        theta, mu = np.exp(delta), np.exp(np.minimum(eta, ETA_LIMIT))
        # By theta first, then by delta = log theta with the chain rule: theta f' and theta f' + theta^2 f''.
        total = theta + mu
        ratio = (out.y + theta) / total
        first = _digamma_rise(out.y, theta) - np.log1p(mu / theta) + (mu - out.y) / total
        second = trigamma(out.y + theta) - trigamma(theta) + 1.0 / theta - 2.0 / total + ratio / total
        vanishing = (out.y == 0.0) & (mu < SMALL_RATIO * theta)  # where nothing but rounding would be left of the sums
        first = np.where(vanishing, -0.5 * (mu / theta) ** 2, first)
        second = np.where(vanishing, (mu / theta) ** 2 / theta, second)
        return Derivatives(
            theta * (out.y - mu) / total,
            theta * first,
            theta * mu * ratio / total,
            -theta * mu * (out.y - mu) / total**2,
            -theta * first - theta**2 * second,
        )

    def scoring(self, out: Outcome, eta: Array, delta: Array) -> tuple[Array, Array]:
        """Score and information."""
        theta, mu = np.exp(delta), np.exp(np.clip(eta, -ETA_LIMIT, ETA_LIMIT))
        return self.held(eta, theta * (out.y - mu) / (theta + mu), theta * mu / (theta + mu))

    def curvature(self, out: Outcome, eta: Array, delta: Array) -> Curvature:
        """Log density, slope and weight in one pass."""
        # mu / theta = exp(eta - delta) enters through its logistic share alone: nothing overflows, however large theta.
        theta, ratio = np.exp(delta), eta - delta
        small = np.exp(-np.abs(ratio))
        inverse, rest = 1.0 / (1.0 + small), np.log1p(small)
        share = np.where(ratio >= 0.0, inverse, small * inverse)  # mu / (theta + mu)
        count = out.y + theta
        value = _log_rising(out.y, theta) + out.y * np.minimum(ratio, 0.0) - theta * np.maximum(ratio, 0.0)
        return Curvature(value - count * rest, out.y - count * share, count * (small * inverse * inverse))

    def third(self, out: Outcome, eta: Array, delta: Array) -> Third:
        """Third derivatives."""
        theta, share = np.exp(delta), expit(eta - delta)
        spread = share * (1.0 - share)
        in_eta = -(out.y + theta) * spread * (1.0 - 2.0 * share)
        return Third(in_eta, -theta * spread - in_eta)

    def variance(self, mean: Array, delta: Array, trials: Array) -> Array:
        """``mu + mu^2 / theta``."""
        return mean + mean**2 * np.exp(-delta)

    def deviance(self, out: Outcome, mean: Array, delta: Array) -> Array:
        """Twice the log density lost."""
        theta = np.exp(delta)
        return 2.0 * (xlogy(out.y, out.y / mean) - (out.y + theta) * np.log((out.y + theta) / (mean + theta)))

    def cdf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Distribution function."""
        theta, ratio = np.exp(delta), np.minimum(eta, ETA_LIMIT) - delta
        return np.where(y < 0.0, 0.0, betainc(theta, np.maximum(np.floor(y), 0.0) + 1.0, expit(-ratio)))

    def sf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Probability of a larger response."""
        theta, ratio = np.exp(delta), np.minimum(eta, ETA_LIMIT) - delta
        return np.where(y < 0.0, 1.0, betainc(np.maximum(np.floor(y), 0.0) + 1.0, theta, expit(ratio)))

    def start_predictor(self, out: Outcome) -> Array:
        """Log of the count plus a half."""
        return np.log(out.y + 0.5)

    def draw(self, rng: np.random.Generator, eta: Array, delta: Array, trials: Array) -> Array:
        """Gamma-Poisson draws."""
        theta = np.exp(delta)
        # Gamma mixture of Poissons: its rate has mean mu and variance mu^2 / theta.
        rate = rng.gamma(theta, np.exp(np.minimum(eta, ETA_LIMIT)) / theta)
        return rng.poisson(rate).astype(float)


def is_normal(family: Family) -> bool:
    """Whether the response is normal, for which steps are exact least squares."""
    return type(family) is Gaussian


_ALIASES = {
    "normal": "gaussian",
    "nb": "negbinomial",
    "negativebinomial": "negbinomial",
    "negative-binomial": "negbinomial",
    "negative_binomial": "negbinomial",
    "zip": "zipoisson",
    "zinb": "zinegbinomial",
}
_CLASSES: dict[str, Callable[[], Family]] = {
    "gaussian": Gaussian,
    "binomial": Binomial,
    "poisson": Poisson,
    "negbinomial": NegativeBinomial,
    "gamma": Gamma,
    "beta": Beta,
    "zipoisson": partial(ZeroInflated, "zipoisson", Poisson()),
    "zinegbinomial": partial(ZeroInflated, "zinegbinomial", NegativeBinomial(), float(np.log(5.0))),
}


def canonical_family(name: Any) -> str:
    """The name under which a family is kept, from any of its names; what is no name comes back as text."""
    key = str(name).lower()
    return _ALIASES.get(key, key)


def name_of_family(name: str, allowed: Sequence[str] = FAMILIES) -> str:
    """The name of a family in full, from one of its names.

    Parameters
    ----------
    name : str
        ``"gaussian"``, ``"binomial"``, ``"poisson"``, ``"negbinomial"`` (also ``"negativebinomial"``, ``"nb"``) ...
    allowed : sequence of str
        Families that the caller can fit.

    Raises
    ------
    ArgumentError
        If there is none of this name.
    """
    key = canonical_family(name)
    if key not in allowed:
        known = ", ".join(map(repr, allowed))
        others = [other for other, full in _ALIASES.items() if full in allowed]
        hint = meant(str(name), [*allowed, *others]) or "choose the distribution of the response"
        raise ArgumentError(f"family must be one of {known}, got {name!r}; {hint}")
    return key


def family_named(name: str, allowed: Sequence[str] = FAMILIES) -> Family:
    """The response distribution of this name, see `name_of_family`."""
    return _CLASSES[name_of_family(name, allowed)]()
