"""Gaussian experts with independent errors whose columns are many: densities from the rows of the data.

Cross-products of p columns by subject cost p^2 numbers each; where that is more than the rows, rows are kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mixmoe._typing import AnyArray, Array
from mixmoe.mixed.likelihood.gaussian import (
    ClosedDensities,
    ClosedExperts,
    GaussianExperts,
    Residuals,
    expert_posterior,
    experts_of_products,
    flat_experts,
    random_effect_means,
    variance_scores,
)
from mixmoe.mixed.likelihood.protocol import MANY_COLUMNS, RowScores, ScoresByRow, has_many_columns
from mixmoe.mixed.parameters import Params
from mixmoe.numerics.linalg import times_real
from mixmoe.numerics.threads import ALONE, Workers

_SPARSE = 0.1  # share of entries that are not zero, up to which products with them are the cheaper ones
_ROW_WORK = 100_000  # doubles of a working array of rows (800 KB): few of them are held at a time


@dataclass(frozen=True, slots=True)
class SparseColumns:
    """Columns that are mostly zero before they are made orthogonal, such as those of a factor with many levels.

    Attributes
    ----------
    before : scipy.sparse.csr_array, shape (n, p)
    basis : ndarray, shape (p, p)
        What they are multiplied by.
    """

    before: csr_array
    basis: Array

    def rows(self, at: "slice | NDArray[np.intp]") -> "SparseColumns":
        """Some of the rows."""
        return SparseColumns(self.before[at], self.basis)

    def scaled(self, factor: Array) -> "SparseColumns":
        """Rows multiplied by numbers, shape (n,)."""
        return SparseColumns(csr_array(self.before * factor[:, None]), self.basis)


def sparse_columns(X: Array, A: Array) -> SparseColumns | None:
    """The columns ``X A^-1`` as products of sparse ones, shape (n, p); None if these are not mostly zero."""
    if X.shape[1] < MANY_COLUMNS or np.count_nonzero(X) > _SPARSE * X.size:
        return None
    return SparseColumns(csr_array(X), np.asarray(np.linalg.inv(A)))


@dataclass(frozen=True, slots=True)
class GaussianRowExperts(ClosedExperts):
    """Experts with iid Gaussian errors whose columns are many, see `RowwiseExperts`: rows, and products of the others.

    All rows and columns are multiplied by the roots of their weights.

    Attributes
    ----------
    y : ndarray, shape (n,)
    X : ndarray, shape (p, n)
    Z : ndarray, shape (q, n)
    starts, counts : ndarray of int, shape (N,)
    ZZ : ndarray, shape (q, q, N)
    log_weight : ndarray, shape (N,)
        Sum of the logarithms of the weights of the rows.
    sparse : SparseColumns or None
        The transpose of X.
    workers : Workers
    """

    y: AnyArray
    X: Array
    Z: Array
    starts: NDArray[np.intp]
    counts: NDArray[np.intp]
    ZZ: Array
    log_weight: Array
    sparse: SparseColumns | None = None
    workers: Workers = field(default=ALONE, kw_only=True)

    by_rows: ClassVar[bool] = True

    @property
    def columns(self) -> Array:
        """Columns of the fixed effects, shape (p, n)."""
        return self.X

    def shifted(self, by: AnyArray) -> "GaussianRowExperts":
        """The same experts where the linear predictor of each row is this much larger, shape (n,)."""
        return replace(self, y=self.y - by)

    def densities(self, params: Params) -> "GaussianRowDensities":
        """Log-densities at S parameter vectors."""
        S, K, p = params.beta.shape
        posterior = expert_posterior(self, params.beta.reshape(S * K, p), *flat_experts(params))
        return GaussianRowDensities(params, posterior, self)

    def around(self, beta: AnyArray) -> Residuals:
        """Residuals row by row, and their cross-products by subject."""
        left = self.y - self.predictor(beta)
        return Residuals(left, self.sums(self.Z * left[:, None]), self.sums(left * left))

    def weighted_products(self, weights: Array) -> tuple[Array, Array]:
        """X'X summed with weights of the subjects, shape (E, p, p), and Z'X of each, shape (q, p, N)."""
        of_rows = np.repeat(weights, self.counts, axis=1)
        plain = np.stack([(self.X * weight) @ self.X.T for weight in of_rows])
        return plain, self.sums(self.Z[:, None] * self.X[None])

    def sort_keys(self) -> tuple[Array, ...]:
        """Cross-products with the response."""
        return (*(self.sums(column * self.y) for column in self.X), self.sums(self.y**2))

    def predictor(self, beta: AnyArray) -> AnyArray:
        """X'beta row by row, shape (E, n), for beta of shape (E, p)."""
        if self.sparse is None:
            return times_real(beta, self.X)
        return np.ascontiguousarray((self.sparse.before @ times_real(beta, self.sparse.basis.T).T).T)

    def gathered(self, values: AnyArray) -> AnyArray:
        """Sums over rows of columns times values, shape (E, p), for values of shape (E, n)."""
        if self.sparse is None:
            return times_real(values, self.X.T)
        return times_real((self.sparse.before.T @ values.T).T, self.sparse.basis)

    @property
    def n(self) -> Array:
        """Rows of each subject, shape (N,)."""
        return self.counts.astype(float)

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.starts.size

    def sums(self, values: AnyArray) -> AnyArray:
        """Sums over the rows of each subject, shape (..., N)."""
        return np.add.reduceat(values, self.starts, axis=-1)

    def take(self, subjects: "NDArray[np.intp]") -> "GaussianRowExperts":
        """The rows of some of the subjects, each possibly repeated."""
        counts = self.counts[subjects]
        starts = np.cumsum(counts) - counts
        rows = np.arange(int(counts.sum())) + np.repeat(self.starts[subjects] - starts, counts)
        return self._at(rows, subjects, starts, counts)

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, GaussianRowExperts]]":
        """Consecutive runs of subjects, short enough that the working arrays of `n_experts` experts stay in cache."""
        per_subject = self.y.size / self.n_subjects
        width = max(64, int(_ROW_WORK / (n_experts * per_subject)))
        for start in range(0, self.n_subjects, width):
            where = slice(start, min(start + width, self.n_subjects))
            first, counts = int(self.starts[start]), self.counts[where]
            rows = slice(first, first + int(counts.sum()))
            yield where, self._at(rows, where, self.starts[where] - first, counts)

    def without_random_effects(self) -> "GaussianRowExperts":
        """The same data with no column of random effects."""
        return replace(self, Z=self.Z[:0], ZZ=self.ZZ[:0, :0])

    def without_response(self) -> "GaussianRowExperts":
        """The same columns with a response of zero."""
        return replace(self, y=np.zeros_like(self.y))

    def _at(
        self,
        rows: "slice | NDArray[np.intp]",
        subjects: "slice | NDArray[np.intp]",
        starts: NDArray[np.intp],
        counts: NDArray[np.intp],
    ) -> "GaussianRowExperts":
        moments = (self.ZZ[..., subjects], self.log_weight[subjects])
        sparse = None if self.sparse is None else self.sparse.rows(rows)
        return GaussianRowExperts(self.y[rows], self.X[:, rows], self.Z[:, rows], starts, counts, *moments, sparse)


