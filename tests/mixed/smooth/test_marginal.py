"""Derivatives and the marginal likelihood against dense and brute-force versions; ends where the model is another."""

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

import mixmoe as mm
from mixmoe.mixed.ascents import Guarded
from mixmoe.mixed.curvature import determinant_slope, information, known_scores
from mixmoe.mixed.likelihood.hessian import observed_information
from mixmoe.mixed.likelihood.observed import evaluate, subject_logliks
from mixmoe.mixed.smooth.functions import geometry_of
from mixmoe.mixed.smooth.marginal import Eliminated, Tilted, estimate, marginal_loglik
from mixmoe.mixture.gate import posterior_probabilities
from mixmoe.numerics.optimise import Control
from tests.mixed.smooth.data import two_experts

pytestmark = pytest.mark.filterwarnings("ignore:There are only", "ignore:Nothing but")
FORMULA = "y ~ s(t, k=7) + common(s(t, by=x, k=6)) | gate: s(z, k=6) | re: (1 + t | id)"


@pytest.fixture(scope="module")
def frame():
    return two_experts(60)


def at_random(model, rng=0):
    theta = 0.1 * np.random.default_rng(rng).normal(size=model.problem.free.size)
    theta[model.problem.free.factor] += 0.4
    return theta


def geometry(model):
    return geometry_of(model.functions, model.problem.free, model.structure, model.coordinates)


@pytest.mark.parametrize("options", [{}, {"cov_re": "proportional", "residual": "common"}])
def test_score_and_information_of_the_penalised_likelihood(frame, options):
    model = mm.MEMoE(FORMULA, frame, experts=2, **options)
    theta, lambdas = at_random(model), np.array([2.0, 0.5, 3.0, 7.0])
    penalised = replace(model.problem, ridge=geometry(model).root(lambdas))
    e, h = evaluate(penalised, theta[None]), 1e-5
    for j in range(0, theta.size, 3):
        step = h * (np.arange(theta.size) == j)
        ends = evaluate(penalised, np.vstack([theta + step, theta - step]))
        slope = (ends.loglik[0] - ends.loglik[1]) / (2 * h)
        assert e.score[0, j] == pytest.approx(slope, abs=1e-7 * (1 + np.abs(e.score).max()))
    exact = observed_information(model.problem, theta)
    np.testing.assert_allclose(information(model.problem, theta), exact, atol=1e-11 * np.abs(exact).max())
    whole = observed_information(penalised, theta) - exact
    np.testing.assert_allclose(whole, geometry(model).penalty(lambdas), atol=1e-10 * np.abs(exact).max())


def test_penalty_is_that_of_the_users_coefficients(frame):
    model = mm.MEMoE(FORMULA, frame, experts=2)
    theta, lambdas = at_random(model, 1), np.array([2.0, 0.5, 3.0, 7.0])
    params = model.natural(theta)
    wanted = 0.0
    for f, lam in zip(model.functions, lambdas, strict=True):
        b = params[f.where[f.columns.penalised]]
        wanted += 0.5 * lam * b @ b
    S = geometry(model).penalty(lambdas)
    assert 0.5 * theta @ S @ theta == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("strength", [1e-6, 3.0, 1e12])
def test_coefficients_without_penalty_are_eliminated_once(frame, strength):
    """Inverse, its block and the quadratic form of a score from the dense matrix, whatever the smoothing parameters."""
    model = mm.MEMoE(FORMULA, frame, experts=2)
    g, rng = geometry(model), np.random.default_rng(3)
    half = rng.normal(size=(model.problem.free.size, 3 * model.problem.free.size))
    H, score, lambdas = half @ half.T, rng.normal(size=len(half)), strength * np.array([2.0, 0.5, 3.0, 7.0])
    A = g.basis.T @ H @ g.basis
    inside = np.concatenate(g.penalised)
    A[inside, inside] += np.repeat(lambdas, [at.size for at in g.penalised])
    scale = 1 / np.sqrt(np.diag(A))
    dense = scale[:, None] * np.linalg.inv(scale[:, None] * A * scale) * scale
    curve = Eliminated.of(g, H)
    whole = g.basis @ dense @ g.basis.T
    np.testing.assert_allclose(curve.inverse_information(lambdas), whole, atol=1e-11 * np.abs(whole).max())
    block = dense[np.ix_(inside, inside)]
    np.testing.assert_allclose(curve.covariance(lambdas), block, atol=1e-11 * np.abs(block).max())
    assert curve.decrement(lambdas, score) == pytest.approx(score @ whole @ score, rel=1e-9)


