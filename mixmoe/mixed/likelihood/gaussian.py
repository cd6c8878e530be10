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
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mixmoe._typing import AnyArray, Array
from mixmoe.mixed.likelihood.columns import Columns
from mixmoe.mixed.likelihood.protocol import ClosedIntegral, Densities, Effects, RowScores, ScoresByRow
from mixmoe.mixed.parameters import Params, Structure
from mixmoe.numerics.linalg import cholesky, inverse_from_cholesky, multiply, solve_lower, solve_upper, times_real

LOG_2PI = float(np.log(2 * np.pi))
FIRST_SIZE = 0.6  # random effects and residual start with 0.36 of the pooled residual variance each


@dataclass(frozen=True, slots=True)
class Residuals:
    """Residuals r = y - X beta of every subject, as the densities need them.

    Attributes
    ----------
    left : ndarray, shape (E, p, N) or (E, n)
        X'r; r itself, row by row, where columns are many.
    Zr : ndarray, shape (E, q, N)
        Z'r.
    rr : ndarray, shape (E, N)
        r'r.
    """

    left: Array
    Zr: Array
    rr: Array


class GaussianData(Protocol):
    """What the algebra of normal densities needs of the data of N subjects, whether products or rows are kept."""

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""

    @property
    def n(self) -> Array:
        """Rows of each subject, shape (N,)."""

    @property
    def ZZ(self) -> Array:  # noqa: N802
        """Z'Z, shape (q, q, N)."""

    @property
    def log_weight(self) -> Array:
        """Sums of the logarithms of the weights of the rows, shape (N,)."""

    def around(self, beta: Array) -> Residuals:
        """Residuals at coefficients of shape (E, p)."""


class MomentDensities(Densities, Protocol):
    """`Densities` with the sums that EM asks for, with weights of shape (E, N)."""

    def normal_matrix(self, weights: Array) -> Array:
        """Sum over subjects of weights times X'V^-1X, shape (E, p, p)."""

    def second_moments(self, weights: Array) -> Array:
        """Sums over subjects of weights times E[b b' | y], shape (E, q, q)."""


class ClosedExperts(ClosedIntegral):
    """What experts with iid Gaussian errors say of themselves, however they keep their data."""

    __slots__ = ()

    analytic: ClassVar[bool] = True
    is_closed_form: ClassVar[bool] = True

    def closed_form(self, one: Params) -> Self:
        """The experts with iid Gaussian errors that starts are sought with: these ones already are."""
        return self

    def first_guess(self, structure: Structure) -> Params:
        """Equal shares of random and residual variance."""
        return Params(
            np.zeros((1, 0, structure.n_gate)),
            np.zeros((1, 1, structure.n_columns)),
            FIRST_SIZE * np.eye(structure.n_random)[None, None],
            np.full((1, 1), FIRST_SIZE if structure.has_sigma else 1.0),
            np.zeros((1, 1, 0)),
        )


@dataclass(frozen=True, slots=True)
class GaussianExperts(ClosedExperts):
    """Experts with iid Gaussian errors, see `Experts`: cross-products of every subject, subjects on the last axis.

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

    by_rows: ClassVar[bool] = False

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.n.size

    @property
    def counts(self) -> NDArray[np.intp]:
        """Rows of each subject, shape (N,)."""
        return self.n.astype(np.intp)

    def take(self, subjects: NDArray[np.intp]) -> "GaussianExperts":
        """The experts of some of the subjects, each possibly repeated, contiguous in memory."""
        parts = (np.ascontiguousarray(getattr(self, name)[..., subjects]) for name in _PRODUCTS)
        return GaussianExperts(*parts)

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, GaussianExperts]]":
        """Consecutive runs of subjects, short enough that the working arrays of `n_experts` experts stay in cache."""
        q, p, N = self.ZX.shape
        # 40,000 doubles are 320 KB: the few arrays of this size that one evaluation holds fit a second-level cache.
        # Below 64 subjects the overhead of the calls would outweigh what the cache saves.
        width = max(64, 40_000 // max(1, n_experts * max(q * q, p)))
        for start in range(0, N, width):
            where = slice(start, min(start + width, N))
            yield where, GaussianExperts(*(getattr(self, name)[..., where] for name in _PRODUCTS))

    def densities(self, params: Params) -> MomentDensities:
        """Log-densities at S parameter vectors."""
        posterior = expert_posterior(self, params)
        return GaussianDensities(params, posterior, posterior.log_density.reshape(*params.sigma.shape, -1), self)

    def around(self, beta: Array) -> Residuals:
        """Cross-products of residuals: they follow from those of the data, so that no residual is ever formed."""
        left = self.Xy - np.swapaxes(times_real(beta, self.XX), 0, 1)
        # r'r = y'y - beta'(X'y + X'r)
        rr = self.yy - np.einsum("ep,epn->en", beta, self.Xy + left)
        return Residuals(left, self.Zy - np.swapaxes(times_real(beta, self.ZX), 0, 1), rr)

    def without_response(self) -> "GaussianExperts":
        """The same with a response of zero."""
        return replace(self, yy=np.zeros_like(self.yy), Xy=np.zeros_like(self.Xy), Zy=np.zeros_like(self.Zy))

    def without_random_effects(self) -> "GaussianExperts":
        """The same without random effects."""
        return replace(self, Zy=self.Zy[:0], ZX=self.ZX[:0], ZZ=self.ZZ[:0, :0])

    def sort_keys(self) -> tuple[Array, ...]:
        """Cross-products with the response."""
        return (*self.Xy, self.yy)


_PRODUCTS = tuple(part.name for part in fields(GaussianExperts))


def experts_of_products(
    y: Array, X: Array, Z: Array, starts: NDArray[np.intp], weights: Array | None = None
) -> GaussianExperts:
    """Gaussian experts from the cross-products of every subject; parameters as in `patterns.independent_experts`."""
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
    return GaussianExperts(*(np.ascontiguousarray(part) for part in parts))


@dataclass(frozen=True, slots=True)
class ExpertPosterior:
    """What one expert says about each subject.

    Attributes
    ----------
    T : ndarray, shape (E, q, q)
        Lower factor of the random-effects covariance, D = T T'.
    sigma : ndarray, shape (E,)
        Residual standard deviation.
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

    T: Array
    sigma: Array
    log_density: Array
    left: Array
    Zr: Array
    rr: Array
    L: Array
    v: Array
    w: Array


