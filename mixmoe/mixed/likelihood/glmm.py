"""Experts that are generalised linear mixed models, the random effects integrated out by Laplace or quadrature.

With b = T u, u ~ N(0, I), and h(u) the log density of a subject's responses given u minus u'u / 2, the mode is u* and
H = -h''(u*) = L L'. Adaptive Gauss-Hermite quadrature (Pinheiro & Bates 1995) puts nodes at u* + L^-T xi_m::

    log f = log sum_m w_m exp(h(u* + L^-T xi_m) + xi_m'xi_m / 2) - log|L|

One node is the Laplace approximation, exact for Gaussian responses. The score is that of the approximation itself: it
follows mode and curvature as they move with the parameters (implicit function theorem, third derivatives).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.columns import Columns
from mixmoe.mixed.likelihood.further_parameters import extra_starts
from mixmoe.mixed.likelihood.gaussian import GaussianExperts, GaussianRowExperts
from mixmoe.mixed.likelihood.modes import (
    LEAST_CURVATURE,
    Modes,
    Predictor,
    Response,
    Rows,
    Terms,
    WarmStarts,
    curvature,
    find_modes,
    log_joint,
    spectra,
    too_flat,
)
from mixmoe.mixed.likelihood.patterns import independent_experts
from mixmoe.mixed.likelihood.protocol import (
    CategoryCounts,
    CoefficientInformation,
    Effects,
    Finer,
    RowScores,
    ScoresByRow,
)
from mixmoe.mixed.parameters import Params, Structure
from mixmoe.mixture.gate import posterior_probabilities
from mixmoe.numerics.linalg import cholesky, inverse_from_cholesky, logsumexp, solve_lower, solve_upper

MOST_NODES = 50  # per random effect
_POSTERIOR_NODES = {1: 25, 2: 15, 3: 9, 4: 5, 5: 3}  # per random effect, by their number, for what is said of a subject
_COMPARED = {1: 9, 2: 5}  # per random effect, by their number: what a Laplace fit is compared with
_BLOCK_ROWS = 10_000
_SAME_EIGENVALUE = 1e-9
_FIRST_SIZE = 0.6  # standard deviation of the random effects from which the one-expert fit starts
_FIRST_PASSES = 8
_LEAST_WEIGHT = 1e-3  # of the mean weight: rows fitted nearly exactly count as this much in the search for starts


@dataclass(frozen=True, slots=True)
class Nodes:
    """Points of Gauss-Hermite quadrature for a standard normal variable of q dimensions.

    Attributes
    ----------
    points : ndarray, shape (M, q)
    log_weights : ndarray, shape (M,)
        Of the integrand over the normal density at the point.
    """

    points: Array
    log_weights: Array


def build_nodes(n_quad: int, q: int) -> Nodes:
    """`n_quad` points in each of q dimensions; one point is the Laplace approximation."""
    x, w = np.polynomial.hermite_e.hermegauss(n_quad)
    grid = np.array(list(product(range(n_quad), repeat=q)), dtype=int).reshape(n_quad**q, q)
    points = x[grid]
    log_weights = (np.log(w / np.sqrt(2 * np.pi)))[grid].sum(axis=1)
    return Nodes(points, log_weights + 0.5 * (points**2).sum(axis=1))


@dataclass(frozen=True, slots=True)
class GlmmDensities(ScoresByRow):
    """Densities of a run of subjects, see `Densities`.

    Attributes
    ----------
    rows : Rows
    response : Response
    nodes : Nodes
    params : Params
    at : Predictor
    modes : Modes
    log_terms : ndarray, shape (M, E, N)
        Log of each node's share of the density.
    log_density : ndarray, shape (S, K, N)
    """

    rows: Rows
    response: Response
    nodes: Nodes
    params: Params
    at: Predictor
    modes: Modes
    log_terms: Array
    log_density: Array

    def row_scores(self) -> RowScores:
        """Derivatives in the linear predictor of each row, in T, log sigma (zero) and the further parameters."""
        a = adjoint(self)
        E, q, _, N = a.factor.shape
        return RowScores(
            a.by_row, np.concatenate([a.factor.reshape(E, q * q, N), np.zeros((E, 1, N)), a.extra], axis=1)
        )

    @property
    def _columns(self) -> Columns:
        return self.rows.X

    @property
    def _starts(self) -> NDArray[np.intp]:
        return self.rows.starts

    def effects(self) -> Effects:
        """Posterior mode and inverse curvature; with quadrature posterior mean and covariance."""
        mean = self.modes.u
        covariance = inverse_from_cholesky(self.modes.L)
        if len(self.nodes.points) > 1:
            mean, covariance = _node_moments(self)
        T = self.at.T
        E, q, N = mean.shape
        turned = (T @ covariance.reshape(E, q, q * N)).reshape(covariance.shape)
        return Effects(self._by_expert(T @ mean), self._by_expert(T[:, None] @ turned))

    def _by_expert(self, values: Array) -> Array:
        return values.reshape(*self.params.sigma.shape, *values.shape[1:])


def node_effects(modes: Modes, point: Array) -> Array:
    """Random effects u* + L^-T xi of one node, shape (E, q, N)."""
    # The middle node of an odd rule is the mode itself: no solve.
    if not point.any():
        return modes.u
    xi = np.broadcast_to(point[:, None], modes.u.shape)
    return modes.u + solve_upper(modes.L, xi)


def _log_terms(rows: Rows, response: Response, nodes: Nodes, at: Predictor, modes: Modes) -> Array:
    """Log of each node's share, shape (M, E, N)."""
    q = len(rows.Z)
    log_det = sum((np.log(modes.L[:, j, j]) for j in range(q)), start=np.zeros_like(modes.value))
    # Laplace's method is the rule of one node, at the mode with weight one.
    if len(nodes.points) == 1:
        return (modes.value - log_det)[None]
    values = [log_joint(rows, response, at, node_effects(modes, point)) for point in nodes.points]
    return np.array(values) + nodes.log_weights[:, None, None] - log_det


