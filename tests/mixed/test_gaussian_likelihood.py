"""Kernels against dense or loop versions, and at the edges: one row, one subject, one expert, no random effects."""

import numpy as np
import pytest
from scipy.special import logsumexp as scipy_logsumexp
from scipy.special import polygamma
from scipy.stats import multivariate_normal
from statsmodels.discrete.discrete_model import MNLogit

from mixmoe.mixed.likelihood.gaussian import (
    expert_posterior,
    experts_of_products,
)
from mixmoe.mixed.parameters import Params
from mixmoe.mixture import gate
from mixmoe.mixture.gate import gate_information, gate_log_probabilities, gate_scores, gate_step
from mixmoe.numerics import linalg
from mixmoe.responses import distribution as special

STEP = 1e-30
SHAPES = [(1, 1, 1), (1, 4, 3), (3, 1, 2), (2, 5, 6), (2, 3, 0)]  # experts, subjects, random effects


def positive_definite(rng, E, q, N):
    root = rng.normal(size=(E, N, q, q + 2))
    return np.moveaxis(root @ np.swapaxes(root, 2, 3), 1, -1)  # (E, q, q, N)


# ---- special functions ----


def test_derivatives_of_the_digamma_function():
    x = np.exp(np.random.default_rng(0).uniform(-15.0, 15.0, (2, 500)))
    np.testing.assert_allclose(special.trigamma(x), polygamma(1, x), rtol=1e-14)
    np.testing.assert_allclose(special.tetragamma(x), polygamma(2, x), rtol=1e-14)


# ---- linalg ----


@pytest.mark.parametrize(("E", "N", "q"), SHAPES)
def test_cholesky_and_solves(E, N, q):
    rng = np.random.default_rng(0)
    A = positive_definite(rng, E, q, N)
    L = linalg.cholesky(A)
    dense = np.linalg.cholesky(np.moveaxis(A, -1, 1))
    np.testing.assert_allclose(np.moveaxis(L, -1, 1), dense, rtol=1e-10, atol=1e-12)
    for b in (rng.normal(size=(E, q, N)), rng.normal(size=(E, q, 2, N)), rng.normal(size=(E, q, 2, 3, N))):
        columns = int(np.prod(b.shape[2:-1]))
        flat = np.moveaxis(b.reshape(E, q, columns, N), -1, 1)
        for ours, matrix in (
            (linalg.solve_lower(L, b), dense),
            (linalg.solve_upper(L, b), np.swapaxes(dense, 2, 3)),
        ):
            assert ours.shape == b.shape
            expected = np.linalg.solve(matrix, flat)
            np.testing.assert_allclose(
                np.moveaxis(ours.reshape(E, q, columns, N), -1, 1), expected, rtol=1e-9, atol=1e-9
            )
    inverse = np.linalg.inv(np.moveaxis(A, -1, 1))
    np.testing.assert_allclose(np.moveaxis(linalg.inverse_from_cholesky(L), -1, 1), inverse, rtol=1e-8, atol=1e-9)


def test_cholesky_reads_the_lower_triangle_only():
    A = positive_definite(np.random.default_rng(1), 2, 3, 4)
    broken = A.copy()
    broken[:, 0, 1:] = np.nan
    np.testing.assert_array_equal(linalg.cholesky(broken), linalg.cholesky(A))


def test_complex_steps_pass_through_the_algebra():
    rng = np.random.default_rng(2)
    A, dA = positive_definite(rng, 1, 3, 2), positive_definite(rng, 1, 3, 2)
    b = rng.normal(size=(1, 3, 2))

    def quadratic(matrix):
        v = linalg.solve_lower(linalg.cholesky(matrix), b)
        return (v * v).sum(axis=1)

    x = np.linalg.solve(np.moveaxis(A, -1, 1), np.moveaxis(b, -1, 1)[..., None])  # (1, 2, 3, 1)
    expected = -np.swapaxes(x, 2, 3) @ np.moveaxis(dA, -1, 1) @ x
    np.testing.assert_allclose(quadratic(A + 1j * STEP * dA).imag / STEP, expected[..., 0, 0], rtol=1e-10)


