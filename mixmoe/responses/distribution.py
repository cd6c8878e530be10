"""What a response distribution tells the estimators, and whether data let its likelihood have a maximum.

Records, the protocol every family follows, digamma derivatives.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.errors import DesignError

ETA_LIMIT = 30.0  # linear predictors of logit and log links beyond this change nothing but overflow
MOST_COUNTS = 1e13  # just below the exponential of the largest linear predictor
VANISHED = -15.0  # linear predictor of a log link below which a mean is as good as zero
LEAST_ETA = VANISHED - 0.5671432904097838  # where all zeros end: exp(-d) = d
OFFSETS = f"between -{ETA_LIMIT:g} and {ETA_LIMIT:g}, for counts the logarithm of the exposure"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The response of the rows at hand.

    Attributes
    ----------
    y : ndarray, shape (n,)
        Response; successes for the binomial.
    trials : ndarray, shape (n,)
        Number of trials; ones for other families.
    constant : ndarray, shape (n,)
        The part of the log density that involves no parameter.
    """

    y: Array
    trials: Array
    constant: Array

    def take(self, rows: slice | NDArray[np.intp]) -> "Outcome":
        """The outcome of some of the rows."""
        return Outcome(self.y[rows], self.trials[rows], self.constant[rows])


@dataclass(frozen=True, slots=True)
class Derivatives:
    """Derivatives of the log density, each of shape (K, n) or zero where there is no dispersion.

    Attributes
    ----------
    eta, delta : ndarray
        First derivatives in the linear predictor and the log dispersion.
    eta_eta, eta_delta, delta_delta : ndarray
        Minus the second derivatives.
    """

    eta: Array
    delta: Array
    eta_eta: Array
    eta_delta: Array
    delta_delta: Array


@dataclass(frozen=True, slots=True)
class Curvature:
    """Log density in one pass with what a Newton step in the linear predictor needs, each shape (K, n).

    Attributes
    ----------
    value : ndarray
        Log density without its constant.
    slope : ndarray
        First derivative.
    weight : ndarray
        Minus the second derivative.
    """

    value: Array
    slope: Array
    weight: Array


@dataclass(frozen=True, slots=True)
class Third:
    """Third derivatives of the log density, each shape (K, n) or broadcastable to it.

    Attributes
    ----------
    eta : ndarray
        In the linear predictor.
    delta : ndarray
        Twice in the linear predictor and once in the log dispersion.
    """

    eta: Array
    delta: Array


@dataclass(frozen=True, slots=True)
class FurtherTerms:
    """Derivatives of the log density in one further parameter, each shape (E, n).

    Attributes
    ----------
    value : ndarray
        First derivative.
    slope, curve : ndarray
        Derivatives of the slope and of the second derivative in the linear predictor.
    """

    value: Array
    slope: Array
    curve: Array


class Family(Protocol):
    """What the estimators need to know of a response distribution."""

    @property
    def name(self) -> str:
        """Name under which the family is kept."""

    @property
    def has_dispersion(self) -> bool:
        """Whether each expert has a dispersion beside its predictor."""

    @property
    def discrete(self) -> bool:
        """Whether responses are counts."""

    def constant(self, y: Array, trials: Array) -> Array:
        """Part of the log density without parameters, shape (n,)."""

    def log_density(self, out: Outcome, eta: Array, delta: Array) -> Array:
        """Log density, shape (K, n)."""

    def derivatives(self, out: Outcome, eta: Array, delta: Array) -> Derivatives:
        """First derivatives and minus the second ones."""

    def scoring(self, out: Outcome, eta: Array, delta: Array) -> tuple[Array, Array]:
        """First derivative in the predictor and its Fisher information, each (K, n)."""

    def curvature(self, out: Outcome, eta: Array, delta: Array) -> Curvature:
        """Log density, slope and weight in one pass."""

    def third(self, out: Outcome, eta: Array, delta: Array) -> Third:
        """Third derivatives."""

    def mean(self, eta: Array, trials: Array) -> Array:
        """Expected response, shape (K, n)."""

    def mean_slope(self, eta: Array, trials: Array) -> Array:
        """Derivative of the mean in the predictor, shape (K, n)."""

    def link(self, mean: Array, trials: Array) -> Array:
        """Linear predictor of an expected response."""

    def variance(self, mean: Array, delta: Array, trials: Array) -> Array:
        """Variance of the response given its expectation."""

    def deviance(self, out: Outcome, mean: Array, delta: Array) -> Array:
        """Twice the log density lost between a perfect fit and this expectation."""

    def cdf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """Distribution function of the response, shape (K, n)."""

    def sf(self, y: Array, eta: Array, delta: Array, trials: Array) -> Array:
        """One minus that without loss of digits, shape (K, n)."""

    def start_predictor(self, out: Outcome) -> Array:
        """Response moved to the scale of the linear predictor, shape (n,)."""

    def draw(self, rng: np.random.Generator, eta: Array, delta: Array, trials: Array) -> Array:
        """One response for each predictor, shape (n,)."""


