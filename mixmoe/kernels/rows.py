"""Linear mixed model densities from the rows of the data, where errors are correlated, unequal or heavy-tailed.

With R the covariance of a subject's errors, D = T T', G = Z'R^-1 Z, W = I + T'GT and r = y - X beta::

    log|V|  = log|R| + log|W|
    r'V^-1r = r'R^-1r - u'W^-1u,   u = T'Z'R^-1 r

The t density has the same V as its scale matrix (Pinheiro, Liu & Wu 2001): random effects and errors share one factor
per subject. The axis ``E`` runs over experts, or over experts of several starts; complex steps pass through.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.linalg import cholesky, inverse_from_cholesky, solve_lower, solve_upper
from mixmoe.kernels.serial import ErrorFactor, ErrorKind, Spread, Visits, factorise
from mixmoe.kernels.student import Density, normal_density, t_density

Array = NDArray[Any]  # float64; complex128 where a step passes through


@dataclass(frozen=True, slots=True)
class Rows:
    """The data row by row, sorted by subject and time.

    Attributes
    ----------
    y : ndarray, shape (n,)
    X : ndarray, shape (p, n)
    Z : ndarray, shape (q, n)
    V : ndarray, shape (v, n)
        Covariates of the log standard deviation of the errors.
    visits : Visits
    """

    y: Array
    X: Array
    Z: Array
    V: Array
    visits: Visits

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.visits.starts.size

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, Rows]]":
        """Consecutive runs of subjects, short enough that the working arrays of `n_experts` experts stay in cache."""
        width = 1 + self.X.shape[0] + 2 * self.Z.shape[0] ** 2
        per_subject = max(1.0, self.y.size / self.n_subjects)
        length = max(64, int(100_000 / (n_experts * width * per_subject)))
        for start in range(0, self.n_subjects, length):
            where = slice(start, min(start + length, self.n_subjects))
            yield where, self.run(where)

    def run(self, subjects: slice) -> "Rows":
        """Those of a run of subjects."""
        ends = self.visits.starts + self.visits.counts
        at = slice(int(self.visits.starts[subjects][0]), int(ends[subjects][-1]))
        return Rows(self.y[at], self.X[:, at], self.Z[:, at], self.V[:, at], self.visits.take(subjects))

    def take(self, subjects: NDArray[np.intp]) -> "Rows":
        """Those of some subjects, possibly repeated."""
        at = self.visits.rows_of(subjects)
        return Rows(self.y[at], self.X[:, at], self.Z[:, at], self.V[:, at], self.visits.chosen(subjects))


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """Error parameters of each expert.

    Attributes
    ----------
    kind : {"iid", "ar1", "car1", "bm"}
    sigma : ndarray, shape (E,)
    slope : ndarray, shape (E, v)
        Coefficients of the log standard deviation.
    shape : ndarray, shape (E,), or None
        rho, phi or tau.
    df : ndarray, shape (E,), or None
        Degrees of freedom; None for normal errors.
    """

    kind: ErrorKind
    sigma: Array
    slope: Array
    shape: Array | None
    df: Array | None

    def deviations(self, V: Array) -> Array:
        """Standard deviation of the errors of each row, shape (E, n), for covariates of shape (v, n)."""
        return self.sigma[:, None] * np.exp(self.slope @ V)


@dataclass(frozen=True, slots=True)
class RowPosterior:
    """What one expert says about each subject.

    Attributes
    ----------
    factor : Independent, Chain or Filter
        Of R.
    r : ndarray, shape (E, n)
        y - X beta.
    G : ndarray, shape (E, q, q, N)
        Z'R^-1 Z.
    L : ndarray, shape (E, q, q, N)
        Cholesky factor of W.
    w : ndarray, shape (E, q, N)
        W^-1 u; T w is the posterior mean of the random effects.
    distance : ndarray, shape (E, N)
        r'V^-1 r.
    density : Density
    """

    factor: ErrorFactor
    r: Array
    G: Array
    L: Array
    w: Array
    distance: Array
    density: Density


def row_posterior(rows: Rows, beta: Array, T: Array, errors: ErrorModel) -> RowPosterior:
    """Marginal log-densities and the pieces of the posterior of the random effects.

    Parameters
    ----------
    rows : Rows
    beta : ndarray, shape (E, p)
    T : ndarray, shape (E, q, q)
        Lower factor of the random-effects covariance, D = T T'.
    errors : ErrorModel

    Returns
    -------
    RowPosterior
    """
    factor = factorise(errors.kind, errors.deviations(rows.V), errors.shape, rows.visits)
    r = rows.y - beta @ rows.X
    white_r, white_Z = factor.whiten(r[:, None]), factor.whiten(rows.Z[None])
    G, Zr = _gram(rows, white_Z), rows.visits.per_subject(white_Z * white_r)
    q = T.shape[1]
    inside = np.einsum("eai,eabn->eibn", T, G)
    W = np.einsum("eibn,ebj->eijn", inside, T) + np.eye(q)[:, :, None]
    L = cholesky(W)
    half = solve_lower(L, np.swapaxes(T, 1, 2) @ Zr)
    distance = rows.visits.per_subject(white_r[:, 0] ** 2) - (half * half).sum(axis=1)
    log_det = factor.log_det + 2 * sum((np.log(L[:, j, j]) for j in range(q)), start=np.zeros(distance.shape))
    n = rows.visits.counts.astype(float)
    density = normal_density(n, log_det, distance) if errors.df is None else t_density(n, log_det, distance, errors.df)
    return RowPosterior(factor, r, G, L, solve_upper(L, half), distance, density)


def _gram(rows: Rows, white: Array) -> Array:
    """Z'R^-1 Z, shape (E, q, q, N)."""
    E, q = white.shape[:2]
    G = np.empty((E, q, q, rows.n_subjects), dtype=white.dtype)
    for a in range(q):
        for b in range(a + 1):
            G[:, a, b] = G[:, b, a] = rows.visits.per_subject(white[:, a] * white[:, b])
    return G


