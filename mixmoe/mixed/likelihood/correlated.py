"""Gaussian and t experts whose errors are correlated, unequal or heavy-tailed.

Densities from the rows of the data.

With R the covariance of a subject's errors, D = T T', G = Z'R^-1 Z, W = I + T'GT and r = y - X beta::

    log|V|  = log|R| + log|W|
    r'V^-1r = r'R^-1r - u'W^-1u,   u = T'Z'R^-1 r

The t density has the same V as its scale matrix (Pinheiro, Liu & Wu 2001): random effects and errors share one factor
per subject. The axis ``E`` runs over experts, or over experts of several starts; complex steps pass through.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import betaln, digamma, gammaln

from mixmoe._typing import AnyArray, Array
from mixmoe.mixed.likelihood.columns import Columns
from mixmoe.mixed.likelihood.further_parameters import extra_starts
from mixmoe.mixed.likelihood.gaussian import (
    FIRST_SIZE,
    LOG_2PI,
    GaussianExperts,
    GaussianRowExperts,
)
from mixmoe.mixed.likelihood.patterns import independent_experts
from mixmoe.mixed.likelihood.protocol import ClosedIntegral, Effects, RowScores, ScoresByRow
from mixmoe.mixed.likelihood.serial import ErrorFactor, ErrorKind, Spread, Visits, factorise
from mixmoe.mixed.parameters import Params, Structure
from mixmoe.numerics.linalg import cholesky, inverse_from_cholesky, solve_lower, solve_upper
from mixmoe.responses.distribution import trigamma


def whitener(factor: ErrorFactor) -> csr_array:
    """L^-1 of all subjects as one matrix, shape (n, n), for the factor of one expert, R = L L'."""
    starts, counts = factor.visits.starts, factor.visits.counts
    unit = (np.arange(counts.sum()) - np.repeat(starts, counts))[None] == np.arange(counts.max())[:, None]
    white = factor.whiten(unit.astype(float)[None])[0]  # (m, n): what each row takes from its subject's visit j
    visit, row = np.nonzero(white)
    return csr_array((white[visit, row], (row, np.repeat(starts, counts)[row] + visit)), shape=(unit.shape[1],) * 2)


_WORKING = 150_000  # doubles per working array (1.2 MB): rows, unlike moments, are swept once or twice only


@dataclass(frozen=True, slots=True)
class SerialRows:
    """The data row by row, sorted by subject and time.

    Attributes
    ----------
    y : ndarray, shape (n,)
    X : Columns
    Z : ndarray, shape (q, n)
    V : ndarray, shape (v, n)
        Covariates of the log standard deviation of the errors.
    visits : Visits
    unit : ndarray, shape (n,)
        What the standard deviation of the errors is multiplied by: one over the root of the weight of each row.
    """

    y: AnyArray
    X: Columns
    Z: AnyArray
    V: AnyArray
    visits: Visits
    unit: AnyArray

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.visits.starts.size

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, SerialRows]]":
        """Consecutive runs of subjects, short enough that the working arrays of `n_experts` experts stay in cache."""
        width = 1 + 2 * self.Z.shape[0] ** 2
        per_subject = max(1.0, self.y.size / self.n_subjects)
        length = max(64, int(_WORKING / (n_experts * width * per_subject)))
        if length >= self.n_subjects:
            yield slice(0, self.n_subjects), self
            return
        for start in range(0, self.n_subjects, length):
            where = slice(start, min(start + length, self.n_subjects))
            yield where, self.run(where)

    def run(self, subjects: slice) -> "SerialRows":
        """Rows of a run of consecutive subjects."""
        ends = self.visits.starts + self.visits.counts
        at = slice(int(self.visits.starts[subjects][0]), int(ends[subjects][-1]))
        return self._at(at, self.visits.take(subjects))

    def take(self, subjects: NDArray[np.intp]) -> "SerialRows":
        """Rows of some subjects, each possibly repeated."""
        at = self.visits.rows_of(subjects)
        return self._at(at, self.visits.chosen(subjects))

    def without_response(self) -> "SerialRows":
        """The same rows with a response of zero."""
        return replace(self, y=np.zeros_like(self.y))

    def _at(self, at: "slice | NDArray[np.intp]", visits: Visits) -> "SerialRows":
        return SerialRows(self.y[at], self.X.at(at), self.Z[:, at], self.V[:, at], visits, self.unit[at])


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
    sigma: AnyArray
    slope: AnyArray
    shape: AnyArray | None
    df: AnyArray | None

    def deviations(self, V: AnyArray, unit: AnyArray) -> AnyArray:
        """Standard deviation of the errors of each row, shape (E, n), for covariates (v, n) and units (n,)."""
        return self.sigma[:, None] * np.exp(self.slope @ V) * unit


