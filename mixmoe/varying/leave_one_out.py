"""Held-out log-likelihood of rows: from a refit without them, or for one expert by their influence, without a refit.

References
----------
Allen, D. M. (1974). The relationship between variable selection and data augmentation and a method for prediction.
Technometrics 16, 125-127.
Pregibon, D. (1981). Logistic regression diagnostics. Ann. Statist. 9, 705-724: the one-step version for generalised
linear models.
Fan, J. and Gijbels, I. (1996). Local Polynomial Modelling and Its Applications, section 4.10.

Notes
-----
A function at a row's own index value is interpolated between two grid points. Leaving the row out moves the local fit
at each of them by ``A^-1 z k w s / (1 - k w i z'A^-1 z)``, with A the information of the window, z the row of the local
design, k its kernel and w its own weight, s and i its score and information. That is exact for a normal response, whose
local fits are least squares, and one scoring step for others (no longer than those of the fit).

Dispersions are not those of the fit: the criterion takes the one value, common to all rows, under which the held-out
responses are most likely. A log sigma that is fitted in the same narrow window as the mean follows single rows, and its
errors would decide on the bandwidth of the mean: over sin(6 pi u) with normal errors the mean then has 1.5, 1.3 and 1.1
times the root mean squared error at n = 50, 100 and 300. Constant coefficients keep the values that all rows give them.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, stdtrit

from mixmoe._typing import Array, IntArray
from mixmoe.responses.distribution import Outcome
from mixmoe.responses.exponential import StudentT, is_normal
from mixmoe.responses.zero_inflated import ZeroInflated
from mixmoe.varying.em_steps import (
    EXPERT_STEP,
    Natural,
    expert_step,
    natural_parameters,
    own_natural,
    posterior,
    row_logliks,
    scoring_normal,
    solve_scaled,
)
from mixmoe.varying.joint_em import Control, on_grid, run_em
from mixmoe.varying.local_likelihood import (
    assemble_terms,
    build_local,
    local_information,
    local_pieces,
    local_start,
    natural_design,
    whole_block,
)
from mixmoe.varying.problem import Problem, Slots, build_problem, centred
from mixmoe.varying.windows import blocks, epanechnikov, hermite_matrix, linear_matrix, wrapped

LOWEST = -30.0  # log density of a held-out row counts at least this much, so that one outlier does not decide
NUMBERS_HELD = 1 << 22  # in the inverse matrices of the rows that are handled at once
COMPARED = Control(tolerance=3e-4, max_iter=60, gain=1e-5)  # of fits that only serve a criterion
LEAST_LEFT = 1e-6  # of a leverage below one: what hangs on one row alone is predicted by nothing, and far off


def left_out_logliks(problem: Problem, coef: Array) -> Array:
    """Log density of each row under functions that were estimated without it.

    Parameters
    ----------
    problem : Problem
        With one expert.
    coef : ndarray, shape (G, 2, L)
        Its fit to all rows.

    Returns
    -------
    ndarray, shape (n,)
        Not below `LOWEST` for a discrete response, so that one row does not decide.
    """
    eta = left_out_predictors(problem, coef)[None]
    rows, family, weights = problem.rows, problem.family, problem.rows.weights
    if is_normal(family):
        variance = np.average((rows.outcome.y - eta[0]) ** 2, weights=weights)
        delta = 0.5 * np.log(max(float(variance), np.finfo(float).tiny))
        return np.asarray(family.log_density(rows.outcome, eta, np.full_like(eta, delta))[0])

    def bounded(delta: float) -> Array:
        each = family.log_density(rows.outcome, eta, np.full_like(eta, delta))[0]
        return np.asarray(np.maximum(each, LOWEST))

    if not problem.slots.has_dispersion:
        return bounded(0.0)
    limits = (problem.floor, problem.ceiling)
    found = minimize_scalar(lambda delta: -float(bounded(delta) @ weights), bounds=limits, method="bounded")
    return bounded(float(found.x))


def left_out_predictors(problem: Problem, coef: Array) -> Array:
    """Linear predictor of each row, with its offset, from functions that were estimated without it.

    Parameters
    ----------
    problem : Problem
        With one expert.
    coef : ndarray, shape (G, 2, L)
        Its fit to all rows.

    Returns
    -------
    ndarray, shape (n,)
    """
    rows, windows, p = problem.rows, problem.windows, problem.slots.n_expert_columns
    natural = own_natural(problem, coef)
    out = natural.eta[0].copy()
    free = ~problem.const[problem.slots.experts]
    if not free.any():
        return out
    inverse = _inverses(problem, coef, np.concatenate([free, free]))  # (G, 2 p, 2 p)
    shares = problem.levels.data.reshape(rows.n, 2, 2)  # of level and slope at the grid point on each side
    points = problem.levels.indices.reshape(rows.n, 2, 2)[:, :, 0] // 2
    chunk = max(NUMBERS_HELD // (2 * p) ** 2, 1)
    for first in range(0, rows.n, chunk):
        some = np.arange(first, min(first + chunk, rows.n))
        outcome, design, delta = rows.outcome.take(some), rows.design[some], natural.delta[:, some]
        for side in (0, 1):
            at = points[some, side]
            away = wrapped(rows.index[some] - windows.grid[at], rows.period)
            t = (away / windows.bandwidth)[:, None]
            weight = epanechnikov(away / windows.widths[at]) * rows.weights[some]
            lines = coef[at, 0, :p] + coef[at, 1, :p] * t
            eta = (lines * design).sum(axis=1) + rows.offset[some]
            score, information = problem.family.scoring(outcome, eta[None], delta)
            moved = np.einsum("nab,nb->na", inverse[at], np.hstack([design, design * t]))
            leverage = weight * information[0] * (moved * np.hstack([design, design * t])).sum(axis=1)
            target = np.hstack([design * shares[some, side, :1], design * shares[some, side, 1:]])
            change = weight * score[0] * (target * moved).sum(axis=1)
            change = change / np.maximum(1.0 - leverage, LEAST_LEFT)
            if problem.family.name != "gaussian":  # as long as a step of the fit may be
                change = np.clip(change, -EXPERT_STEP, EXPERT_STEP)
            out[some] -= change
    return out


def _inverses(problem: Problem, coef: Array, free: NDArray[np.bool_]) -> Array:
    """Inverse information of the local lines at every grid point, zero for constants, shape (G, 2 p, 2 p)."""
    resp, size, p = problem.rows.weights[None], len(free), problem.slots.n_expert_columns
    out = np.empty((problem.windows.n_grid, size, size))
    for block in blocks(problem.windows):
        current = coef[block.first : block.last, :, None, :p]
        matrix = scoring_normal(problem, block, coef, current, resp)[1]  # (g, 1, 2 p, 2 p)
        right = np.broadcast_to(np.eye(size), (len(matrix), size, size))
        out[block.first : block.last] = solve_scaled(
            np.broadcast_to(matrix, (len(matrix), size, size, size)), right, free
        )
    return out


def without_rows(problem: Problem, held: IntArray) -> Problem:
    """A problem without the rows that are held out."""
    keep = np.setdiff1d(np.arange(problem.rows.n), held)
    return build_problem(
        problem.rows.take(keep),
        problem.family,
        problem.slots,
        problem.const,
        problem.windows.grid,
        problem.windows.bandwidth,
        problem.gate_windows.bandwidth,
        0.01,
    )


def held_out(problem: Problem, coef: Array, held: IntArray) -> Array:
    """Log density of some rows under given functions, shape (held,)."""
    rows, flat, stop = problem.rows.take(held), coef.reshape(-1, coef.shape[-1]), problem.slots.gates.start
    grid, period = problem.windows.grid, problem.rows.period
    experts = hermite_matrix(grid, problem.windows.bandwidth, rows.index, period) @ flat[:, :stop]
    gates = hermite_matrix(grid, problem.gate_windows.bandwidth, rows.index, period) @ flat[:, stop:]
    natural = natural_parameters(rows, problem.slots, np.hstack([experts, gates]))
    bounded = Natural(natural.eta, np.clip(natural.delta, problem.floor, problem.ceiling), natural.log_gate)
    return np.maximum(row_logliks(rows.outcome, problem.family, bounded), LOWEST)


@dataclass(frozen=True, slots=True)
class State:
    """Functions and the problem on whose grid they are."""

    problem: Problem
    coef: Array

    def moved(self, problem: Problem) -> Array:
        """The functions on the grid and with the bandwidths of another problem."""
        return on_grid(problem, self.problem, self.coef)


@dataclass(frozen=True, slots=True)
class Chain:
    """Held-out log-likelihoods (B, held) of a chain of problems, and where it ended."""

    logliks: Array
    state: State


def left_out_chain(problems: list[Problem], state: State) -> Chain:
    """Rows left out by their influence, each fit started from the one before; a normal one by formula."""
    out = []
    for problem in problems:
        coef = state.moved(problem)
        if is_normal(problem.family) and not problem.const[problem.slots.experts].any():
            coef[:, :, problem.slots.experts] += expert_step(problem, coef, problem.rows.weights[None])
        else:
            coef = run_em(problem, coef, COMPARED).coef
        out.append(left_out_logliks(problem, coef))
        state = State(problem, coef)
    return Chain(np.array(out), state)


def left_out_of_experts(problem: Problem, coef: Array, factors: Array) -> Array:
    """Held-out log density of each row in the regressions of the experts, memberships known, by bandwidth, (B, n).

    Parameters
    ----------
    problem : Problem
        Of several experts.
    coef : ndarray, shape (G, 2, L)
        Its fit, whose responsibilities are the weights of the rows in the regression of each expert.
    factors : ndarray, shape (B,)
        Of the bandwidth, descending.
    """
    slots = problem.slots
    resp = posterior(problem.rows, problem.family, own_natural(problem, coef)).weighted
    one = Slots(1, slots.n_expert_columns, slots.n_gate_columns, slots.has_dispersion)
    out = np.zeros((len(factors), problem.rows.n))
    for k in range(slots.n_experts):
        own = [*range(slots.n)[slots.expert(k)], *([slots.dispersions.start + k] if slots.has_dispersion else [])]
        rows = problem.rows.with_weights(resp[k])
        alone = replace(problem, rows=rows, slots=one, const=problem.const[own], scale=problem.scale[own])
        problems = []
        for factor in factors:
            windows = alone.windows.with_grid(alone.windows.grid, float(factor))
            levels = hermite_matrix(windows.grid, windows.bandwidth, rows.index, rows.period)
            problems.append(replace(alone, windows=windows, gate_windows=windows, levels=levels, gate_levels=levels))
        out += resp[k] * left_out_chain(problems, State(alone, coef[:, :, own])).logliks
    return out


def fold_chain(problems: list[Problem], held: IntArray, state: State) -> Chain:
    """One fold left out of each problem, each fit started from the one before."""
    out = []
    for problem in problems:
        training = without_rows(problem, held)
        run = run_em(training, state.moved(training), COMPARED)
        state = State(training, run.coef)
        out.append(held_out(problem, run.coef, held))
    return Chain(np.array(out), state)


def fold_members(n: int, clusters: IntArray | None, folds: int, rng: np.random.Generator) -> list[IntArray]:
    """Rows of each fold, ascending; whole clusters if there are any."""
    units = np.arange(n) if clusters is None else clusters
    n_units = int(units.max()) + 1
    assigned = rng.permutation(np.arange(n_units) % folds)
    return [np.flatnonzero(assigned[units] == f) for f in range(folds)]


HAT_NUMBERS_HELD = 1 << 20  # in the matrices of the rows that are handled at once


@dataclass(frozen=True, slots=True)
class Fitness:
    """Criteria that charge the effective number of parameters.

    Attributes
    ----------
    df : float
        Sum of the rows' leverages at their own index values, plus the number of constants.
    aic, aicc, bic : float
    """

    df: float
    aic: float
    aicc: float
    bic: float


def effective_df(problem: Problem, coef: Array) -> float:
    """Sum of the leverages of the rows in the fits at their own index values, plus the constants.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)

    Returns
    -------
    float

    Notes
    -----
    Row i has leverage ``K(0) w_i tr(B_i Z_i H(u_i)^-1 Z_i')``, with B_i its complete-data information in the natural
    parameters and H the same information of the window around it: what a row would have if its expert were known. No
    row of weight one has a leverage above the number of its natural parameters. Beside a grid point at which an expert
    has died out the interpolated inverse gives it one; it then counts with the better of its two grid points.
    """
    n_const = int(problem.const.sum())
    if problem.const.all():
        return float(n_const)
    problem, centring = centred(problem)
    coef = centring.inwards(problem.slots, coef)
    variance = _level_variances(problem, coef)  # (G, L, L)
    total, most = 0.0, problem.slots.n_experts * (2 + problem.slots.has_dispersion) - 1
    between = linear_matrix(problem.windows.grid, problem.rows.index, problem.rows.period)
    points, share = between.indices.reshape(-1, 2), between.data[1::2]
    natural = own_natural(problem, coef)
    local, peak = build_local(problem, 1), float(epanechnikov(np.zeros(1))[0])
    chunk = max(HAT_NUMBERS_HELD // problem.slots.n**2, 1)
    for start in range(0, problem.rows.n, chunk):
        rows = slice(start, min(start + chunk, problem.rows.n))
        terms = assemble_terms(problem, whole_block(rows), natural.take(rows))
        design = natural_design(local, rows, np.zeros(rows.stop - start))[:, :, : problem.slots.n]
        curvature = np.moveaxis(terms.complete, -1, 0) * problem.rows.weights[rows, None, None]
        outer = peak * np.swapaxes(design, 1, 2) @ curvature @ design  # (rows, L, L)
        before, after = (np.einsum("njk,njk->n", outer, variance[points[rows, side]]) for side in (0, 1))
        leverage = (1.0 - share[rows]) * before + share[rows] * after
        bound = most * np.maximum(problem.rows.weights[rows], 1.0)
        fewer = np.clip(np.minimum(before, after), 0.0, bound)
        total += float(np.where(np.abs(leverage) > bound, fewer, leverage).sum())
    return total + n_const


def _level_variances(problem: Problem, coef: Array) -> Array:
    """Inverse complete-data information of the levels at each grid point, zero for constants."""
    local = build_local(problem, 1)
    n_slots, free = problem.slots.n, local.free[0]
    out = np.zeros((len(coef), n_slots, n_slots))
    for block, terms in local_pieces(local, local_start(local, coef)):
        matrix = local_information(local, block, terms.penalised(terms.complete), terms.kernel)
        inverse = np.linalg.pinv(0.5 * (matrix + np.swapaxes(matrix, 1, 2)), rcond=1e-10, hermitian=True)
        out[block.first : block.last] = inverse[:, :n_slots, :n_slots] * (free[:, None] & free)
    return out


def fitness(loglik: float, df: float, n: int) -> Fitness:
    """AIC, AICc and BIC with an effective number of parameters.

    Parameters
    ----------
    loglik : float
    df : float
    n : int
        Rows.

    Returns
    -------
    Fitness
        AICc is infinite where ``df >= n - 1``.
    """
    aic = -2.0 * loglik + 2.0 * df
    spare = n - df - 1.0
    aicc = aic + 2.0 * df * (df + 1.0) / spare if spare > 0.0 else np.inf
    return Fitness(df, aic, float(aicc), -2.0 * loglik + df * float(np.log(n)))


HERMITE = 5  # exact for the fourth power of a score that is quadratic in the response
POINTS = 24
BELOW, ABOVE = 4.0, 6.0  # standard deviations that the lattice reaches


@dataclass(frozen=True, slots=True)
class Node:
    """One response of every row and its weight.

    Attributes
    ----------
    outcome : Outcome
    weight : ndarray, shape (n,)
        Weights of all nodes add up to one for every row.
    """

    outcome: Outcome
    weight: Array


def response_nodes(problem: Problem, natural: Natural) -> tuple[Node, ...]:
    """Nodes of the distribution of each row's response given its covariates.

    Parameters
    ----------
    problem : Problem
    natural : Natural
        Predictors of the rows, (K, n).

    Returns
    -------
    tuple of Node
        For each expert a few.
    """
    out: list[Node] = []
    for eta, delta, log_gate in zip(natural.eta, natural.delta, natural.log_gate, strict=True):
        if isinstance(problem.family, StudentT):
            out += _quantiles(problem, problem.family, eta, delta, np.exp(log_gate))
            continue
        if isinstance(problem.family, ZeroInflated):
            out += _with_zeros(problem, problem.family, eta, delta, np.exp(log_gate))
            continue
        make = _lattice if problem.family.discrete else _hermite
        out += make(problem, eta, delta, np.exp(log_gate))
    return tuple(out)


def _hermite(problem: Problem, eta: Array, delta: Array, prob: Array) -> list[Node]:
    """Nodes of one expert with a normal response."""
    t, raw = np.polynomial.hermite.hermgauss(HERMITE)
    values = eta + np.exp(delta) * np.sqrt(2.0) * t[:, None]
    return [Node(_outcome(problem, y), prob * w / np.sqrt(np.pi)) for y, w in zip(values, raw, strict=True)]


def _quantiles(problem: Problem, family: StudentT, eta: Array, delta: Array, prob: Array) -> list[Node]:
    """Nodes of one expert with t errors, whose scores are bounded: Gauss-Legendre on the scale of probabilities."""
    t, raw = np.polynomial.legendre.leggauss(POINTS)
    values = eta + np.exp(delta) * stdtrit(family.df, 0.5 * (1.0 + t))[:, None]
    return [Node(_outcome(problem, y), prob * w / 2.0) for y, w in zip(values, raw, strict=True)]


def _with_zeros(problem: Problem, family: ZeroInflated, eta: Array, delta: Array, prob: Array) -> list[Node]:
    """Nodes of one expert with certain zeros: these, and the nodes of the counts."""
    counted = _lattice(replace(problem, family=family.base), eta, np.full_like(eta, family.log_theta), prob)
    zero = Node(_outcome(problem, np.zeros_like(eta)), prob * expit(delta))
    return [zero, *(Node(node.outcome, node.weight * expit(-delta)) for node in counted)]


def _lattice(problem: Problem, eta: Array, delta: Array, prob: Array) -> list[Node]:
    """Nodes of one expert with a discrete response: all values if they are few, else equally spaced ones."""
    family, trials = problem.family, problem.rows.outcome.trials
    mean = family.mean(eta[None], trials)[0]
    spread = np.sqrt(family.variance(mean[None], delta[None], trials)[0])
    first = np.maximum(np.floor(mean - BELOW * spread), 0.0)
    step = np.maximum(np.ceil((mean + ABOVE * spread - first) / (POINTS - 1)), 1.0)
    most = trials if family.name == "binomial" else np.inf
    values = first + step * np.arange(POINTS)[:, None]
    possible = values <= most
    outcomes = [_outcome(problem, np.minimum(y, most)) for y in values]
    mass = np.array([np.exp(family.log_density(o, eta[None], delta[None])[0]) for o in outcomes]) * possible
    weights = prob * mass / mass.sum(axis=0)
    return [Node(o, w) for o, w in zip(outcomes, weights, strict=True)]


def _outcome(problem: Problem, y: Array) -> Outcome:
    trials = problem.rows.outcome.trials
    return Outcome(y, trials, problem.family.constant(y, trials))
