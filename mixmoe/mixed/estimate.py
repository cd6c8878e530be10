"""Maximum likelihood of a MEMoE: search from many starts, finish by quasi-Newton and Newton, order the experts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe.em import SAME, Climb, Control, Evaluation, climb
from mixmoe.gate import gate_log_probabilities
from mixmoe.mixed.carried import carried_starts
from mixmoe.mixed.extras import spans
from mixmoe.mixed.likelihood import ClosedForm, Problem, evaluate, observed_information
from mixmoe.mixed.starts import (
    OneExpert,
    climb_one_expert,
    closed_form_problem,
    fit_one_expert,
    inverse_outer_product,
    one_expert_problem,
    random_starts,
    scatter,
    split_merge_starts,
    with_extras,
)
from mixmoe.mixed.structure import Params, Structure, contract, expand

Array = NDArray[np.float64]

_EM_STEPS = 4
_SEARCH_ABOVE = 1000  # with more subjects than this the search for starts runs on some of them
_SEARCH_SUBJECTS = 500
_FINISHED = 5  # candidates that are run to full convergence, on all subjects
_WORTHWHILE = 0.01  # gain that makes another round of split-and-merge moves; less is mere convergence of what is there
_SHARP = 0.01  # of the tolerance: what quasi-Newton aims at before Newton steps are called in
_STANDSTILL = 1e-11  # gain in log-likelihood of an ascent that creeps along the edge of a collapse
_CHASED = 10  # end points of the closed form that are carried on with the likelihood itself
_AROUND = 4  # starts per expert around the best of these, with other parameters of the errors
_MARGIN = 1.0  # candidates may lie this far below the best rough value,
_PART_MARGIN = 20.0  # or this far if that was found on some of the subjects
_ROUGH = Control(max_iter=80, tol=1e-4, min_gain=1e-5)
_SIGMA_BARRIER = 1e-4  # fractions of the one-expert residual standard deviation
_SIGMA_COLLAPSED = 1e-3
_SIGMA_OF_FEW = 0.1  # fraction of the largest, for an expert with at most this many subjects more than coefficients:
_FEW = 2
_SMALL_EFFECT = 0.05  # in working coordinates, where the pooled residual standard deviation is one


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
        Starts and split-and-merge moves.
    logliks : ndarray
        Log-likelihoods of the distinct candidates that were run to full convergence, best first.
    n_replicated : int
        Starts and moves that led to the winner.
    n_degenerate : int
        Starts that ended in a collapsed expert.
    ends : ndarray
        Log-likelihoods of all starts and moves after the search, best first, minus infinity for a collapsed expert;
        empty if the search ran on some of the subjects.
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
    n_degenerate: int
    ends: Array


def default_starts(n_experts: int) -> int:
    """Random starts when the user names no number."""
    return 1 if n_experts == 1 else 32 * n_experts


def permute(problem: Problem, theta: Array, order: Sequence[int]) -> Array:
    """The free vector with experts reordered: the new expert k is the old ``order[k]``."""
    params = expand(problem.structure, problem.free, theta[None])
    return contract(problem.structure, permute_params(params, order))[0]


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
    factor = expand(problem.structure, problem.free, theta[None]).factor[0]
    top = int(np.linalg.norm(factor, axis=(1, 2)).argmax())
    return permute(problem, theta, [top, *(k for k in range(len(factor)) if k != top)])


def off_boundary(problem: Problem, theta: Array) -> Array:
    """The free vector, shape (P,), with small random effects in the place of none.

    Where a variance is zero the score in its factor is zero too, by symmetry, whatever the data: no ascent would leave.
    """
    rows, columns = problem.structure.factor_entries
    free, moved = problem.free, theta.copy()
    diagonal = np.unique(free.factor[:, rows == columns])
    at = np.append(diagonal, free.scale[free.scale >= 0])
    moved[at] = np.where(np.abs(theta[at]) < _SMALL_EFFECT, _SMALL_EFFECT, theta[at])
    return moved


def order_experts(problem: Problem, theta: Array) -> Array:
    """The free vector with experts by decreasing mean gate probability."""
    gamma = expand(problem.structure, problem.free, theta[None]).gamma
    share = np.exp(gate_log_probabilities(problem.W, gamma))[0].mean(axis=1)
    return permute(problem, theta, list(np.argsort(-share, kind="stable")))


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


def search(problem: Problem, n_starts: int, control: Control, rng: np.random.Generator) -> Search:
    """The highest maximum found from random starts and from split-and-merge moves.

    Parameters
    ----------
    problem : Problem
    n_starts : int
        Random starts.
    control : Control
    rng : numpy.random.Generator

    Returns
    -------
    Search
    """
    limited = _limited(control)
    if problem.structure.n_experts == 1:
        rough = climb_one_expert(problem, limited)
        return finish(problem, pooled_sigma(problem, rough.theta[0]), rough, _MARGIN, control)
    part = problem.take(_search_order(problem, rng))
    one = fit_one_expert(part, limited)
    closed = closed_form_problem(part, one.params)
    rough = explore(closed, one, n_starts, limited, rng)
    if closed.experts is not part.experts:
        rough = chase(part, one, rough, limited)
        rough = _scattered(part, one, rough, limited, rng)
    margin = _MARGIN if part.n_subjects == problem.n_subjects else _PART_MARGIN
    return finish(problem, one.sigma, rough, margin, control)


def search_from(problem: Problem, starts: Array, control: Control) -> Search:
    """The highest maximum reached from given starts, shape (G, P), on all subjects; not below the best of them."""
    limited = _limited(control)
    alone = one_expert_problem(problem)
    sigma_one = pooled_sigma(alone, climb_one_expert(alone, limited).theta[0])
    return finish(problem, sigma_one, _climb_from(problem, sigma_one, starts, limited), _MARGIN, control)


def search_carried(problem: Problem, smaller: Array, control: Control, rng: np.random.Generator) -> Search:
    """The highest maximum reached from the fit with one expert fewer, shape (P',), whose experts are split."""
    one = fit_one_expert(problem, _limited(control))
    return search_from(problem, carried_starts(problem, one, smaller, _EM_STEPS, rng), control)


def _limited(control: Control) -> Control:
    """Limits of the search for starts."""
    return replace(_ROUGH, max_iter=min(_ROUGH.max_iter, control.max_iter), progress=control.progress)


def pooled_sigma(alone: Problem, theta: Array) -> float:
    """Residual standard deviation of a one-expert fit; one if the likelihood has none."""
    return float(expand(alone.structure, alone.free, theta[None]).sigma[0, 0])


def chase(problem: Problem, one: OneExpert, found: Climb, control: Control) -> Climb:
    """End points found with the closed form, carried on with the likelihood itself.

    Starts with the same end point go on as one; those that ended far below the best are given up.
    """
    order = np.argsort(-found.loglik, kind="stable")
    falls = -np.diff(found.loglik[order], prepend=found.loglik[order[0]])
    group = np.empty(order.size, dtype=np.intp)
    group[order] = np.cumsum(np.nan_to_num(falls) > SAME)
    leaders = [int(order[np.argmax(group[order] == g)]) for g in range(min(_CHASED, int(group.max()) + 1))]
    theta = with_extras(problem, found.theta, one.params)
    end = _climb_from(problem, one.sigma, theta[leaders], control)
    where = np.minimum(group, len(leaders) - 1)
    lost = group >= len(leaders)
    traces = tuple([-np.inf] if lost[i] else end.traces[g] for i, g in enumerate(where))
    return Climb(
        np.where(lost[:, None], theta, end.theta[where]),
        np.where(lost, -np.inf, end.loglik[where]),
        end.score[where],
        found.n_iter + end.n_iter[where],
        found.n_evaluations + end.n_evaluations[where],
        end.converged[where] & ~lost,
        traces,
        found.interrupted or end.interrupted,
    )


def _scattered(problem: Problem, one: OneExpert, found: Climb, control: Control, rng: np.random.Generator) -> Climb:
    """`found` with ascents from around its best end point, where errors have further parameters of their own.

    The closed form takes these to be the same for all experts, and has no maxima in which they differ.
    """
    s = problem.structure
    if not (s.extras and s.has_sigma) or found.interrupted:
        return found
    best = found.theta[int(np.argmax(_ranked(problem, one.sigma, found)))]
    return join(found, _climb_from(problem, one.sigma, scatter(problem, best, _AROUND * s.n_experts, rng), control))


def _search_order(problem: Problem, rng: np.random.Generator) -> NDArray[np.intp]:
    """Subjects on which starts are searched, in an order that does not depend on the order of the data."""
    order = np.lexsort((*problem.W.T, *problem.experts.sort_keys()))
    if problem.n_subjects <= _SEARCH_ABOVE:
        return order
    return order[np.sort(rng.choice(problem.n_subjects, _search_size(problem), replace=False))]


def _search_size(problem: Problem) -> int:
    return min(problem.n_subjects, max(_SEARCH_SUBJECTS, 20 * problem.free.size))


def _candidates(logliks: Array, margin: float) -> NDArray[np.intp]:
    """Positions, best first, of values within `margin` of the best that differ by more than `SAME`."""
    order = np.argsort(-logliks, kind="stable")
    apart = np.ones(order.size, dtype=bool)
    with np.errstate(invalid="ignore"):  # two collapsed solutions, both of -inf, are not apart
        apart[1:] = -np.diff(logliks[order]) > SAME
    apart &= logliks[order] >= logliks[order[0]] - margin
    return order[apart][:_FINISHED]


def explore(problem: ClosedForm, one: OneExpert, n_starts: int, control: Control, rng: np.random.Generator) -> Climb:
    """End points of random starts, then of split-and-merge moves from the best of them."""
    theta = random_starts(problem, one, n_starts, _EM_STEPS, rng)
    found = _climb_from(problem, one.sigma, theta, control, spent=2 * _EM_STEPS)
    n_moves = n_starts // 4
    while n_moves and not found.interrupted:
        best = int(np.argmax(_ranked(problem, one.sigma, found)))
        try:
            moved = split_merge_starts(problem, one, found.theta[best], n_moves, _EM_STEPS, rng)
        except KeyboardInterrupt:
            return replace(found, interrupted=True)
        further = _climb_from(problem, one.sigma, moved, control, spent=2 * _EM_STEPS)
        improved = _ranked(problem, one.sigma, further).max() > found.loglik[best] + _WORTHWHILE
        found = join(found, further)
        if not improved:
            break
    return found


def _climb_from(problem: Problem, sigma_one: float, theta: Array, control: Control, spent: int = 0) -> Climb:
    """Ascents from `theta`, shape (S, P), for which `spent` likelihood evaluations have been used already."""
    with np.errstate(all="ignore"):
        inverse = inverse_outer_product(problem, theta)
    found = climb(Guarded(problem, _SIGMA_BARRIER * sigma_one), theta, inverse, problem.n_subjects, control)
    return replace(found, n_evaluations=found.n_evaluations + spent)


def join(a: Climb, b: Climb) -> Climb:
    """Both sets of end points as one."""
    return Climb(
        np.vstack([a.theta, b.theta]),
        np.append(a.loglik, b.loglik),
        np.vstack([a.score, b.score]),
        np.append(a.n_iter, b.n_iter),
        np.append(a.n_evaluations, b.n_evaluations),
        np.append(a.converged, b.converged),
        a.traces + b.traces,
        a.interrupted or b.interrupted,
    )


def collapsed(problem: Problem, sigma_one: float, theta: Array) -> NDArray[np.bool_]:
    """Which of the points, shape (S, P), are spurious maxima: an expert that fits a few subjects nearly exactly.

    Either its residual deviation has vanished beside that of the one-expert model, or it is far below that of another
    expert while hardly more subjects than coefficients belong to it (McLachlan & Peel 2000, section 3.10).
    """
    params = expand(problem.structure, problem.free, theta)
    noise = _noise(problem.structure, params)
    subjects = np.exp(gate_log_probabilities(problem.W, params.gamma)).sum(axis=2)
    few = subjects <= (~problem.structure.common).sum() + _FEW
    exact = noise < _SIGMA_OF_FEW * noise.max(axis=1, keepdims=True)
    return ((noise < _SIGMA_COLLAPSED * sigma_one) | (few & exact)).any(axis=1)


def _noise(s: Structure, params: Params) -> Array:
    """Residual deviations, or what stands for them where responses have a precision, shape (S, K); else ones."""
    for extra, where in spans(s.extras):
        if extra.precision:
            return np.asarray(np.exp(-0.5 * params.extra[:, :, where.start]))
    return params.sigma


def _ranked(problem: Problem, sigma_one: float, found: Climb) -> Array:
    """Log-likelihoods with collapsed solutions put last."""
    return np.where(collapsed(problem, sigma_one, found.theta), -np.inf, found.loglik)


def finish(problem: Problem, sigma_one: float, rough: Climb, margin: float, control: Control) -> Search:
    """End points within `margin` of the best run to convergence on all subjects; the best polished by Newton steps."""
    rough_rank = _ranked(problem, sigma_one, rough)
    candidates = _candidates(rough_rank, margin)
    limit = replace(control, tol=_SHARP * control.tol, min_gain=_STANDSTILL)
    limit = replace(limit, max_iter=0) if rough.interrupted else limit
    start = np.array([largest_first(problem, theta) for theta in rough.theta[candidates]])
    found = _climb_from(problem, sigma_one, start, limit)
    rank = _ranked(problem, sigma_one, found)
    best = int(np.argmax(rank >= rank.max() - SAME))  # of equals the one that was best before
    interrupted = rough.interrupted or found.interrupted
    theta = found.theta[best]
    if not (interrupted or found.converged[best]):
        theta = newton_polish(problem, theta)
    e = evaluate(problem, theta[None])
    origin = candidates[best]
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
        n_starts=rough.loglik.size,
        logliks=np.sort(found.loglik)[::-1],
        n_replicated=int((rough_rank >= rough.loglik[origin] - SAME).sum()),
        n_degenerate=int((~np.isfinite(rough_rank)).sum()),
        ends=np.sort(rough_rank)[::-1] if margin == _MARGIN else np.empty(0),
    )


def is_stationary(score: Array, problem: Problem, control: Control) -> bool:
    """Whether the score is zero to the tolerance, per subject."""
    return bool(np.abs(score).max(initial=0.0) <= 10 * control.tol * problem.n_subjects)


def newton_polish(problem: Problem, theta: Array, n_steps: int = 2) -> Array:
    """`theta` after Newton steps with the exact information, each kept only if it does not lower the log-likelihood."""
    for _ in range(n_steps):
        information = observed_information(problem, theta)
        here = evaluate(problem, theta[None])
        values, vectors = np.linalg.eigh(information)
        usable = values > 1e-8 * values.max()
        step = vectors[:, usable] @ ((vectors[:, usable].T @ here.score[0]) / values[usable])
        with np.errstate(all="ignore"):
            there = evaluate(problem, (theta + step)[None])
        if not there.loglik[0] >= here.loglik[0]:
            break
        theta = theta + step
    return theta