def test_logsumexp():
    a = np.random.default_rng(3).normal(size=(2, 3, 4)) * 800
    for axis in range(3):
        np.testing.assert_allclose(linalg.logsumexp(a, axis), scipy_logsumexp(a, axis=axis), rtol=1e-13)
    assert linalg.logsumexp(np.full((1, 2), -1e5), axis=1) == pytest.approx(-1e5 + np.log(2))
    with np.errstate(divide="ignore"):
        assert linalg.logsumexp(np.full((1, 2), -np.inf), axis=1) == -np.inf
    moved = linalg.logsumexp(np.array([[1.0 + 1j * STEP, 2.0]]), axis=1)
    assert moved.imag / STEP == pytest.approx(1 / (1 + np.e))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_semidefinite_cholesky(rank):
    root = np.random.default_rng(4).normal(size=(3, rank))
    D = root @ root.T
    T = linalg.semidefinite_cholesky(D)
    np.testing.assert_allclose(T @ T.T, D, atol=1e-12)
    assert np.array_equal(T, np.tril(T))
    assert (np.diag(T) > 0).sum() == rank
    assert linalg.semidefinite_cholesky(np.zeros((0, 0))).shape == (0, 0)


# ---- moments ----


class Case:
    """Random data and parameters of E experts."""

    def __init__(self, E, N, q, p=2, seed=0, rows=None):
        rng = np.random.default_rng(seed)
        counts = rng.integers(1, 6, N) if rows is None else np.full(N, rows)
        self.starts = np.r_[0, np.cumsum(counts)[:-1]]
        self.codes = np.repeat(np.arange(N), counts)
        n = counts.sum()
        self.y, self.X, self.Z = rng.normal(size=n), rng.normal(size=(n, p)), rng.normal(size=(n, q))
        self.beta = rng.normal(size=(E, p))
        self.T = np.tril(rng.normal(size=(E, q, q)))
        self.sigma = rng.uniform(0.5, 2, E)
        self.moments = experts_of_products(self.y, self.X, self.Z, self.starts)

    def posterior(self, beta=None, T=None, sigma=None):
        return expert_posterior(self.moments, self.params(beta, T, sigma))

    def params(self, beta=None, T=None, sigma=None):
        """The experts as those of one start, some of their parameters replaced."""
        own = ((beta, self.beta), (T, self.T), (sigma, self.sigma))
        parts = ((mine if given is None else given)[None] for given, mine in own)
        return Params(np.zeros((1, 0, 0)), *parts, np.zeros((1, len(self.beta), 0)))

    def subject(self, e, i):
        """Residual, Z, X and V of one subject under one expert."""
        rows = self.codes == i
        V = self.Z[rows] @ self.T[e] @ self.T[e].T @ self.Z[rows].T + self.sigma[e] ** 2 * np.eye(rows.sum())
        return self.y[rows] - self.X[rows] @ self.beta[e], self.Z[rows], self.X[rows], V

    def each(self):
        return np.ndindex(len(self.beta), self.moments.n_subjects)


@pytest.fixture(params=[*SHAPES, "one row"], ids=str)
def case(request):
    return Case(2, 3, 2, rows=1) if request.param == "one row" else Case(*request.param)


def test_moments_are_sums_over_rows(case):
    m = case.moments
    for i in range(m.n_subjects):
        rows = case.codes == i
        y, X, Z = case.y[rows], case.X[rows], case.Z[rows]
        assert m.n[i] == rows.sum()
        for ours, theirs in zip(
            (m.yy, m.Xy, m.XX, m.Zy, m.ZX, m.ZZ), (y @ y, X.T @ y, X.T @ X, Z.T @ y, Z.T @ X, Z.T @ Z), strict=True
        ):
            np.testing.assert_allclose(ours[..., i], theirs, rtol=1e-12, atol=1e-12)


def test_taking_subjects(case):
    m = case.moments
    some = m.take(np.array([m.n_subjects - 1, 0]))
    np.testing.assert_array_equal(some.ZX[..., 0], m.ZX[..., -1])
    assert some.n_subjects == 2
    parts = list(m.blocks(1))
    assert sum(block.n_subjects for _, block in parts) == m.n_subjects
    np.testing.assert_array_equal(np.concatenate([block.yy for _, block in parts]), m.yy)


def test_blocks_are_consecutive_and_complete():
    m = Case(1, 1000, 1).moments
    parts = list(m.blocks(200))
    assert len(parts) > 2
    assert [where.start for where, _ in parts] == [0, *(where.stop for where, _ in parts)][:-1]
    np.testing.assert_array_equal(np.concatenate([block.Xy for _, block in parts], axis=1), m.Xy)