@pytest.mark.parametrize("formula", [FORMULA, "y ~ s(t, k=22) + s(t, by=x, k=22) | gate: z | re: (1 + t | id)"])
def test_slope_of_the_determinant_by_second_differences(frame, formula):
    """From cross-products of subjects, and from rows where columns are many."""
    model = mm.MEMoE(formula, frame, experts=2)
    theta, half = at_random(model), np.zeros((model.problem.free.size, 4))
    half[model.problem.free.beta.ravel()] = 0.05 * np.random.default_rng(2).normal(
        size=(model.problem.free.beta.size, 4)
    )
    tau = posterior_probabilities(subject_logliks(model.problem, theta))
    centre = known_scores(model.problem, theta[None], tau)[0]
    bent = sum(
        known_scores(model.problem, np.vstack([theta + v, theta - v]), tau).sum(axis=0) - 2 * centre for v in half.T
    )
    ours = determinant_slope(model.problem, theta, half)
    np.testing.assert_allclose(ours, 0.5 * bent, atol=1e-9 * np.abs(ours).max())


def test_marginal_likelihood_of_one_expert_is_that_of_random_coefficients(frame):
    fit = mm.fit("y ~ s(t) + s(t, by=x) | re: (1 | id)", frame, experts=1, cov_type="nonrobust")
    d, params = fit.model.design, fit.params.to_numpy()
    penalised = np.concatenate([s.columns[s.penalised] for s in d.smooths])
    free = np.setdiff1d(np.arange(d.expert.shape[1]), penalised)
    prior = np.repeat(1 / fit.functions["lambda"].to_numpy(), [s.penalised.sum() for s in d.smooths])
    Z = (d.codes[:, None] == np.arange(d.n_units)).astype(float)

    def dense(free_params, sd, sigma, variances):
        V = sd**2 * Z @ Z.T + sigma**2 * np.eye(d.n) + (d.expert[:, penalised] * variances) @ d.expert[:, penalised].T
        return multivariate_normal(d.expert[:, free] @ free_params, V).logpdf(d.response)

    sd, sigma = fit.params["sd1(Intercept|id)"], fit.params["sigma1"]
    here = dense(params[free], sd, sigma, prior)
    assert fit.marginal_llf == pytest.approx(here, abs=1e-8)
    # The estimate is its maximum: no step in any parameter gains, and steps of a percent lose little.
    for change in (0.98, 1.02):
        for moved in (
            dense(params[free], sd * change, sigma, prior),
            dense(params[free], sd, sigma * change, prior),
            dense(params[free], sd, sigma, prior * change),
        ):
            assert here - 0.2 < moved < here + 1e-6
    X = d.expert[:, free]
    V = sd**2 * Z @ Z.T + sigma**2 * np.eye(d.n) + (d.expert[:, penalised] * prior) @ d.expert[:, penalised].T
    gls = np.linalg.solve(X.T @ np.linalg.solve(V, X), X.T @ np.linalg.solve(V, d.response))
    np.testing.assert_allclose(params[free], gls, atol=1e-5)


