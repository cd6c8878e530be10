"""What the integral over the random effects needs to know of a response distribution."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.distribution import Curvature, Family, Outcome
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
    def extras(self) -> tuple[Extra, ...]:
        """Further parameters of an expert."""

    def curvature(self, out: Outcome, eta: Array, extra: Array) -> Curvature:
        """Log density without its constant, slope and weight in one pass."""

    def terms(self, out: Outcome, eta: Array, extra: Array) -> Terms:
        """All derivatives."""

    def scoring_weight(self, out: Outcome, eta: Array, extra: Array) -> Array:
        """A positive stand-in for the weight where that is negative, shape (E, n)."""


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

    def _delta(self, extra: Array) -> Array:
        return extra if self.extras else np.zeros((extra.shape[0], 1))


_NO_CLUMPING = float(np.log(1e4))  # theta that counts hardly tell from a Poisson distribution


def dispersion(name: str, own: bool) -> Extra:
    """The dispersion of a family as a further parameter: ``theta`` of counts, or a precision."""
    if name == "theta":
        poisson = (Edge(_NO_CLUMPING, True, "the counts are no more spread than Poisson ones"),)
        return Extra(name, ("",), Positive(), (0.0,), own, "dispersion", edges=poisson)
    return Extra(name, ("",), Positive(), (0.0,), own, "dispersion", precision=True)
