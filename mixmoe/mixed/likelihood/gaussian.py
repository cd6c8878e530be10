"""Gaussian experts with independent errors: densities from cross-products per subject.

Once Z'Z, Z'X, X'X, Z'y, X'y and y'y are known for each subject, nothing touches the rows again: the cost of an
evaluation does not depend on the number of visits. With D = T T', Lambda = T / sigma, W = I + Lambda' Z'Z Lambda,
r = y - X beta and u = Lambda' Z'r (Bates et al. 2015, section 3; Laird & Ware 1982)::

    log|V|  = n log sigma^2 + log|W|
    r'V^-1r = (r'r - u'W^-1u) / sigma^2

Rows of weight w have errors of variance sigma^2 / w (lme4's weights): all cross-products are then weighted by w, and
log|V| has - sum(log w) besides.

The axis ``E`` runs over experts, or over experts of several starts at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import betaln, digamma, gammaln

from mixmoe._typing import AnyArray, Array
from mixmoe.mixed.likelihood.protocol import (
    MANY_COLUMNS,
    ClosedIntegral,
    Effects,
    FlatScores,
    RowScores,
    ScoresByRow,
    has_many_columns,
)
from mixmoe.mixed.parameters import Params, Structure
from mixmoe.numerics.linalg import cholesky, inverse_from_cholesky, multiply, solve_lower, solve_upper, times_real
from mixmoe.numerics.threads import ALONE, Workers
from mixmoe.responses.distribution import trigamma

LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True, slots=True)
class Moments:
    """Cross-products of every subject, subjects on the last axis.

    Attributes
    ----------
    n : ndarray, shape (N,)
        Rows of each subject.
    yy : ndarray, shape (N,)
    Xy : ndarray, shape (p, N)
    XX : ndarray, shape (p, p, N)
    Zy : ndarray, shape (q, N)
    ZX : ndarray, shape (q, p, N)
    ZZ : ndarray, shape (q, q, N)
    log_weight : ndarray, shape (N,)
        Sum of the logarithms of the weights of the rows.
    """

    n: Array
    yy: Array
    Xy: Array
    XX: Array
    Zy: Array
    ZX: Array
    ZZ: Array
    log_weight: Array

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.n.size

    def take(self, subjects: "slice | NDArray[np.intp]") -> "Moments":
        """Moments of some subjects, contiguous in memory."""
        return Moments(*(np.ascontiguousarray(part[..., subjects]) for part in self._parts))

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, Moments]]":
        """Consecutive runs of subjects, short enough that the working arrays of `n_experts` experts stay in cache."""
        q, p = self.ZX.shape[:2]
        # 40,000 doubles are 320 KB: the few arrays of this size that one evaluation holds fit a second-level cache.
        # Below 64 subjects the overhead of the calls would outweigh what the cache saves.
        width = max(64, 40_000 // max(1, n_experts * max(q * q, p)))
        for start in range(0, self.n_subjects, width):
            where = slice(start, min(start + width, self.n_subjects))
            yield where, Moments(*(part[..., where] for part in self._parts))

    def without_response(self) -> "Moments":
        """The moments of the same columns with a response of zero."""
        return replace(self, yy=np.zeros_like(self.yy), Xy=np.zeros_like(self.Xy), Zy=np.zeros_like(self.Zy))

    def without_random_effects(self) -> "Moments":
        """The moments of the same data with no column of random effects."""
        return replace(self, Zy=self.Zy[:0], ZX=self.ZX[:0], ZZ=self.ZZ[:0, :0])

    @property
    def _parts(self) -> tuple[Array, ...]:
        return (self.n, self.yy, self.Xy, self.XX, self.Zy, self.ZX, self.ZZ, self.log_weight)


def build_moments(y: Array, X: Array, Z: Array, starts: NDArray[np.intp], weights: Array | None = None) -> Moments:
    """Cross-products per subject.

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

    Returns
    -------
    Moments
    """
    # One Gram matrix of (y, X, Z) holds all moments; each of its entries is one pass over two contiguous columns.
    columns = np.ascontiguousarray(np.column_stack([y, X, Z]).T)  # (1 + p + q, n)
    log_weight = np.zeros(starts.size)
    if weights is not None:
        columns *= np.sqrt(weights)
        log_weight = np.add.reduceat(np.log(weights), starts)
    p, width, N = X.shape[1], columns.shape[0], starts.size
    gram = np.empty((width, width, N))
    for a in range(width):
        for b in range(a + 1):
            gram[a, b] = gram[b, a] = np.add.reduceat(columns[a] * columns[b], starts)
    x, z = slice(1, 1 + p), slice(1 + p, width)
    n = np.diff(np.append(starts, y.size)).astype(float)
    parts = (n, gram[0, 0], gram[x, 0], gram[x, x], gram[z, 0], gram[z, x], gram[z, z], log_weight)
    return Moments(*(np.ascontiguousarray(part) for part in parts))


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


_SPARSE = 0.1  # share of entries that are not zero, up to which products with them are the cheaper ones


def sparse_columns(X: Array, A: Array) -> SparseColumns | None:
    """The columns ``X A^-1`` as products of sparse ones, shape (n, p); None if these are not mostly zero."""
    if X.shape[1] < MANY_COLUMNS or np.count_nonzero(X) > _SPARSE * X.size:
        return None
    return SparseColumns(csr_array(X), np.asarray(np.linalg.inv(A)))


@dataclass(frozen=True, slots=True)
class RowMoments:
    """What the moments of every subject follow from where columns are many: the rows, and cross-products of the others.

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
    """

    y: AnyArray
    X: Array
    Z: Array
    starts: NDArray[np.intp]
    counts: NDArray[np.intp]
    ZZ: Array
    log_weight: Array
    sparse: SparseColumns | None = None

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

    def take(self, subjects: "NDArray[np.intp]") -> "RowMoments":
        """The rows of some of the subjects, each possibly repeated."""
        counts = self.counts[subjects]
        starts = np.cumsum(counts) - counts
        rows = np.arange(int(counts.sum())) + np.repeat(self.starts[subjects] - starts, counts)
        return self._at(rows, subjects, starts, counts)

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, RowMoments]]":
        """Consecutive runs of subjects, short enough that the working arrays of `n_experts` experts stay in cache."""
        per_subject = self.y.size / self.n_subjects
        width = max(64, int(_ROW_WORK / (n_experts * per_subject)))
        for start in range(0, self.n_subjects, width):
            where = slice(start, min(start + width, self.n_subjects))
            first, counts = int(self.starts[start]), self.counts[where]
            rows = slice(first, first + int(counts.sum()))
            yield where, self._at(rows, where, self.starts[where] - first, counts)

    def without_random_effects(self) -> "RowMoments":
        """The same data with no column of random effects."""
        return replace(self, Z=self.Z[:0], ZZ=self.ZZ[:0, :0])

    def without_response(self) -> "RowMoments":
        """The same columns with a response of zero."""
        return replace(self, y=np.zeros_like(self.y))

    def _at(
        self,
        rows: "slice | NDArray[np.intp]",
        subjects: "slice | NDArray[np.intp]",
        starts: NDArray[np.intp],
        counts: NDArray[np.intp],
    ) -> "RowMoments":
        moments = (self.ZZ[..., subjects], self.log_weight[subjects])
        sparse = None if self.sparse is None else self.sparse.rows(rows)
        return RowMoments(self.y[rows], self.X[:, rows], self.Z[:, rows], starts, counts, *moments, sparse)


_ROW_WORK = 100_000  # doubles of a working array of rows (800 KB): few of them are held at a time


def build_row_moments(
    y: Array,
    X: Array,
    Z: Array,
    starts: NDArray[np.intp],
    weights: Array | None = None,
    sparse: SparseColumns | None = None,
) -> RowMoments:
    """Rows and cross-products of the random-effects columns; parameters as in `independent_experts`."""
    root = np.ones(y.size) if weights is None else np.sqrt(weights)
    counts = np.diff(np.append(starts, y.size))
    random = root * np.ascontiguousarray(Z.T)
    ZZ = np.add.reduceat(random[:, None] * random, starts, axis=-1)
    log_weight = np.add.reduceat(2 * np.log(root), starts)
    columns = root * np.ascontiguousarray(X.T)
    scaled = None if sparse is None else sparse.scaled(root)
    return RowMoments(root * y, columns, random, starts, counts, ZZ, log_weight, scaled)


@dataclass(frozen=True, slots=True)
class ExpertPosterior:
    """What one expert says about each subject.

    Attributes
    ----------
    log_density : ndarray, shape (E, N)
        Marginal log-density of the subject's responses under the expert.
    left : ndarray, shape (E, p, N) or (E, n)
        X'(y - X beta) of each subject; y - X beta of each row where columns are many.
    Zr : ndarray, shape (E, q, N)
        Z'(y - X beta).
    rr : ndarray, shape (E, N)
        Residual sum of squares around X beta.
    L : ndarray, shape (E, q, q, N)
        Cholesky factor of W.
    v, w : ndarray, shape (E, q, N)
        L^-1 u and W^-1 u.
    """

    log_density: Array
    left: Array
    Zr: Array
    rr: Array
    L: Array
    v: Array
    w: Array


def expert_posterior(m: Moments | RowMoments, beta: Array, T: Array, sigma: Array) -> ExpertPosterior:
    """Marginal log-densities and the pieces of the posterior of the random effects.

    Parameters
    ----------
    m : Moments or RowMoments
    beta : ndarray, shape (E, p)
    T : ndarray, shape (E, q, q)
        Lower factor of the random-effects covariance, D = T T'.
    sigma : ndarray, shape (E,)
        Residual standard deviation.

    Returns
    -------
    ExpertPosterior
    """
    q, N, E = T.shape[1], m.n_subjects, beta.shape[0]
    Lam = T / sigma[:, None, None]
    if isinstance(m, RowMoments):
        left = m.y - m.predictor(beta)
        rr, Zr = m.sums(left * left), m.sums(m.Z * left[:, None])
    else:
        # X'r and r'r follow from the moments: r'r = y'y - beta'(X'y + X'r), so that no residual is ever formed.
        left = m.Xy - np.swapaxes(times_real(beta, m.XX), 0, 1)
        rr = m.yy - np.einsum("ep,epn->en", beta, m.Xy + left)
        Zr = m.Zy - np.swapaxes(times_real(beta, m.ZX), 0, 1)
    # vec(Lambda' ZZ Lambda) is a (q^2, q^2) matrix times vec(ZZ): one matrix product for all subjects at once.
    square = np.einsum("eia,ejc->eacij", Lam, Lam).reshape(E * q * q, q * q)
    W = times_real(square, m.ZZ.reshape(q * q, N)).reshape(E, q, q, N) + np.eye(q)[:, :, None]
    # W has eigenvalues of one or more: its factor exists even where D is singular, and D itself is never inverted.
    L = cholesky(W)
    v = solve_lower(L, np.swapaxes(Lam, 1, 2) @ Zr)
    w = solve_upper(L, v)
    log_det = 2 * sum((np.log(L[:, j, j]) for j in range(q)), start=np.zeros((E, N)))
    log_det = log_det + m.n * (LOG_2PI + 2 * np.log(sigma))[:, None] - m.log_weight
    # u'W^-1u = |L^-1 u|^2: half of the solve is enough for the density.
    quad = (rr - (v * v).sum(axis=1)) / (sigma**2)[:, None]
    return ExpertPosterior(-0.5 * (log_det + quad), left, Zr, rr, L, v, w)


def expert_scores(m: Moments, post: ExpertPosterior, T: Array, sigma: Array) -> Array:
    """Derivatives of each subject's log-density in the parameters of each expert.

    Parameters
    ----------
    m : Moments
    post : ExpertPosterior
    T : ndarray, shape (E, q, q)
    sigma : ndarray, shape (E,)

    Returns
    -------
    ndarray, shape (E, p + q * q + 1, N)
        In beta, in all entries of T (row by row) and in log sigma.
    """
    b = random_effect_means(post, T, sigma)
    out = np.empty((len(b), len(m.XX) + T.shape[1] ** 2 + 1, m.n_subjects), dtype=post.left.dtype)
    # In beta: X'V^-1 r = X'(r - Z b) / sigma^2 with b the posterior mean of the random effects.
    out[:, : len(m.XX)] = (post.left - multiply(np.swapaxes(m.ZX, 0, 1), b)) / (sigma**2)[:, None, None]
    out[:, len(m.XX) :] = variance_scores(m, post, T, sigma, b)
    return out


def variance_scores(m: Moments | RowMoments, post: ExpertPosterior, T: Array, sigma: Array, b: Array) -> Array:
    """Derivatives of each subject's log-density in all entries of T and in log sigma, shape (E, q * q + 1, N).

    `b` are the posterior means of the random effects, shape (E, q, N).
    """
    E, q, N = b.shape
    variance = (sigma**2)[:, None, None]
    out = np.empty((E, q * q + 1, N), dtype=b.dtype)
    W_inv = inverse_from_cholesky(post.L)
    rest = post.Zr - multiply(m.ZZ, b)
    # In T: (Z'V^-1 r)(T'Z'V^-1 r)' less Z'V^-1 Z T. Entries above the diagonal of T are derivatives too;
    # whoever pulls back to the free vector leaves out those that T does not have.
    pull = rest[:, :, None] * (post.w / sigma[:, None, None])[:, None]
    pull -= multiply(m.ZZ, (T @ W_inv.reshape(E, q, q * N)).reshape(E, q, q, N))
    out[:, :-1] = (pull / variance[..., None]).reshape(E, q * q, N)
    squares = post.rr - (post.v * post.v).sum(axis=1) - (post.w * post.w).sum(axis=1)
    # tr(V^-1) sigma^2 = n - q + tr(W^-1): the trace of an (n, n) inverse from a (q, q) one.
    trace = q - np.einsum("eaan->en", W_inv)
    out[:, -1] = squares / variance[:, 0] + trace - m.n
    return out


def summed_expert_scores(m: Moments, post: ExpertPosterior, T: Array, sigma: Array, weights: Array) -> Array:
    """Sums over subjects of weights times `expert_scores`, shape (E, p + q * q + 1), with weights of shape (E, N).

    The moments of the subjects are common to all experts, so that most sums are products of long matrices.
    """
    E, p, N = post.left.shape
    q = T.shape[1]
    variance = (sigma**2)[:, None]
    b = (T / sigma[:, None, None]) @ post.w  # (E, q, N)
    wb = b * weights[:, None]
    out = np.empty((E, p + q * q + 1), dtype=post.left.dtype)
    out[:, :p] = (post.left @ weights[:, :, None])[:, :, 0]
    for j in range(q):
        out[:, :p] -= times_real(wb[:, j], m.ZX[j].T)
    out[:, :p] /= variance
    W_inv = inverse_from_cholesky(post.L)
    rest = post.Zr - multiply(m.ZZ, b)
    pull = (rest * weights[:, None]) @ np.swapaxes(post.w, 1, 2) / sigma[:, None, None]
    # sum_n w (ZZ)_ab (W^-1)_cd for all a, b, c, d is one product over subjects, then contracted with T over b = c.
    spread = times_real((W_inv * weights[:, None, None]).reshape(E * q * q, N), m.ZZ.reshape(q * q, N).T)
    pull -= np.einsum("ecdab,ebc->ead", spread.reshape(E, q, q, q, q), T)
    out[:, p:-1] = (pull / variance[:, :, None]).reshape(E, q * q)
    squares = post.rr - (post.v * post.v).sum(axis=1) - (post.w * post.w).sum(axis=1)
    trace = q - np.einsum("eaan->en", W_inv)
    out[:, -1] = ((squares / variance + trace - m.n) * weights).sum(axis=1)
    return out


def random_effect_means(post: ExpertPosterior, T: Array, sigma: Array) -> Array:
    """Posterior means of the random effects given the expert, shape (E, q, N)."""
    return (T / sigma[:, None, None]) @ post.w


def random_effect_covariances(post: ExpertPosterior, T: Array) -> Array:
    """Posterior covariances of the random effects given the expert, shape (E, q, q, N)."""
    return np.einsum("eac,ecdn,ebd->eabn", T, inverse_from_cholesky(post.L), T, optimize=True)


def summed_second_moments(post: ExpertPosterior, T: Array, sigma: Array, weights: Array) -> Array:
    """Sums over subjects of weights times E[b b' | y], shape (E, q, q), with weights of shape (E, N)."""
    means = (post.w * weights[:, None]) @ np.swapaxes(post.w, 1, 2) / (sigma**2)[:, None, None]
    spread = (inverse_from_cholesky(post.L) @ weights[:, None, :, None])[..., 0]
    return T @ (means + spread) @ np.swapaxes(T, 1, 2)


def weighted_normal_matrix(m: Moments, post: ExpertPosterior, T: Array, sigma: Array, weights: Array) -> Array:
    """Sum over subjects of weights * X'V^-1X, shape (E, p, p); the matrix of generalised least squares."""
    E, q, N = post.w.shape
    p = m.XX.shape[0]
    Lam = T / sigma[:, None, None]
    plain = (weights @ m.XX.reshape(p * p, N).T).reshape(E, p, p)
    # X'V^-1X = (X'X - B'B) / sigma^2 with B = L^-1 Lambda'Z'X; summed over subjects by one product of long rows.
    half = solve_lower(post.L, np.einsum("eba,bpn->eapn", Lam, m.ZX, optimize=True))  # (E, q, p, N)
    left = np.moveaxis(half * weights[:, None, None], 2, 1).reshape(E, p, q * N)
    right = np.moveaxis(half, 2, 1).reshape(E, p, q * N)
    return (plain - left @ np.swapaxes(right, 1, 2)) / (sigma**2)[:, None, None]


FIRST_SIZE = 0.6  # random effects and residual start with 0.36 of the pooled residual variance each


class ClosedDensities:
    """What Gaussian experts with independent errors say, whatever the scores are made of."""

    __slots__ = ()

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


@dataclass(frozen=True, slots=True)
class GaussianDensities(ClosedDensities, FlatScores):
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

    def _flat_scores(self) -> Array:
        return expert_scores(self.moments, self.posterior, *flat_experts(self.params))

    def summed_scores(self, weights: Array) -> Array:
        """Weighted sums over subjects, shape (S, K, p + q * q + 1), without those of the subjects."""
        S, K, n = weights.shape
        flat = weights.reshape(S * K, n)
        sums = summed_expert_scores(self.moments, self.posterior, *flat_experts(self.params), flat)
        return sums.reshape(S, K, -1)


@dataclass(frozen=True, slots=True)
class GaussianRowDensities(ClosedDensities, ScoresByRow):
    """Densities of a run of subjects from their rows, see `RowDensities`.

    Attributes
    ----------
    moments : RowMoments
    params : Params
    posterior : ExpertPosterior
        With E = S * K.
    """

    moments: RowMoments
    params: Params
    posterior: ExpertPosterior

    def row_scores(self) -> RowScores:
        """Derivatives in the linear predictor of each row and in what else the experts have."""
        T, sigma = flat_experts(self.params)
        b = random_effect_means(self.posterior, T, sigma)
        # V^-1 r = (r - Z b) / sigma^2, b the posterior mean of the random effects.
        predictor = self.posterior.left.copy()
        for a, column in enumerate(self.moments.Z):
            predictor -= column * np.repeat(b[:, a], self.moments.counts, axis=-1)
        predictor /= (sigma**2)[:, None]
        return RowScores(predictor, variance_scores(self.moments, self.posterior, T, sigma, b))

    def _gathered(self, values: Array) -> Array:
        return self.moments.gathered(values)

    @property
    def _columns(self) -> Array:
        return self.moments.X

    @property
    def _starts(self) -> NDArray[np.intp]:
        return self.moments.starts


@dataclass(frozen=True, slots=True)
class GaussianExperts(ClosedIntegral):
    """Experts with iid Gaussian errors, see `Experts`; from rows where columns are many, see `RowwiseExperts`.

    Attributes
    ----------
    moments : Moments or RowMoments
    workers : Workers
    """

    moments: Moments | RowMoments
    analytic: bool = True
    workers: Workers = ALONE

    @property
    def by_rows(self) -> bool:
        """Whether rows are kept, as columns are many."""
        return isinstance(self.moments, RowMoments)

    @property
    def columns(self) -> Array:
        """Columns of the fixed effects where rows are kept, shape (p, n)."""
        return self._rows.X

    def shifted(self, by: AnyArray) -> "GaussianExperts":
        """The same experts where the linear predictor of each row is this much larger, shape (n,)."""
        return replace(self, moments=replace(self._rows, y=self._rows.y - by))

    @property
    def _rows(self) -> RowMoments:
        if not isinstance(self.moments, RowMoments):
            raise TypeError("cross-products of subjects have no rows; ask by_rows first")
        return self.moments

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.moments.n_subjects

    def take(self, subjects: NDArray[np.intp]) -> "GaussianExperts":
        """Densities of the experts for some of the subjects only."""
        return replace(self, moments=self.moments.take(subjects))

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, GaussianExperts]]":
        """Experts of consecutive runs of subjects, with the place of each run."""
        for where, moments in self.moments.blocks(n_experts):
            yield where, GaussianExperts(moments)

    def densities(self, params: Params) -> GaussianDensities | GaussianRowDensities:
        """Log-densities at S parameter vectors."""
        S, K, p = params.beta.shape
        m = self.moments
        posterior = expert_posterior(m, params.beta.reshape(S * K, p), *flat_experts(params))
        if isinstance(m, RowMoments):
            return GaussianRowDensities(m, params, posterior)
        return GaussianDensities(m, params, posterior)

    @property
    def counts(self) -> NDArray[np.intp]:
        """Rows of each subject, shape (N,)."""
        return self.moments.n.astype(np.intp)

    def without_response(self) -> "GaussianExperts":
        """The same with a response of zero."""
        return replace(self, moments=self.moments.without_response())

    def without_random_effects(self) -> "GaussianExperts":
        """The same without random effects."""
        return replace(self, moments=self.moments.without_random_effects())

    def sort_keys(self) -> tuple[Array, ...]:
        """Cross-products with the response."""
        m = self.moments
        if isinstance(m, RowMoments):
            return (*(m.sums(column * m.y) for column in m.X), m.sums(m.y**2))
        return (*m.Xy, m.yy)

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

    @property
    def is_closed_form(self) -> bool:
        """Always: EM has its steps in closed form."""
        return True

    def closed_form(self, one: Params) -> "GaussianExperts":
        """The experts with iid Gaussian errors that starts are sought with: these ones already are."""
        return self


