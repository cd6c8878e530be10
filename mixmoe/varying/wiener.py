"""Functions by empirical Bayes from local-linear estimates: an integrated Wiener process behind them.

References
----------
Wahba, G. (1978). Improper priors, spline smoothing and the problem of guarding against model errors in regression.
JRSS B 40, 364-372: the posterior mean is a cubic smoothing spline.
Patterson, H. D. and Thompson, R. (1971). Recovery of inter-block information when block sizes are unequal. Biometrika
58, 545-554: restricted likelihood.

Notes
-----
A local-linear estimate y is a linear operator S applied to the function f plus noise with the covariance C of the
estimates. With ``f = b_0 + b_1 u + sqrt(tau) W(u)``, W an integrated Wiener process with kernel K, ``y ~ N(S B b, tau S
K S' + C)``, tau has a restricted likelihood, and the posterior mean of f follows in closed form. A function that is a
line gets tau = 0 in about half of all samples. Where the estimate is noisy, near the ends above all, the posterior
leans on the rest of the function.

C is nearly singular: it says that differences of neighbouring estimates are known almost exactly, which they are not,
since it is a first-order covariance. White noise is added whose average over a bandwidth has a hundredth of the
variance of an estimate, whatever the grid.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize_scalar

from mixmoe.kernels.local import Windows, epanechnikov, linear_matrix

Array = NDArray[np.float64]

WHITE = 0.01  # variance of the average of the added noise over a bandwidth, as a share of that of an estimate
DECADES = 4.0  # tau is sought this many decades around the value at which signal and noise are equal
MESH = 33
FLAT = 1e-10  # determinant of a local line over that of uncorrelated powers, below which there is none
SMALLEST = 1e-100  # of a variance, so that its inverse and the square of that are numbers


def local_linear_operator(windows: Windows, weights: Array) -> Array:
    """Weights of the values of a function at the grid points in its local-linear estimate there, (G, G).

    Parameters
    ----------
    windows : Windows
    weights : ndarray, shape (n,)
        Of the rows.

    Returns
    -------
    ndarray, shape (G, G)
        Exact for functions that are linear between grid points. Rows of NaN where a window has no line.
    """
    between = linear_matrix(windows.grid, windows.index)
    out = np.empty((windows.n_grid, windows.n_grid))
    for g in range(windows.n_grid):
        rows = slice(int(windows.lo[g]), int(windows.hi[g]))
        t = (windows.index[rows] - windows.grid[g]) / windows.bandwidth
        kernel = epanechnikov(t) * weights[rows]
        s0, s1, s2 = kernel.sum(), kernel @ t, kernel @ (t * t)
        determinant = s0 * s2 - s1 * s1
        line = kernel * (s2 - s1 * t) / determinant if determinant > FLAT * s0 * s2 else np.full(len(t), np.nan)
        out[g] = between[rows].T @ line
    return out


@dataclass(frozen=True, slots=True)
class Wiener:
    """An integrated Wiener process on a grid, with its line.

    Attributes
    ----------
    kernel, kernel_slope : ndarray, shape (G, G)
        Covariance of the process, and that of its slope (rows) with it.
    line, line_slope : ndarray, shape (G, 2)
    """

    kernel: Array
    kernel_slope: Array
    line: Array
    line_slope: Array


def integrated_wiener(grid: Array, bandwidth: float) -> Wiener:
    """The process that begins at the first grid point; slopes are per bandwidth."""
    u = (grid - grid[0]) / (grid[-1] - grid[0])
    least, most = np.minimum(u[:, None], u), np.maximum(u[:, None], u)
    unit = bandwidth / (grid[-1] - grid[0])
    slope = np.where(u[:, None] < u, u[:, None] * u - 0.5 * u[:, None] ** 2, 0.5 * u**2)
    ones, zeros = np.ones_like(u), np.zeros_like(u)
    return Wiener(
        least**2 * (3.0 * most - least) / 6.0,
        unit * slope,
        np.column_stack([ones, u - 0.5]),
        np.column_stack([zeros, unit * ones]),
    )


def posterior_mean(levels: Array, covariance: Array, lengths: Array, operator: Array, process: Wiener) -> Array:
    """Levels and slopes of a function behind local-linear estimates of it.

    Parameters
    ----------
    levels : ndarray, shape (m,)
        Estimates at some grid points, at least three.
    covariance : ndarray, shape (m, m)
    lengths : ndarray, shape (m,)
        Length of the index that each estimate stands for, in bandwidths.
    operator : ndarray, shape (m, G)
        From the function at all grid points to the expected estimates.
    process : Wiener

    Returns
    -------
    ndarray, shape (G, 2)
    """
    variance = np.diag(covariance)
    root = np.sqrt(np.maximum(variance, np.finfo(float).eps * variance.max() + SMALLEST))
    scaled = operator / root[:, None]
    z, x = levels / root, scaled @ process.line
    noise = covariance / np.outer(root, root) + np.diag(WHITE / lengths)
    signal = scaled @ process.kernel @ scaled.T
    tau = restricted_maximum(z, x, noise, signal)
    factor = cho_factor(noise + tau * signal)
    beta = np.linalg.solve(x.T @ cho_solve(factor, x), x.T @ cho_solve(factor, z))
    pull = tau * (scaled.T @ cho_solve(factor, z - x @ beta))
    return np.column_stack(
        [process.line @ beta + process.kernel @ pull, process.line_slope @ beta + process.kernel_slope @ pull]
    )


def restricted_maximum(z: Array, x: Array, noise: Array, signal: Array) -> float:
    """Restricted maximum-likelihood estimate of tau in ``z ~ N(x b, noise + tau signal)``; zero if that is as good."""
    rest = np.linalg.qr(x, mode="complete")[0][:, x.shape[1] :]
    root = np.linalg.cholesky(rest.T @ noise @ rest)
    half = solve_triangular(root, rest.T, lower=True)
    strength, turn = np.linalg.eigh(half @ signal @ half.T)
    strength, squares = np.maximum(strength, 0.0), (turn.T @ (half @ z)) ** 2
    equal = np.log(len(z) / max(float(strength.sum()), np.finfo(float).tiny))

    def deviance(log_tau: float) -> float:
        variance = 1.0 + np.exp(log_tau) * strength
        return float(np.sum(np.log(variance) + squares / variance))

    reach = DECADES * np.log(10.0)
    mesh = np.linspace(equal - reach, equal + reach, MESH)
    best = int(np.argmin([deviance(s) for s in mesh]))
    ends = mesh[max(best - 1, 0)], mesh[min(best + 1, MESH - 1)]
    found = minimize_scalar(deviance, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)) if found.fun < squares.sum() else 0.0
