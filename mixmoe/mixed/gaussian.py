"""Gaussian experts: the integral over the random effects is known in closed form, from cross-products per subject."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.moments import (
    ExpertPosterior,
    Moments,
    expert_posterior,
    expert_scores,
    random_effect_covariances,
    random_effect_means,
)
from mixmoe.mixed.experts import Effects, FlatScores
from mixmoe.mixed.structure import Params, Structure

Array = NDArray[np.float64]

FIRST_SIZE = 0.6  # random effects and residual start with 0.36 of the pooled residual variance each


@dataclass(frozen=True, slots=True)
class GaussianDensities(FlatScores):
    """Densities of a run of subjects, see `Densities`.

    Attributes
    ----------
    moments : Moments
    params : Params
    posterior : ExpertPosterior
        With E = S * K.
    """

    moments: Moments
    params: Params
    posterior: ExpertPosterior

    @property
    def log_density(self) -> Array:
        """Log-densities, shape (S, K, n)."""
        return self.posterior.log_density.reshape(*self.params.sigma.shape, -1)

    def effects(self) -> Effects:
        """Posterior of the random effects."""
        factor, sigma = flat_experts(self.params)
        means = random_effect_means(self.posterior, factor, sigma)
        covariances = random_effect_covariances(self.posterior, factor)
        shape = self.params.sigma.shape
        return Effects(means.reshape(*shape, *means.shape[1:]), covariances.reshape(*shape, *covariances.shape[1:]))

    def _flat_scores(self) -> Array:
        return expert_scores(self.moments, self.posterior, *flat_experts(self.params))


@dataclass(frozen=True, slots=True)
class GaussianExperts:
    """Experts with iid Gaussian errors, see `Experts`.

    Attributes
    ----------
    moments : Moments
    """

    moments: Moments
    analytic: bool = True

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.moments.n_subjects

    def take(self, subjects: NDArray[np.intp]) -> "GaussianExperts":
        """The same on some of the subjects."""
        return GaussianExperts(self.moments.take(subjects))

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, GaussianExperts]]":
        """Consecutive runs of subjects."""
        for where, moments in self.moments.blocks(n_experts):
            yield where, GaussianExperts(moments)

    def densities(self, params: Params) -> GaussianDensities:
        """Log-densities at S parameter vectors."""
        S, K, p = params.beta.shape
        posterior = expert_posterior(self.moments, params.beta.reshape(S * K, p), *flat_experts(params))
        return GaussianDensities(self.moments, params, posterior)

    def sort_keys(self) -> tuple[Array, ...]:
        """Cross-products with the response."""
        return (*self.moments.Xy, self.moments.yy)

    def first_guess(self, structure: Structure) -> Params:
        """Equal shares of random and residual variance."""
        q = structure.n_random
        return Params(
            np.zeros((1, 0, structure.n_gate)),
            np.zeros((1, 1, structure.n_columns)),
            FIRST_SIZE * np.eye(q)[None, None],
            np.full((1, 1), FIRST_SIZE if structure.has_sigma else 1.0),
            np.zeros((1, 1, 0)),
        )

    def closed_form(self, one: Params) -> "GaussianExperts":
        """Themselves."""
        return self


def flat_experts(params: Params) -> tuple[Array, Array]:
    """Factors (S * K, q, q) and residual standard deviations (S * K,)."""
    S, K, q, _ = params.factor.shape
    return params.factor.reshape(S * K, q, q), params.sigma.reshape(S * K)
