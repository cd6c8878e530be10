"""Maximum likelihood of a MEMoE: search from many starts, finish by quasi-Newton and Newton, order the experts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.ascents import MARGIN, Search, climb_from, finish, permute, race, ranked
from mixmoe.mixed.end_points import (
    Ends,
    candidates,
    continued,
    join,
    one_search,
    or_any,
    without_artefacts,
)
from mixmoe.mixed.insertion import gains_little, inserted_starts, reinserted_starts
from mixmoe.mixed.likelihood.observed import ClosedForm, Problem
from mixmoe.mixed.parameters import free_to_working, working_to_free
from mixmoe.mixed.starting_values import (
    OneExpert,
    carried_starts,
    climb_one_expert,
    closed_form_problem,
    fit_one_expert,
    one_expert_problem,
    random_starts,
    scatter,
    split_merge_starts,
    with_extras,
    without_extras,
)
from mixmoe.mixture.estimate import SAME
from mixmoe.mixture.gate import gate_log_probabilities
from mixmoe.numerics.optimise import Climb, Control

_EM_STEPS = 2
_SEARCH_ABOVE = 600  # with more subjects than this random starts run on two subsamples
_SEARCH_SUBJECTS = 500  # of at least this size
_MANY = 20_000  # subjects with which the search goes on from there
_MANY_APPROXIMATE = 4_000  # the same where the likelihood has no closed form
_POOL = 16  # distinct end points of a subsample that go on with more subjects
_MOVES = 4  # split-and-merge moves per expert and round, one where experts are inserted
_SPLITS = 4  # of each expert
_SPLITS_OF_LITTLE = 2  # of each expert where the last one gained little: insertion nearly always finds more
_MORE_SPLITS = 2  # times as many where subjects are few
_INSERTED = 20  # places where a new expert gains most, of which ascents start
_SEARCHES = 3  # independent searches at most, two of which must agree
_HALVED_OF_MANY = 8  # iterations after which half of the ascents with the likelihood itself are given up there
_PATIENCE_OF_LITTLE = 2  # rounds of moves without gain, where the last expert gained little
_NEAR = 5.0  # log-likelihood by which an end point that moves start from may lie behind the best
_WORTHWHILE = 0.01  # gain that makes another round of moves; less is mere convergence of what is there
_CHASED = 16  # end points of the closed form that are carried on with the likelihood itself
_BEHIND_APPROXIMATE = 5.0  # log-likelihood by which starts may lie behind the best of an approximate closed form
_AROUND = 4  # starts per expert around the best of these, with other parameters of the errors
_LESS_DISPERSED = (4.0, 16.0, 64.0)  # factors of the precision of responses with which groups are looked for again
_EM_STEPS_LESS_DISPERSED = 10
_PART_MARGIN = 20.0  # or this far if that was found on some of the subjects
_PART_ITERATIONS = 25  # for ascents on a subsample, whose end points are not final
_PART_HALVED = 4  # iterations after which half of them are given up, and so on: hardly ever is the winner among these
_PART_BEHIND = 3.0  # log-likelihood by which starts that race on a subsample may lie behind the best
_SMALLER_PROMISE = 1e-2  # gain that is left to fits with fewer experts, which are but starting points
_ROUGH = Control(max_iter=80, tol=1e-4, min_gain=1e-5, promise=1e-4, behind=2.0)
_MOST = 0.85  # share of starts whose collapse is that of the data
_NO_EFFECT = 1e-3  # in working coordinates, where the pooled residual standard deviation is one
_SMALL_EFFECT = 0.05  # in the same


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
    return permute(problem, theta, list(np.argsort(-gate_shares(problem, theta), kind="stable")))


def gate_shares(problem: Problem, theta: Array) -> Array:
    """Mean gate probability of each expert, shape (K,)."""
    gamma = free_to_working(problem.structure, theta[None]).gamma
    return np.asarray(np.exp(gate_log_probabilities(problem.W, gamma))[0].mean(axis=1))


def search(problem: Problem, n_starts: int, control: Control, rng: np.random.Generator) -> Search:
    """The highest maximum found from random starts, from fits with fewer experts, and from split-and-merge moves.

    Random starts are cheap and many, and need not see all subjects: above six hundred, those of each independent search
    run on a subsample of its own. What they find goes on with more subjects, up to twenty thousand, with which fits of
    2, 3 ... experts are carried on and the moves are tried, so that what a subsample cannot show is found there, and
    replication means the same as with few subjects. The few best see all.

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
        alone = climb_one_expert(problem, limited)
        sigma_one = pooled_sigma(problem, alone.theta[0])
        return finish(problem, sigma_one, one_search(alone, alone.loglik), MARGIN, control)
    size = _MANY if problem.experts.is_closed_form else _MANY_APPROXIMATE
    # Subjects in an order that does not depend on that of the data.
    order = _sorted((*problem.W.T, *problem.experts.sort_keys()))
    many = problem.take(_some(order, size, rng))
    one = fit_one_expert(many, limited)
    ends = explore(many, one, n_starts, limited, rng)
    margin = MARGIN if many.n_subjects == problem.n_subjects else _PART_MARGIN
    return finish(problem, one.sigma, ends, margin, control)


