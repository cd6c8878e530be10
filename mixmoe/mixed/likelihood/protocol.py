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
from mixmoe.mixed.likelihood.columns import Columns
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


@dataclass(frozen=True, slots=True)
class CoefficientInformation:
    """Information of the expert coefficients, were memberships and random effects known.

    Attributes
    ----------
    matrices : ndarray, shape (K, p, p)
    sizes : ndarray, shape (K,)
        Expected number of rows of each expert.
    """

    matrices: Array
    sizes: Array


@dataclass(frozen=True, slots=True)
class CategoryCounts:
    """Responses of each expert in each ordered category.

    Attributes
    ----------
    labels : tuple of str
    expected : ndarray, shape (K, C)
    """

    labels: tuple[str, ...]
    expected: Array


@dataclass(frozen=True, slots=True)
class Finer:
    """Experts whose integral over the random effects has more points.

    Attributes
    ----------
    n_quad : int
        Points per random effect.
    experts : Experts
    from_laplace : bool
        Whether those that it is compared with have one point.
    """

    n_quad: int
    experts: "Experts"
    from_laplace: bool


class Experts(Protocol):
    """Response model of the experts and the data of N subjects, in working coordinates."""

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""

    @property
    def analytic(self) -> bool:
        """Whether scores pass complex steps through; if not, information is by differences of the score."""

    @property
    def by_rows(self) -> bool:
        """Whether the rows of the data are kept; then they are `RowwiseExperts`."""

    @property
    def counts(self) -> NDArray[np.intp]:
        """Rows of each subject, shape (N,)."""

    def take(self, subjects: NDArray[np.intp]) -> Self:
        """Densities of the experts for some of the subjects, each possibly repeated."""

    def blocks(self, n_experts: int) -> Iterator[tuple[slice, Self]]:
        """Consecutive runs of subjects, short enough that the working arrays of `n_experts` experts stay in cache."""

    def densities(self, params: Params) -> Densities:
        """Log-densities at S parameter vectors, and what scores need."""

    def sort_keys(self) -> tuple[Array, ...]:
        """Numbers by which subjects are sorted, each shape (N,), so that a search does not depend on their order."""

    def first_guess(self, structure: Structure) -> Params:
        """Parameters, S = K = 1, from which the ascent to the one-expert fit starts."""

    @property
    def is_closed_form(self) -> bool:
        """Whether the steps of EM have a closed form."""

    def closed_form(self, one: Params) -> "Experts":
        """The experts on which starts are searched, with iid Gaussian errors: near these around a one-expert fit.

        Themselves, if these are such experts. Their structure is that of these experts without further parameters.
        """

    @property
    def fine(self) -> "Experts":
        """The same, with an integral fine enough for posterior moments and probabilities of a subject."""

    def finer(self) -> Finer | None:
        """The same with more points than the fit; None if the integral is exact, or nothing finer is offered."""

    def coefficient_information(self, params: Params, tau: Array) -> CoefficientInformation | None:
        """At S = 1 and responsibilities (N, K); None if it does not depend on the coefficients."""

    def category_counts(self, tau: Array) -> CategoryCounts | None:
        """At responsibilities (N, K); None if responses are no ordered categories."""


class ClosedIntegral:
    """What experts say whose random effects are integrated out exactly, coefficients entering their normal density."""

    __slots__ = ()

    @property
    def fine(self) -> Self:
        """The experts themselves: an integral in closed form has no finer one."""
        return self

    def finer(self) -> None:
        """None: the integral is exact."""

    def coefficient_information(self, params: Params, tau: Array) -> None:
        """None: the information of normal responses does not depend on the coefficients."""

    def category_counts(self, tau: Array) -> None:
        """None: responses are numbers."""


class LinearExperts(Experts, Protocol):
    """`Experts` whose response is normal, or t, around fixed effects and random effects."""

    def without_response(self) -> Self:
        """The same with a response of zero."""


@dataclass(frozen=True, slots=True)
class RowScores:
    """Derivatives of log-densities where coefficients enter through the linear predictor of each row only.

    Attributes
    ----------
    predictor : ndarray, shape (E, n)
        In the fixed part of the linear predictor of each row.
    others : ndarray, shape (E, q * q + 1 + d, N)
        Of each subject's log-density in all entries of T, in log sigma and in the further parameters.
    """

    predictor: Array
    others: Array


class RowDensities(Densities, Protocol):
    """`Densities` from the rows of the data."""

    def row_scores(self) -> RowScores:
        """Derivatives in the linear predictor of each row and in what else the experts have."""

    def summed_squares(self, weights: Array) -> Array:
        """Sums over subjects of squared weighted scores, of the coefficients over rows, shape as `summed_scores`."""


class RowwiseExperts(Experts, Protocol):
    """`Experts` that keep the rows of the data, so that their columns may be many."""

    @property
    def columns(self) -> Columns:
        """Columns of the fixed effects."""

    def shifted(self, by: Array) -> Self:
        """The same experts where the linear predictor of each row is this much larger, shape (n,)."""

    def densities(self, params: Params) -> RowDensities:
        """Log-densities at S parameter vectors."""


class ScoresByRow:
    """`RowDensities` whose scores in the coefficients are sums over the rows of derivatives in their predictors."""

    __slots__ = ()

    params: Params

    @property
    def _columns(self) -> Columns:
        """Columns of the fixed effects."""
        raise NotImplementedError

    @property
    def _starts(self) -> NDArray[np.intp]:
        """First row of each subject."""
        raise NotImplementedError

    def row_scores(self) -> RowScores:
        """Derivatives in the linear predictor of each row and in what else the experts have."""
        raise NotImplementedError

    def scores(self) -> Array:
        """Derivatives, shape (S, K, p + q * q + 1 + d, N)."""
        found, X = self.row_scores(), self._columns.dense
        p, (E, D, N) = len(X), found.others.shape
        out = np.empty((E, p + D, N), dtype=found.others.dtype)
        # Column by column: products of all of them with all rows would be larger than the data.
        for j, column in enumerate(X):
            out[:, j] = np.add.reduceat(column * found.predictor, self._starts, axis=-1)
        out[:, p:] = found.others
        return out.reshape(*self.params.sigma.shape, p + D, N)

    def summed_scores(self, weights: Array) -> Array:
        """Weighted sums over subjects, shape (S, K, p + q * q + 1 + d)."""
        found = self.row_scores()
        # One matrix product over all rows: no cross-products of the columns, no array of subjects by columns.
        in_beta = self._columns.gathered(self._spread(weights) * found.predictor)
        return self._with_others(in_beta, found.others, weights)

    def summed_squares(self, weights: Array) -> Array:
        """Sums over subjects of squared weighted scores, of the coefficients over rows, shape as `summed_scores`."""
        found = self.row_scores()
        in_beta = (self._spread(weights) * found.predictor) ** 2 @ (self._columns.dense**2).T
        return self._with_others(in_beta, found.others**2, weights**2)

    def _spread(self, weights: Array) -> Array:
        """Weights of subjects, shape (S, K, N), for each of their rows, shape (E, n)."""
        counts = np.diff(np.append(self._starts, self._columns.dense.shape[1]))
        return np.repeat(weights.reshape(-1, counts.size), counts, axis=1)

    def _with_others(self, in_beta: Array, others: Array, weights: Array) -> Array:
        summed = (others @ weights.reshape(*others.shape[:1], -1, 1))[..., 0]
        return np.concatenate([in_beta, summed], axis=1).reshape(*self.params.sigma.shape, -1)