def expert_posterior(m: GaussianData, params: Params) -> ExpertPosterior:
    """Marginal log-densities and the pieces of the posterior of the random effects, with E = S * K.

    Parameters
    ----------
    m : GaussianData
    params : Params

    Returns
    -------
    ExpertPosterior
    """
    E, p, q, N = params.sigma.size, params.beta.shape[2], params.factor.shape[2], len(m.n)
    T, sigma = params.factor.reshape(E, q, q), params.sigma.reshape(E)
    Lam = T / sigma[:, None, None]
    at = m.around(params.beta.reshape(E, p))
    # vec(Lambda' ZZ Lambda) is a (q^2, q^2) matrix times vec(ZZ): one matrix product for all subjects at once.
    square = np.einsum("eia,ejc->eacij", Lam, Lam).reshape(E * q * q, q * q)
    W = times_real(square, m.ZZ.reshape(q * q, N)).reshape(E, q, q, N) + np.eye(q)[:, :, None]
    # W has eigenvalues of one or more: its factor exists even where D is singular, and D itself is never inverted.
    L = cholesky(W)
    v = solve_lower(L, np.swapaxes(Lam, 1, 2) @ at.Zr)
    w = solve_upper(L, v)
    log_det = 2 * sum((np.log(L[:, j, j]) for j in range(q)), start=np.zeros((E, N)))
    log_det = log_det + m.n * (LOG_2PI + 2 * np.log(sigma))[:, None] - m.log_weight
    # u'W^-1u = |L^-1 u|^2: half of the solve is enough for the density.
    quad = (at.rr - (v * v).sum(axis=1)) / (sigma**2)[:, None]
    return ExpertPosterior(T, sigma, -0.5 * (log_det + quad), at.left, at.Zr, at.rr, L, v, w)


def variance_scores(m: GaussianData, post: ExpertPosterior, b: Array) -> Array:
    """Derivatives of each subject's log-density in all entries of T and in log sigma, shape (E, q * q + 1, N).

    `b` are the posterior means of the random effects, shape (E, q, N).
    """
    (E, q, N), T, sigma = b.shape, post.T, post.sigma
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


def random_effect_means(post: ExpertPosterior) -> Array:
    """Posterior means of the random effects given the expert, shape (E, q, N)."""
    return (post.T / post.sigma[:, None, None]) @ post.w


@dataclass(frozen=True, slots=True)
class ClosedDensities:
    """What Gaussian experts with independent errors say, whatever the scores are made of; see `Densities`.

    Attributes
    ----------
    params : Params
    posterior : ExpertPosterior
        With E = S * K.
    log_density : ndarray, shape (S, K, n)
    """

    params: Params
    posterior: ExpertPosterior
    log_density: Array

    def second_moments(self, weights: Array) -> Array:
        """Sums over subjects of weights, shape (E, N), times E[b b' | y], shape (E, q, q)."""
        post = self.posterior
        means = (post.w * weights[:, None]) @ np.swapaxes(post.w, 1, 2) / (post.sigma**2)[:, None, None]
        spread = (inverse_from_cholesky(post.L) @ weights[:, None, :, None])[..., 0]
        return np.asarray(post.T @ (means + spread) @ np.swapaxes(post.T, 1, 2))

    def effects(self) -> Effects:
        """Posterior of the random effects."""
        T, means = self.posterior.T, random_effect_means(self.posterior)
        covariances = np.einsum("eac,ecdn,ebd->eabn", T, inverse_from_cholesky(self.posterior.L), T, optimize=True)
        shape = self.params.sigma.shape
        return Effects(means.reshape(*shape, *means.shape[1:]), covariances.reshape(*shape, *covariances.shape[1:]))