@pytest.mark.parametrize("bent", [True, False])
def test_limits_lie_around_a_fit_that_is_smoothed_less(frame, bent):
    """Dense: information, generalised least squares and posterior covariance, variances held."""
    rng = np.random.default_rng(0)
    flat = rng.normal(size=60)[frame["id"]] + rng.normal(size=len(frame))
    data = frame if bent else frame.assign(y=flat)
    fit = mm.fit("y ~ s(t, k=7) | re: (1 | id)", data, experts=1, cov_type="nonrobust")
    d, f = fit.model.design, fit.model.functions[0]
    X, sd, sigma = d.expert, fit.params["sd1(Intercept|id)"], fit.params["sigma1"]
    Z = (d.codes[:, None] == np.arange(d.n_units)).astype(float)
    data_part = X.T @ np.linalg.solve(sd**2 * Z @ Z.T + sigma**2 * np.eye(d.n), np.column_stack([X, d.response]))
    of_data, score = data_part[:, :-1], data_part[:, -1]
    inside = np.flatnonzero(np.isin(np.arange(X.shape[1]), f.columns.columns[f.columns.penalised]))
    outside = np.setdiff1d(np.arange(X.shape[1]), inside)
    schur = of_data[np.ix_(inside, inside)] - of_data[np.ix_(inside, outside)] @ np.linalg.solve(
        of_data[np.ix_(outside, outside)], of_data[np.ix_(outside, inside)]
    )
    estimated, least = fit.functions["lambda"].iloc[0], fit.model.smoothing.of_limits[0]
    # The information holds how coefficients and variances hang together, which dense least squares do not.
    shrunk = np.linalg.inv(schur + np.eye(5) / (1 / least - 1 / estimated)) @ schur
    assert np.trace(shrunk) == pytest.approx(2.5, rel=1e-2)
    prior, spread = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    prior[inside] = least
    spread[inside] = least**2 * 0.5 * (1 / estimated + 1 / least)
    back = np.linalg.inv(of_data + np.diag(prior))
    V = back @ (of_data + np.diag(spread)) @ back  # squared error of coefficients of that variance
    band = fit.bands(rng=0)
    at, rows = f.columns.columns, f.basis(band["t"].to_numpy())
    error = np.sqrt(np.diag(rows @ V[np.ix_(at, at)] @ rows.T))
    np.testing.assert_allclose(band["std_error"], error, rtol=0.02)
    centre = (band["conf_low"] + band["conf_high"]) / 2
    np.testing.assert_allclose((centre - rows @ (back @ score)[at]) / error, 0.0, atol=0.02)
    assert (np.abs((centre - band["estimate"]) / error).max() > 0.3) != bent


def test_marginal_likelihood_of_two_experts_by_quadrature():
    """Three penalised coefficients, shared by two experts, are integrated over a grid of 9^3 points."""
    frame = two_experts(40, 5, rng=3)
    model = mm.MEMoE("y ~ common(s(t, k=5)) + x | gate: z | re: (1 | id)", frame, experts=2)
    coarse = model.coarse().maximum(8, np.random.default_rng(0))
    geo, lambdas = geometry(model), np.array([30.0])
    theta = model.working(coarse.params)  # three columns are the whole basis here
    N = geo.directions
    penalised = replace(model.problem, ridge=geo.root(lambdas))

    def along(b):
        return evaluate(penalised, (theta + N @ b)[None])

    mode = minimize(
        lambda b: -along(b).loglik[0], np.zeros(3), jac=lambda b: -along(b).score[0] @ N, method="BFGS", tol=1e-9
    ).x
    ours = marginal_loglik(model.problem, geo, lambdas, theta + N @ mode)
    inner = N.T @ observed_information(penalised, theta + N @ mode) @ N
    half = np.linalg.cholesky(np.linalg.inv(inner))
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    grid = np.array(np.meshgrid(nodes, nodes, nodes, indexing="ij")).reshape(3, -1).T
    weight = reduce(np.multiply.outer, [weights] * 3).ravel() / (2 * np.pi) ** 1.5
    values = evaluate(penalised, theta + (mode + grid @ half.T) @ N.T).loglik + 0.5 * (grid**2).sum(axis=1)
    top = values.max()
    integral = top + np.log(weight @ np.exp(values - top)) + np.linalg.slogdet(half)[1] + 1.5 * np.log(lambdas[0])
    assert ours == pytest.approx(integral, abs=0.02)


def test_an_expert_without_subjects_stays_finite(frame):
    """From a start at which nothing tells how smooth its functions are."""
    model = mm.MEMoE("y ~ s(t, k=6) | gate: s(z, k=5) | re: (1 | id)", frame, experts=2)
    theta = at_random(model)
    theta[model.problem.free.gate] = 0.0
    theta[model.problem.free.gate.start] = -40.0
    unknown = np.full(len(model.functions), np.nan)
    found = estimate(model.problem, geometry(model), theta, unknown, 1e-4, Control(max_iter=100, progress=False))
    assert np.isfinite(found.theta).all()
    assert (found.lambdas > 0).all()
    assert np.isfinite(found.lambdas).all()
    plain = evaluate(model.problem, found.theta[None])
    assert -1000 < plain.loglik[0] < 0


