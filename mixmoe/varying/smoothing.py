"""The functions that are reported: local maxima, smoothed once more, drawn towards lines, and averaged with a spline.

References
----------
He, H. and Huang, L.-S. (2009). Double-smoothing for bias reduction in local linear regression. J. Statist. Plann.
Inference 139, 1056-1072.
Bock, M. E. (1975). Minimax estimators of the mean of a multivariate normal distribution. Ann. Statist. 3, 209-218.
Green, E. J. and Strawderman, W. E. (1991). A James-Stein type estimator for combining unbiased and possibly biased
estimators. JASA 86, 1001-1006.

Notes
-----
The value at a grid point is the average, by a second kernel, of the local lines of its neighbours at that point. He and
Huang take the second kernel as wide as the first, which removes the leading bias of the local line for up to 1.5 times
its variance. Ours is half as wide: a quarter of the leading bias goes, for up to 1.15 times the variance inside the
range and 0.83 times at its ends, where it is largest.

The smoothed function f is then drawn towards a line l through it: ``l + (1 - s) (f - l)``. The share s is what noise
alone would explain of the distance, ``s = min(1, (tr C - 2 max eig C) / |f - l|^2)``: Bock's James-Stein factor, with
distances in standard errors of f and C the estimated covariance of ``f - l`` in these units. It lowers the expected sum
of squared errors in standard errors whatever the function, and it does so for every function on its own.

A third of the reported function is the posterior mean of `mixmoe.varying.wiener`, a smoothing spline through the same
local maxima that knows where they are noisy. On its own it has the smaller error in most samples and a larger one
where a bend within the noise is taken for none; the average keeps most of the gain and is rarely worse.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.local import epanechnikov
from mixmoe.varying.local_likelihood import (
    local_information,
    local_pieces,
    natural_design,
    positive_definite,
    unit_diagonal,
)
from mixmoe.varying.local_maximum import LocalMaxima, LocalPart, on_limit
from mixmoe.varying.problem import Problem
from mixmoe.varying.steps import limit_dispersion
from mixmoe.varying.wiener import SMALLEST, integrated_wiener, local_linear_operator, posterior_mean

Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.intp]

SECOND = 0.5  # width of the second kernel, as a share of the bandwidth
LEAST_POINTS = 4  # a line leaves nothing of two points, and one of three has no covariance
SPLINE = 1.0 / 3.0  # share of the spline in the reported function
NUMBERS_HELD = 1 << 23  # influences held at once; where there are more, rows are taken together


def smoothed_functions(problem: Problem, maxima: LocalMaxima) -> Array:
    """The reported state, from maxima of the local likelihoods.

    Parameters
    ----------
    problem : Problem
    maxima : LocalMaxima

    Returns
    -------
    ndarray, shape (G, 2, L)
        Functions without a local slope, grid points without a regular maximum, and a dispersion that touches its limit
        somewhere are left as they are.
    """
    out = maxima.state.copy()
    untouched = ~_touches_limit(problem, maxima.state)
    for part in maxima.parts:
        functions = part.functions[part.local.free[1, part.functions] & untouched[part.functions]]
        if not len(functions):
            continue
        moves = summed_influence(part, functions)  # (units, G, 2, F)
        windows = part.local.windows
        operator = local_linear_operator(windows, problem.rows.weights)
        regular = part.fit.converged & np.isfinite(moves).all(axis=(0, 2, 3)) & np.isfinite(operator).all(axis=1)
        if regular.sum() < LEAST_POINTS:
            continue
        second = second_kernel(windows.grid, windows.bandwidth, regular)
        lengths = second.mass[regular] / windows.bandwidth
        process = integrated_wiener(windows.grid, windows.bandwidth)
        for j, s in enumerate(functions):
            curve = _average(second, maxima.state[:, :, s], moves[:, :, :, j])
            levels, move = maxima.state[regular, 0, s], moves[:, regular, 0, j]
            spline = posterior_mean(levels, move.T @ move, lengths, operator[regular], process)[regular]
            out[regular, :, s] = (1.0 - SPLINE) * towards_line(_at(curve, regular)) + SPLINE * spline
    return limit_dispersion(problem, out)


def _touches_limit(problem: Problem, coef: Array) -> BoolArray:
    """Which functions are dispersions on a limit somewhere, shape (L,)."""
    out = np.zeros(problem.slots.n, dtype=bool)
    out[problem.slots.dispersions] = on_limit(problem, coef).any(axis=0)
    return out


def summed_influence(part: LocalPart, functions: IntArray) -> Array:
    """First-order influence of rows on levels and slopes at every grid point.

    Parameters
    ----------
    part : LocalPart
    functions : ndarray of int, shape (F,)

    Returns
    -------
    ndarray, shape (units, G, 2, F)
        NaN at grid points where the information is not positive definite. Units are rows, or sets of them where there
        are many: sums over sets have the same expected squares. A row of weight w counts as w rows.
    """
    local, coef = part.local, part.fit.coef
    n, (n_grid, _, n_slots) = local.problem.rows.n, coef.shape
    units = np.arange(n) % max(NUMBERS_HELD // (2 * n_grid * n_slots), 2)
    out = np.zeros((int(units.max()) + 1, n_grid, 2 * len(functions)))
    columns = np.concatenate([functions, n_slots + functions])
    weights = local.problem.rows.weights
    shares = 1.0 / np.sqrt(np.where(weights > 0.0, weights, 1.0))
    for block, terms in local_pieces(local, coef):
        information = local_information(local, block, terms.information, terms.kernel)
        score = terms.score * terms.kernel * shares[block.rows]
        for g in range(block.last - block.first):
            span = slice(int(block.offsets[g]), int(block.offsets[g + 1]))
            rows = slice(int(block.lo[g]), int(block.hi[g]))
            gradient = np.einsum("dw,wdk->wk", score[:, span], natural_design(local, rows, block.t[span]))
            move = gradient @ _inverse(information[g])[:, columns]
            np.add.at(out[:, block.first + g], units[rows], move)
    return out.reshape(len(out), n_grid, 2, len(functions))


def _inverse(information: Array) -> Array:
    """Inverse of an information matrix, NaN if it is not positive definite."""
    if not positive_definite(information[None])[0]:
        return np.full_like(information, np.nan)
    unit, root = unit_diagonal(information[None])
    out: Array = np.linalg.inv(unit[0]) * np.outer(root[0], root[0])
    return out


@dataclass(frozen=True, slots=True)
class SecondKernel:
    """Averages of the lines of neighbouring grid points.

    Attributes
    ----------
    grid : ndarray, shape (G,)
    bandwidth : float
        That of the lines.
    mass : ndarray, shape (G,)
        Length of the index that each grid point stands for; zero where it takes no part.
    weights : ndarray, shape (G, G)
        Of the neighbours (columns) at each grid point, sums one.
    """

    grid: Array
    bandwidth: float
    mass: Array
    weights: Array

    @property
    def slopes(self) -> Array:
        """Weights of the slopes of the neighbours, per bandwidth, in the levels."""
        return self.weights * (self.grid[:, None] - self.grid) / self.bandwidth


def second_kernel(grid: Array, bandwidth: float, regular: BoolArray) -> SecondKernel:
    """Second kernel over those grid points that have a regular maximum; the others keep their own values."""
    steps = np.diff(grid)
    mass = 0.5 * (np.append(steps, 0.0) + np.append(0.0, steps)) * regular
    weights = epanechnikov((grid[:, None] - grid) / (SECOND * bandwidth)) * mass
    weights[~regular] = np.eye(len(grid))[~regular]
    return SecondKernel(grid, bandwidth, mass, weights / weights.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Curve:
    """A function on the grid with its covariance.

    Attributes
    ----------
    at, mass : ndarray, shape (G,)
        Index values, and the length that each stands for.
    levels, slopes : ndarray, shape (G,)
        Slopes are per bandwidth.
    covariance : ndarray, shape (G, G)
        Of the levels.
    bandwidth : float
    """

    at: Array
    mass: Array
    levels: Array
    slopes: Array
    covariance: Array
    bandwidth: float


def _average(second: SecondKernel, lines: Array, moves: Array) -> Curve:
    """The function behind local lines (G, 2), with their influences (units, G, 2)."""
    used = second.mass > 0.0
    move = moves[:, used, 0] @ second.weights[:, used].T + moves[:, used, 1] @ second.slopes[:, used].T
    levels = second.weights @ lines[:, 0] + second.slopes @ lines[:, 1]
    slopes = second.weights @ lines[:, 1]
    return Curve(second.grid, second.mass, levels, slopes, move.T @ move, second.bandwidth)


def _at(curve: Curve, points: BoolArray) -> Curve:
    """The function at some of its grid points."""
    return Curve(
        curve.at[points],
        curve.mass[points],
        curve.levels[points],
        curve.slopes[points],
        curve.covariance[np.ix_(points, points)],
        curve.bandwidth,
    )


def towards_line(curve: Curve) -> Array:
    """Levels and slopes, shape (G, 2), drawn towards the line that fits the levels best.

    Parameters
    ----------
    curve : Curve

    Returns
    -------
    ndarray, shape (G, 2)
    """
    variance = np.diag(curve.covariance)
    root = np.sqrt(curve.mass / np.maximum(variance, np.finfo(float).eps * variance.max() + SMALLEST))
    basis = np.column_stack([np.ones_like(curve.at), (curve.at - curve.at.mean()) / curve.bandwidth])
    orthonormal, triangle = np.linalg.qr(basis * root[:, None])
    rest = np.eye(len(root)) - orthonormal @ orthonormal.T
    away = rest @ (root * curve.levels)
    noise = rest @ (curve.covariance * np.outer(root, root)) @ rest
    bound, distance = np.trace(noise) - 2.0 * np.linalg.eigvalsh(noise)[-1], away @ away
    kept = 1.0 - bound / distance if 0.0 < bound < distance else float(bound <= 0.0)
    line = np.linalg.solve(triangle, orthonormal.T @ (root * curve.levels))
    levels, slopes = basis @ line, line[1]
    return np.column_stack([levels + kept * (curve.levels - levels), slopes + kept * (curve.slopes - slopes)])