def row_means(post: RowPosterior, T: Array) -> Array:
    """Posterior means of the random effects given the expert, shape (E, q, N)."""
    return T @ post.w


def row_covariances(post: RowPosterior, T: Array) -> Array:
    """Posterior covariances of the random effects for normal errors, shape (E, q, q, N); scale matrices for t."""
    return np.einsum("eac,ecdn,ebd->eabn", T, inverse_from_cholesky(post.L), T, optimize=True)


def row_errors(rows: Rows, post: RowPosterior, T: Array) -> Array:
    """Residuals y - X beta - Z b at the posterior mean of b, shape (E, n)."""
    means = np.repeat(row_means(post, T), rows.visits.counts, axis=-1)
    return post.r - (means * rows.Z).sum(axis=1)


def row_scores(rows: Rows, post: RowPosterior, T: Array, errors: ErrorModel) -> Array:
    """Derivatives of each subject's log-density in the parameters of each expert.

    Parameters
    ----------
    rows : Rows
    post : RowPosterior
    T : ndarray, shape (E, q, q)
    errors : ErrorModel

    Returns
    -------
    ndarray, shape (E, p + q * q + 1 + v + [shape] + [df], N)
        In beta, in all entries of T (row by row), in log sigma, in the coefficients of the log standard deviation, and,
        where there is one, in rho, phi or tau and in the logarithm of the degrees of freedom.
    """
    E, q, N = post.w.shape
    weight, per_subject = post.density.weight, rows.visits.per_subject
    left = row_errors(rows, post, T)
    solved = post.factor.solve(left[:, None])
    found = post.factor.scores(Spread(left, rows.Z[None], row_covariances(post, T), weight))
    pull = per_subject(rows.Z * solved)  # Z'V^-1 r  (E, q, N)
    in_T = (weight[:, None] * pull)[:, :, None] * post.w[:, None] - _curvature(post, T)
    parts = [
        weight[:, None] * per_subject(rows.X * solved),
        in_T.reshape(E, q * q, N),
        per_subject(found.log_sd)[:, None],
        per_subject(rows.V * found.log_sd[:, None]),
    ]
    if found.shape is not None:
        parts.append(found.shape[:, None])
    if errors.df is not None:
        parts.append(post.density.log_df[:, None])
    return np.concatenate(parts, axis=1)


def _curvature(post: RowPosterior, T: Array) -> Array:
    """Z'V^-1 Z T = G T W^-1, shape (E, q, q, N)."""
    inside = np.einsum("eab,ebcn->eacn", T, inverse_from_cholesky(post.L))
    return np.einsum("eabn,ebcn->eacn", post.G, inside)
