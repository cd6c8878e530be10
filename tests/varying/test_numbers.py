"""Numbers that formulas worked by hand, dense versions or integrals give, for constants that no other test can see."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from mixmoe.varying.bands import (
    LEAST_DF,
    _chosen,
    fit_levels,
    level_influence,
    level_process,
    student_factor,
    without_spikes,
)
from mixmoe.varying.em_steps import own_natural, posterior
from mixmoe.varying.glr import joint_fit, null_law
from mixmoe.varying.joint_em import Control, fit_functions
from mixmoe.varying.leave_one_out import effective_df, fitness, left_out_of_experts, response_nodes
from mixmoe.varying.local_likelihood import build_local, local_start
from mixmoe.varying.local_maximum import local_maxima, maximise_local
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.problem import build_problem, centred
from mixmoe.varying.sandwich import ROOT, WHOLE, influence, level_covariance
from mixmoe.varying.smoothing import (
    Curve,
    integrated_wiener,
    local_linear_operator,
    posterior_mean,
    second_kernel,
    smoothed_functions,
    summed_influence,
    towards_line,
)
from mixmoe.varying.windows import epanechnikov, hermite_matrix
from tests.varying.helpers import make_problem

FORMULA = "y ~ z1 | gate: x1 | vary: u"


def fitted(n=300, **options):
    problem = make_problem(vcmoe(n=n, rng=1), 0.3, **options)
    return problem, fit_functions(problem, Control(n_starts=3), np.random.default_rng(0)).coef


def test_criteria_worked_by_hand():
    found = fitness(-100.0, 7.5, 40)
    assert found.aic == 215.0
    assert found.aicc == pytest.approx(219.047619, abs=1e-6)  # 215 + 2 * 7.5 * 8.5 / 31.5
    assert found.bic == pytest.approx(227.666596, abs=1e-6)  # 200 + 7.5 * 3.68887945
    assert fitness(-100.0, 38.5, 40).aicc == pytest.approx(277.0 + 2.0 * 38.5 * 39.5 / 0.5)
    assert np.isinf(fitness(-100.0, 39.0, 40).aicc)


def test_criteria_of_a_fit_are_those_of_its_numbers():
    fit = VCMoE(FORMULA, vcmoe(n=300, rng=1).data, bandwidth=0.3).fit(rng=0, starts=2)
    k, n = fit.effective_df, 300
    assert fit.aicc == pytest.approx(-2.0 * fit.llf + 2.0 * k * n / (n - k - 1.0))  # Hurvich and Tsai (1989)


def test_leverages_are_interpolated_between_the_two_grid_points_of_a_row():
    sim = vcmoe(n=200, family="poisson", experts=1, rng=3)
    problem = make_problem(sim, 0.5, n_grid=4, experts=1, family="poisson")
    coef = fit_functions(problem, Control(), np.random.default_rng(0)).coef
    rows, grid, h = problem.rows, problem.windows.grid, 0.5
    level = np.empty((4, 2, 2))
    for g in range(4):
        t = (rows.index - grid[g]) / h
        design = np.hstack([rows.design, rows.design * t[:, None]])
        mean = np.exp(design @ coef[g].ravel() + rows.offset)
        level[g] = np.linalg.inv(design.T @ (design * (epanechnikov(t) * mean)[:, None]))[:2, :2]
    total = 0.0
    own = np.exp(np.einsum("np,np->n", rows.design, curves_at(problem, coef)) + rows.offset)
    for i, u in enumerate(rows.index):
        here = np.array([[np.interp(u, grid, level[:, a, b]) for b in range(2)] for a in range(2)])
        total += 0.75 * own[i] * rows.design[i] @ here @ rows.design[i]
    assert effective_df(problem, coef) == pytest.approx(total, rel=1e-8)


def curves_at(problem, coef):
    """Expert coefficients of one expert at the rows, (n, p), by cubic Hermite interpolation."""
    grid, h, u = problem.windows.grid, problem.windows.bandwidth, problem.rows.index
    left = np.clip(np.searchsorted(grid, u, side="right") - 1, 0, len(grid) - 2)
    step = grid[left + 1] - grid[left]
    s = ((u - grid[left]) / step)[:, None]
    a, b = coef[left, 0], coef[left + 1, 0]
    da, db = (coef[left + j, 1] / h * step[:, None] for j in (0, 1))
    return (1 + 2 * s) * (1 - s) ** 2 * a + s * (1 - s) ** 2 * da + s * s * (3 - 2 * s) * b + s * s * (s - 1) * db


def test_undersmoothing_is_by_the_twentieth_root_of_n():
    problem, coef = fitted(400)
    process = level_process(problem, coef, "undersmooth")
    assert process.bandwidth == pytest.approx(0.3 * 0.7411344)  # exp(-log(400) / 20)
    narrow = build_problem(
        problem.rows, problem.family, problem.slots, problem.const, problem.windows.grid, 0.3 * 0.7411344491069477,
        0.3 * 0.7411344491069477, 0.01,
    )  # fmt: skip
    as_narrow = np.stack([coef[:, 0], coef[:, 1] * 0.7411344], axis=1)
    np.testing.assert_allclose(process.levels, level_process(narrow, as_narrow, "none").levels, atol=1e-6)


def test_reported_functions_are_two_thirds_drawn_to_a_line_and_one_third_spline():
    problem, coef = fitted()
    maxima = local_maxima(problem, coef)
    out, part = smoothed_functions(problem, maxima), maxima.parts[0]
    grid, h = problem.windows.grid, 0.3
    moves = summed_influence(part, np.arange(problem.slots.n))  # (units, G, 2, L)
    second = second_kernel(grid, h, np.ones(len(grid), dtype=bool))
    operator = local_linear_operator(part.local.windows, problem.rows.weights)
    for s in (0, 3, 6):
        lines, move = maxima.state[:, :, s], moves[:, :, :, s]
        smooth = move[:, :, 0] @ second.weights.T + move[:, :, 1] @ second.slopes.T
        levels = second.weights @ lines[:, 0] + second.slopes @ lines[:, 1]
        curve = Curve(grid, second.mass, levels, second.weights @ lines[:, 1], smooth.T @ smooth, h)
        noise = move[:, :, 0].T @ move[:, :, 0]
        spline = posterior_mean(lines[:, 0], noise, second.mass / h, operator, integrated_wiener(grid, h))
        line = towards_line(curve)
        assert np.abs(spline - line).max() > 1e-3
        np.testing.assert_allclose(3.0 * out[:, :, s], 2.0 * line + spline, atol=1e-9)


def test_factors_are_those_of_student():
    found = student_factor(np.array([1.959964]), np.array([[5.0], [30.0], [np.inf], [0.3]]))[:, 0]
    np.testing.assert_allclose(found, [2.570582, 2.042272, 1.959964, 4.302653], rtol=1e-5)  # printed tables; 2 at least
    assert LEAST_DF == 2.0


def quadratic_form(u, weights, h):
    """Matrix of ``RSS of the mean - RSS of local lines`` in standardised errors, from a regression at every row."""
    n = len(u)
    hat = np.empty((n, n))
    for i in range(n):
        kernel = np.clip(1.0 - ((u - u[i]) / h) ** 2, 0.0, None) * weights
        design = np.column_stack([np.ones(n), u - u[i]])
        hat[i] = np.linalg.solve(design.T @ (design * kernel[:, None]), design.T * kernel)[0]
    root = np.sqrt(weights)
    rests = [np.eye(n) - root[:, None] * s / root for s in (np.tile(weights / weights.sum(), (n, 1)), hat)]
    return rests[0].T @ rests[0] - rests[1].T @ rests[1]


def test_asymptotic_test_has_the_moments_of_the_smoother():
    fit = VCMoE(FORMULA, vcmoe("constant", 200, rng=3).data, bandwidth=0.4).fit(rng=0, starts=2)
    test = fit.test_varying("expert1.z1", method="asymptotic")
    gate = np.exp(own_natural(fit.model.problem, joint_fit(fit.model).run.coef).log_gate)
    index = fit.model.problem.rows.index
    form = quadratic_form(index, gate[0], 0.4)
    mean, variance = 0.5 * np.trace(form), 0.5 * np.trace(form @ form)
    scale = 2.0 * mean / variance
    assert test.df == pytest.approx(scale * mean)
    assert test.pvalue == pytest.approx(chi2.sf(scale * test.statistic, scale * mean))
    pair = fit.test_varying(["expert1.z1", "gate2.x1"], method="asymptotic")
    form = quadratic_form(index, gate[0] * gate[1], 0.4)
    mean, variance = mean + 0.5 * np.trace(form), variance + 0.5 * np.trace(form @ form)
    assert pair.df == pytest.approx(2.0 * mean**2 / variance)
    assert pair.pvalue == pytest.approx(chi2.sf(2.0 * mean / variance * pair.statistic, pair.df))


def test_null_law_of_sigma_has_the_moments_of_squared_residuals():
    problem = make_problem(vcmoe(n=120, experts=1, rng=1), 0.35, experts=1)
    law = null_law(problem, np.zeros((50, 2, 3)), np.array([2]))
    rows, rng = problem.rows, np.random.default_rng(0)
    form, residual = quadratic_form(rows.index, np.ones(120), 0.35), np.empty((120, 120))
    for i in range(120):
        t = rows.index - rows.index[i]
        lines = np.hstack([rows.design, rows.design * t[:, None]])
        kernel = np.clip(1.0 - (t / 0.35) ** 2, 0.0, None)
        lever = np.linalg.solve(lines.T @ (lines * kernel[:, None]), lines.T * kernel)
        residual[i] = np.eye(120)[i] - np.append(rows.design[i], [0.0, 0.0]) @ lever
    squares = (rng.standard_normal((40_000, 120)) @ residual.T) ** 2
    working = (squares / (residual**2).sum() * 120 - 1.0) / np.sqrt(2.0)
    draws = 0.5 * np.einsum("bi,ij,bj->b", working, form, working, optimize=True)
    assert law.df / law.scale == pytest.approx(draws.mean(), rel=0.03)  # columns are only nearly orthogonal
    assert 2.0 * law.df / law.scale**2 == pytest.approx(draws.var(), rel=0.08)
    assert 2.0 * law.df / law.scale**2 > 0.6 * np.trace(form @ form)  # of normal errors: half the trace


def test_null_law_far_from_the_ends_is_that_of_fan_zhang_and_zhang():
    problem = make_problem(vcmoe(n=200, rng=1), 0.3)
    even = replace(problem.rows.take(np.arange(200)), index=np.linspace(0.0, 1.0, 200))
    laws = {}
    for h in (0.1, 0.05):
        own = build_problem(even, problem.family, problem.slots, problem.const, np.linspace(0, 1, 20), h, h, 0.01)
        law = null_law(own, np.zeros((20, 2, problem.slots.n)), np.array([0]))
        laws[h] = np.array([law.df / law.scale, 2.0 * law.df / law.scale**2])  # mean, variance
    mean, variance = (laws[0.05] - laws[0.1]) / 10.0  # per |U| / h
    t = np.linspace(-2.0, 2.0, 4001)
    kernel = 0.75 * np.clip(1.0 - t * t, 0.0, None)
    twice = np.convolve(kernel, kernel, mode="same") * 0.001
    c_k = 0.75 - 0.5 * (kernel**2).sum() * 0.001
    r_k = c_k / (((kernel - 0.5 * twice) ** 2).sum() * 0.001)
    assert (c_k, r_k) == (pytest.approx(0.45, abs=1e-4), pytest.approx(2.1153, abs=1e-3))
    assert mean == pytest.approx(c_k, rel=0.02)
    assert 2.0 * mean / variance == pytest.approx(r_k, rel=0.02)


def test_null_law_of_theta_is_that_of_an_average():
    problem = make_problem(vcmoe(n=150, family="negbinomial", rng=1), 0.3, family="negbinomial")
    u = problem.rows.index
    kernel = np.clip(1.0 - ((u - u[:, None]) / 0.3) ** 2, 0.0, None)
    rest = np.eye(150) - kernel / kernel.sum(axis=1, keepdims=True)
    form = np.eye(150) - 1.0 / 150.0 - rest.T @ rest
    coef = np.zeros((50, 2, problem.slots.n))
    law = null_law(problem, coef, np.array([problem.slots.dispersions.start]))
    assert law.df / law.scale == pytest.approx(0.5 * np.trace(form))
    assert 2.0 * law.df / law.scale**2 == pytest.approx(0.5 * np.trace(form @ form))


def test_calibrated_null_has_the_mean_and_variance_of_the_draws():
    fit = VCMoE(FORMULA, vcmoe("constant", 300, rng=3).data, bandwidth=0.4).fit(rng=0, starts=2)
    test = fit.test_varying("expert1.z1", method="calibrated", n_boot=80, rng=0)
    mean, variance = test.null.mean(), test.null.var(ddof=1)
    scale = 2.0 * mean / variance  # of a chi-square with `df` degrees of freedom: mean df, variance 2 df
    assert len(test.null) == 20
    assert test.df == pytest.approx(scale * mean)
    assert test.pvalue == pytest.approx(chi2.sf(scale * test.statistic, scale * mean))


def test_bandwidth_of_robust_bias_correction_is_that_of_the_fit_and_its_degree_two():
    problem, coef = fitted()
    process = level_process(problem, coef, "rbc")
    assert (process.bandwidth, process.degree) == (0.3, 2)
    local = build_local(problem, 2)
    assert (local.free.sum(axis=0) == [3, 3, 3, 3, 2, 2, 3, 3]).all()  # log sigma keeps its line
    assert (process.fits.local.free.sum(axis=0) == [3, 3, 3, 3, 1, 1, 3, 3]).all()  # and is constant behind the rest


def test_bands_of_sigma_are_those_of_its_line_and_the_others_those_of_a_constant():
    """Levels, covariance and degrees of freedom come from the one local likelihood or from the other."""
    problem, coef = fitted()
    process, (inner, centring) = level_process(problem, coef, "rbc"), centred(problem)
    line = build_local(inner, 2)
    free = line.free.copy()
    free[1, 4:6] = False
    start = local_start(line, centring.inwards(inner.slots, coef))
    sigma, rest = np.arange(4, 6), np.array([0, 1, 2, 3, 6, 7])
    turn = centring.matrix(inner.slots)
    for local, functions in ((line, sigma), (replace(line, free=free), rest)):
        found = maximise_local(local, np.where(local.free | (np.arange(3) == 0)[:, None], start, 0.0))
        inf = influence(local, found.coef, WHOLE)
        levels, matrix = found.coef[:, 0] @ turn.T, level_covariance(inf).matrix
        smooth = without_spikes(matrix.reshape(*levels.shape, *levels.shape), problem.windows)
        variance = np.einsum("glgm->glm", smooth)
        variance = np.einsum("al,glm,am->ga", turn, variance, turn)
        np.testing.assert_allclose(process.levels[:, functions], levels[:, functions], atol=1e-6)
        own = np.einsum("glgl->gl", process.covariance)
        np.testing.assert_allclose(own[:, functions], variance[:, functions], rtol=1e-4)


def test_sigma_does_not_run_down_where_the_index_thins_out():
    """Seed chosen because it did: a line in log sigma ended at .07, a fifth of the truth, and hid errors of ten SEs."""
    sim = vcmoe(n=600, index_shape=(2.0, 2.0), rng=705020)
    fit = VCMoE(FORMULA, sim.data, bandwidth=0.25, n_grid=25).fit(rng=0, starts=2)
    fits = level_process(fit.model.problem, fit.model.coef).fits
    at_end, dispersions = -1, fits.local.problem.slots.dispersions
    flat, line = (np.exp(one.fit.coef[at_end, 0, dispersions]) for one in (fits.bounded, fits.lines.bounded))
    assert flat.min() > 0.25 > 2.0 * line.min()


def test_standard_errors_of_bands_do_not_jump_at_single_grid_points():
    """Seed chosen because they did: one row between two experts took most of the observed information of a window."""
    sim = vcmoe(n=600, index_shape=(2.0, 2.0), rng=705071)
    fit = VCMoE(FORMULA, sim.data, bandwidth=0.28).fit(rng=0, starts=2)
    process = level_process(fit.model.problem, fit.model.coef)
    raw = level_covariance(level_influence(process.fits, WHOLE)).matrix.reshape(50, 8, 50, 8)
    smooth, windows = without_spikes(raw, fit.model.problem.windows), fit.model.problem.windows
    before, after = (np.sqrt(np.einsum("glgl->gl", each)) for each in (raw, smooth))
    assert (before[1:-1] / np.fmax(before[:-2], before[2:]))[6:-6, :4].max() > 3.0
    for g in range(7, 43):
        np.testing.assert_allclose(after[g], np.minimum(before[g], np.maximum(before[g - 1], before[g + 1])))
    np.testing.assert_array_equal(after[[0, -1]], before[[0, -1]])
    unit = smooth[20:30, :4, 20:30, :4].reshape(40, 40) / np.outer(*[after[20:30, :4].ravel()] * 2)
    raw_unit = raw[20:30, :4, 20:30, :4].reshape(40, 40) / np.outer(*[before[20:30, :4].ravel()] * 2)
    np.testing.assert_allclose(unit, raw_unit, atol=1e-12)  # correlations stay
    far_apart = replace(windows, grid=10.0 * windows.grid)
    np.testing.assert_array_equal(without_spikes(raw, far_apart), raw)


def test_variance_of_a_mixture_is_the_jackknife_and_its_degrees_of_freedom_those_of_hc2():
    problem, coef = fitted(n=200)
    inner, centring = centred(problem)
    process = level_process(problem, coef, "none")
    local = build_local(inner, 1)
    found = maximise_local(local, local_start(local, centring.inwards(inner.slots, coef)))
    nodes = response_nodes(inner, own_natural(inner, found.coef))
    whole, root = (level_covariance(influence(local, found.coef, power, nodes)) for power in (WHOLE, ROOT))
    slopes = np.array([1, 3, 4, 5, 7])  # the functions that centring leaves alone
    own = np.einsum("glgl->gl", process.covariance)[:, slopes]
    np.testing.assert_allclose(own, np.diag(whole.matrix).reshape(-1, 8)[:, slopes], rtol=1e-6)
    assert (own > np.diag(root.matrix).reshape(-1, 8)[:, slopes]).all()
    np.testing.assert_allclose(process.df[:, slopes], root.df.reshape(-1, 8)[:, slopes], rtol=1e-6)


def test_held_out_experts_are_regressions_without_the_row():
    """Brute force: each expert's weighted local lines at the two grid points beside a row, fitted without it."""
    problem = make_problem(vcmoe(n=120, rng=4), 0.4, n_grid=8)
    coef = fit_functions(problem, Control(n_starts=3), np.random.default_rng(0)).coef
    resp = posterior(problem.rows, problem.family, own_natural(problem, coef)).weighted
    found = left_out_of_experts(problem, coef, np.array([1.0, 0.8]))
    y, u, X = problem.rows.outcome.y, problem.rows.index, problem.rows.design
    grid = problem.windows.grid
    for row, h in enumerate((0.4, 0.32)):
        levels = hermite_matrix(grid, h, u)
        errors = np.empty((2, 120))
        for k in range(2):
            for i in range(120):
                lines = np.zeros((8, 2, 2))
                for g in np.unique(levels[[i]].indices // 2):
                    t = (u - grid[g]) / h
                    w = np.clip(1 - t**2, 0, None) * resp[k] * (np.arange(120) != i)
                    Z = np.hstack([X, X * t[:, None]]) * np.sqrt(w)[:, None]
                    lines[g] = np.linalg.lstsq(Z, y * np.sqrt(w), rcond=None)[0].reshape(2, 2)
                errors[k, i] = y[i] - X[i] @ (levels[[i]] @ lines.reshape(16, 2))[0]
        variance = (resp * errors**2).sum(axis=1) / resp.sum(axis=1)
        right = -0.5 * np.log(2 * np.pi * variance)[:, None] - 0.5 * errors**2 / variance[:, None]
        np.testing.assert_allclose(found[row], (resp * right).sum(axis=0), atol=1e-8)


def test_the_widest_bandwidth_within_one_standard_error_is_chosen():
    best = np.array([1.0, 2.0, 3.0, 4.0])
    lost = np.array([0.5, 0.5, -0.5, 1.5])  # 2.0 in all; standard error 2 * sqrt(.5) = 1.41
    near = np.array([1.0, -1.0, 1.0, 0.0])  # 1.0 in all; 2 * sqrt(.6875) = 1.66
    assert _chosen(np.stack([best - lost, best - near, best])) == 1
    assert _chosen(np.stack([best, best - near])) == 0


@pytest.mark.parametrize(("n", "h", "searched", "wanted"), [
    (300, 0.3, True, 0.3 * 0.7518720),  # 300^(-1/20)
    (300, 0.3, False, 0.3),
    (300, 0.05, True, 0.05),  # windows of about 25 effective rows, 6 coefficients
])  # fmt: skip
def test_bands_at_a_searched_bandwidth_are_narrower_where_rows_are_many(n, h, searched, wanted):
    problem = make_problem(vcmoe(n=n, rng=1), h, n_grid=6, experts=1)
    fits = fit_levels(problem, np.zeros((6, 2, problem.slots.n)), "rbc", 0, searched)
    assert fits.local.windows.bandwidth == pytest.approx(wanted)


def test_slopes_at_a_searched_bandwidth_are_estimated_at_the_larger_one_that_they_need():
    """Fan and Gijbels (1996, table 3.2): 2.275 n^(-1/7) for 1.719 n^(-1/5), 300^(2/35) = 1.3853; at most two ranges."""
    for h, wanted in ((0.2, 0.2 * 2.275 / 1.719 * 1.385328), (1.9, 2.0 * np.ptp(vcmoe(n=300, rng=1).data["u"]))):
        problem = make_problem(vcmoe(n=300, rng=1), h, n_grid=6, experts=1)
        fits = fit_levels(problem, np.zeros((6, 2, problem.slots.n)), "rbc", 1, True)
        assert fits.local.windows.bandwidth == pytest.approx(wanted, rel=1e-5)
        assert fit_levels(problem, np.zeros((6, 2, problem.slots.n)), "rbc", 1).local.windows.bandwidth == h


def test_bands_of_a_mixture_at_a_searched_bandwidth_follow_its_experts():
    """A full sine under windows of half the range: the regressions of the experts ask for far narrower ones."""
    problem = make_problem(vcmoe(n=600, rng=1), 0.5, n_grid=25)
    coef = fit_functions(problem, Control(n_starts=3), np.random.default_rng(0)).coef
    wide, narrow = (fit_levels(problem, coef, "rbc", 0, searched).local.windows.bandwidth for searched in (False, True))
    assert wide == 0.5
    factors = 600**-0.05 / 1.1 ** np.arange(20)
    logliks = left_out_of_experts(problem, coef, factors[:10]).sum(axis=1)
    assert 0.15 < narrow < 0.3
    assert logliks[np.abs(0.5 * factors[:10] - narrow).argmin()] > logliks[0] + 2.0


def test_weights_of_the_rows_enter_leverages_once():
    problem, coef = fitted()
    doubled = replace(problem, rows=problem.rows.with_weights(2.0 * problem.rows.weights))
    assert effective_df(doubled, coef) == pytest.approx(effective_df(problem, coef), rel=1e-6)