def independent_experts(
    y: Array,
    X: Array,
    Z: Array,
    starts: NDArray[np.intp],
    weights: Array | None = None,
    sparse: SparseColumns | None = None,
) -> GaussianExperts:
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
    if has_many_columns(X.shape[1], np.diff(np.append(starts, y.size))):
        return GaussianExperts(build_row_moments(y, X, Z, starts, weights, sparse))
    return GaussianExperts(build_moments(y, X, Z, starts, weights))


def flat_experts(params: Params) -> tuple[Array, Array]:
    """Factors (S * K, q, q) and residual standard deviations (S * K,)."""
    S, K, q, _ = params.factor.shape
    return params.factor.reshape(S * K, q, q), params.sigma.reshape(S * K)


@dataclass(frozen=True, slots=True)
class Density:
    """Log-densities and their derivatives.

    Attributes
    ----------
    log_density : ndarray, shape (E, N)
    weight : ndarray, shape (E, N)
        Minus twice the derivative in the squared distance; one for the normal.
    log_df : ndarray, shape (E, N)
        Derivative in the logarithm of the degrees of freedom; zero for the normal.
    """

    log_density: AnyArray
    weight: AnyArray
    log_df: AnyArray


def normal_density(n: AnyArray, log_det: AnyArray, distance: AnyArray) -> Density:
    """Multivariate normal densities of dimension `n`, shape (N,)."""
    log_density = -0.5 * (n * LOG_2PI + log_det + distance)
    return Density(log_density, np.ones_like(log_density), np.zeros_like(log_density))


