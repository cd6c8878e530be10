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

from mixmoe._typing import Array, IntArray
from mixmoe.responses.exponential import is_normal
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
from mixmoe.varying.interpolation import hermite_matrix, wrapped
from mixmoe.varying.joint_em import Control, on_grid, run_em
from mixmoe.varying.problem import Problem, Slots, blocks, build_problem, epanechnikov

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
        problems = [_with_windows(alone, float(factor)) for factor in factors]
        out += resp[k] * left_out_chain(problems, State(alone, coef[:, :, own])).logliks
    return out


def _with_windows(problem: Problem, factor: float) -> Problem:
    """The problem with windows of another width for all functions."""
    windows = problem.windows.with_grid(problem.windows.grid, factor)
    levels = hermite_matrix(windows.grid, windows.bandwidth, problem.rows.index, problem.rows.period)
    return replace(problem, windows=windows, gate_windows=windows, levels=levels, gate_levels=levels)


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