@dataclass(frozen=True, slots=True)
class Adjoint:
    """Derivatives of the log densities.

    Attributes
    ----------
    by_row : ndarray, shape (E, n)
        In the fixed part of the linear predictor of each row.
    factor : ndarray, shape (E, q, q, N)
        In T.
    extra : ndarray, shape (E, d, N)
    """

    by_row: Array
    factor: Array
    extra: Array


@dataclass(frozen=True, slots=True)
class _NodeSums:
    """Sums over the nodes, weighted by their shares.

    Attributes
    ----------
    slope : ndarray, shape (E, n)
        Of the slopes.
    factor : ndarray, shape (E, q, q, N)
        Of Z'slope u'.
    extra : ndarray, shape (E, d, N)
        Of the derivatives in the further parameters.
    pull : ndarray, shape (E, q, N)
        Of h'(u).
    turn : ndarray, shape (E, q, q, N)
        Of h'(u) xi'.
    """

    slope: Array
    factor: Array
    extra: Array
    pull: Array
    turn: Array


def _sums_over_nodes(d: GlmmDensities, first: Terms) -> _NodeSums:
    """The parts of the score that hold mode and curvature fixed."""
    rows, modes = d.rows, d.modes
    E, q, N = modes.u.shape
    Zr = rows.into_random(modes.slope)
    # One node: the mode, where the slope in u is zero and nothing turns with the curvature.
    if len(d.nodes.points) == 1:
        extra = _further(rows, [f.value for f in first.further], E)
        nothing = np.zeros((E, q, N))
        return _NodeSums(modes.slope, Zr[:, :, None] * modes.u[:, None], extra, nothing, np.zeros((E, q, q, N)))
    shares = posterior_probabilities(d.log_terms, axis=0)  # of the nodes
    out = _NodeSums(
        np.zeros_like(modes.eta),
        np.zeros((E, q, q, N)),
        np.zeros((E, len(first.further), N)),
        np.zeros((E, q, N)),
        np.zeros((E, q, q, N)),
    )
    for share, point in zip(shares, d.nodes.points, strict=True):
        u = node_effects(modes, point)
        eta = d.at.base + rows.random_predictor(d.at.T @ u)
        terms = d.response.terms(rows.outcome, eta, d.at.extra)
        slope = rows.weighted(terms.slope)
        Zr = rows.into_random(slope)
        pull = share[:, None] * (np.swapaxes(d.at.T, 1, 2) @ Zr - u)
        # In place: at 25 nodes the temporaries would dominate the time.
        np.add(out.slope, rows.spread(share) * slope, out=out.slope)
        np.add(out.factor, share[:, None, None] * Zr[:, :, None] * u[:, None], out=out.factor)
        np.add(out.extra, share[:, None] * _further(rows, [f.value for f in terms.further], E), out=out.extra)
        np.add(out.pull, pull, out=out.pull)
        np.add(out.turn, pull[:, :, None] * point[:, None], out=out.turn)
    return out