def test_a_tilt_is_held_back(frame):
    """Value and score of the objective of an ascent, and that nothing is held back at its centre."""
    model = mm.MEMoE("y ~ s(t, k=6) | re: (1 | id)", frame, experts=1)
    theta, rng = at_random(model), np.random.default_rng(5)
    A = rng.normal(size=(theta.size, theta.size))
    there = Tilted(Guarded(model.problem, 1e-4), rng.normal(size=theta.size), at_random(model, 1), A @ A.T)
    e, h = there(theta[None]), 1e-5
    for j in range(theta.size):
        step = h * (np.arange(theta.size) == j)
        ends = there(np.vstack([theta + step, theta - step]))
        assert e.score[0, j] == pytest.approx((ends.loglik[0] - ends.loglik[1]) / (2 * h), abs=1e-5, rel=1e-6)
    at_centre, plain = there(there.centre[None]), evaluate(model.problem, there.centre[None])
    assert at_centre.loglik[0] == pytest.approx(plain.loglik[0])
    np.testing.assert_allclose(at_centre.score, plain.score + there.tilt)


@pytest.mark.parametrize("experts", [1, 2])
def test_penalties_without_bound_leave_lines(experts):
    frame = two_experts(100, rng=1, sd=0.3)
    smooth = mm.fit(
        "y ~ s(t) + s(t, by=x) | gate: z | re: (1 | id)", frame, experts, smoothing=1e12, rng=0, starts=8,
        cov_type="nonrobust",
    )  # fmt: skip
    line = mm.fit("y ~ t * x | gate: z | re: (1 | id)", frame, experts, rng=0, starts=8, cov_type="nonrobust")
    assert smooth.llf == pytest.approx(line.llf, abs=1e-6)
    for name in ("sd1(Intercept|id)", "sigma1"):
        assert smooth.params[name] == pytest.approx(line.params[name], rel=1e-5)
    assert smooth.params["expert1.s(t).line"] == pytest.approx(line.params["expert1.t"], rel=1e-5)
    assert smooth.df_model == pytest.approx(line.df_model, abs=1e-4)
    assert smooth.bic == pytest.approx(line.bic, abs=1e-3)


def test_unit_of_the_response_changes_nothing_but_units(frame):
    formula = "y ~ s(t) | gate: z | re: (1 | id)"
    a = mm.fit(formula, frame, 2, rng=0, starts=2, cov_type="nonrobust")
    b = mm.fit(formula, frame.assign(y=1e6 * frame["y"]), 2, rng=0, starts=2, cov_type="nonrobust")
    np.testing.assert_allclose(b.functions["edf"], a.functions["edf"], rtol=1e-3)
    np.testing.assert_allclose(b.functions["lambda"], a.functions["lambda"] * 1e-12, rtol=5e-3)


def test_given_smoothing_parameters():
    frame = two_experts(60)
    names = {"s(t)": 5.0, "expert1.s(t, by=x)": 9.0}
    fit = mm.fit("y ~ s(t) + s(t, by=x) | re: (1 | id)", frame, 1, smoothing=names)
    assert fit.functions["lambda"].tolist() == [5.0, 9.0]
    assert fit.cov.shift is None  # limits lie around the estimate of known smoothing parameters
    with pytest.raises(mm.errors.ArgumentError, match=r"'s\(u\)', which is no function of the model"):
        mm.fit("y ~ s(t) | re: (1 | id)", frame, 1, smoothing={"s(u)": 1.0})
    with pytest.raises(mm.errors.ArgumentError, match="must hold positive numbers"):
        mm.fit("y ~ s(t) | re: (1 | id)", frame, 1, smoothing=-1.0)
    with pytest.raises(mm.errors.ArgumentError, match="is for formulas with functions"):
        mm.fit("y ~ t | re: (1 | id)", frame, 1, smoothing=1.0)
