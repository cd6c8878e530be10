"""What the integral over the random effects needs to know of a response distribution."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.distribution import ETA_LIMIT, Curvature, Family, Outcome
from mixmoe.mixed.extras import Edge, Extra, Positive

Array = NDArray[np.float64]


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


@dataclass(frozen=True, slots=True)
class Terms:
    """Derivatives of the log density in the linear predictor, each shape (E, n), and in the further parameters.

    Attributes
    ----------
    slope, weight, third : ndarray
        First derivative, minus the second, and the third.
    further : tuple of FurtherTerms
    """

    slope: Array
    weight: Array
    third: Array
    further: tuple[FurtherTerms, ...]


class Response(Protocol):
    """A response distribution given its linear predictor; `extra` holds unconstrained further parameters, (E, d)."""

    @property
    def name(self) -> str:
        """Of the family."""

    @property
    def extras(self) -> tuple[Extra, ...]:
        """Further parameters of an expert."""

    @property
    def support(self) -> Array | None:
        """The values that a response can take, ascending, where they are few."""

    @property
    def discrete(self) -> bool:
        """Whether responses are whole numbers or categories."""

    def outcome(self, y: Array, trials: Array) -> Outcome:
        """Responses as the likelihood takes them."""

    def bends(self, extra: Array) -> Array:
        """How far down an expectation may grow as the predictor falls, and up as it rises, shape (E, 2)."""

    def log_density(self, out: Outcome, eta: Array, extra: Array) -> Array:
        """Log density, with any axes before those of eta."""

    def curvature(self, out: Outcome, eta: Array, extra: Array) -> Curvature:
        """Log density without its constant, slope and weight in one pass."""

    def terms(self, out: Outcome, eta: Array, extra: Array) -> Terms:
        """All derivatives."""

    def scoring_weight(self, out: Outcome, eta: Array, extra: Array) -> Array:
        """A positive stand-in for the weight where that is negative, shape (E, n)."""

    def mean(self, eta: Array, extra: Array, trials: Array) -> Array:
        """Expected response, shape (E, n)."""

    def predictor(self, mean: Array, extra: Array, trials: Array) -> Array:
        """The linear predictor at which the response has this expectation, shape (E, n)."""

    def limits(self, mean: Array, half: Array, trials: Array) -> tuple[Array, Array]:
        """Limits of an expectation `half` its standard error times a normal quantile apart, within its range."""

    def variance(self, eta: Array, extra: Array, trials: Array) -> Array:
        """Variance of the response, shape (E, n)."""

    def deviance(self, out: Outcome, mean: Array, extra: Array) -> Array:
        """Twice the log density lost between a perfect fit and this expectation, shape (E, n)."""

    def cdf(self, y: Array, eta: Array, extra: Array, trials: Array) -> Array:
        """Distribution function, shape (E, n), at responses as `outcome` holds them."""

    def sf(self, y: Array, eta: Array, extra: Array, trials: Array) -> Array:
        """One minus that without loss of digits, shape (E, n)."""

    def draw(self, rng: np.random.Generator, eta: Array, extra: Array, trials: Array) -> Array:
        """One response for each predictor."""


@dataclass(frozen=True, slots=True)
class FamilyResponse:
    """A family with at most one further parameter, the logarithm of its dispersion.

    Attributes
    ----------
    family : Family
    extras : tuple of Extra
    """

    family: Family
    extras: tuple[Extra, ...] = ()

    @property
    def name(self) -> str:
        """Of the family."""
        return self.family.name

    @property
    def support(self) -> Array | None:
        """None: any number, whole number or share."""
        return None

    @property
    def discrete(self) -> bool:
        """Whether responses are whole numbers."""
        return self.family.discrete

    def outcome(self, y: Array, trials: Array) -> Outcome:
        """Responses as they are."""
        return Outcome(y, trials, self.family.constant(y, trials))

    def bends(self, extra: Array) -> Array:
        """Means rise with the predictor, those of a logit up to zero or so."""
        logit = self.family.name in ("binomial", "beta")
        return np.tile([ETA_LIMIT, 0.0 if logit else ETA_LIMIT], (len(extra), 1))

    def log_density(self, out: Outcome, eta: Array, extra: Array) -> Array:
        """Log density."""
        return self.family.log_density(out, eta, self._delta(extra))

    def curvature(self, out: Outcome, eta: Array, extra: Array) -> Curvature:
        """Log density without its constant, slope and weight in one pass."""
        return self.family.curvature(out, eta, self._delta(extra))

    def terms(self, out: Outcome, eta: Array, extra: Array) -> Terms:
        """All derivatives."""
        delta = self._delta(extra)
        low, third = self.family.derivatives(out, eta, delta), self.family.third(out, eta, delta)
        further = (FurtherTerms(low.delta, -low.eta_delta, third.delta),) if self.extras else ()
        return Terms(low.eta, low.eta_eta, third.eta, further)

    def scoring_weight(self, out: Outcome, eta: Array, extra: Array) -> Array:
        """The Fisher information."""
        return self.family.scoring(out, eta, self._delta(extra))[1]

    def mean(self, eta: Array, extra: Array, trials: Array) -> Array:
        """Inverse of the link."""
        return self.family.mean(eta, trials)

    def predictor(self, mean: Array, extra: Array, trials: Array) -> Array:
        """The link."""
        return self.family.link(mean, trials)

    def limits(self, mean: Array, half: Array, trials: Array) -> tuple[Array, Array]:
        """Limits by the delta method on the scale of the link."""
        eta = self.family.link(mean, trials)
        away = half / self.family.mean_slope(eta, trials)
        return self.family.mean(eta - away, trials), self.family.mean(eta + away, trials)

    def variance(self, eta: Array, extra: Array, trials: Array) -> Array:
        """Variance of the response."""
        return self.family.variance(self.family.mean(eta, trials), self._delta(extra), trials)

    def deviance(self, out: Outcome, mean: Array, extra: Array) -> Array:
        """Twice the log density lost between a perfect fit and this expectation."""
        return self.family.deviance(out, mean, self._delta(extra))

    def cdf(self, y: Array, eta: Array, extra: Array, trials: Array) -> Array:
        """Distribution function."""
        return self.family.cdf(y, eta, self._delta(extra), trials)

    def sf(self, y: Array, eta: Array, extra: Array, trials: Array) -> Array:
        """Probability of a larger response."""
        return self.family.sf(y, eta, self._delta(extra), trials)

    def draw(self, rng: np.random.Generator, eta: Array, extra: Array, trials: Array) -> Array:
        """One response for each predictor."""
        return self.family.draw(rng, eta, self._delta(extra), trials)

    def _delta(self, extra: Array) -> Array:
        return extra if self.extras else np.zeros((extra.shape[0], 1))


_NO_CLUMPING = float(np.log(1e4))  # theta that counts hardly tell from a Poisson distribution


def dispersion(name: str, own: bool) -> Extra:
    """The dispersion of a family as a further parameter: ``theta`` of counts, or a precision."""
    if name == "theta":
        poisson = (Edge(_NO_CLUMPING, True, "the counts are no more spread than Poisson ones"),)
        return Extra(name, ("",), Positive(), (0.0,), own, "dispersion", edges=poisson)
    return Extra(name, ("",), Positive(), (0.0,), own, "dispersion", precision=True)
