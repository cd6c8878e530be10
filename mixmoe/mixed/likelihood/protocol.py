"""What the mixture needs to know of its experts' likelihood: the seam between the search and a response model.

A `Problem` adds the gate and the sum over experts. Everything above it (starts, ascent, information, bootstrap, flags,
prediction of random effects) speaks to the experts through these three protocols only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.parameters import Params, Structure


@dataclass(frozen=True, slots=True)
class Effects:
    """Posterior of the random effects of each subject given the expert.

    Attributes
    ----------
    means : ndarray, shape (S, K, q, n)
    covariances : ndarray, shape (S, K, q, q, n)
    """

    means: Array
    covariances: Array


class Densities(Protocol):
    """What the experts say about a run of n subjects at S parameter vectors."""

    @property
    def log_density(self) -> Array:
        """Log-density of each subject's responses under each expert, random effects integrated out, (S, K, n)."""

    def scores(self) -> Array:
        """Derivatives of `log_density`, shape (S, K, p + q * q + 1 + d, n).

        In beta, in all entries of the factor T row by row, in log sigma (zero if there is none) and in the
        unconstrained further parameters.
        """

    def summed_scores(self, weights: Array) -> Array:
        """Sums of `scores` over the subjects with weights of shape (S, K, n), shape (S, K, p + q * q + 1 + d)."""

    def effects(self) -> Effects:
        """Posterior of the random effects."""


class Experts(Protocol):
    """Response model of the experts and the data of N subjects, in working coordinates."""

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""

    @property
    def analytic(self) -> bool:
        """Whether scores pass complex steps through; if not, information is by differences of the score."""

    def take(self, subjects: NDArray[np.intp]) -> Self:
        """The same on some of the subjects, possibly repeated."""

    def blocks(self, n_experts: int) -> Iterator[tuple[slice, Self]]:
        """Consecutive runs of subjects, short enough that the working arrays of `n_experts` experts stay in cache."""

    def densities(self, params: Params) -> Densities:
        """Log-densities at S parameter vectors, and what scores need."""

    def sort_keys(self) -> tuple[Array, ...]:
        """Numbers by which subjects are sorted, each shape (N,), so that a search does not depend on their order."""

    def first_guess(self, structure: Structure) -> Params:
        """Parameters, S = K = 1, from which the ascent to the one-expert fit starts."""

    def closed_form(self, one: Params) -> "Experts":
        """The `GaussianExperts` on which starts are searched: an approximation of these near a one-expert fit.

        Themselves, if these are such experts. Their structure is that of these experts without further parameters.
        """


class LinearExperts(Experts, Protocol):
    """`Experts` whose response is normal, or t, around fixed effects and random effects."""

    def without_response(self) -> Self:
        """The same with a response of zero."""


class FlatScores:
    """`Densities` whose scores come for all S K expert vectors in one array."""

    __slots__ = ()

    params: Params

    def _flat_scores(self) -> Array:
        """Scores, shape (S K, p + q * q + 1 + d, n)."""
        raise NotImplementedError

    def scores(self) -> Array:
        """Derivatives, shape (S, K, p + q * q + 1 + d, n)."""
        flat = self._flat_scores()
        return flat.reshape(*self.params.sigma.shape, *flat.shape[1:])

    def summed_scores(self, weights: Array) -> Array:
        """Weighted sums over subjects, shape (S, K, p + q * q + 1 + d)."""
        S, K, n = weights.shape
        return (self._flat_scores() @ weights.reshape(S * K, n, 1)).reshape(S, K, -1)
