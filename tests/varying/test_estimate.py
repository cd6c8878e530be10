"""The joint EM against special cases that must collapse, and its labels."""

import numpy as np
import pytest
import statsmodels.api as sm

from mixmoe.varying.em_steps import own_natural, posterior
from mixmoe.varying.joint_em import Control, fit_functions, run_em
from mixmoe.varying.local_likelihood import (
    build_local,
    local_gradient,
    local_information,
    local_loglik,
    local_pieces,
    local_start,
    natural_terms,
    state_of,
)
from mixmoe.varying.local_maximum import maximise_local
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.starts import permute_experts
from mixmoe.varying.windows import epanechnikov
from tests.varying.helpers import make_problem, switched_points

EXACT = 1e-9  # least squares by normal equations against least squares by QR
GLM = 1e-6  # the bar of the issue


def local_design(problem, g):
    t = (problem.rows.index - problem.windows.grid[g]) / problem.windows.bandwidth
    keep = np.abs(t) < 1.0
    x = problem.rows.design[keep]
    return np.hstack([x, x * t[keep, None]]), epanechnikov(t[keep]), keep


def test_one_gaussian_expert_is_kernel_weighted_least_squares():
    problem = make_problem(vcmoe(n=300, experts=1, rng=0), 0.2, experts=1, n_grid=11)
    run = fit_functions(problem, Control(), np.random.default_rng(0))
    for g in range(11):
        z, kernel, keep = local_design(problem, g)
        root = np.sqrt(kernel)
        want = np.linalg.lstsq(z * root[:, None], problem.rows.outcome.y[keep] * root, rcond=None)[0]
        np.testing.assert_allclose(run.coef[g, :, :2].ravel(), want, atol=EXACT)


@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_one_expert_is_the_local_generalised_linear_model(family):
    problem = make_problem(vcmoe(n=300, family=family, experts=1, rng=0), 0.25, experts=1, family=family, n_grid=7)
    run = fit_functions(problem, Control(), np.random.default_rng(0))
    for g in range(7):
        z, kernel, keep = local_design(problem, g)
        y, trials = problem.rows.outcome.y[keep], problem.rows.outcome.trials[keep]
        if family == "binomial":
            model = sm.GLM(y / trials, z, family=sm.families.Binomial(), freq_weights=kernel * trials)
        else:
            model = sm.GLM(y, z, family=sm.families.Poisson(), freq_weights=kernel, offset=problem.rows.offset[keep])
        np.testing.assert_allclose(run.coef[g, :, :2].ravel(), model.fit(tol=1e-12).params, atol=GLM)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("separation", [1.4, 1.0])
def test_labels_never_switch_along_the_grid(seed, separation):
    sim = vcmoe(n=300, separation=separation, rng=seed)
    problem = make_problem(sim, 0.2)
    run = fit_functions(problem, Control(n_starts=5), np.random.default_rng(seed))
    assert run.converged
    assert switched_points(problem, run.coef, sim) == 0


def test_experts_that_nearly_meet_are_connected_the_right_way():
    """Seen in development: Poisson, overlapping, this seed: every constant or linear start ends in the wrong mode."""
    sim = vcmoe("overlapping", 1000, family="poisson", rng=3)
    problem = make_problem(sim, 0.25, family="poisson")
    run = fit_functions(problem, Control(n_starts=5), np.random.default_rng(0))
    assert switched_points(problem, run.coef, sim) == 0


def test_permuted_start_gives_the_permuted_fit():
    problem = make_problem(vcmoe(n=300, experts=3, rng=4), 0.3, experts=3)
    run = fit_functions(problem, Control(n_starts=3), np.random.default_rng(0))
    order = np.array([2, 0, 1])
    again = run_em(problem, permute_experts(problem.slots, run.coef, order), Control())
    assert again.loglik == pytest.approx(run.loglik, abs=1e-3)
    np.testing.assert_allclose(again.coef[:, 0], permute_experts(problem.slots, run.coef, order)[:, 0], atol=1e-3)


