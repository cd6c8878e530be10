"""Gaussian and t experts whose errors are correlated, unequal or heavy-tailed, from the rows of the data."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.moments import build_moments
from mixmoe.kernels.rows import (
    ErrorModel,
    RowPosterior,
    Rows,
    row_covariances,
    row_means,
    row_posterior,
    row_scores,
)
from mixmoe.kernels.serial import ErrorKind, factorise
from mixmoe.mixed.experts import Effects, FlatScores
from mixmoe.mixed.extras import extra_starts
from mixmoe.mixed.gaussian import FIRST_SIZE, GaussianExperts, flat_experts
from mixmoe.mixed.structure import Params, Structure

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """What the errors look like, whatever the values of their parameters.

    Attributes
    ----------
    kind : {"iid", "ar1", "car1", "bm"}
    n_slopes : int
        Covariates of the log standard deviation.
    heavy : bool
        Multivariate t instead of normal.
    df : float or None
        Fixed degrees of freedom; None if they are estimated, or if errors are normal.
    """

    kind: ErrorKind
    n_slopes: int
    heavy: bool
    df: float | None = None

    def model(self, params: Params) -> ErrorModel:
        """Error parameters in working units of each expert of each start, from unconstrained further parameters."""
        sigma = params.sigma.reshape(-1)
        extra = params.extra.reshape(sigma.size, params.extra.shape[-1])
        v = self.n_slopes
        shape = None if self.kind == "iid" else self._shape(extra[:, v])
        return ErrorModel(self.kind, sigma, extra[:, :v], shape, self._df(extra))

    def _shape(self, free: Array) -> Array:
        shape: Array = np.tanh(free) if self.kind == "ar1" else np.exp(free)
        return shape

    def _df(self, extra: Array) -> Array | None:
        if not self.heavy:
            return None
        if self.df is not None:
            return np.full(extra.shape[0], self.df)
        df: Array = np.exp(extra[:, -1])
        return df

    def unconstrained(self, scores: Array, errors: ErrorModel) -> Array:
        """Scores in the unconstrained parameters, from those of `row_scores`, shape (E, p + q * q + 1 + d, N)."""
        if self.heavy and self.df is not None:
            scores = scores[:, :-1]
        if errors.shape is None:
            return scores
        slope = 1 - errors.shape**2 if self.kind == "ar1" else errors.shape
        scores[:, -2 if self.heavy and self.df is None else -1] *= slope[:, None]
        return scores


@dataclass(frozen=True, slots=True)
class RowDensities(FlatScores):
    """Densities of a run of subjects, see `Densities`.

    Attributes
    ----------
    rows : Rows
    params : Params
    form : ErrorForm
    errors : ErrorModel
    posterior : RowPosterior
        With E = S * K.
    """

    rows: Rows
    params: Params
    form: ErrorForm
    errors: ErrorModel
    posterior: RowPosterior

    @property
    def log_density(self) -> Array:
        """Log-densities, shape (S, K, n)."""
        return self.posterior.density.log_density.reshape(*self.params.sigma.shape, -1)

    def effects(self) -> Effects:
        """Posterior of the random effects."""
        T, _ = flat_experts(self.params)
        spread = row_covariances(self.posterior, T) * self.spread()[:, None, None]
        means, shape = row_means(self.posterior, T), self.params.sigma.shape
        return Effects(means.reshape(*shape, *means.shape[1:]), spread.reshape(*shape, *spread.shape[1:]))

    def spread(self) -> Array:
        """Posterior covariance over `row_covariances`, shape (E, n): one for normal errors, infinite without one."""
        df = self.errors.df
        if df is None:
            return np.ones_like(self.posterior.distance)
        freedom = df[:, None] + self.rows.visits.counts
        with np.errstate(divide="ignore"):
            factor = (df[:, None] + self.posterior.distance) / (freedom - 2)
        return np.where(freedom > 2, factor, np.inf)

    def _flat_scores(self) -> Array:
        T, _ = flat_experts(self.params)
        return self.form.unconstrained(row_scores(self.rows, self.posterior, T, self.errors), self.errors)


@dataclass(frozen=True, slots=True)
class RowExperts:
    """Experts with other errors than iid Gaussian ones, see `Experts`.

    Attributes
    ----------
    rows : Rows
    form : ErrorForm
    """

    rows: Rows
    form: ErrorForm
    analytic: bool = True

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.rows.n_subjects

    def take(self, subjects: NDArray[np.intp]) -> "RowExperts":
        """The same on some of the subjects."""
        return RowExperts(self.rows.take(subjects), self.form)

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, RowExperts]]":
        """Consecutive runs of subjects."""
        for where, rows in self.rows.blocks(n_experts):
            yield where, RowExperts(rows, self.form)

    def densities(self, params: Params) -> RowDensities:
        """Log-densities at S parameter vectors."""
        S, K, p = params.beta.shape
        T, _ = flat_experts(params)
        errors = self.form.model(params)
        posterior = row_posterior(self.rows, params.beta.reshape(S * K, p), T, errors)
        return RowDensities(self.rows, params, self.form, errors, posterior)

    def sort_keys(self) -> tuple[Array, ...]:
        """Cross-products with the response."""
        per_subject = self.rows.visits.per_subject
        return (*per_subject(self.rows.X * self.rows.y), per_subject(self.rows.y**2))

    def first_guess(self, structure: Structure) -> Params:
        """Equal shares of random and residual variance, further parameters as their `Extra` says."""
        q = structure.n_random
        return Params(
            np.zeros((1, 0, structure.n_gate)),
            np.zeros((1, 1, structure.n_columns)),
            FIRST_SIZE * np.eye(q)[None, None],
            np.full((1, 1), FIRST_SIZE),
            extra_starts(structure.extras)[None, None],
        )

    def closed_form(self, one: Params) -> GaussianExperts:
        """Experts that share the correlation and the relative variances of the errors of a one-expert fit.

        Whitened by them, errors are iid, up to their scale; tails are taken as normal.
        """
        errors = self.form.model(one)
        tau = None if errors.shape is None else errors.shape / (errors.sigma if self.form.kind == "bm" else 1.0)
        factor = factorise(self.form.kind, np.exp(errors.slope @ self.rows.V), tau, self.rows.visits)
        white = factor.whiten(np.vstack([self.rows.y, self.rows.X, self.rows.Z])[None])[0]
        first, last = 1, 1 + len(self.rows.X)
        return GaussianExperts(build_moments(white[0], white[first:last].T, white[last:].T, self.rows.visits.starts))
