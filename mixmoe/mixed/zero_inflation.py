"""Counts of an expert with certain zeros: further parameters of the experts beside their linear mixed predictor.

Random effects move the counts; whether a row is a certain zero is drawn row by row, with one probability per expert or
one for all, as in glmmTMB's ``ziformula = ~1``.

References
----------
Brooks, M. E. et al. (2017). glmmTMB balances speed and flexibility among packages for zero-inflated generalized linear
mixed modeling. The R Journal 9, 378-400.
Hall, D. B. (2000). Zero-inflated Poisson and binomial regression with random effects: a case study. Biometrics 56,
1030-1039.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.further_parameters import Edge, Extra
from mixmoe.mixed.likelihood.modes import FamilyResponse, Terms
from mixmoe.responses.distribution import FurtherTerms, Outcome
from mixmoe.responses.zero_inflated import ZeroInflated, expected

_LOG_ODDS = -1.0  # of a certain zero, from which an ascent starts
_FEW = float(np.log(1e4))  # log odds of zeros that counts hardly tell from none, and of counts that zeros hide


@dataclass(frozen=True, slots=True)
class Share:
    """Between zero and one; its log odds are unconstrained."""

    domain: str = "between 0 and 1"

    def natural(self, free: Array) -> Array:
        """Inverse of the logit, which `scipy.special.expit` does not have for complex numbers."""
        return 1.0 / (1.0 + np.exp(-free))

    def free(self, natural: Array) -> Array:
        """Log odds."""
        return np.log(natural) - np.log1p(-natural)

    def allows(self, natural: Array) -> bool:
        """Whether all lie strictly within."""
        return bool(((natural > 0) & (natural < 1)).all())


def certain_zeros(own: bool) -> Extra:
    """The probability of a certain zero as a further parameter, of each expert or of all."""
    ends = (
        Edge(-_FEW, False, "there are no more zeros than the counts themselves have"),
        Edge(_FEW, True, "hardly a count is anything but a certain zero"),
    )
    return Extra("zeros", ("",), Share(), (_LOG_ODDS,), own, "zeros", edges=ends, concentrates=-1.0)


@dataclass(frozen=True, slots=True)
class ZeroInflatedResponse(FamilyResponse):
    """Counts with certain zeros, see `Response`.

    Attributes
    ----------
    family : ZeroInflated
    extras : tuple of Extra
        The dispersion of the counts, if they have one, and the log odds of a certain zero.
    """

    family: ZeroInflated

    def terms(self, out: Outcome, eta: Array, extra: Array) -> Terms:
        """All derivatives."""
        family, delta = self._family(extra), self._delta(extra)
        low, third = family.derivatives(out, eta, delta), family.third(out, eta, delta)
        zeros = FurtherTerms(low.delta, -low.eta_delta, third.delta)
        further = (family.in_theta(out, eta, delta), zeros) if family.base.has_dispersion else (zeros,)
        return Terms(low.eta, low.eta_eta, third.eta, further)

    def mean(self, eta: Array, extra: Array, trials: Array) -> Array:
        """Expected response, certain zeros included."""
        return expected(self.family, eta, self._delta(extra), trials)

    def predictor(self, mean: Array, extra: Array, trials: Array) -> Array:
        """Log of the expected count."""
        return self.family.link(mean / expit(-self._delta(extra)), trials)

    def _family(self, extra: Array) -> ZeroInflated:
        return replace(self.family, log_theta=extra[:, :1]) if self.family.base.has_dispersion else self.family

    def _delta(self, extra: Array) -> Array:
        return extra[:, -1:]