def test_all_constant_gives_one_level_and_a_zero_score():
    problem = make_problem(vcmoe("constant", 400, rng=1), 0.3, const=np.ones(10 - 2, dtype=bool))
    run = fit_functions(problem, Control(), np.random.default_rng(0))
    assert np.ptp(run.coef[:, 0], axis=0).max() == 0.0
    assert np.abs(run.coef[:, 1]).max() == 0.0
    step = 1e-5
    for slot in range(problem.slots.n):
        values = []
        for sign in (1.0, -1.0):
            moved = run.coef.copy()
            moved[:, 0, slot] += sign * step
            values.append(posterior(problem.rows, problem.family, own_natural(problem, moved)).loglik)
        assert abs(values[0] - values[1]) / (2 * step) < 0.01


def test_units_of_the_response_change_nothing_else():
    sim = vcmoe(n=300, rng=2)
    scaled = vcmoe(n=300, rng=2)
    scaled.data["y"] *= 1e6
    one, two = (make_problem(s, 0.25) for s in (sim, scaled))
    a, b = (fit_functions(p, Control(n_starts=3), np.random.default_rng(0)) for p in (one, two))
    np.testing.assert_allclose(b.coef[:, 0, :4] / 1e6, a.coef[:, 0, :4], atol=1e-5)
    np.testing.assert_allclose(b.coef[:, 0, 6:], a.coef[:, 0, 6:], atol=1e-5)


@pytest.mark.parametrize("family", ["gaussian", "binomial", "poisson", "negbinomial"])
@pytest.mark.parametrize("degree", [1, 2])
def test_local_score_and_information_are_derivatives_of_the_local_likelihood(family, degree):
    problem = make_problem(vcmoe(n=120, family=family, rng=0), 0.4, family=family, n_grid=3)
    local = build_local(problem, degree)
    rng = np.random.default_rng(1)
    coef = 0.3 * rng.normal(size=(3, *local.free.shape)) * local.free
    (piece,) = local_pieces(local, coef)
    block, terms = piece
    gradient = local_gradient(local, block, terms)
    information = local_information(local, block, terms.information, terms.kernel)
    step = 1e-5
    for d, slot in zip(*np.nonzero(local.free), strict=True):
        ends, slopes = [], []
        for sign in (1.0, -1.0):
            moved = coef.copy()
            moved[:, d, slot] += sign * step
            shifted = natural_terms(local, block, moved)
            ends.append(local_loglik(block, shifted))
            slopes.append(local_gradient(local, block, shifted))
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), gradient[:, d, slot], rtol=1e-5, atol=1e-4)
        numeric = -(slopes[0] - slopes[1]).reshape(3, -1) / (2 * step)
        column = information[:, :, d * problem.slots.n + slot]
        np.testing.assert_allclose(column, numeric, rtol=1e-4, atol=2e-3)


def test_local_maxima_lie_where_every_local_score_is_zero():
    problem = make_problem(vcmoe(n=500, rng=5), 0.25)
    run = fit_functions(problem, Control(n_starts=3), np.random.default_rng(0))
    local = build_local(problem, 1)
    fit = maximise_local(local, local_start(local, run.coef))
    assert fit.converged.all()
    for block, terms in local_pieces(local, fit.coef):
        assert np.abs(local_gradient(local, block, terms)).max() < 1e-5
    assert np.abs(state_of(local, fit.coef)[:, 0] - run.coef[:, 0]).max() < 0.6


def test_gate_may_have_its_own_bandwidth():
    problem = make_problem(vcmoe(n=500, rng=6), 0.2, gate_bandwidth=0.5)
    run = fit_functions(problem, Control(n_starts=3), np.random.default_rng(0))
    assert run.converged
    local = build_local(problem, 1)
    assert maximise_local(local, local_start(local, run.coef)).converged.all()
    wide = build_local(problem, 1, problem.gate_windows.bandwidth)
    assert maximise_local(wide, local_start(wide, run.coef)).converged.all()
