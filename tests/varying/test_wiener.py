"""Functions by empirical Bayes against dense conditioning and a direct restricted likelihood."""

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.optimize import minimize_scalar

from mixmoe.varying import smoothing as wiener
from mixmoe.varying.smoothing import integrated_wiener, local_linear_operator, posterior_mean, restricted_maximum
from mixmoe.varying.windows import build_windows, epanechnikov

GRID = np.linspace(2.0, 6.0, 25)
BANDWIDTH = 0.9
LENGTHS = np.full(25, 4.0 / 24 / BANDWIDTH)


@pytest.fixture(scope="module")
def windows():
    index = np.sort(2.0 + 4.0 * np.random.default_rng(3).beta(2.0, 3.0, 400))
    index[[0, -1]] = GRID[[0, -1]]
    return build_windows(index, GRID, BANDWIDTH)


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(4).uniform(0.2, 2.0, 400)


@pytest.fixture(scope="module")
def operator(windows, weights):
    return local_linear_operator(windows, weights)


@pytest.fixture(scope="module")
def covariance(operator):
    return 0.04 * operator @ operator.T + 1e-4 * np.eye(len(GRID))


def test_operator_is_weighted_local_linear_regression(windows, weights, operator):
    values = np.sin(GRID)
    at_rows = np.interp(windows.index, GRID, values)
    for g in (0, 7, 24):
        t = windows.index - GRID[g]
        root = np.sqrt(epanechnikov(t / BANDWIDTH) * weights)
        line = np.linalg.lstsq(np.column_stack([root, root * t]), root * at_rows, rcond=None)[0]
        assert operator[g] @ values == pytest.approx(line[0], abs=1e-10)


def test_operator_leaves_lines_and_marks_windows_without_one(operator):
    np.testing.assert_allclose(operator @ (3.0 - 2.0 * GRID), 3.0 - 2.0 * GRID, atol=1e-10)
    tied = build_windows(np.repeat(GRID[::6], 4), GRID[::6], 0.5)
    assert np.isnan(local_linear_operator(tied, np.ones(len(tied.index)))).any(axis=1).all()


def test_kernel_is_the_covariance_of_an_integrated_wiener_process():
    process = integrated_wiener(GRID, BANDWIDTH)
    u = (GRID - 2.0) / 4.0
    step = np.linspace(0.0, 1.0, 20001)
    ramps = np.clip(u[:, None] - step, 0.0, None)  # W(u) = int (u - s)_+ dB(s)
    np.testing.assert_allclose(process.kernel, trapezoid(ramps[:, None] * ramps, step), atol=1e-6)
    fine = integrated_wiener(np.linspace(2.0, 6.0, 2001), BANDWIDTH)
    slope = np.gradient(fine.kernel, fine.line[:, 1], axis=0) * BANDWIDTH / 4.0
    np.testing.assert_allclose(fine.kernel_slope[1:-1], slope[1:-1], atol=1e-6)
    np.testing.assert_allclose(np.gradient(process.line[:, 1], GRID) * BANDWIDTH, process.line_slope[:, 1])


def restricted_loglik(tau, z, x, noise, signal):
    """From the density of z with a diffuse line (Harville 1974)."""
    variance = noise + tau * signal
    inverse = np.linalg.inv(variance)
    projection = inverse - inverse @ x @ np.linalg.solve(x.T @ inverse @ x, x.T @ inverse)
    return -0.5 * (np.linalg.slogdet(variance)[1] + np.linalg.slogdet(x.T @ inverse @ x)[1] + z @ projection @ z)


def test_tau_maximises_the_restricted_likelihood(operator, covariance):
    process = integrated_wiener(GRID, BANDWIDTH)
    x, signal = operator @ process.line, operator @ process.kernel @ operator.T
    z = operator @ np.sin(1.5 * GRID) + 0.05 * np.random.default_rng(0).normal(size=len(GRID))
    tau = restricted_maximum(z, x, covariance, signal)
    found = minimize_scalar(
        lambda s: -restricted_loglik(np.exp(s), z, x, covariance, signal), bounds=(-5.0, 12.0), method="bounded"
    )
    assert restricted_loglik(tau, z, x, covariance, signal) >= -found.fun - 1e-7


def test_tau_is_zero_for_a_line(operator, covariance):
    process = integrated_wiener(GRID, BANDWIDTH)
    x, signal = operator @ process.line, operator @ process.kernel @ operator.T
    assert restricted_maximum(x @ [1.0, -3.0], x, covariance, signal) == 0.0
    found = posterior_mean(x @ [1.0, -3.0], covariance, LENGTHS, operator, process)
    np.testing.assert_allclose(found[:, 0], process.line @ [1.0, -3.0], atol=1e-9)
    np.testing.assert_allclose(found[:, 1], -3.0 * BANDWIDTH / 4.0, atol=1e-9)


def test_posterior_mean_is_that_of_a_joint_normal(operator, covariance, monkeypatch):
    process, some = integrated_wiener(GRID, BANDWIDTH), np.arange(2, 23)
    lengths = np.linspace(0.1, 0.3, 21)
    levels = (operator @ np.sin(1.5 * GRID))[some]
    given, inner = covariance[np.ix_(some, some)], operator[some]
    monkeypatch.setattr(wiener, "restricted_maximum", lambda *_: 300.0)
    found = posterior_mean(levels, given, lengths, inner, process)
    prior = 300.0 * process.kernel + 1e5 * process.line @ process.line.T
    noisy = inner @ prior @ inner.T + given + wiener.WHITE * np.diag(np.diag(given) / lengths)
    np.testing.assert_allclose(found[:, 0], prior @ inner.T @ np.linalg.solve(noisy, levels), atol=1e-3)
    np.testing.assert_allclose(
        np.gradient(found[:, 0], GRID)[3:-3] * BANDWIDTH, found[3:-3, 1], atol=0.05 * np.abs(found[:, 1]).max()
    )


def test_a_clear_bend_is_kept_and_noise_is_not(operator, covariance):
    process, rng = integrated_wiener(GRID, BANDWIDTH), np.random.default_rng(5)
    draw = rng.multivariate_normal(np.zeros(len(GRID)), covariance, size=200)
    bend, line = np.sin(1.5 * GRID), 0.2 * GRID
    for truth, least in ((5.0 * bend, 0.9), (line, 0.5)):
        raw = operator @ truth + draw
        found = np.array([posterior_mean(y, covariance, LENGTHS, operator, process)[:, 0] for y in raw])
        error, before = ((found - truth) ** 2).mean(), ((raw - truth) ** 2).mean()
        assert error < least * before