def test_log_density(case):
    post = case.posterior()
    for e, i in case.each():
        r, _, _, V = case.subject(e, i)
        expected = multivariate_normal.logpdf(r, np.zeros(len(r)), V)
        assert post.log_density[e, i] == pytest.approx(expected, rel=1e-10)


def test_posterior_of_random_effects(case):
    found = case.moments.densities(case.params()).effects()
    means, covariances = found.means[0], found.covariances[0]
    for e, i in case.each():
        r, Z, _, V = case.subject(e, i)
        D = case.T[e] @ case.T[e].T
        np.testing.assert_allclose(means[e, :, i], D @ Z.T @ np.linalg.solve(V, r), rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(covariances[e, :, :, i], D - D @ Z.T @ np.linalg.solve(V, Z @ D), atol=1e-9)


def test_weighted_normal_matrix(case):
    weights = np.random.default_rng(7).uniform(size=(len(case.beta), case.moments.n_subjects))
    ours = case.moments.densities(case.params()).normal_matrix(weights)
    expected = np.zeros_like(ours)
    for e, i in case.each():
        _, _, X, V = case.subject(e, i)
        expected[e] += weights[e, i] * X.T @ np.linalg.solve(V, X)
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10)


def test_scores_are_derivatives_of_the_log_density(case):
    scores = case.moments.densities(case.params()).scores()[0]
    E, p, q = len(case.beta), case.beta.shape[1], case.T.shape[1]
    assert scores.shape == (E, p + q * q + 1, case.moments.n_subjects)
    for j in range(p):
        step = 1j * STEP * np.eye(p)[j]
        numeric = case.posterior(beta=case.beta + step).log_density.imag / STEP
        np.testing.assert_allclose(scores[:, j], numeric, rtol=1e-9, atol=1e-10)
    for a, b in np.ndindex(q, q):
        moved = case.T.astype(complex)
        moved[:, a, b] += 1j * STEP
        numeric = case.posterior(T=moved).log_density.imag / STEP
        np.testing.assert_allclose(scores[:, p + a * q + b], numeric, rtol=1e-8, atol=1e-9)
    numeric = case.posterior(sigma=case.sigma * (1 + 1j * STEP)).log_density.imag / STEP
    np.testing.assert_allclose(scores[:, -1], numeric, rtol=1e-9, atol=1e-9)


def test_sums_over_subjects_are_those_of_the_subjects(case):
    """What is summed by products of long matrices equals what is formed per subject and then summed."""
    weights = np.random.default_rng(8).uniform(size=(len(case.beta), case.moments.n_subjects))
    densities = case.moments.densities(case.params())
    each, ours = densities.scores()[0], densities.summed_scores(weights[None])[0]
    np.testing.assert_allclose(ours, (each * weights[:, None]).sum(axis=2), rtol=1e-10, atol=1e-10)
    means, spread = (part[0] for part in (densities.effects().means, densities.effects().covariances))
    second = means[:, :, None] * means[:, None] + spread
    ours = densities.second_moments(weights)
    np.testing.assert_allclose(ours, (second * weights[:, None, None]).sum(axis=3), rtol=1e-10, atol=1e-10)


def test_scores_pass_complex_steps_through():
    case = Case(1, 3, 2)
    h = 1e-6

    def score(sigma):
        params = case.params(case.beta.astype(sigma.dtype), case.T.astype(sigma.dtype), sigma)
        return case.moments.densities(params).scores()[0]

    exact = score(case.sigma + 1j * STEP).imag / STEP
    np.testing.assert_allclose(exact, (score(case.sigma + h) - score(case.sigma - h)) / (2 * h), rtol=1e-6, atol=1e-6)


def test_cost_does_not_depend_on_the_number_of_rows():
    few, many = Case(1, 4, 2, rows=3), Case(1, 4, 2, rows=300)
    assert few.moments.ZZ.shape == many.moments.ZZ.shape


# ---- gate ----


def gate_case(S=2, K=3, N=30, m=2, seed=0):
    rng = np.random.default_rng(seed)
    W = np.column_stack([np.ones(N), rng.normal(size=(N, m - 1))])
    given = rng.dirichlet(np.ones(K), size=(S, N)).swapaxes(1, 2)
    return W, given, rng.normal(size=(S, K - 1, m))