@dataclass(frozen=True, slots=True)
class RowPosterior:
    """What one expert says about each subject.

    Attributes
    ----------
    T : ndarray, shape (E, q, q)
        Lower factor of the random-effects covariance, D = T T'.
    factor : Independent, Chain or Filter
        Of R.
    r : ndarray, shape (E, n)
        y - X beta.
    white : ndarray, shape (E, q, n)
        Z whitened.
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

    T: AnyArray
    factor: ErrorFactor
    r: AnyArray
    white: AnyArray
    G: AnyArray
    L: AnyArray
    w: AnyArray
    distance: AnyArray
    density: "Density"


def row_posterior(rows: SerialRows, beta: AnyArray, T: AnyArray, errors: ErrorModel) -> RowPosterior:
    """Marginal log-densities and the pieces of the posterior of the random effects.

    Parameters
    ----------
    rows : SerialRows
    beta : ndarray, shape (E, p)
    T : ndarray, shape (E, q, q)
        Lower factor of the random-effects covariance, D = T T'.
    errors : ErrorModel

    Returns
    -------
    RowPosterior
    """
    factor = factorise(errors.kind, errors.deviations(rows.V, rows.unit), errors.shape, rows.visits)
    r = rows.y - rows.X.predictor(beta)
    # With errors whitened by R's inverse factor, everything below is the algebra of independent errors.
    white_r, white_Z = factor.whiten(r[:, None]), factor.whiten(rows.Z[None])
    E, q = white_Z.shape[:2]
    G, Zr = np.empty((E, q, q, rows.n_subjects), dtype=white_Z.dtype), rows.visits.per_subject(white_Z * white_r)
    for a in range(q):
        for b in range(a + 1):
            G[:, a, b] = G[:, b, a] = rows.visits.per_subject(white_Z[:, a] * white_Z[:, b])
    inside = np.einsum("eai,eabn->eibn", T, G)
    W = np.einsum("eibn,ebj->eijn", inside, T) + np.eye(q)[:, :, None]
    # I + T'GT has eigenvalues of one or more, whatever D: a singular D needs no special case.
    L = cholesky(W)
    half = solve_lower(L, np.swapaxes(T, 1, 2) @ Zr)
    distance = rows.visits.per_subject(white_r[:, 0] ** 2) - (half * half).sum(axis=1)
    log_det = factor.log_det + 2 * sum((np.log(L[:, j, j]) for j in range(q)), start=np.zeros(distance.shape))
    # The t has the same scale matrix V; only what the distance r'V^-1 r enters differs.
    n = rows.visits.counts.astype(float)
    density = normal_density(n, log_det, distance) if errors.df is None else t_density(n, log_det, distance, errors.df)
    return RowPosterior(T, factor, r, white_Z, G, L, solve_upper(L, half), distance, density)


def row_means(post: RowPosterior) -> AnyArray:
    """Posterior means of the random effects given the expert, shape (E, q, N)."""
    return post.T @ post.w


def row_covariances(post: RowPosterior) -> AnyArray:
    """Posterior covariances of the random effects for normal errors, shape (E, q, q, N); scale matrices for t."""
    return np.einsum("eac,ecdn,ebd->eabn", post.T, inverse_from_cholesky(post.L), post.T, optimize=True)


def row_errors(rows: SerialRows, post: RowPosterior) -> AnyArray:
    """Residuals y - X beta - Z b at the posterior mean of b, shape (E, n)."""
    means = np.repeat(row_means(post), rows.visits.counts, axis=-1)
    return post.r - (means * rows.Z).sum(axis=1)


def row_scores(rows: SerialRows, post: RowPosterior, errors: ErrorModel) -> RowScores:
    """Derivatives of each subject's log-density in the parameters of each expert.

    Parameters
    ----------
    rows : SerialRows
    post : RowPosterior
    errors : ErrorModel

    Returns
    -------
    RowScores
        In the linear predictor of each row; in all entries of T (row by row), in log sigma, in the coefficients of the
        log standard deviation, and, where there is one, in rho, phi or tau and in the logarithm of the degrees of
        freedom.
    """
    E, q, N = post.w.shape
    weight, per_subject = post.density.weight, rows.visits.per_subject
    # V^-1 r = R^-1 (r - Z b), b the posterior mean: V is never formed.
    left = row_errors(rows, post)
    white = post.factor.whiten(left[:, None])
    solved = post.factor.solved(white)
    both = np.concatenate([white, post.white], axis=1)
    found = post.factor.scores(Spread(left, rows.Z[None], both, row_covariances(post), weight))
    pull = per_subject(rows.Z * solved)  # Z'V^-1 r  (E, q, N)
    # The weight of the t (1 for normal errors) shrinks what far-off subjects say; the log determinant has none.
    # Z'V^-1 Z T = G T W^-1.
    inside = np.einsum("eab,ebcn->eacn", post.T, inverse_from_cholesky(post.L))
    in_T = (weight[:, None] * pull)[:, :, None] * post.w[:, None] - np.einsum("eabn,ebcn->eacn", post.G, inside)
    parts = [
        in_T.reshape(E, q * q, N),
        per_subject(found.log_sd)[:, None],
        per_subject(rows.V * found.log_sd[:, None]),
    ]
    if found.shape is not None:
        parts.append(found.shape[:, None])
    if errors.df is not None:
        parts.append(post.density.log_df[:, None])
    by_row = np.repeat(weight, rows.visits.counts, axis=-1) * solved[:, 0]
    return RowScores(by_row, np.concatenate(parts, axis=1))


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
        shape: Array | None = None
        if self.kind != "iid":
            # Maps of the whole line onto (-1, 1) and (0, inf): the search knows no bounds.
            shape = np.tanh(extra[:, v]) if self.kind == "ar1" else np.exp(extra[:, v])
        df: Array | None = None
        if self.heavy:
            df = np.exp(extra[:, -1]) if self.df is None else np.full(sigma.size, self.df)
        return ErrorModel(self.kind, sigma, extra[:, :v], shape, df)

    def unconstrained(self, scores: Array, errors: ErrorModel) -> Array:
        """Scores in the unconstrained parameters, from those of `row_scores`, shape (E, q * q + 1 + d, N)."""
        if self.heavy and self.df is not None:
            scores = scores[:, :-1]
        if errors.shape is None:
            return scores
        # Chain rule of the two maps in `model`: d tanh = 1 - tanh^2, d exp = exp.
        slope = 1 - errors.shape**2 if self.kind == "ar1" else errors.shape
        scores[:, -2 if self.heavy and self.df is None else -1] *= slope[:, None]
        return scores


@dataclass(frozen=True, slots=True)
class RowDensities(ScoresByRow):
    """Densities of a run of subjects, see `Densities`.

    Attributes
    ----------
    rows : SerialRows
    params : Params
    form : ErrorForm
    errors : ErrorModel
    posterior : RowPosterior
        With E = S * K.
    """

    rows: SerialRows
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
        spread = row_covariances(self.posterior) * self.spread()[:, None, None]
        means, shape = row_means(self.posterior), self.params.sigma.shape
        return Effects(means.reshape(*shape, *means.shape[1:]), spread.reshape(*shape, *spread.shape[1:]))

    def spread(self) -> Array:
        """Posterior covariance over `row_covariances`, shape (E, n): one for normal errors, infinite without one."""
        df = self.errors.df
        if df is None:
            return np.ones_like(self.posterior.distance)
        freedom = df[:, None] + self.rows.visits.counts
        # A t with two degrees of freedom or fewer has no variance, given so few rows: infinite, not an error.
        with np.errstate(divide="ignore"):
            factor = (df[:, None] + self.posterior.distance) / (freedom - 2)
        return np.where(freedom > 2, factor, np.inf)

    def row_scores(self) -> RowScores:
        """Derivatives in the linear predictor of each row and in what else the experts have."""
        found = row_scores(self.rows, self.posterior, self.errors)
        return RowScores(found.predictor, self.form.unconstrained(found.others, self.errors))

    @property
    def _columns(self) -> Columns:
        return self.rows.X

    @property
    def _starts(self) -> NDArray[np.intp]:
        return self.rows.visits.starts


@dataclass(frozen=True, slots=True)
class RowExperts(ClosedIntegral):
    """Experts with other errors than iid Gaussian ones, see `Experts`.

    Attributes
    ----------
    rows : SerialRows
    form : ErrorForm
    """

    rows: SerialRows
    form: ErrorForm
    analytic: bool = True

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.rows.n_subjects

    def take(self, subjects: NDArray[np.intp]) -> "RowExperts":
        """Densities of the experts for some of the subjects only."""
        return replace(self, rows=self.rows.take(subjects))

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, RowExperts]]":
        """Consecutive runs of subjects."""
        for where, rows in self.rows.blocks(n_experts):
            yield where, RowExperts(rows, self.form)

    def densities(self, params: Params) -> RowDensities:
        """Log-densities at S parameter vectors."""
        E, p, q = params.sigma.size, params.beta.shape[2], params.factor.shape[2]
        errors = self.form.model(params)
        posterior = row_posterior(self.rows, params.beta.reshape(E, p), params.factor.reshape(E, q, q), errors)
        return RowDensities(self.rows, params, self.form, errors, posterior)

    def without_response(self) -> "RowExperts":
        """The same with a response of zero."""
        return replace(self, rows=self.rows.without_response())

    @property
    def by_rows(self) -> bool:
        """Whether the rows of the data are kept: with correlated errors they always are."""
        return True

    @property
    def columns(self) -> Columns:
        """Columns of the fixed effects."""
        return self.rows.X

    @property
    def counts(self) -> NDArray[np.intp]:
        """Rows of each subject, shape (N,)."""
        return self.rows.visits.counts

    def shifted(self, by: AnyArray) -> "RowExperts":
        """The same experts where the linear predictor of each row is this much larger, shape (n,)."""
        return replace(self, rows=replace(self.rows, y=self.rows.y - by))

    def sort_keys(self) -> tuple[Array, ...]:
        """Cross-products with the response."""
        per_subject, y = self.rows.visits.per_subject, self.rows.y
        return (*(per_subject(column * y) for column in self.rows.X.dense), per_subject(y**2))

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

    @property
    def is_closed_form(self) -> bool:
        """Never: EM has no closed form for the correlation of errors."""
        return False

    def closed_form(self, one: Params) -> GaussianExperts | GaussianRowExperts:
        """Experts that share the correlation and the relative variances of the errors of a one-expert fit.

        Whitened by them, errors are iid, up to their scale; tails are taken as normal.
        """
        errors = self.form.model(one)
        tau = None if errors.shape is None else errors.shape / (errors.sigma if self.form.kind == "bm" else 1.0)
        factor = factorise(self.form.kind, np.exp(errors.slope @ self.rows.V) * self.rows.unit, tau, self.rows.visits)
        rows, q = self.rows, len(self.rows.Z)
        white = factor.whiten(np.vstack([rows.y, rows.Z, rows.X.dense])[None])[0]
        X = rows.X.turned(white[1 + q :], whitener(factor)) if rows.X.sparse is not None else Columns(white[1 + q :])
        return independent_experts(white[0], X, white[1 : 1 + q].T, rows.visits.starts)


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