def _sorted(keys: Sequence[Array]) -> NDArray[np.intp]:
    """`numpy.lexsort`, where hardly any two have the same last two keys: all others are compared for these only."""
    last = keys[-2:]
    order = np.lexsort(last)
    same = np.all([np.diff(key[order]) == 0 for key in last], axis=0)
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    among = order[tied]
    order[tied] = among[np.lexsort([key[among] for key in keys])]
    return order


def search_from(problem: Problem, starts: Array, control: Control) -> Search:
    """The highest maximum reached from given starts, shape (G, P), on all subjects; not below the best of them."""
    limited = _limited(control)
    alone = one_expert_problem(problem)
    sigma_one = pooled_sigma(alone, climb_one_expert(alone, limited).theta[0])
    return finish(problem, sigma_one, race(problem, sigma_one, starts, limited), MARGIN, control)


def search_carried(problem: Problem, smaller: Array, control: Control, rng: np.random.Generator) -> Search:
    """The highest maximum reached from the fit with one expert fewer, shape (P',), whose experts are split."""
    one = fit_one_expert(problem, _limited(control))
    return search_from(problem, carried_starts(problem, one, smaller, _EM_STEPS, rng), control)


def _limited(control: Control) -> Control:
    """Limits of the search for starts."""
    most = min(_ROUGH.max_iter, control.max_iter)
    return replace(_ROUGH, max_iter=most, progress=control.progress, keeper=control.keeper)


def pooled_sigma(alone: Problem, theta: Array) -> float:
    """Residual standard deviation of a one-expert fit; one if the likelihood has none."""
    return float(free_to_working(alone.structure, theta[None]).sigma[0, 0])