def test_gate_probabilities():
    W, _, gamma = gate_case()
    ours = gate_log_probabilities(W, gamma)
    for s in range(2):
        predictor = np.column_stack([np.zeros(len(W)), W @ gamma[s].T])
        expected = np.exp(predictor) / np.exp(predictor).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(np.exp(ours[s]).T, expected, rtol=1e-12)


def test_gate_of_one_expert_is_certain():
    W, _, _ = gate_case()
    empty = np.zeros((3, 0, 2))
    np.testing.assert_array_equal(gate_log_probabilities(W, empty), np.zeros((3, 1, len(W))))
    assert gate_step(W, np.ones((3, 1, len(W))), empty).shape == (3, 0, 2)


def test_extreme_gate_does_not_overflow():
    W, _, gamma = gate_case()
    ours = gate_log_probabilities(W, 1e4 * gamma)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(np.exp(ours).sum(axis=1), 1)


def gate_objective(W, given, gamma, weights):
    return np.einsum("skn,skn,n->s", given, gate_log_probabilities(W, gamma), weights)


def test_gate_score_and_information_are_derivatives():
    W, given, gamma = gate_case()
    weights = np.random.default_rng(1).uniform(0.5, 2, len(W))

    def score(coefficients):
        return (gate_scores(gate_log_probabilities(W, coefficients), given) * weights) @ W

    information = gate_information(W, gate_log_probabilities(W, gamma), weights)
    for j, (k, c) in enumerate(np.ndindex(2, 2)):
        moved = gamma.astype(complex)
        moved[:, k, c] += 1j * STEP
        numeric = gate_objective(W, given, moved, weights).imag / STEP
        np.testing.assert_allclose(score(gamma)[:, k, c], numeric, rtol=1e-10)
        np.testing.assert_allclose(information[:, j], -score(moved).imag.reshape(2, -1) / STEP, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_gate_step_always_climbs_and_arrives(scale, weighted):
    W, given, gamma = gate_case()
    weights = np.random.default_rng(2).uniform(0, 3, len(W)) if weighted else np.ones(len(W))
    gamma = scale * gamma
    for _ in range(200):
        new = gate_step(W, given, gamma, weights)
        gain = gate_objective(W, given, new, weights) - gate_objective(W, given, gamma, weights)
        assert (gain >= -1e-10).all()
        gamma = new
    score = (gate_scores(gate_log_probabilities(W, gamma), given) * weights) @ W
    assert np.abs(score).max() < 1e-6


def test_gate_step_of_one_subject():
    gamma = gate_step(np.ones((1, 1)), np.array([[[0.25], [0.75]]]), np.zeros((1, 1, 1)))
    for _ in range(10):
        gamma = gate_step(np.ones((1, 1)), np.array([[[0.25], [0.75]]]), gamma)
    assert gamma[0, 0, 0] == pytest.approx(np.log(3), rel=1e-6)


def logit_case(n=400, K=3):
    rng = np.random.default_rng(11)
    W = np.column_stack([np.ones(n), rng.normal(size=n), rng.uniform(size=n) < 0.3]).astype(float)
    odds = np.column_stack([np.zeros(n), W @ np.array([[-0.4, 0.8, 0.5], [0.3, -0.6, 1.0]]).T])
    label = (odds + rng.gumbel(size=odds.shape)).argmax(axis=1)
    return W, label, np.eye(K)[:, label][None], MNLogit(label, W)


def test_gate_step_is_the_newton_step_of_statsmodels():
    W, _, given, model = logit_case()
    at = np.array([[-0.2, 0.5, 0.0], [0.1, 0.2, -0.3]])
    step = np.linalg.solve(model.hessian(at.ravel()), model.score(at.ravel()))
    np.testing.assert_allclose(gate_step(W, given, at[None])[0], at - step.reshape(2, 3), atol=1e-7)  # a ridge of 1e-8
    information = gate_information(W, gate_log_probabilities(W, at[None]), np.ones(len(W)))[0]
    np.testing.assert_allclose(information, -model.hessian(at.ravel()), rtol=1e-10)


def test_gate_steps_end_at_the_estimate_of_statsmodels():
    W, _, given, model = logit_case()
    gamma = np.zeros((1, 2, 3))
    for _ in range(8):
        gamma = gate_step(W, given, gamma)
    right = model.fit(disp=0, method="newton", tol=1e-14)
    np.testing.assert_allclose(gamma[0], right.params.T, atol=1e-8)
    information = gate_information(W, gate_log_probabilities(W, gamma), np.ones(len(W)))[0]
    np.testing.assert_allclose(np.sqrt(np.diag(np.linalg.inv(information))), right.bse.T.ravel(), rtol=1e-8)


def test_the_gate_s_longest_step_changes_a_predictor_by_four():
    W = np.array([[1.0, -2.0], [1.0, 1.0], [1.0, 4.0]])
    given = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]])
    at = np.array([[[1.0, -2.0]]])  # the wrong way round
    new = gate_step(W, given, at)
    p = 1 / (1 + np.exp(-(W @ at[0, 0])))
    newton = np.linalg.solve((W.T * (p * (1 - p))) @ W, W.T @ (given[0, 1] - p))
    longest = np.abs(W @ newton).max()
    assert longest > 4
    np.testing.assert_allclose(new[0, 0], at[0, 0] + newton * 4 / longest, rtol=1e-4)