@dataclass(frozen=True, slots=True)
class GaussianRowDensities(ClosedDensities, ScoresByRow):
    """Densities of a run of subjects from their rows, `data`, see `RowDensities`."""

    data: GaussianRowExperts

    def row_scores(self) -> RowScores:
        """Derivatives in the linear predictor of each row and in what else the experts have."""
        T, sigma = flat_experts(self.params)
        b = random_effect_means(self.posterior, T, sigma)
        # V^-1 r = (r - Z b) / sigma^2, b the posterior mean of the random effects.
        predictor = self.posterior.left.copy()
        for a, column in enumerate(self.data.Z):
            predictor -= column * np.repeat(b[:, a], self.data.counts, axis=-1)
        predictor /= (sigma**2)[:, None]
        return RowScores(predictor, variance_scores(self.data, self.posterior, T, sigma, b))

    def _gathered(self, values: Array) -> Array:
        return self.data.gathered(values)

    @property
    def _columns(self) -> Array:
        return self.data.X

    @property
    def _starts(self) -> NDArray[np.intp]:
        return self.data.starts


def independent_experts(
    y: Array,
    X: Array,
    Z: Array,
    starts: NDArray[np.intp],
    weights: Array | None = None,
    sparse: SparseColumns | None = None,
) -> GaussianExperts | GaussianRowExperts:
    """Gaussian experts with independent errors: from cross-products of each subject, or from rows if columns are many.

    Parameters
    ----------
    y : ndarray, shape (n,)
        Response, rows sorted by subject; centre it first, or digits of y'y cancel.
    X : ndarray, shape (n, p)
    Z : ndarray, shape (n, q)
    starts : ndarray of int, shape (N,)
        First row of each subject.
    weights : ndarray, shape (n,), optional
        Above zero; by default one.
    sparse : SparseColumns, optional
        X, where products with these are cheaper.
    """
    counts = np.diff(np.append(starts, y.size))
    if not has_many_columns(X.shape[1], counts):
        return experts_of_products(y, X, Z, starts, weights)
    root = np.ones(y.size) if weights is None else np.sqrt(weights)
    random = root * np.ascontiguousarray(Z.T)
    ZZ = np.add.reduceat(random[:, None] * random, starts, axis=-1)
    log_weight = np.add.reduceat(2 * np.log(root), starts)
    columns = root * np.ascontiguousarray(X.T)
    scaled = None if sparse is None else sparse.scaled(root)
    return GaussianRowExperts(root * y, columns, random, starts, counts, ZZ, log_weight, scaled)