@dataclass(frozen=True, slots=True)
class GaussianDensities(ClosedDensities):
    """Densities of a run of subjects from their cross-products, `data`."""

    data: GaussianExperts

    def scores(self) -> Array:
        """Derivatives, shape (S, K, p + q * q + 1, n)."""
        m, post = self.data, self.posterior
        b = random_effect_means(post)
        E, p, N = post.left.shape
        out = np.empty((E, p + b.shape[1] ** 2 + 1, N), dtype=post.left.dtype)
        # In beta: X'V^-1 r = X'(r - Z b) / sigma^2 with b the posterior mean of the random effects.
        out[:, :p] = (post.left - multiply(np.swapaxes(m.ZX, 0, 1), b)) / (post.sigma**2)[:, None, None]
        out[:, p:] = variance_scores(m, post, b)
        return out.reshape(*self.params.sigma.shape, -1, N)

    def normal_matrix(self, weights: Array) -> Array:
        """Sum over subjects of weights, shape (E, N), times X'V^-1X, shape (E, p, p)."""
        m, post = self.data, self.posterior
        E, p, N = post.left.shape
        plain = (weights @ m.XX.reshape(p * p, N).T).reshape(E, p, p)
        # X'V^-1X = (X'X - B'B) / sigma^2 with B = L^-1 Lambda'Z'X; summed over subjects by one product of long rows.
        Lam = post.T / post.sigma[:, None, None]
        half = solve_lower(post.L, np.einsum("eba,bpn->eapn", Lam, m.ZX, optimize=True))  # (E, q, p, N)
        left = np.moveaxis(half * weights[:, None, None], 2, 1).reshape(E, p, -1)
        right = np.moveaxis(half, 2, 1).reshape(E, p, -1)
        return np.asarray((plain - left @ np.swapaxes(right, 1, 2)) / (post.sigma**2)[:, None, None])

    def summed_scores(self, weights: Array) -> Array:
        """Weighted sums over subjects, shape (S, K, p + q * q + 1), without those of the subjects."""
        # The moments of the subjects are common to all experts: most sums are products of long matrices.
        m, post, T, sigma = self.data, self.posterior, self.posterior.T, self.posterior.sigma
        E, p, N = post.left.shape
        q, tau = T.shape[1], weights.reshape(E, N)
        variance = (sigma**2)[:, None]
        b = (T / sigma[:, None, None]) @ post.w  # (E, q, N)
        wb = b * tau[:, None]
        out = np.empty((E, p + q * q + 1), dtype=post.left.dtype)
        out[:, :p] = (post.left @ tau[:, :, None])[:, :, 0]
        for j in range(q):
            out[:, :p] -= times_real(wb[:, j], m.ZX[j].T)
        out[:, :p] /= variance
        W_inv = inverse_from_cholesky(post.L)
        rest = post.Zr - multiply(m.ZZ, b)
        pull = (rest * tau[:, None]) @ np.swapaxes(post.w, 1, 2) / sigma[:, None, None]
        # sum_n w (ZZ)_ab (W^-1)_cd for all a, b, c, d is one product over subjects, then contracted with T over b = c.
        spread = times_real((W_inv * tau[:, None, None]).reshape(E * q * q, N), m.ZZ.reshape(q * q, N).T)
        pull -= np.einsum("ecdab,ebc->ead", spread.reshape(E, q, q, q, q), T)
        out[:, p:-1] = (pull / variance[:, :, None]).reshape(E, q * q)
        squares = post.rr - (post.v * post.v).sum(axis=1) - (post.w * post.w).sum(axis=1)
        trace = q - np.einsum("eaan->en", W_inv)
        out[:, -1] = ((squares / variance + trace - m.n) * tau).sum(axis=1)
        return out.reshape(*weights.shape[:2], -1)


_ROW_WORK = 400_000  # doubles of a working array of rows (3.2 MB): more would leave the cache, fewer cut sparse columns