def t_density(n: AnyArray, log_det: AnyArray, distance: AnyArray, df: AnyArray) -> Density:
    """Multivariate t densities.

    Parameters
    ----------
    n : ndarray, shape (N,)
        Dimensions.
    log_det : ndarray, shape (E, N)
        Of the scale matrix.
    distance : ndarray, shape (E, N)
        Squared distance from the centre, in the metric of the scale matrix.
    df : ndarray, shape (E,)

    Returns
    -------
    Density

    References
    ----------
    Pinheiro, Liu & Wu (2001), Journal of Computational and Graphical Statistics 10, 249-276.
    """
    nu = df[:, None]
    weight = (nu + n) / (nu + distance)
    # log1p: with many degrees of freedom the ratio is tiny, and 1 + ratio would round it away.
    stretch = np.log1p(distance / nu)
    log_density = _log_gamma_step(nu / 2, n / 2) - 0.5 * (n * np.log(nu * np.pi) + log_det + (nu + n) * stretch)
    gain = _psi((nu + n) / 2) - _psi(nu / 2) - stretch - n / nu + weight * distance / nu
    return Density(log_density, weight, 0.5 * nu * gain)


def _log_gamma_step(x: AnyArray, step: AnyArray) -> AnyArray:
    """Difference log Gamma(x + step) - log Gamma(x), accurate for large x; an imaginary part of x passes through."""
    # log Gamma(x + s) - log Gamma(x) = log Gamma(s) - log B(x, s): the difference of two large logarithms would cancel.
    value = gammaln(step) - betaln(step, x.real)
    return _carried(value, digamma(x.real + step) - digamma(x.real), x)


def _psi(x: AnyArray) -> AnyArray:
    """Digamma function; an imaginary part passes through."""
    return _carried(digamma(x.real), trigamma(x.real), x)


def _carried(value: AnyArray, slope: AnyArray, x: AnyArray) -> AnyArray:
    return value + 1j * x.imag * slope if np.iscomplexobj(x) else value