def _further(rows: Rows, values: list[Array], E: int) -> Array:
    """Sums by subject of derivatives in the further parameters, shape (E, d, N)."""
    if not values:
        return np.zeros((E, 0, rows.n_subjects))
    return np.stack([rows.sums(rows.weighted(value)) for value in values], axis=1)


def _curvature_adjoint(L: Array, turn: Array) -> Array:
    """Derivative of the log density in H, symmetric, shape (E, q, q, N).

    Nodes move with L^-T and the density carries 1 / |L|; from L to H by the reverse of the Cholesky factorisation
    (Murray 2016). Without nodes off the mode it is -H^-1 / 2.
    """
    inverse = inverse_from_cholesky(L)
    if not turn.any():
        return -0.5 * inverse
    q = L.shape[1]
    # d(L^-T) = -L^-T dL' L^-T turns <turn, d(L^-T)> into -<L^-T turn' L^-T, dL>.
    half = solve_upper(L, np.swapaxes(turn, 1, 2))
    in_L = -np.swapaxes(solve_lower(L, np.swapaxes(half, 1, 2)), 1, 2)
    lower = np.zeros_like(L)
    for i in range(q):
        for j in range(i + 1):
            # Lower half of L' L-bar, its diagonal halved (Murray 2016); the -1 is the derivative of -log|L|.
            total = sum((L[:, k, i] * in_L[:, k, j] for k in range(i, q)), start=np.zeros_like(L[:, 0, 0]))
            lower[:, i, j] = total if i != j else 0.5 * (total - 1.0)
    left = solve_upper(L, lower)
    whole = np.swapaxes(solve_upper(L, np.swapaxes(left, 1, 2)), 1, 2)
    return 0.5 * (whole + np.swapaxes(whole, 1, 2))


def _through_bound(H: Array, in_bounded: Array) -> Array:
    """Derivatives in curvatures, shape (E, q, q, N), from those in `bounded` ones.

    Of a function f of the eigenvalues: divided differences of f between them (Daleckii and Krein 1965).
    """
    where = too_flat(H)
    if not where.any():
        return in_bounded
    found, out = spectra(H, where), in_bounded.copy()
    f, gap = np.maximum(found.values, LEAST_CURVATURE), found.values[:, :, None] - found.values[:, None]
    slope = (found.values > LEAST_CURVATURE).astype(float)
    equal = np.abs(gap) < _SAME_EIGENVALUE
    rise = np.where(equal, slope[:, :, None], (f[:, :, None] - f[:, None]) / np.where(equal, 1.0, gap))
    V, G = found.vectors, np.moveaxis(in_bounded, -1, 1)[where]
    inside = np.swapaxes(V, 1, 2) @ G @ V
    np.moveaxis(out, -1, 1)[where] = V @ (rise * inside) @ np.swapaxes(V, 1, 2)
    return out


