"""The functions that are reported: local maxima smoothed and drawn towards lines; refits to other rows.

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

A third of the reported function is the posterior mean of `posterior_mean`, a smoothing spline through the same
local maxima that knows where they are noisy. On its own it has the smaller error in most samples and a larger one
where a bend within the noise is taken for none; the average keeps most of the gain and is rarely worse.

A local-linear estimate y is a linear operator S applied to the function f plus noise with the covariance C of the
estimates. With ``f = b_0 + b_1 u + sqrt(tau) W(u)``, W an integrated Wiener process with kernel K, ``y ~ N(S B b, tau S
K S' + C)``, tau has a restricted likelihood, and the posterior mean of f follows in closed form. A function that is a
line gets tau = 0 in about half of all samples. Where the estimate is noisy, near the ends above all, the posterior
leans on the rest of the function.

C is nearly singular: it says that differences of neighbouring estimates are known almost exactly, which they are not,
since it is a first-order covariance. White noise is added whose average over a bandwidth has a hundredth of the
variance of an estimate, whatever the grid.

References
----------
He, H. and Huang, L.-S. (2009). Double-smoothing for bias reduction in local linear regression. J. Statist. Plann.
Inference 139, 1056-1072.
Bock, M. E. (1975). Minimax estimators of the mean of a multivariate normal distribution. Ann. Statist. 3, 209-218.
Green, E. J. and Strawderman, W. E. (1991). A James-Stein type estimator for combining unbiased and possibly biased
estimators. JASA 86, 1001-1006.
Wahba, G. (1978). Improper priors, spline smoothing and the problem of guarding against model errors in regression.
JRSS B 40, 364-372: the posterior mean is a cubic smoothing spline.
Patterson, H. D. and Thompson, R. (1971). Recovery of inter-block information when block sizes are unequal. Biometrika
58, 545-554: restricted likelihood.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize_scalar

from mixmoe._typing import Array, BoolArray, IntArray
from mixmoe.responses.exponential import StudentT
from mixmoe.varying.em_steps import limit_dispersion, own_natural, posterior
from mixmoe.varying.joint_em import Control, Run, best_run, fit_carried, fit_functions
from mixmoe.varying.leave_one_out import effective_df
from mixmoe.varying.local_likelihood import (
    local_information,
    local_pieces,
    natural_design,
    positive_definite,
    unit_diagonal,
)
from mixmoe.varying.local_maximum import LocalMaxima, LocalPart, local_maxima, on_limit
from mixmoe.varying.problem import Problem, Slots, build_problem, centred
from mixmoe.varying.starts import permute_experts, reported_order
from mixmoe.varying.windows import LINE, Windows, epanechnikov, linear_matrix, wrapped

SHARES = (1.0, 0.5, 0.25)  # of the way from the local maxima to the smoothed functions


@dataclass(frozen=True, slots=True)
class From:
    """Where to start.

    Attributes
    ----------
    random : bool
        Random starts, as many as the control says.
    same : ndarray, shape (G, 2, L), or None
        A state.
    smaller : ndarray, shape (G, 2, L'), or None
        A state with one expert fewer, whose experts are split.
    """

    random: bool = True
    same: Array | None = None
    smaller: Array | None = None


def maximise(
    problem: Problem, control: Control, rng: np.random.Generator, start: From, estimate: str = "shrunken"
) -> Run:
    """The best of EM runs, with the functions that are reported, experts in the reported order or that of the start.

    Parameters
    ----------
    problem : Problem
    control : Control
    rng : numpy.random.Generator
    start : From
    estimate : {"shrunken", "local", "joint"}
        Functions that are reported, see `VCMoE`.

    Returns
    -------
    Run
    """
    inner, centring = centred(problem)
    runs = []
    if start.same is not None:
        runs.append(fit_functions(inner, control, rng, centring.inwards(inner.slots, start.same)))
    if start.smaller is not None:
        few = replace(inner.slots, n_experts=inner.slots.n_experts - 1)
        runs.append(fit_carried(inner, control, rng, centring.inwards(few, start.smaller)))
    if start.random:
        runs.append(fit_functions(inner, control, rng))
    run = best_run(runs) if len(runs) > 1 else runs[0]
    order = reported_order(inner, run.coef)
    run = with_reported(inner, replace(run, coef=permute_experts(inner.slots, run.coef, order)), estimate)
    # Experts that were numbered before keep their numbers, or two bandwidths could not be compared.
    numbered = start.same is not None and len(runs) == 1
    order = np.argsort(order) if numbered else reported_order(inner, run.coef)
    run = replace(run, coef=permute_experts(inner.slots, run.coef, order))
    return replace(run, coef=centring.outwards(inner.slots, run.coef), loglik=loglik_at(inner, run.coef))


def loglik_at(problem: Problem, coef: Array) -> float:
    """Log-likelihood of the data, each row at its own index value."""
    return float(posterior(problem.rows, problem.family, own_natural(problem, coef)).loglik)


def with_reported(problem: Problem, run: Run, estimate: str) -> Run:
    """A run of the joint EM with the functions that are reported in the place of its own.

    With one expert there is nothing to add to the joint EM, which is kernel-weighted least squares for a Gaussian and
    the local generalised linear model for others; with t errors, whose weights the EM takes at the rows' own index
    values, the local maxima are reported. Experts come in an order that does not depend on the starts: which
    one the gate refers to matters to the smoothing.
    """
    alone = problem.slots.n_experts == 1 and estimate == "shrunken"
    tails = isinstance(problem.family, StudentT)
    if estimate == "joint" or problem.const.all() or (alone and not tails):
        return run
    maxima = local_maxima(problem, run.coef)
    coef = maxima.state if alone or estimate == "local" else _within_reach(problem, maxima)
    return replace(run, coef=coef, lost=maxima.lost)


def _within_reach(problem: Problem, maxima: LocalMaxima) -> Array:
    """Smoothed functions, or on the way to them from the local maxima as far as the data allow.

    Twice the log-likelihood that the truth lacks is about chi-square with as many degrees of freedom as the maxima
    have. Functions that lack more than its mean are not nearer to the truth; without a regular maximum, as for an
    expert that the data do not need, smoothing can lead anywhere.
    """
    smoothed, reached = smoothed_functions(problem, maxima), loglik_at(problem, maxima.state)
    lacking = reached - loglik_at(problem, smoothed)
    if lacking <= 0.0:
        return smoothed
    most = 0.5 * effective_df(problem, maxima.state)
    for share in SHARES:
        coef = maxima.state + share * (smoothed - maxima.state)
        if reached - loglik_at(problem, coef) <= most:
            return coef
    return maxima.state


def with_experts(problem: Problem, experts: int, const: NDArray[np.bool_], sigma_floor: float) -> Problem:
    """The problem with another number of experts and the same bandwidths.

    Parameters
    ----------
    problem : Problem
    experts : int
    const : ndarray of bool, shape (L,)
        Functions held constant with that many experts.
    sigma_floor : float
        As in `build_problem`.
    """
    old, windows = problem.slots, problem.windows
    slots = Slots(experts, old.n_expert_columns, old.n_gate_columns, old.has_dispersion)
    gate = problem.gate_windows.bandwidth
    return build_problem(problem.rows, problem.family, slots, const, windows.grid, windows.bandwidth, gate, sigma_floor)


def with_response(problem: Problem, response: Array, sigma_floor: float) -> Problem:
    """The problem with another response, shape (n,) in the order of the rows."""
    rows = problem.rows.with_response(response, problem.family.constant(response, problem.rows.outcome.trials))
    return with_experts(replace(problem, rows=rows), problem.slots.n_experts, problem.const, sigma_floor)


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
    between = linear_matrix(windows.grid, windows.index, windows.period)
    out = np.empty((windows.n_grid, windows.n_grid))
    for g in range(windows.n_grid):
        rows = windows.parts[g]
        away = wrapped(windows.index[rows] - windows.grid[g], windows.period)
        t, kernel = away / windows.bandwidth, epanechnikov(away / windows.widths[g]) * weights[rows]
        s0, s1, s2 = kernel.sum(), kernel @ t, kernel @ (t * t)
        determinant = s0 * s2 - s1 * s1
        # Local-linear weights in closed form (Fan & Gijbels 1996): no solve per grid point.
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
    line, line_slope : ndarray, shape (G, 2), or (G, 1) on a circle
    """

    kernel: Array
    kernel_slope: Array
    line: Array
    line_slope: Array


def integrated_wiener(grid: Array, bandwidth: float, period: float = LINE) -> Wiener:
    """The process that begins at the first grid point, or the one that closes; slopes are per bandwidth.

    Notes
    -----
    On a circle of length one the posterior mean is the periodic cubic smoothing spline: kernel ``-B_4({s - t}) / 24``
    with the Bernoulli polynomial ``B_4``, beside a constant (Wahba 1990, Spline Models for Observational Data, 2.1).
    """
    if period:
        x = np.mod((grid[:, None] - grid) / period, 1.0)
        kernel, slope = -(x**4 - 2.0 * x**3 + x**2 - 1.0 / 30.0), -(4.0 * x**3 - 6.0 * x**2 + 2.0 * x)
        one = np.ones((len(grid), 1))
        return Wiener(kernel / 24.0, bandwidth / period * slope / 24.0, one, 0.0 * one)
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
    # In units of the standard errors; the floor keeps an estimate without error from taking all weight.
    root = np.sqrt(np.maximum(variance, np.finfo(float).eps * variance.max() + SMALLEST))
    scaled = operator / root[:, None]
    z, x = levels / root, scaled @ process.line
    # Neighbouring estimates share nearly all rows: their correlation matrix is almost singular, and white noise of a
    # hundredth of the variance makes it one that can be factored without moving the curve.
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
    # Restricted likelihood: the likelihood of contrasts free of the line, here an orthonormal basis of them.
    rest = np.linalg.qr(x, mode="complete")[0][:, x.shape[1] :]
    root = np.linalg.cholesky(rest.T @ noise @ rest)
    half = solve_triangular(root, rest.T, lower=True)
    # One eigendecomposition makes the deviance of every tau a sum over numbers.
    strength, turn = np.linalg.eigh(half @ signal @ half.T)
    strength, squares = np.maximum(strength, 0.0), (turn.T @ (half @ z)) ** 2
    equal = np.log(len(z) / max(float(strength.sum()), np.finfo(float).tiny))

    def deviance(log_tau: float) -> float:
        variance = 1.0 + np.exp(log_tau) * strength
        return float(np.sum(np.log(variance) + squares / variance))

    reach = DECADES * np.log(10.0)
    # The deviance can have two minima (noise or signal): a mesh finds the deeper one, then it is refined.
    mesh = np.linspace(equal - reach, equal + reach, MESH)
    best = int(np.argmin([deviance(s) for s in mesh]))
    ends = mesh[max(best - 1, 0)], mesh[min(best + 1, MESH - 1)]
    found = minimize_scalar(deviance, bounds=ends, method="bounded", options={"xatol": 1e-6})
    # At tau = 0 all variances are one, and the deviance is the sum of squares.
    return float(np.exp(found.x)) if found.fun < squares.sum() else 0.0


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
    untouched = np.ones(problem.slots.n, dtype=bool)
    untouched[problem.slots.dispersions] = ~on_limit(problem, maxima.state).any(axis=0)
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
        second = second_kernel(windows.grid, windows.bandwidth, regular, windows.period, windows.widths)
        lengths = second.mass[regular] / windows.widths[regular]
        process = integrated_wiener(windows.grid, windows.bandwidth, windows.period)
        for j, s in enumerate(functions):
            curve = _average(second, maxima.state[:, :, s], moves[:, :, :, j])
            levels, move = maxima.state[regular, 0, s], moves[:, regular, 0, j]
            spline = posterior_mean(levels, move.T @ move, lengths, operator[regular], process)[regular]
            out[regular, :, s] = (1.0 - SPLINE) * towards_line(_at(curve, regular)) + SPLINE * spline
    return limit_dispersion(problem, out)


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
    # Row i goes to set i mod m: rows lie sorted by index, so each set has rows from everywhere.
    units = np.arange(n) % max(NUMBERS_HELD // (2 * n_grid * n_slots), 2)
    out = np.zeros((int(units.max()) + 1, n_grid, 2 * len(functions)))
    columns = np.concatenate([functions, n_slots + functions])
    weights = local.problem.rows.weights
    # A row of weight w stands for w independent rows: the square of its influence must come out w-fold, not w^2-fold.
    shares = 1.0 / np.sqrt(np.where(weights > 0.0, weights, 1.0))
    for block, terms in local_pieces(local, coef):
        information = local_information(local, block, terms.penalised(terms.information), terms.kernel)
        score = terms.score * terms.kernel * shares[block.rows]
        for g in range(block.last - block.first):
            span, rows = block.spans[g], block.parts[g]
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
    period : float
    """

    grid: Array
    bandwidth: float
    mass: Array
    weights: Array
    period: float

    @property
    def slopes(self) -> Array:
        """Weights of the slopes of the neighbours, per bandwidth, in the levels."""
        return self.weights * wrapped(self.grid[:, None] - self.grid, self.period) / self.bandwidth


def second_kernel(
    grid: Array, bandwidth: float, regular: BoolArray, period: float = LINE, widths: Array | None = None
) -> SecondKernel:
    """Second kernel over those grid points that have a regular maximum; the others keep their own values.

    Parameters
    ----------
    grid : ndarray, shape (G,)
    bandwidth : float
    regular : ndarray of bool, shape (G,)
    period : float
    widths : ndarray, shape (G,), optional
        Of the first kernel, by default the bandwidth.

    Returns
    -------
    SecondKernel
    """
    reach = bandwidth if widths is None else widths[:, None]
    steps = np.diff(grid)
    closing = [grid[0] + period - grid[-1]] if period else [0.0]
    mass = 0.5 * (np.append(steps, closing) + np.append(closing, steps)) * regular
    weights = epanechnikov(wrapped(grid[:, None] - grid, period) / (SECOND * reach)) * mass
    weights[~regular] = np.eye(len(grid))[~regular]
    return SecondKernel(grid, bandwidth, mass, weights / weights.sum(axis=1, keepdims=True), period)


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
    period : float
    """

    at: Array
    mass: Array
    levels: Array
    slopes: Array
    covariance: Array
    bandwidth: float
    period: float = LINE


def _average(second: SecondKernel, lines: Array, moves: Array) -> Curve:
    """The function behind local lines (G, 2), with their influences (units, G, 2)."""
    used = second.mass > 0.0
    move = moves[:, used, 0] @ second.weights[:, used].T + moves[:, used, 1] @ second.slopes[:, used].T
    levels = second.weights @ lines[:, 0] + second.slopes @ lines[:, 1]
    slopes = second.weights @ lines[:, 1]
    return Curve(second.grid, second.mass, levels, slopes, move.T @ move, second.bandwidth, second.period)


def _at(curve: Curve, points: BoolArray) -> Curve:
    """The function at some of its grid points."""
    return Curve(
        curve.at[points],
        curve.mass[points],
        curve.levels[points],
        curve.slopes[points],
        curve.covariance[np.ix_(points, points)],
        curve.bandwidth,
        curve.period,
    )


def towards_line(curve: Curve) -> Array:
    """Levels and slopes, shape (G, 2), drawn towards the line that fits the levels best, on a circle a constant.

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
    basis = basis[:, :1] if curve.period else basis
    orthonormal, triangle = np.linalg.qr(basis * root[:, None])
    rest = np.eye(len(root)) - orthonormal @ orthonormal.T
    away = rest @ (root * curve.levels)
    noise = rest @ (curve.covariance * np.outer(root, root)) @ rest
    bound, distance = np.trace(noise) - 2.0 * np.linalg.eigvalsh(noise)[-1], away @ away
    kept = 1.0 - bound / distance if 0.0 < bound < distance else float(bound <= 0.0)
    line = np.linalg.solve(triangle, orthonormal.T @ (root * curve.levels))
    levels, slopes = basis @ line, line[1:].sum()
    return np.column_stack([levels + kept * (curve.levels - levels), slopes + kept * (curve.slopes - slopes)])