def test_where_newton_falls_the_gate_takes_the_lower_bound_step():
    rng = np.random.default_rng(485)
    W, at = np.column_stack([np.ones(12), 3 * rng.normal(size=12)]), rng.normal(size=(1, 2, 2))
    at *= rng.choice([0.5, 5, 20, 40])
    given = np.eye(3)[:, rng.integers(0, 3, 12)][None]
    score = gate_scores(gate_log_probabilities(W, at), given) @ W
    information = gate_information(W, gate_log_probabilities(W, at), np.ones(12))[0]
    newton = np.linalg.solve(information + 1e-8 * (W * W).sum() / 4 * np.eye(4), score.ravel()).reshape(score.shape)
    newton *= min(1.0, 4 / np.abs(newton @ W.T).max())
    assert gate_objective(W, given, at + newton, np.ones(12)) < gate_objective(W, given, at, np.ones(12))
    bound = np.kron(0.5 * (np.eye(2) - 1 / 3), W.T @ W)
    right = at + np.linalg.solve(bound, score.ravel()).reshape(score.shape)
    np.testing.assert_allclose(gate_step(W, given, at), right, rtol=1e-10)


def test_the_lower_bound_of_the_gate_is_above_its_information():
    W, _, _, _ = logit_case()
    at = np.array([[[-0.2, 0.5, 0.0], [0.1, 0.2, -0.3]]])
    bound = np.kron(0.5 * (np.eye(2) - 1 / 3), W.T @ W)
    smallest = np.linalg.eigvalsh(bound - gate_information(W, gate_log_probabilities(W, at), np.ones(len(W)))[0])[0]
    assert smallest > 0  # the bound is above the information


def test_weights_of_the_gate_are_numbers_of_units():
    W, _, given, _ = logit_case()
    weights = np.random.default_rng(3).integers(1, 4, len(W))
    which = np.repeat(np.arange(len(W)), weights)
    at = np.zeros((1, 2, 3))
    once, often = gate_step(W, given, at, weights.astype(float)), gate_step(W[which], given[:, :, which], at)
    np.testing.assert_allclose(once, often, rtol=1e-9)


@pytest.mark.parametrize("K", [2, 4])
def test_the_step_where_newtons_descends_is_the_lower_bounds_by_dense_algebra(K, monkeypatch):
    """Bohning's information is ``(I - 11'/K) / 2`` times ``W' diag(w) W``; weights are numbers of units."""
    rng = np.random.default_rng(11)
    W, weights, at = rng.normal(size=(30, 3)), rng.uniform(0.2, 3.0, 30), rng.normal(size=(2, K - 1, 3))
    given = np.moveaxis(rng.dirichlet(np.ones(K), size=(2, 30)), -1, 1)
    monkeypatch.setattr(gate, "_MAX_SHIFT", -1e-3)  # turns Newton's step round
    information = np.kron(0.5 * (np.eye(K - 1) - 1.0 / K), W.T @ np.diag(weights) @ W)
    score = ((given - np.exp(gate_log_probabilities(W, at)))[:, 1:] * weights) @ W
    for found, old, one in zip(gate_step(W, given, at, weights), at, score, strict=True):
        np.testing.assert_allclose((found - old).ravel(), np.linalg.solve(information, one.ravel()), rtol=1e-9)