@dataclass(frozen=True, slots=True)
class GaussianRowExperts(ClosedExperts):
    """Experts with iid Gaussian errors whose columns are many, see `RowwiseExperts`: rows, and products of the others.

    All rows and columns are multiplied by the roots of their weights.

    Attributes
    ----------
    y : ndarray, shape (n,)
    X : Columns
    Z : ndarray, shape (q, n)
    starts, counts : ndarray of int, shape (N,)
    ZZ : ndarray, shape (q, q, N)
    log_weight : ndarray, shape (N,)
        Sum of the logarithms of the weights of the rows.
    """

    y: AnyArray
    X: Columns
    Z: Array
    starts: NDArray[np.intp]
    counts: NDArray[np.intp]
    ZZ: Array
    log_weight: Array

    by_rows: ClassVar[bool] = True

    @property
    def columns(self) -> Columns:
        """Columns of the fixed effects."""
        return self.X

    def shifted(self, by: AnyArray) -> "GaussianRowExperts":
        """The same experts where the linear predictor of each row is this much larger, shape (n,)."""
        return replace(self, y=self.y - by)

    def densities(self, params: Params) -> "GaussianRowDensities":
        """Log-densities at S parameter vectors."""
        posterior = expert_posterior(self, params)
        return GaussianRowDensities(params, posterior, posterior.log_density.reshape(*params.sigma.shape, -1), self)

    def around(self, beta: AnyArray) -> Residuals:
        """Residuals row by row, and their cross-products by subject."""
        left = self.y - self.X.predictor(beta)
        return Residuals(left, self.sums(self.Z * left[:, None]), self.sums(left * left))

    def sort_keys(self) -> tuple[Array, ...]:
        """Cross-products with the response."""
        return (*(self.sums(column * self.y) for column in self.X.dense), self.sums(self.y**2))

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
        if width >= self.n_subjects:  # sparse columns cannot be cut without a copy
            yield slice(0, self.n_subjects), self
            return
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
        return GaussianRowExperts(self.y[rows], self.X.at(rows), self.Z[:, rows], starts, counts, *moments)


@dataclass(frozen=True, slots=True)
class GaussianRowDensities(ClosedDensities, ScoresByRow):
    """Densities of a run of subjects from their rows, `data`, see `RowDensities`."""

    data: GaussianRowExperts

    def row_scores(self) -> RowScores:
        """Derivatives in the linear predictor of each row and in what else the experts have."""
        b = random_effect_means(self.posterior)
        # V^-1 r = (r - Z b) / sigma^2, b the posterior mean of the random effects.
        predictor = self.posterior.left.copy()
        for a, column in enumerate(self.data.Z):
            predictor -= column * np.repeat(b[:, a], self.data.counts, axis=-1)
        predictor /= (self.posterior.sigma**2)[:, None]
        return RowScores(predictor, variance_scores(self.data, self.posterior, b))

    def normal_matrix(self, weights: Array) -> AnyArray:
        """Sum over subjects of weights, shape (E, N), times X'V^-1X, shape (E, p, p)."""
        data, post = self.data, self.posterior
        Lam = post.T / post.sigma[:, None, None]
        # X'V^-1X = (X'X - X'Z Lambda W^-1 Lambda'Z'X) / sigma^2: of each subject Z'X, and nothing of p by p.
        inner = np.einsum("eab,ebcn,edc->eadn", Lam, inverse_from_cholesky(post.L), Lam, optimize=True)
        inner = inner * weights[:, None, None]
        ZX = [data.X.summed(z, data.starts) for z in data.Z]
        out = np.empty((*Lam.shape[:1], len(data.X), len(data.X)), dtype=Lam.dtype)
        for e, (of_rows, mine) in enumerate(zip(np.repeat(weights, data.counts, axis=1), inner, strict=True)):
            out[e] = data.X.gram(of_rows)
            for a, b in np.ndindex(mine.shape[:2]):
                out[e] -= data.X.in_basis((ZX[a].T @ csr_array(ZX[b] * mine[a, b][:, None])).toarray())
        return out / (post.sigma**2)[:, None, None]

    @property
    def _columns(self) -> Columns:
        return self.data.X

    @property
    def _starts(self) -> NDArray[np.intp]:
        return self.data.starts


def experts_of_rows(
    y: Array, X: Columns, Z: Array, starts: NDArray[np.intp], weights: Array | None = None
) -> GaussianRowExperts:
    """Gaussian experts that keep the rows; parameters as in `patterns.independent_experts`."""
    counts = np.diff(np.append(starts, y.size))
    root = np.ones(y.size) if weights is None else np.sqrt(weights)
    random = root * np.ascontiguousarray(Z.T)
    ZZ = np.add.reduceat(random[:, None] * random, starts, axis=-1)
    log_weight = np.add.reduceat(2 * np.log(root), starts)
    return GaussianRowExperts(root * y, X.scaled(root), random, starts, counts, ZZ, log_weight)
