"""Ascents from given points, and the last ones, which end a search: quasi-Newton to convergence, Newton at the end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mixmoe._typing import Array
from mixmoe.mixed.em import em_iterations
from mixmoe.mixed.end_points import (
    OVERSTATED,
    Ends,
    candidates,
    collapsed,
    continued,
    finer_logliks,
    finished,
    is_stationary,
    join,
    newton_polish,
    one_search,
    or_any,
    scaled_effects,
    without_artefacts,
)
from mixmoe.mixed.likelihood.observed import Problem, evaluate
from mixmoe.mixed.parameters import Params, free_to_working, working_to_free
from mixmoe.mixed.starting_values import first_inverse
from mixmoe.mixture.estimate import SAME
from mixmoe.numerics.optimise import Climb, Control, Evaluation, climb

_EM_STEPS_AT_COLLAPSE = 50  # where line searches end at the barrier, these still bring the other parameters to rest
_SHARP = 0.01  # of the tolerance: what quasi-Newton aims at before Newton steps are called in
_STANDSTILL = 1e-11  # gain in log-likelihood of an ascent that creeps along the edge of a collapse
MARGIN = 1.0  # candidates may lie this far below the best rough value,
_SIZES = (1.0, 0.5, 0.25, 0.125)  # of random effects beside which none at all are taken
_LAP = 25  # iterations of the last ascents between two informations, where columns are many
_SIGMA_BARRIER = 1e-4  # fraction of the one-expert residual standard deviation


@dataclass(frozen=True, slots=True)
class Search:
    """Outcome of a search for the maximum.

    Attributes
    ----------
    theta : ndarray, shape (P,)
    loglik : float
    score : ndarray, shape (P,)
    trace : ndarray
    n_iter, n_evaluations : int
    converged, interrupted, degenerate : bool
    n_starts : int
        Starts and split-and-merge moves, without moves that fell back to the point that they left.
    logliks : ndarray
        Log-likelihoods of the distinct candidates that were run to full convergence, best first.
    n_replicated : int
        Those of the starts and moves that led to the winner.
    ends : ndarray
        Log-likelihoods of all of them after the search, best first, minus infinity for a collapsed expert; empty if the
        search ran on some of the subjects.
    summits : ndarray
        The highest log-likelihood of each independent search, best first, as far as it had got.
    """

    theta: Array
    loglik: float
    score: Array
    trace: Array
    n_iter: int
    n_evaluations: int
    converged: bool
    interrupted: bool
    degenerate: bool
    n_starts: int
    logliks: Array
    n_replicated: int
    ends: Array
    summits: Array


def permute(problem: Problem, theta: Array, order: Sequence[int]) -> Array:
    """The free vector with experts reordered: the new expert k is the old ``order[k]``."""
    params = free_to_working(problem.structure, theta[None])
    return working_to_free(problem.structure, permute_params(params, order))[0]


def permute_params(params: Params, order: Sequence[int]) -> Params:
    """Parameters with experts reordered; the gate keeps its first expert as reference."""
    index = list(order)
    reference = np.zeros_like(params.gamma[:, :1]) if params.gamma.size else params.gamma[:, :0]
    full = np.concatenate([reference, params.gamma], axis=1)
    gamma = full[:, index[1:]] - full[:, index[:1]] if params.gamma.size else params.gamma
    parts = (params.beta, params.factor, params.sigma, params.extra)
    return Params(gamma, *(part[:, index] for part in parts))


def largest_first(problem: Problem, theta: Array) -> Array:
    """The free vector, shape (P,), with the expert of the largest random effects as the reference of proportional ones.

    As multiples of a tiny covariance the others would look stationary long before they are.
    """
    if problem.structure.cov_re != "proportional":
        return theta
    factor = free_to_working(problem.structure, theta[None]).factor[0]
    top = int(np.linalg.norm(factor, axis=(1, 2)).argmax())
    return permute(problem, theta, [top, *(k for k in range(len(factor)) if k != top)])


@dataclass(frozen=True, slots=True)
class Guarded:
    """The log-likelihood with collapsed experts ruled out, as an objective of `climb`."""

    problem: Problem
    sigma_floor: float

    def __call__(self, theta: Array) -> Evaluation:
        """Log-likelihood and score at points (S, P); minus infinity below the floor."""
        with np.errstate(all="ignore"):  # far from the optimum anything may overflow; climb() expects that
            e = evaluate(self.problem, theta)
            smallest = np.exp(theta[:, self.problem.free.log_sigma].min(axis=1, initial=np.inf))
        return Evaluation(np.where(smallest < self.sigma_floor, -np.inf, e.loglik), e.score)


def climb_from(problem: Problem, sigma_one: float, theta: Array, control: Control) -> Climb:
    """Ascents from `theta`, shape (S, P); those left behind the best are given up if the control says so."""
    with np.errstate(all="ignore"):
        inverse = first_inverse(problem, theta)
    guarded = Guarded(problem, _SIGMA_BARRIER * sigma_one)
    spurious = partial(collapsed, problem, sigma_one) if np.isfinite(control.behind) else None
    logarithmic = np.append(problem.free.log_sigma, problem.free.extra)
    return climb(guarded, theta, inverse, problem.n_subjects, control, spurious, logarithmic)


def climb_to_rest(problem: Problem, sigma_one: float, theta: Array, control: Control) -> Climb:
    """Ascents from `theta`, shape (S, P), which where columns are many begin anew every few iterations.

    Hundreds of coefficients of empty cells run to infinity at once, and the curvature along them falls with every step.
    An ascent learns that of one direction at a time, and creeps; the information itself knows it of all.
    """
    if not problem.has_many_columns:
        return climb_from(problem, sigma_one, theta, control)
    lap = replace(control, max_iter=min(_LAP, control.max_iter))
    found = climb_from(problem, sigma_one, theta, lap)
    under_way = np.flatnonzero(~found.converged & (found.n_iter == _LAP))
    for _ in range(control.max_iter // _LAP - 1):
        if found.interrupted or not under_way.size:
            break
        more = climb_from(problem, sigma_one, found.theta[under_way], lap)
        found = continued(found, under_way, more)
        under_way = under_way[~more.converged & (more.n_iter == _LAP)]
    return found


def race(problem: Problem, sigma_one: float, theta: Array, control: Control) -> Ends:
    """End points of ascents from `theta`, shape (S, P)."""
    found = climb_from(problem, sigma_one, theta, control)
    return one_search(found, ranked(problem, sigma_one, found))


def ranked(problem: Problem, sigma_one: float, found: Climb) -> Array:
    """Log-likelihoods with collapsed solutions put last."""
    return np.where(collapsed(problem, sigma_one, found.theta), -np.inf, found.loglik)


def without_lures(problem: Problem, sigma_one: float, found: Ends, control: Control) -> Ends:
    """`found` with ascents without random effects of an expert, where an approximate integral overstates the best.

    Laplace's method lets those of an expert without events grow for ever, and where it has no other maximum every
    ascent ends there. Without them it is exact, and as their score is then zero by symmetry, no ascent takes them up.
    Kept are ends beside which random effects of some size are not better by a finer integral.
    """
    best = found.climb.theta[found.best]
    fine = finer_logliks(problem, best[None]) if problem.structure.n_experts > 1 else None
    if fine is None or not problem.structure.n_random or found.rank.max() - fine[0] <= OVERSTATED:
        return found
    smaller = finer_logliks(problem, np.vstack([scaled_effects(problem, best, size) for size in _SIZES]))
    if smaller is None:
        return found
    # Without them the approximation is the finer integral, but for other experts: what stays below is no rival.
    limit = replace(control, reached=smaller.max(), behind=OVERSTATED)
    without = race(problem, sigma_one, scaled_effects(problem, best, 0.0), limit)
    fine = finer_logliks(problem, without.climb.theta)
    if fine is None:
        return found
    lower = fine < smaller.max() - OVERSTATED
    return join(found, replace(without, rank=np.where(lower, -np.inf, without.rank)))


def finish(problem: Problem, sigma_one: float, ends: Ends, margin: float, control: Control) -> Search:
    """End points within `margin` of the best run to convergence on all subjects; the best polished by Newton steps."""
    rough = ends.climb
    chosen = candidates(or_any(ends.rank, rough.loglik), margin)
    sharp = 1.0 if problem.has_many_columns else _SHARP  # hundreds of coefficients, some of which may be infinite
    limit = replace(control, tol=sharp * control.tol, min_gain=_STANDSTILL)
    limit = replace(limit, max_iter=0) if rough.interrupted else limit
    start = np.array([largest_first(problem, theta) for theta in rough.theta[chosen]])
    found = climb_to_rest(problem, sigma_one, start, limit)
    ends_here = one_search(found, ranked(problem, sigma_one, found))
    if not (rough.interrupted or found.interrupted):
        more = without_lures(problem, sigma_one, ends_here, limit)
        chosen = np.append(chosen, np.full(more.rank.size - chosen.size, chosen[ends_here.best]))
        ends_here = more
    found, rank = ends_here.climb, without_artefacts(problem, ends_here.climb.theta, ends_here.rank)
    usable = or_any(rank, found.loglik)
    best = int(np.argmax(usable >= usable.max() - SAME))  # of equals the one that was best before
    interrupted = rough.interrupted or found.interrupted
    theta = found.theta[best]
    if not np.isfinite(rank[best]) and not interrupted and problem.experts.is_closed_form:
        theta = em_iterations(problem, theta[None], _EM_STEPS_AT_COLLAPSE)[0][0]
    elif not (interrupted or found.converged[best]):
        theta = newton_polish(problem, theta)
    e = evaluate(problem, theta[None])
    origin, ways = chosen[best], ~ends.returned
    if margin == MARGIN:  # the search saw all subjects
        ends = finished(ends, chosen, found.loglik)
    return Search(
        theta=theta,
        loglik=float(e.loglik[0]),
        score=e.score[0],
        trace=np.asarray(rough.traces[origin] + found.traces[best][1:]),
        n_iter=int(rough.n_iter[origin] + found.n_iter[best]),
        n_evaluations=int(rough.n_evaluations[origin] + found.n_evaluations[best]),
        converged=not interrupted and is_stationary(e.score[0], problem, control),
        interrupted=interrupted,
        degenerate=not np.isfinite(rank[best]),
        n_starts=int(ways.sum()),
        logliks=np.sort(found.loglik)[::-1],
        n_replicated=int((ways & (ends.rank >= max(ends.rank[origin], rough.loglik[origin]) - SAME)).sum()),
        ends=np.sort(ends.rank[ways])[::-1] if margin == MARGIN else np.empty(0),
        summits=ends.summits,
    )
