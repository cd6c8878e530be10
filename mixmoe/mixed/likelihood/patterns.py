"""Gaussian experts whose subjects share the design of their random effects: densities as two matrix products.

With scheduled visits, or with random intercepts alone, many subjects have the same Z'Z and number of rows, a *pattern*,
and so the same V. With c = (1, -beta), A = (y X)'(y X), B = Z'(y X) and sigma^2 V^-1 = I - Z M Z'::

    sigma^2 r'V^-1r = c'Ac - sum_ab M_ab c'B_a'B_b c

is linear in the entries of A and of all B_a'B_b, which are known before any parameter is. Densities of all subjects
under all experts are then one matrix product, and sums of scores over subjects another; what depends on V is done once
for each pattern. The algebra is that of `gaussian`, in another order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.columns import Columns, has_many_columns
from mixmoe.mixed.likelihood.gaussian import (
    LOG_2PI,
    GaussianExperts,
    GaussianRowExperts,
    MomentDensities,
    experts_of_products,
    experts_of_rows,
)
from mixmoe.mixed.likelihood.protocol import Effects
from mixmoe.mixed.parameters import Params
from mixmoe.numerics.linalg import cholesky, solve_lower, times_real

_MOST_PATTERNS = 64
_LEAST_SUBJECTS = 20  # of a pattern on average: the algebra of a pattern costs as much as that of a few subjects
_MOST_PRODUCTS = 600  # of a subject: above, a matrix product with them costs as much as what it replaces
_MOST_NUMBERS = 50_000_000  # 400 MB
_DIGITS = 12  # in which patterns agree, beside the largest entry: the same visits give the same sums up to rounding
_LOOKED_AT = 2_000  # subjects, which tell irregular visits before all are sorted


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs j <= k of n numbers.

    Attributes
    ----------
    rows, columns : ndarray of int, shape (n (n + 1) / 2,)
    times : ndarray of float
        How often each occurs in a sum over all j and k.
    places : ndarray of int, shape (n, n)
        Where each entry of a symmetric matrix stands among its entries at the pairs.
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    times: Array
    places: NDArray[np.intp]


@cache
def pairs_of(n: int) -> Pairs:
    """All pairs of n numbers, rows first."""
    rows, columns = np.triu_indices(n)
    places = np.empty((n, n), dtype=np.intp)
    places[rows, columns] = places[columns, rows] = np.arange(rows.size)
    return Pairs(rows, columns, np.where(rows == columns, 1.0, 2.0), places)


Run = tuple[int, NDArray[np.intp] | slice]  # a pattern, and which subjects have it


def _runs(pattern: NDArray[np.intp]) -> tuple[Run, ...]:
    """Patterns that occur among subjects, shape (N,), and which subjects have each."""
    steps = np.diff(pattern)
    if (steps >= 0).all():
        ends = [0, *np.flatnonzero(steps) + 1, pattern.size]
        return tuple((int(pattern[at]), slice(at, end)) for at, end in pairwise(ends) if at < end)
    order = np.argsort(pattern, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(pattern[order])) + 1)
    return tuple((int(pattern[where[0]]), where) for where in parts)


@dataclass(frozen=True, slots=True)
class PatternedExperts(GaussianExperts):
    """`GaussianExperts` of subjects of few patterns.

    Attributes
    ----------
    products : ndarray, shape (2 + D, N)
        Ones, `log_weight`, entries of A, then of the symmetric parts of all B_a'B_b, a <= b, at the pairs of (y, X).
    pattern : ndarray of int, shape (N,)
    runs : tuple of Run
        Patterns that occur, and which subjects have each.
    pattern_n : ndarray, shape (G,)
        Rows of the subjects of each pattern.
    pattern_ZZ : ndarray, shape (q, q, G)
        Their Z'Z.
    """

    products: Array
    pattern: NDArray[np.intp]
    runs: tuple[Run, ...]
    pattern_n: Array
    pattern_ZZ: Array  # noqa: N815

    def take(self, subjects: "NDArray[np.intp] | slice") -> "PatternedExperts":
        """The experts of some of the subjects, each possibly repeated, contiguous in memory."""
        taken = {name: np.ascontiguousarray(getattr(self, name)[..., subjects]) for name in _BY_SUBJECT}
        return replace(self, **taken, runs=_runs(taken["pattern"]))

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, PatternedExperts]]":
        """Consecutive runs of subjects, short enough that the working arrays of `n_experts` experts stay in cache."""
        N, width = self.n.size, max(64, 80_000 // max(1, n_experts))
        if width >= N:  # as they are: nothing is cut, and the runs are known
            yield slice(0, N), self
            return
        for start in range(0, N, width):
            where = slice(start, min(start + width, N))
            taken = {name: getattr(self, name)[..., where] for name in _BY_SUBJECT}
            yield where, replace(self, **taken, runs=_runs(taken["pattern"]))

    def densities(self, params: Params) -> "PatternedDensities":
        """Log-densities at S parameter vectors."""
        (S, K, p), q, G = params.beta.shape, params.factor.shape[2], self.pattern_n.size
        E = S * K
        T, sigma = params.factor.reshape(E, q, q), params.sigma.reshape(E)
        Lam = T / sigma[:, None, None]
        # 1. Of each pattern log|V| and M = Lambda W^-1 Lambda', W = I + Lambda'Z'Z Lambda.
        square = np.einsum("eia,ejc->eacij", Lam, Lam).reshape(E * q * q, q * q)
        W = times_real(square, self.pattern_ZZ.reshape(q * q, G)).reshape(E, q, q, G) + np.eye(q)[:, :, None]
        L = cholesky(W)
        half = solve_lower(L, np.repeat(np.swapaxes(Lam, 1, 2)[..., None], G, axis=3))
        M = np.einsum("eaig,eajg->egij", half, half)
        log_det = 2 * sum((np.log(L[:, j, j]) for j in range(q)), start=np.zeros((E, G)))
        log_det = log_det + self.pattern_n * (LOG_2PI + 2 * np.log(sigma))[:, None]
        # 2. Log-densities of all subjects: coefficients times products.
        c = np.concatenate([np.ones((E, 1)), -params.beta.reshape(E, p)], axis=1)
        effects, columns = pairs_of(q), pairs_of(1 + p)
        shares = np.ones((E, G, 1 + effects.times.size), dtype=M.dtype)
        shares[..., 1:] = -M[..., effects.rows, effects.columns] * effects.times
        squares = c[:, columns.rows] * c[:, columns.columns] * columns.times
        quad = (shares[..., None] * (squares / (sigma**2)[:, None])[:, None, None]).reshape(E, G, -1)
        coefficients = np.concatenate([-0.5 * log_det[..., None], np.full((E, G, 1), 0.5), -0.5 * quad], axis=2)
        log_density = np.empty((E, self.n.size), dtype=coefficients.dtype)
        for g, where in self.runs:
            log_density[:, where] = times_real(coefficients[:, g], self.products[:, where])
        return PatternedDensities(params, log_density.reshape(S, K, -1), self, c, squares, M, shares)

    def sort_keys(self) -> tuple[Array, ...]:
        """Cross-products with the response, and before these the pattern, so that each is one run of subjects."""
        return (*self.Xy, self.yy, self.pattern.astype(float))

    def without_response(self) -> GaussianExperts:
        """The same with a response of zero."""
        return GaussianExperts.without_response(self._plain)

    def without_random_effects(self) -> GaussianExperts:
        """The same without random effects."""
        return patterned(GaussianExperts.without_random_effects(self._plain))

    @property
    def _plain(self) -> GaussianExperts:
        return GaussianExperts(*(getattr(self, part.name) for part in fields(GaussianExperts)))


_BY_SUBJECT = (*(part.name for part in fields(GaussianExperts)), "products", "pattern")


@dataclass(frozen=True, slots=True)
class PatternedDensities:
    """What experts say about a run of subjects of few patterns, see `Densities`; E = S * K.

    Attributes
    ----------
    params : Params
    log_density : ndarray, shape (S, K, n)
    data : PatternedExperts
    c : ndarray, shape (E, 1 + p)
        One, and minus the fixed effects.
    squares : ndarray, shape (E, C)
        Products of two of these, twice for two different ones.
    M : ndarray, shape (E, G, q, q)
        (Z'Z + sigma^2 D^-1)^-1 of each pattern.
    shares : ndarray, shape (E, G, 1 + Q)
        With which A and the B_a'B_b enter sigma^2 r'V^-1r.
    """

    params: Params
    log_density: Array
    data: PatternedExperts
    c: Array
    squares: Array
    M: Array
    shares: Array

    def summed_scores(self, weights: Array) -> Array:
        """Weighted sums over subjects, shape (S, K, p + q * q + 1)."""
        sums = self._sums(weights)
        (E, _, q, _), p = self.M.shape, self.c.shape[1] - 1
        T, variance = self.params.factor.reshape(E, q, q), self.params.sigma.reshape(E) ** 2
        ZZ = np.moveaxis(self.data.pattern_ZZ, -1, 0)
        out = np.empty((E, p + q * q + 1), dtype=self.log_density.dtype)
        # In beta: X'V^-1r, from the columns of (y X)'V^-1(y X).
        out[:, :p] = (sums.whole @ self.c[..., None])[:, 1:, 0] / variance[:, None]
        # In T: Z'V^-1r (Z'V^-1r)'T less Z'V^-1Z T, with sigma^2 Z'V^-1 = (I - Z'Z M) Z'.
        ZZ_M = ZZ @ self.M
        rest = np.eye(q) - ZZ_M
        pull = rest @ sums.outer @ np.swapaxes(rest, 2, 3) / variance[:, None, None, None]
        pull = (pull - sums.counts[..., None, None] * (rest @ ZZ)).sum(axis=1) @ T / variance[:, None, None]
        out[:, p:-1] = pull.reshape(E, q * q)
        # In log sigma: sigma^2 (r'V^-2r - tr V^-1).
        within = self.M @ ZZ_M - 2 * self.M
        trace = self.data.pattern_n - np.einsum("egaa->eg", ZZ_M)
        in_squares = sums.squares + (within * sums.outer).sum(axis=(1, 2, 3))
        out[:, -1] = in_squares / variance - (sums.counts * trace).sum(axis=1)
        return out.reshape(*weights.shape[:2], -1)

    def normal_matrix(self, weights: Array) -> Array:
        """Sum over subjects of weights, shape (E, N), times X'V^-1X, shape (E, p, p)."""
        whole = self._sums(weights).whole
        return np.asarray(whole[:, 1:, 1:] / (self.params.sigma.reshape(-1) ** 2)[:, None, None])

    def second_moments(self, weights: Array) -> Array:
        """Sums over subjects of weights, shape (E, N), times E[b b' | y], shape (E, q, q)."""
        sums, variance = self._sums(weights), (self.params.sigma.reshape(-1) ** 2)[:, None]
        # The posterior mean is M Z'r, the covariance sigma^2 M.
        spread = (sums.counts * variance)[..., None, None] * self.M
        return np.asarray((self.M @ sums.outer @ self.M + spread).sum(axis=1))

    def scores(self) -> Array:
        """Derivatives, shape (S, K, p + q * q + 1, n)."""
        return self._by_subject.scores()

    def effects(self) -> Effects:
        """Posterior of the random effects."""
        return self._by_subject.effects()

    @property
    def _by_subject(self) -> MomentDensities:
        return GaussianExperts.densities(self.data, self.params)

    def _sums(self, weights: Array) -> "PatternSums":
        """Sums over subjects with weights, shape (S, K, n) or (E, n)."""
        E, G, q, _ = self.M.shape
        tau = weights.reshape(E, -1)
        sums = np.zeros((E, G, len(self.data.products)), dtype=tau.dtype)
        for g, where in self.data.runs:
            sums[:, g] = times_real(tau[:, where], self.data.products[:, where].T)
        products = sums[..., 2:].reshape(E, G, self.shares.shape[2], -1)
        whole = (self.shares[..., None] * products).sum(axis=(1, 2)).take(pairs_of(self.c.shape[1]).places, axis=-1)
        outer = (products[:, :, 1:] * self.squares[:, None, None]).sum(axis=3).take(pairs_of(q).places, axis=-1)
        squares = (products[:, :, 0] * self.squares[:, None]).sum(axis=(1, 2))
        return PatternSums(sums[..., 0], whole, outer, squares)


@dataclass(frozen=True, slots=True)
class PatternSums:
    """Weighted sums over subjects of few patterns.

    Attributes
    ----------
    counts : ndarray, shape (E, G)
        Of the weights, by pattern.
    whole : ndarray, shape (E, 1 + p, 1 + p)
        Of sigma^2 (y X)'V^-1(y X).
    outer : ndarray, shape (E, G, q, q)
        Of Z'r r'Z, by pattern.
    squares : ndarray, shape (E,)
        Of r'r.
    """

    counts: Array
    whole: Array
    outer: Array
    squares: Array


@dataclass(frozen=True, slots=True)
class Patterns:
    """Patterns of subjects.

    Attributes
    ----------
    of_subjects : ndarray of int, shape (N,)
    first : ndarray of int, shape (G,)
        A subject of each.
    """

    of_subjects: NDArray[np.intp]
    first: NDArray[np.intp]


def patterns_of(n: Array, ZZ: Array, p: int) -> Patterns | None:
    """Patterns of subjects with n rows, shape (N,), and Z'Z, shape (q, q, N); None if no use is made of them.

    `p` is the number of expert columns.
    """
    q, N = len(ZZ), n.size
    effects, columns = pairs_of(q), pairs_of(1 + p)
    D = (1 + effects.times.size) * columns.times.size
    if D > _MOST_PRODUCTS or D * N > _MOST_NUMBERS:
        return None
    design = np.vstack([n, ZZ[effects.rows, effects.columns]])
    largest = np.abs(design).max(axis=1, initial=0.0, keepdims=True)
    design = np.round(design / np.where(largest > 0, largest, 1.0), _DIGITS)
    for looked_at in (design[:, :_LOOKED_AT], design):
        _, first, pattern = np.unique(looked_at, axis=1, return_index=True, return_inverse=True)
        if first.size > min(_MOST_PATTERNS, max(1, N // _LEAST_SUBJECTS)):
            return None
    return Patterns(pattern.ravel(), first)


def patterned(experts: GaussianExperts) -> GaussianExperts:
    """The same experts by patterns, where these are few; see the module."""
    n, p, q, N = experts.n, len(experts.Xy), len(experts.Zy), experts.n_subjects
    found = patterns_of(n, experts.ZZ, p)
    if found is None:
        return experts
    effects, columns = pairs_of(q), pairs_of(1 + p)
    D = (1 + effects.times.size) * columns.times.size
    yX = np.empty((1 + p, 1 + p, N))
    yX[0, 0], yX[0, 1:], yX[1:, 1:] = experts.yy, experts.Xy, experts.XX
    B = np.concatenate([experts.Zy[:, None], experts.ZX], axis=1)  # (q, 1 + p, N)
    products = np.empty((1 + effects.times.size, columns.times.size, N))
    products[0] = yX[columns.rows, columns.columns]
    for out, a, b in zip(products[1:], effects.rows, effects.columns, strict=True):
        out[:] = B[a, columns.rows] * B[b, columns.columns] + B[a, columns.columns] * B[b, columns.rows]
        out *= 0.5
    return PatternedExperts(
        **{part.name: getattr(experts, part.name) for part in fields(GaussianExperts)},
        products=np.vstack([np.ones(N), experts.log_weight, products.reshape(D, N)]),
        pattern=found.of_subjects,
        runs=_runs(found.of_subjects),
        pattern_n=n[found.first],
        pattern_ZZ=experts.ZZ[..., found.first],
    )


def independent_experts(
    y: Array, X: Columns, Z: Array, starts: NDArray[np.intp], weights: Array | None = None
) -> GaussianExperts | GaussianRowExperts:
    """Gaussian experts with independent errors: from cross-products of each subject, or from rows if columns are many.

    Parameters
    ----------
    y : ndarray, shape (n,)
        Response, rows sorted by subject; centre it first, or digits of y'y cancel.
    X : Columns
    Z : ndarray, shape (n, q)
    starts : ndarray of int, shape (N,)
        First row of each subject.
    weights : ndarray, shape (n,), optional
        Above zero; by default one.
    """
    counts = np.diff(np.append(starts, y.size))
    if not has_many_columns(len(X), counts):
        return patterned(experts_of_products(y, X.dense.T, Z, starts, weights))
    return experts_of_rows(y, X, Z, starts, weights)