class LogLink:
    """Means that are the exponential of the predictor."""

    __slots__ = ()

    def mean(self, eta: Array, trials: Array) -> Array:
        """Expected response."""
        return np.exp(np.minimum(eta, ETA_LIMIT))

    def mean_slope(self, eta: Array, trials: Array) -> Array:
        """Derivative of the mean in the predictor."""
        return np.exp(np.minimum(eta, ETA_LIMIT))

    def link(self, mean: Array, trials: Array) -> Array:
        """Logarithm."""
        return np.log(mean)

    @staticmethod
    def held(eta: Array, score: Array, information: Array) -> tuple[Array, Array]:
        """Score and information of a scoring step that ends where a mean is as good as zero.

        Parameters
        ----------
        eta, score, information : ndarray, shape (K, n)

        Returns
        -------
        tuple of ndarray, shape (K, n)

        Notes
        -----
        Counts that are all zero have no finite maximum: each step would lower their predictor by one, extrapolations
        of steps by any amount. Below `VANISHED` the log density loses ``k (eta - VANISHED)^2 / 2``, with k the mean
        there, three in ten million: all zeros end at `LEAST_ETA`, and rows with counts notice nothing.
        """
        below, pull = np.minimum(eta - VANISHED, 0.0), np.exp(VANISHED)
        return score - pull * below, information + pull * (below < 0.0)


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


COUNTS = ("poisson", "negbinomial", "zipoisson", "zinegbinomial")
_EXACT = 1e-10  # of the size of what is explained: residuals below this are rounding


@dataclass(frozen=True, slots=True)
class Observed:
    """A response as the likelihood sees it, all of shape (n,).

    Attributes
    ----------
    name : str
        Of its column.
    y, trials, offset : ndarray
    """

    name: str
    y: Array
    trials: Array
    offset: Array


def check_varies(name: str, y: Array) -> None:
    """Refuse numbers, shape (n,), that a constant reproduces, for models that have one.

    Raises
    ------
    DesignError
    """
    check_maximum("gaussian", Observed(name, y, np.ones(y.size), np.zeros(y.size)), np.ones((y.size, 1)))


def constant_within(name: str) -> DesignError:
    """The error for a response that is one number in each subject."""
    return DesignError(
        f"the response {name!r} does not vary within any subject, so that residuals are zero; "
        "keep one row per subject and leave the random effects out"
    )


def check_maximum(family: str, observed: Observed, X: Array) -> None:
    """Refuse responses for which one expert's likelihood has no maximum, whatever its covariates.

    A response that does not vary is no such reason by itself: one success of varying trials, or one event in varying
    exposures, is as good as any.

    Parameters
    ----------
    family : str
    observed : Observed
    X : ndarray, shape (n, p)
        Columns of the expert.

    Raises
    ------
    DesignError

    Notes
    -----
    Where all responses lie at one end of their range (no successes, no failures, no events), the log-likelihood rises
    along every direction in which all predictors move there; with a constant among the columns there is one (Albert &
    Anderson 1984). Responses with a free dispersion (normal, gamma, beta) must not be fitted exactly, on the scale of
    the link: their density then has no bound.

    References
    ----------
    Albert & Anderson (1984), Biometrika 71, 1-10.
    """
    what, y = f"the response {observed.name!r}", observed.y
    if not y.size:
        return
    level = _fitted_exactly(X, np.ones(y.size))
    if level and family in ("binomial", *COUNTS) and (y == 0).all():
        kind = "successes" if family == "binomial" else "events"
        raise DesignError(
            f"{what} is 0 in all {y.size} rows; it must vary: without any {kind} the likelihood rises without end as "
            "the intercept falls"
        )
    if level and family == "binomial" and (y == observed.trials).all():
        raise DesignError(
            f"{what} is the number of trials in all {y.size} rows; it must vary: without any failures the likelihood "
            "rises without end with the intercept"
        )
    constant = (y == y[0]).all() and (observed.offset == observed.offset[0]).all()
    if family == "gaussian":
        if level and constant:  # other exact fits are found where the residual deviation is computed
            raise DesignError(f"{what} is {y[0]:g} in all {y.size} rows; it must vary")
        return
    if family not in ("gamma", "beta"):
        return
    linked = np.log(y) - (np.log1p(-y) if family == "beta" else 0.0)
    if _fitted_exactly(X, linked - observed.offset):
        raise DesignError(
            f"the expert columns reproduce {what} exactly in all {y.size} rows; it must vary around them: without "
            "residuals the likelihood has no bound, so remove covariates that are functions of the response"
        )


def _fitted_exactly(X: Array, target: Array) -> bool:
    """Whether the columns X, shape (n, p), reproduce a target, shape (n,)."""
    size = np.sqrt((X * X).sum(axis=0))
    unit = X / np.where(size > 0.0, size, 1.0)
    left = target - unit @ np.linalg.lstsq(unit, target, rcond=None)[0]
    return bool(np.abs(left).max() <= _EXACT * np.abs(target).max())