def adjoint(d: GlmmDensities) -> Adjoint:
    """Derivatives of the log densities of each subject under each expert.

    1. Sums over the nodes with mode and curvature fixed.
    2. The derivative in the curvature H, through the weights of the rows and through T.
    3. The derivative in the mode, through the predictor of the weights and the nodes, carried back by H^-1.
    """
    rows, modes, T = d.rows, d.modes, d.at.T
    terms = d.response.terms(rows.outcome, modes.eta, d.at.extra)
    nodes = _sums_over_nodes(d, terms)
    if not len(rows.Z):
        return Adjoint(nodes.slope, nodes.factor, nodes.extra)
    # 2. How the density moves with H. H depends on T directly and on the weights of the rows.
    in_H, L = _curvature_adjoint(modes.L, nodes.turn), modes.L
    if (modes.weight < 0.0).any():
        H = curvature(modes.gram, T)
        in_H = _through_bound(H, in_H)
        # The mode moves with the curvature as it is.
        with np.errstate(invalid="ignore", divide="ignore"):
            exact = cholesky(H)
        L = np.where(np.isfinite(exact).all(axis=(1, 2), keepdims=True), exact, L)
    leverage = _leverage(rows, T, in_H)
    # 3. Weights change with the predictor by the third derivative of the log density.
    through = -leverage * rows.weighted(terms.third)
    in_mode = np.swapaxes(T, 1, 2) @ rows.into_random(through) + nodes.pull
    # The mode solves g(u) = 0, so du = H^-1 dg (implicit function): one solve carries all of its part back.
    v = solve_upper(L, solve_lower(L, in_mode))
    shift = rows.random_predictor(T @ v)
    moved = through - modes.weight * shift
    E = v.shape[0]
    gram_T = _times(modes.gram, T)
    factor = nodes.factor + rows.into_random(moved)[:, :, None] * modes.u[:, None]
    factor += rows.into_random(modes.slope)[:, :, None] * v[:, None]
    # H = I + T' Gram T: twice, since T stands on both sides of a symmetric matrix.
    factor += 2.0 * np.einsum("eabn,ebcn->eacn", gram_T, in_H)
    extra = nodes.extra + _further(rows, [shift * f.slope - leverage * f.curve for f in terms.further], E)
    return Adjoint(nodes.slope + moved, factor, extra)


def _leverage(rows: Rows, T: Array, in_H: Array) -> Array:
    """Z'T in_H T'z row by row, shape (E, n)."""
    E, q, _, N = in_H.shape
    left = (T @ in_H.reshape(E, q, q * N)).reshape(in_H.shape)
    whole = T[:, None] @ left  # symmetric, so the order of its axes does not matter
    out = np.zeros((E, rows.Z.shape[1]))
    for a in range(q):
        for b in range(a + 1):
            out += (1.0 if a == b else 2.0) * rows.Z[a] * rows.Z[b] * rows.spread(whole[:, a, b])
    return out


def _times(gram: Array, T: Array) -> Array:
    """Gram T by subject, shape (E, q, q, N)."""
    return np.swapaxes(T, 1, 2)[:, None] @ gram


def _node_moments(d: GlmmDensities) -> tuple[Array, Array]:
    """Posterior means (E, q, N) and covariances (E, q, q, N) of u from the nodes."""
    shares = posterior_probabilities(d.log_terms, axis=0)  # of the nodes
    places = np.array([node_effects(d.modes, point) for point in d.nodes.points])  # (M, E, q, N)
    mean = (shares[:, :, None] * places).sum(axis=0)
    away = places - mean
    covariance = np.einsum("men,mean,mebn->eabn", shares, away, away, optimize=True)
    return mean, covariance


def finer_points(n_quad: int, q: int) -> int | None:
    """Points per random effect to compare with; None where there are no more."""
    finer = _COMPARED.get(q) if n_quad == 1 else 2 * n_quad + 1
    return None if q not in _COMPARED or finer is None or finer > MOST_NODES else finer