def explore(problem: Problem, one: OneExpert, n_starts: int, control: Control, rng: np.random.Generator) -> Ends:
    """End points of independent searches, at least two (three where the last expert gained little), until two agree.

    Each has half of the random starts, splits of the fit with one expert fewer, and split-and-merge moves from the best
    of these. Where the likelihood has no closed form, the searches are on one near it, and its best end points are
    carried on.
    """
    closed = closed_form_problem(problem, one.params)
    plain = replace(one, params=without_extras(one.params))
    exact = closed.experts is problem.experts
    # Maxima that lie close together may have another order under the likelihood itself.
    wide = control if exact else replace(control, behind=_BEHIND_APPROXIMATE)
    found = _search_once(closed, plain, n_starts - n_starts // 2, wide, rng)
    found = _with_nested(closed, plain, found, wide, rng)
    for i in range(1, _SEARCHES):
        # Where the last expert gained little, maxima are many and two searches may agree on a lower one.
        if found.climb.interrupted or (found.agree and (i > 2 or not found.little)):
            break
        again = _search_once(closed, plain, (n_starts + 1) // 2, _beyond(wide, found), rng)
        found = join(found, replace(again, search=again.search + i))
    if exact:
        return found
    if problem.has_many_columns:  # ascents that creep towards infinite coefficients would be most of the work
        control = replace(control, halve=_HALVED_OF_MANY)
    found = chase(problem, one, found, control)
    found = _scattered(problem, one, found, control, rng)
    found = _less_dispersed(problem, one, found, control, rng)
    return replace(found, rank=without_artefacts(problem, found.climb.theta, found.rank))


def _search_once(
    problem: ClosedForm, one: OneExpert, n_starts: int, control: Control, rng: np.random.Generator
) -> Ends:
    """End points of one search, which shares nothing with others but the one-expert fit."""
    # 1. Fits with 2, 3 ... experts, each carried to the next.
    smaller = _chain(problem, one, problem.structure.n_experts - 1, True, control, rng)
    if smaller.interrupted:  # the starts as they are
        starts = carried_starts(problem, one, smaller.theta, _EM_STEPS, rng)
        found = race(problem, one.sigma, starts, replace(control, max_iter=0))
        return replace(found, climb=replace(found.climb, interrupted=True))
    found = _with_one_more(problem, one, smaller, control, rng)
    # 2. Random starts race against what has been reached, so that most are given up soon.
    if not found.climb.interrupted:
        if problem.n_subjects <= _SEARCH_ABOVE:
            starts = random_starts(problem, one, n_starts, _EM_STEPS, rng)
        else:  # the distinct end points of a subsample
            part, there = problem, one
            if _search_size(problem) < problem.n_subjects:
                part = problem.take(_some(np.arange(problem.n_subjects), _search_size(problem), rng))
                there = fit_one_expert(part, control)
            limit = replace(control, max_iter=min(_PART_ITERATIONS, control.max_iter))
            limit = replace(limit, behind=_PART_BEHIND, halve=_PART_HALVED, reached=-np.inf)
            ends = race(part, there.sigma, random_starts(part, there, n_starts, _EM_STEPS, rng), limit)
            starts = ends.climb.theta[candidates(or_any(ends.rank, ends.climb.loglik), _PART_MARGIN, _POOL)]
        found = join(found, race(problem, one.sigma, starts, _beyond(control, found)))
    # Where nearly all collapse, responses without noise, not a few subjects, are the reason, and what is left (the fit
    # with one expert fewer, whose two halves cannot collapse; ascents stuck on their way) would hide it.
    if np.isneginf(found.rank).mean() > _MOST:
        found = replace(found, rank=np.full(found.rank.size, -np.inf))
    # 3. Moves from the best.
    found = replace(found, little=gains_little(problem, smaller.theta, found.rank.max()))
    return _with_moves(problem, one, found, found.little, control, rng)


def _beyond(control: Control, found: Ends) -> Control:
    """Limits of ascents that race against the best so far."""
    return replace(control, reached=max(control.reached, found.rank.max()))


def _with_nested(problem: ClosedForm, one: OneExpert, found: Ends, control: Control, rng: np.random.Generator) -> Ends:
    """`found` with ascents from fits of nested models, and moves from their end if it is the best."""
    level = found.rank.max()
    if found.climb.interrupted or not np.isfinite(level):  # where most collapse, what is left would hide it
        return found
    limit = _beyond(control, found)
    starts, interrupted = nested_starts(problem, one, limit, rng)
    if not len(starts):
        return found
    found = join(found, race(problem, one.sigma, starts, limit))
    if interrupted:
        return replace(found, climb=replace(found.climb, interrupted=True))
    return _with_moves(problem, one, found, False, control, rng) if found.rank.max() > level + _WORTHWHILE else found


def nested_starts(
    problem: ClosedForm, one: OneExpert, control: Control, rng: np.random.Generator
) -> tuple[Array, bool]:
    """Free vectors, shape (S, P), of fits of nested models, and whether the user interrupted.

    Of those whose experts share all variances, and of those without random effects. Their likelihoods have fewer
    maxima, and no fit should lie below them; they are given up where they stay below what has been reached.
    """
    s, K, out, stopped = problem.structure, problem.structure.n_experts, [], False
    shared = replace(s, cov_re="common", residual="common" if s.residual == "expert" else s.residual)
    if shared.residual != s.residual or (s.n_random and s.cov_re != "common"):
        simple = Problem(shared, problem.experts, problem.W, problem.penalty)
        theta, stopped = _nested_fit(simple, one, control, rng)
        out.append(working_to_free(s, free_to_working(shared, theta[None])))
    if s.n_random and not stopped:
        fixed = replace(s, n_random=0)
        simple = Problem(fixed, problem.experts.without_random_effects(), problem.W, problem.penalty)
        plain = replace(one, params=fit_one_expert(simple, control).params)
        theta, stopped = _nested_fit(simple, plain, control, rng)
        params = free_to_working(fixed, theta[None])
        # Not zero, from where no ascent would leave, but so little that nothing is lost.
        factor = np.broadcast_to(_NO_EFFECT * np.eye(s.n_random), (1, K, s.n_random, s.n_random))
        out.append(working_to_free(s, replace(params, factor=factor)))
    return np.vstack([np.empty((0, problem.free.size)), *out]), stopped


def _nested_fit(problem: ClosedForm, one: OneExpert, control: Control, rng: np.random.Generator) -> tuple[Array, bool]:
    """Free vector of the best end point of splits of a fit with one expert fewer, and whether the user interrupted.

    The smaller fits see some of the subjects, as random starts do.
    """
    part = problem.take(_some(np.arange(problem.n_subjects), _search_size(problem), rng))
    smaller = _chain(part, fit_one_expert(part, control), problem.structure.n_experts - 1, False, control, rng)
    limit = replace(control, max_iter=0) if smaller.interrupted else control
    ends = race(problem, one.sigma, carried_starts(problem, one, smaller.theta, _EM_STEPS, rng), limit)
    return ends.climb.theta[ends.best], smaller.interrupted or ends.climb.interrupted


@dataclass(frozen=True, slots=True)
class Smaller:
    """A fit with fewer experts.

    Attributes
    ----------
    theta : ndarray, shape (P',)
    little : bool
        Whether its last expert gained so little that it may be a handful of subjects.
    interrupted : bool
    """

    theta: Array
    little: bool
    interrupted: bool


def _chain(
    problem: ClosedForm, one: OneExpert, n_experts: int, insert: bool, control: Control, rng: np.random.Generator
) -> Smaller:
    """The best fit with some number of experts, found from that with one fewer, which is found likewise.

    Without `insert` from splits of its experts alone.
    """
    s = problem.structure
    # What has been reached with all experts says nothing about fewer.
    control = replace(control, promise=_SMALLER_PROMISE, reached=-np.inf)
    best = Smaller(working_to_free(replace(s, n_experts=1), one.params)[0], False, False)
    for K in range(2, n_experts + 1):
        larger = Problem(replace(s, n_experts=K), problem.experts, problem.W)
        if insert and not best.interrupted:
            ends = _with_one_more(larger, one, best, control, rng)
        else:
            limit = replace(control, max_iter=0) if best.interrupted else control
            ends = race(larger, one.sigma, carried_starts(larger, one, best.theta, _EM_STEPS, rng), limit)
        little = insert and gains_little(larger, best.theta, ends.rank.max())
        best = Smaller(ends.climb.theta[ends.best], little, best.interrupted or ends.climb.interrupted)
    return best


def _with_one_more(
    problem: ClosedForm, one: OneExpert, smaller: Smaller, control: Control, rng: np.random.Generator
) -> Ends:
    """End points of ascents from a fit with one expert fewer, whose experts are split.

    Where a further expert gains little, it is also inserted where it gains most: if the last one did already, first, so
    that most splits are given up soon.
    """
    n_splits = _SPLITS_OF_LITTLE if smaller.little else _SPLITS
    if problem.n_subjects <= _SEARCH_ABOVE:  # an ascent costs little there
        n_splits *= _MORE_SPLITS
    splits = carried_starts(problem, one, smaller.theta, _EM_STEPS, rng, n_splits)
    if smaller.little:
        # The smaller fit itself comes along, so that what is found is not below it.
        first = np.vstack([splits[:1], inserted_starts(problem, one, smaller.theta, _INSERTED, rng)])
        found, more = race(problem, one.sigma, first, control), splits[1:]
    else:
        found, more = race(problem, one.sigma, splits, control), splits[:0]
        if not found.climb.interrupted and gains_little(problem, smaller.theta, found.rank.max()):
            more = inserted_starts(problem, one, smaller.theta, _INSERTED, rng)
    if found.climb.interrupted or not len(more):
        return found
    return join(found, race(problem, one.sigma, more, _beyond(control, found)))


def _with_moves(
    problem: ClosedForm, one: OneExpert, found: Ends, insert: bool, control: Control, rng: np.random.Generator
) -> Ends:
    """`found` with moves from its best end point, until a round gains nothing.

    Where experts are inserted, maxima lie close together that differ in two experts, and the way to the highest leads
    over a lower one: before the end a round goes from the next best.
    """
    K, left, idle = problem.structure.n_experts, np.empty(0), 0
    patience = _PATIENCE_OF_LITTLE if insert else 1
    while idle < patience and np.isfinite(found.rank).any() and not found.climb.interrupted:
        # 1. The best, or after a round from there the next best, that nobody has left yet.
        if idle == 0:
            found = _settled(problem, one, found, control)
        level, near = found.rank.max(), candidates(found.rank, _NEAR, left.size + 1)
        fresh = near[(np.abs(found.rank[near][:, None] - left) > SAME).all(axis=1)]
        if not fresh.size:
            break
        theta, height = found.climb.theta[fresh[0]], found.rank[fresh[0]]
        left = np.append(left, height)
        # 2. One expert dissolved and another split, or one that gave way to a new one elsewhere.
        try:
            moved = split_merge_starts(problem, one, theta, (1 if insert else _MOVES) * K, _EM_STEPS, rng)
            if insert:
                moved = np.vstack([moved, reinserted_starts(problem, one, theta, _INSERTED, rng)])
        except KeyboardInterrupt:
            return replace(found, climb=replace(found.climb, interrupted=True))
        # 3. Ascents from there race against the best.
        further = race(problem, one.sigma, moved, _beyond(control, found))
        returned = np.abs(further.climb.loglik - height) <= SAME
        found = join(found, replace(further, returned=returned))
        idle = 0 if found.rank.max() > level + _WORTHWHILE else idle + 1
    return found


def _settled(problem: ClosedForm, one: OneExpert, found: Ends, control: Control) -> Ends:
    """`found` with its best end point at rest, so that what moves gain is not its own convergence."""
    best = found.best
    if found.climb.converged[best] or not np.isfinite(found.rank[best]):
        return found
    end = race(problem, one.sigma, found.climb.theta[[best]], replace(control, max_iter=5 * control.max_iter))
    climb = continued(found.climb, np.array([best]), end.climb)
    at = np.arange(found.rank.size) == best
    return replace(found, climb=climb, rank=np.where(at, end.rank, found.rank))


def chase(problem: Problem, one: OneExpert, ends: Ends, control: Control) -> Ends:
    """End points found with the closed form, carried on with the likelihood itself.

    Starts with the same end point go on as one; those that ended far below the best are given up.
    """
    found = ends.climb
    order = np.argsort(-ends.rank, kind="stable")
    with np.errstate(invalid="ignore"):  # collapsed solutions, all of -inf, go as one
        falls = np.nan_to_num(-np.diff(ends.rank[order], prepend=ends.rank[order[0]]), posinf=np.inf)
    group = np.empty(order.size, dtype=np.intp)
    group[order] = np.cumsum(falls > SAME)
    leaders = [int(order[np.argmax(group[order] == g)]) for g in range(min(_CHASED, int(group.max()) + 1))]
    theta = with_extras(problem, found.theta, one.params)
    # Maxima of an approximate integral may be far above the true one, which must not be given up for them.
    patient = control if problem.experts.finer() is None else replace(control, behind=_PART_MARGIN)
    end = climb_from(problem, one.sigma, theta[leaders], patient)
    where = np.minimum(group, len(leaders) - 1)
    lost = group >= len(leaders)
    traces = tuple([-np.inf] if lost[i] else end.traces[g] for i, g in enumerate(where))
    climb = Climb(
        np.where(lost[:, None], theta, end.theta[where]),
        np.where(lost, -np.inf, end.loglik[where]),
        end.score[where],
        found.n_iter + end.n_iter[where],
        found.n_evaluations + end.n_evaluations[where],
        end.converged[where] & ~lost,
        traces,
        found.interrupted or end.interrupted,
    )
    return replace(ends, climb=climb, rank=ranked(problem, one.sigma, climb))


def _scattered(problem: Problem, one: OneExpert, found: Ends, control: Control, rng: np.random.Generator) -> Ends:
    """`found` with ascents from around the best end of each search, where errors, categories or zeros have parameters.

    The closed form takes these to be the same for all experts, and has no maxima in which they differ. Each search
    looks for them by itself, from starts of its own, so that it counts that two reach one.
    """
    s = problem.structure
    own_zeros = any(extra.block == "zeros" for extra in s.extras)
    if not (s.extras and (s.has_sigma or s.thresholds is not None or own_zeros)):
        return found
    for i in np.unique(found.search):
        if found.climb.interrupted:
            break
        own = found.search == i
        best = np.flatnonzero(own)[np.argmax(or_any(found.rank[own], found.climb.loglik[own]))]
        around = scatter(problem, found.climb.theta[best], _AROUND * s.n_experts, rng)
        further = race(problem, one.sigma, around, control)
        found = join(found, replace(further, search=further.search + i))
    return found


def _less_dispersed(problem: Problem, one: OneExpert, found: Ends, control: Control, rng: np.random.Generator) -> Ends:
    """`found` with ascents in each search from partitions that take the rows for less dispersed than they are together.

    The dispersion of one expert for all holds the distances between groups too. With it a mixture passes for noise: the
    closed form has no maximum of two experts, and that of the likelihood lies behind a saddle.
    """
    towards = np.zeros(one.params.extra.shape[-1])
    for extra, at in problem.structure.spans:
        towards[at] = extra.concentrates
    if not towards.any():
        return found
    clearer, n = [], 2 * problem.structure.n_experts
    for factor in _LESS_DISPERSED:
        moved = one.params.extra + np.log(factor) * towards
        clearer.append(replace(one, params=replace(one.params, extra=moved)))
    closed = [closed_form_problem(problem, each.params) for each in clearer]
    for i in np.unique(found.search):
        if found.climb.interrupted:
            break
        starts = []
        for form, each in zip(closed, clearer, strict=True):
            plain = replace(each, params=without_extras(each.params))
            parts = random_starts(form, plain, n, _EM_STEPS_LESS_DISPERSED, rng)
            starts.append(with_extras(problem, parts, each.params))
        further = race(problem, one.sigma, np.vstack(starts), control)
        found = join(found, replace(further, search=further.search + i))
    return found


def _some(subjects: NDArray[np.intp], n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """All of the subjects, or `n` of them at random in the same order."""
    if subjects.size <= n:
        return subjects
    return subjects[np.sort(rng.choice(subjects.size, n, replace=False))]


def _search_size(problem: Problem) -> int:
    return max(_SEARCH_SUBJECTS, 10 * problem.free.size)
