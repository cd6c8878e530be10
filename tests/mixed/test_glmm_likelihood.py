"""The integral over the random effects: modes, exactness for Gaussian responses, quadrature, scores."""

from dataclasses import astuple, replace
from itertools import product

import numpy as np
import pytest

from mixmoe.mixed.likelihood import modes
from mixmoe.mixed.likelihood.gaussian import experts_of_products
from mixmoe.mixed.likelihood.glmm import build_nodes
from mixmoe.mixed.likelihood.hessian import observed_information
from mixmoe.mixed.likelihood.modes import Predictor, evaluate_at, find_modes
from mixmoe.mixed.likelihood.observed import Problem, evaluate, subject_logliks, subject_scores
from mixmoe.mixed.parameters import Structure, free_to_working
from mixmoe.responses.distribution import Outcome
from mixmoe.responses.exponential import family_named
from tests.mixed.glmm_helpers import DRAWS, brute_force, numeric_score, problem

FAMILIES = tuple(DRAWS)


def points(p, n=2, seed=5):
    return 0.5 * np.random.default_rng(seed).normal(size=(n, p.free.size))


@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives_of_the_families(name):
    family, rng = family_named(name, tuple(DRAWS)), np.random.default_rng(0)
    y, trials = DRAWS[name](rng, 40), np.full(40, 3.0)
    out = Outcome(y, trials, family.constant(y, trials))
    eta, delta, h = rng.normal(size=(2, 40)), np.full((2, 1), 0.3), 1e-5
    c, low, third = (
        family.curvature(out, eta, delta),
        family.derivatives(out, eta, delta),
        family.third(out, eta, delta),
    )
    np.testing.assert_allclose(c.value + out.constant, family.log_density(out, eta, delta), atol=1e-12)
    np.testing.assert_allclose(c.slope, low.eta, atol=1e-12)
    np.testing.assert_allclose(c.weight, low.eta_eta + 0 * eta, atol=1e-12)

    def slope(of, deta, ddelta):
        up, down = of(eta + deta, delta + ddelta), of(eta - deta, delta - ddelta)
        return (up - down) / (2 * h)

    def weight(e, d):
        return family.derivatives(out, e, d).eta_eta

    np.testing.assert_allclose(-slope(weight, h, 0) + 0 * eta, third.eta, atol=1e-7)
    np.testing.assert_allclose(-slope(weight, 0, h) * np.ones_like(eta), third.delta + 0 * eta, atol=1e-7)
    np.testing.assert_allclose(slope(lambda e, d: family.log_density(out, e, d), h, 0), low.eta, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_modes_are_stationary_from_far_away(name):
    p = problem(name)
    params = free_to_working(p.structure, points(p))
    rows, response = p.experts.rows, p.experts.response
    at = Predictor(
        rows.X.predictor(params.beta.reshape(4, -1)), 3 * params.factor.reshape(4, 2, 2), params.extra.reshape(4, -1)
    )
    found = find_modes(rows, response, at, np.full((4, 2, rows.n_subjects), 8.0))
    pull = np.swapaxes(at.T, 1, 2) @ rows.into_random(found.slope) - found.u
    np.testing.assert_allclose(pull, 0.0, atol=1e-7)
    away = evaluate_at(rows, response, at, found.u + 0.01)
    assert (away.value < found.value).all()


@pytest.mark.parametrize(("q", "n_quad"), [(0, 1), (1, 1), (1, 4), (2, 1), (2, 3), (3, 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_score_is_the_derivative(name, q, n_quad):
    p = problem(name, q=q, n_quad=n_quad, weights=q == 1)
    theta = points(p)
    ours, numeric = evaluate(p, theta).score, numeric_score(p, theta)
    np.testing.assert_allclose(ours, numeric, atol=1e-6 * np.abs(numeric).max())
    np.testing.assert_allclose([subject_scores(p, point).sum(axis=0) for point in theta], ours, atol=1e-8)


@pytest.mark.parametrize("name", ["binomial", "poisson"])
def test_modes_of_few_on_their_way_are_those_of_all(name, monkeypatch):
    """Experts and subjects that have arrived are left alone: the others end where they do among all."""
    p = problem(name)
    params = free_to_working(p.structure, points(p))
    rows, response = p.experts.rows, p.experts.response
    base, extra = rows.X.predictor(params.beta.reshape(4, -1)), params.extra.reshape(4, -1)
    at = Predictor(base, 3 * params.factor.reshape(4, 2, 2), extra)
    start = find_modes(rows, response, at, np.zeros((4, 2, rows.n_subjects))).u
    start[1, :, 3], start[3, 0, [0, 3]] = 6.0, -4.0
    few = find_modes(rows, response, at, start)
    monkeypatch.setattr(modes, "_FEW_MOVING", -1.0)
    every = find_modes(rows, response, at, start)
    for ours, theirs in zip(astuple(few), astuple(every), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)
    assert np.abs(start - few.u).max() > 1.0


def test_gaussian_responses_are_exact():
    p = problem("gaussian")
    theta, rows = points(p), p.experts.rows
    s = Structure(2, 2, p.structure.common, 2, True, "expert", "expert")
    normal = experts_of_products(rows.outcome.y - rows.offset, rows.X.dense.T, rows.Z.T, rows.starts)
    exact = evaluate(Problem(s, normal, p.W), theta)
    np.testing.assert_allclose(evaluate(p, theta).loglik, exact.loglik, rtol=0, atol=1e-10)
    np.testing.assert_allclose(evaluate(p, theta).score, exact.score, rtol=0, atol=1e-10)
    for node in (2, 5):  # any number of nodes is exact
        quadrature = evaluate(problem("gaussian", n_quad=node), theta)
        np.testing.assert_allclose(quadrature.loglik, exact.loglik, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "q"),
    [*product(("binomial", "poisson", "negbinomial"), (1, 2)), ("zinegbinomial", 2), ("gamma", 1), ("beta", 1)],
)
def test_quadrature_reaches_brute_force(name, q):
    p = problem(name, n_subjects=5, q=q, n_quad=15)
    theta = points(p)[0]
    prior = np.log(np.exp(subject_logliks(p, theta)).sum(axis=1))
    joint = brute_force(p, theta)
    gate = free_to_working(p.structure, theta[None]).gamma[0] @ p.W.T
    log_prior = np.vstack([np.zeros_like(gate), gate]) - np.log1p(np.exp(gate))
    np.testing.assert_allclose(prior, np.log(np.exp(joint + log_prior.T).sum(axis=1)), atol=1e-6)


def test_more_nodes_come_closer():
    values = [evaluate(problem("binomial", n_quad=n), points(problem("binomial"))).loglik for n in (1, 3, 9, 25)]
    off = [np.abs(value - values[-1]).max() for value in values[:-1]]
    assert off[0] > off[1] > off[2]


def test_prior_weights_count_as_copies():
    p = problem("poisson", q=0)
    rows = p.experts.rows
    twice = rows.take(np.arange(rows.n_subjects))
    doubled = replace(rows, weights=np.full(rows.offset.size, 2.0))
    theta = points(p)[0]
    once = Problem(p.structure, type(p.experts)(twice, p.experts.response, build_nodes(1, 0)), p.W)
    heavy = Problem(p.structure, type(p.experts)(doubled, p.experts.response, build_nodes(1, 0)), p.W)
    gate = free_to_working(p.structure, theta[None]).gamma[0] @ p.W.T
    log_prior = (np.vstack([np.zeros_like(gate), gate]) - np.log1p(np.exp(gate))).T
    np.testing.assert_allclose(
        subject_logliks(heavy, theta) - log_prior, 2 * (subject_logliks(once, theta) - log_prior), rtol=1e-12
    )


def test_information_is_symmetric_and_the_derivative_of_the_score():
    p = problem("binomial")
    theta = points(p)[0]
    information = observed_information(p, theta)
    step = 1e-5 * np.eye(theta.size)[0]
    column = (evaluate(p, (theta - step)[None]).score - evaluate(p, (theta + step)[None]).score)[0] / 2e-5
    np.testing.assert_array_equal(information, information.T)
    np.testing.assert_allclose(information[0], column, atol=1e-5 * np.abs(information).max())


def test_blocks_and_orders_of_subjects_change_nothing(monkeypatch):
    p = problem("binomial", n_subjects=50)
    theta = points(p)
    whole = evaluate(p, theta)
    order = np.random.default_rng(1).permutation(50)
    monkeypatch.setattr("mixmoe.mixed.likelihood.glmm._BLOCK_ROWS", 20)
    parts = p.take(order)
    assert sum(1 for _ in parts.experts.blocks(4)) > 3
    np.testing.assert_allclose(evaluate(parts, theta).loglik, whole.loglik, rtol=1e-12)
    np.testing.assert_allclose(evaluate(parts, theta).score, whole.score, atol=1e-9)


def test_warm_starts_only_save_passes():
    p = problem("poisson")
    theta = points(p, 4)
    cold = [evaluate(problem("poisson"), point[None]).loglik[0] for point in theta]
    for _ in range(2):
        np.testing.assert_allclose(evaluate(p, theta).loglik, cold, rtol=1e-12)