@dataclass(frozen=True, slots=True)
class GlmmExperts:
    """Experts with responses of an exponential family or beyond, see `Experts`.

    Attributes
    ----------
    rows : Rows
    response : Response
    nodes : Nodes
    warm : WarmStarts
    parts : list of (slice, GlmmExperts)
        Runs of subjects, each with its own warm starts; made when first asked for.
    """

    rows: Rows
    response: Response
    nodes: Nodes
    analytic: bool = False
    warm: WarmStarts = field(default_factory=WarmStarts, repr=False)
    parts: "list[tuple[slice, GlmmExperts]]" = field(default_factory=list, repr=False)

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.rows.n_subjects

    @property
    def fine(self) -> "GlmmExperts":
        """The same with at least as many nodes as posterior moments and probabilities of a subject need.

        More than 30 times as many in all as a fit has to go through thousands of times; with six random effects and
        more those of the fit.
        """
        q = len(self.rows.Z)
        least = _POSTERIOR_NODES.get(q, 1)
        if len(self.nodes.points) >= least**q:
            return self
        return replace(self, nodes=build_nodes(least, q), parts=[])

    def finer(self) -> Finer | None:
        """The same with more nodes; None without random effects, with more than two, or with the most nodes already."""
        q, n_nodes = len(self.rows.Z), len(self.nodes.points)
        n_quad = n_nodes if q < 2 else isqrt(n_nodes)
        points = finer_points(n_quad, q)
        if points is None:
            return None
        return Finer(points, replace(self, nodes=build_nodes(points, q), parts=[]), n_nodes == 1)

    def coefficient_information(self, params: Params, tau: Array) -> CoefficientInformation:
        """Sums over the rows of weights of the modes times responsibilities."""
        K, p = tau.shape[1], len(self.rows.X)
        matrices, sizes = np.zeros((K, p, p)), np.zeros(K)
        for where, part in self.blocks(K):
            X, weight = part.rows.X, part.densities(params).modes.weight
            for k in range(K):
                share = part.rows.spread(tau[where, k])
                matrices[k] += X.gram(share * weight[k])
                sizes[k] += share.sum()
        return CoefficientInformation(matrices, sizes)

    def category_counts(self, tau: Array) -> CategoryCounts | None:
        """Sums of responsibilities over the rows of each category."""
        labels = self.response.labels
        if not labels:
            return None
        member = self.rows.outcome.y[:, None] == np.arange(len(labels))
        return CategoryCounts(labels, np.asarray(self.rows.spread(tau.T) @ member))

    def take(self, subjects: NDArray[np.intp]) -> "GlmmExperts":
        """Densities of the experts for some of the subjects only."""
        return GlmmExperts(self.rows.take(subjects), self.response, self.nodes)

    @property
    def by_rows(self) -> bool:
        """Whether the rows of the data are kept: by a GLMM they always are."""
        return True

    @property
    def columns(self) -> Columns:
        """Columns of the fixed effects."""
        return self.rows.X

    @property
    def counts(self) -> NDArray[np.intp]:
        """Rows of each subject, shape (N,)."""
        return self.rows.counts

    def shifted(self, by: Array) -> "GlmmExperts":
        """The same experts where the linear predictor of each row is this much larger, shape (n,)."""
        return replace(self, rows=replace(self.rows, offset=self.rows.offset + by), parts=[])

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, GlmmExperts]]":
        """Consecutive runs of subjects; the same ones each time, whatever `n_experts`, so that they stay warm."""
        if not self.parts:
            ends = np.cumsum(self.rows.counts)
            N, at = self.n_subjects, 0
            while at < N:
                reach = _BLOCK_ROWS + (ends[at - 1] if at else 0)
                to = max(at + 1, int(np.searchsorted(ends, reach, side="right")))
                where = slice(at, to)
                part = self if at == 0 and to == N else GlmmExperts(self.rows.take(where), self.response, self.nodes)
                self.parts.append((where, part))
                at = to
        yield from self.parts

    def densities(self, params: Params) -> GlmmDensities:
        """Log-densities at S parameter vectors."""
        S, K, _ = params.beta.shape
        at, modes = self.modes_at(params)
        log_terms = _log_terms(self.rows, self.response, self.nodes, at, modes)
        log_density = logsumexp(log_terms, axis=0).reshape(S, K, self.n_subjects)
        return GlmmDensities(self.rows, self.response, self.nodes, params, at, modes, log_terms, log_density)

    def modes_at(self, params: Params) -> tuple[Predictor, Modes]:
        """Modes of the random effects at S parameter vectors, with E = S * K."""
        S, K, p = params.beta.shape
        q, N = len(self.rows.Z), self.n_subjects
        at = Predictor(
            self.rows.X.predictor(params.beta.reshape(S * K, p)) + self.rows.offset,
            params.factor.reshape(S * K, q, q),
            params.extra.reshape(S * K, -1),
        )
        keys = np.concatenate([part.reshape(S, -1) for part in (params.beta, params.factor, params.extra)], axis=1)
        start = self.warm.nearest(keys, (K, q, N)).reshape(S * K, q, N)
        modes = find_modes(self.rows, self.response, at, start)
        self.warm.keep(keys, np.nan_to_num(modes.u).reshape(S, K, q, N))
        return at, modes

    def sort_keys(self) -> tuple[Array, ...]:
        """Cross-products with the response."""
        y = self.rows.outcome.y
        return (*(self.rows.sums(column * y) for column in self.rows.X.dense), self.rows.sums(y * y))

    def first_guess(self, structure: Structure) -> Params:
        """Fixed effects of the model without random effects, by Fisher scoring."""
        q = structure.n_random
        guess = Params(
            np.zeros((1, 0, structure.n_gate)),
            np.zeros((1, 1, structure.n_columns)),
            _FIRST_SIZE * np.eye(q)[None, None],
            np.ones((1, 1)),
            extra_starts(structure.extras)[None, None],
        )
        return replace(guess, beta=self._scored(guess.extra[0])[None])

    def _scored(self, extra: Array) -> Array:
        """Coefficients without random effects, shape (1, p)."""
        rows, beta = self.rows, np.zeros((1, len(self.rows.X)))
        for _ in range(_FIRST_PASSES):
            eta = rows.X.predictor(beta) + rows.offset
            slope = rows.weighted(self.response.terms(rows.outcome, eta, extra).slope)[0]
            weight = rows.weighted(self.response.scoring_weight(rows.outcome, eta, extra))[0]
            information = rows.X.gram(weight)
            ridge = 1e-6 * np.trace(information) / len(information) * np.eye(len(information))
            step = np.linalg.solve(information + ridge, rows.X.gathered(slope[None])[0])
            beta = beta + step / max(1.0, float(np.abs(rows.X.predictor(step[None])).max()) / 3.0)
        return beta

    @property
    def is_closed_form(self) -> bool:
        """Whether the integral over random effects is known in closed form: that of a GLMM is not."""
        return False

    def closed_form(self, one: Params) -> GaussianExperts | GaussianRowExperts:
        """The quadratic approximation of each subject's log density at her mode under the one-expert fit."""
        rows = self.rows
        if not len(rows.Z):  # subjects differ all the same: let each have her own level
            rows = replace(rows, Z=np.ones((1, len(rows.offset))))
        T = one.factor[0] if one.factor.size else np.ones((1, 1, 1))
        at = Predictor(rows.X.predictor(one.beta[0]) + rows.offset, T, one.extra[0])
        modes = find_modes(rows, self.response, at, np.zeros((1, len(rows.Z), rows.n_subjects)))
        weight = rows.weighted(self.response.scoring_weight(rows.outcome, modes.eta, at.extra))[0]
        weight = np.maximum(weight, _LEAST_WEIGHT * weight.mean())
        working = modes.eta[0] - rows.offset + modes.slope[0] / weight
        root = np.sqrt(weight)
        return independent_experts(root * working, rows.X.scaled(root), root[:, None] * self.rows.Z.T, rows.starts)
