"""A further expert, inserted beside a fit where it gains most.

Where the last expert gained little, the highest maxima are those of the right handful of subjects, which no cut through
an expert finds: new experts grow from many small sets of subjects beside the fit as it is, which costs little.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mixmoe._typing import Array
from mixmoe.mixed.em import Expectations, expectations, updated_factor
from mixmoe.mixed.end_points import nearly_exact
from mixmoe.mixed.likelihood.gaussian import LOG_2PI, GaussianExperts
from mixmoe.mixed.likelihood.observed import ClosedForm, evaluate, subject_logliks
from mixmoe.mixed.parameters import Params, free_to_working, working_to_free
from mixmoe.mixed.starting_values import OneExpert, fewer_experts, one_expert_problem, parts_of
from mixmoe.mixture.gate import gate_log_probabilities
from mixmoe.numerics.linalg import logsumexp

_LITTLE = 10.0  # log-likelihood per further parameter up to which an expert may be a handful of subjects
_MOST_COEFFICIENTS = 40  # of an expert, up to which one is inserted
_BATCHES, _BATCH = 2, 128  # sets of subjects that are drawn
_PAIRS = 96  # of a batch
_SET_ROUNDS, _GROWING = 3, 2  # EM steps with a set as it is, and with whoever joins or leaves it, among the few
_GENERATIONS, _PARENTS = 5, 64  # batches of sets that are bred from the best so far, and how many these are
_MEMBER = 0.15  # share of a subject that counts as one in breeding
_FINAL_ROUNDS = 5  # steps of those that are left, with a gate of their own, among the many
_FEW = 256  # candidates: subjects to whom an expert of their own would be worth most
_MANY = 1000  # the same in the final rounds
_FINALISTS = 40
_NARROW = 0.1  # of the residual deviations of the others is what the best expert of one subject may have at least
_SAME_PARENT, _SAME_SHARE = 0.8, 0.9  # of the larger of two new experts that is in both if they are one: of parents,
# which must not crowd out others, and of those that go on: maxima may differ in one of five subjects
_MAX_SHIFT = 4.0  # largest change of the gate's predictor in one step


@dataclass(frozen=True, slots=True)
class Inserted:
    """New experts, C of them, each beside a fit that stays as it is.

    Attributes
    ----------
    gain : ndarray, shape (C,)
        In log-likelihood; the mixture with the new expert gains at least as much.
    params : Params
        With S = C and K = 1; gate coefficients beside those of the fit.
    subjects : ndarray of int, shape (n,)
        Those who may belong to them.
    share : ndarray, shape (C, n)
        Of each of these that does.
    source : ndarray of int, shape (C,)
        Expert of the fit that each came from.
    """

    gain: Array
    params: Params
    subjects: NDArray[np.intp]
    share: Array
    source: NDArray[np.intp]

    def take(self, which: NDArray[np.intp]) -> "Inserted":
        """Some of them."""
        params = Params(*(part[which] for part in parts_of(self.params)))
        return Inserted(self.gain[which], params, self.subjects, self.share[which], self.source[which])


@dataclass(frozen=True, slots=True)
class Beside:
    """A fit beside which an expert is added.

    Attributes
    ----------
    problem : Problem
        Of its own experts, K - 1.
    params : Params
        With S = 1.
    base : ndarray, shape (N,)
        Log-density of each subject.
    owner : ndarray of int, shape (N,)
        Expert to which each most probably belongs.
    log_prior : ndarray, shape (K - 1, N)
    sizes : ndarray, shape (K - 1,)
        Numbers of subjects that the gate expects.
    intercept : ndarray, shape (m,)
        Gate coefficients that raise every log-odds by one.
    """

    problem: ClosedForm
    params: Params
    base: Array
    owner: NDArray[np.intp]
    log_prior: Array
    sizes: Array
    intercept: Array

    @property
    def gate(self) -> Array:
        """Gate coefficients of all its experts, shape (K - 1, m)."""
        return np.concatenate([np.zeros((1, self.intercept.size)), self.params.gamma[0]])


def gains_little(problem: ClosedForm, smaller: Array, level: float) -> bool:
    """Whether a log-likelihood lies so little above that of a fit with one expert fewer that a handful of subjects may.

    A group of its own gains hundreds; where there is none, the highest maxima are those of the right handful. An expert
    with as many coefficients of its own as a handful has subjects would fit these exactly, whichever they are.
    """
    if problem.experts.by_rows or (~problem.structure.common).sum() >= _MOST_COEFFICIENTS:
        return False
    below = evaluate(fewer_experts(problem), smaller[None]).loglik[0]
    return bool(0 <= level - below < _LITTLE * (problem.free.size - smaller.size))


def inserted_starts(problem: ClosedForm, one: OneExpert, smaller: Array, n: int, rng: np.random.Generator) -> Array:
    """Up to `n` free vectors that add an expert to a fit with one expert fewer where it gains most.

    Parameters
    ----------
    problem : Problem
        With K experts.
    one : OneExpert
    smaller : ndarray, shape (P',)
        Free vector of a fit with K - 1 experts.
    n : int
    rng : numpy.random.Generator

    Returns
    -------
    ndarray, shape (n', P)
    """
    fit = beside(fewer_experts(problem), smaller)
    new = insertions(fit, one.features, rng)
    return with_new(problem, fit.params, new.take(distinct(new, n)))


def beside(below: ClosedForm, theta: Array) -> Beside:
    """What the fit `theta`, shape (P',), says about each subject."""
    params = free_to_working(below.structure, theta[None])
    joint = subject_logliks(below, theta).T
    log_prior = gate_log_probabilities(below.W, params.gamma)[0]
    intercept = np.asarray(np.linalg.lstsq(below.W, np.ones(len(below.W)), rcond=None)[0], dtype=np.float64)
    base, sizes = logsumexp(joint, axis=0), np.exp(log_prior).sum(axis=1)
    return Beside(below, params, base, joint.argmax(axis=0), log_prior, sizes, intercept)


def with_new(problem: ClosedForm, params: Params, new: Inserted) -> Array:
    """Free vectors, shape (C, P), of a fit with each of the new experts as its last."""
    C = len(new.gain)
    if not C:
        return np.empty((0, problem.free.size))
    both = zip(parts_of(params), parts_of(new.params), strict=True)
    parts = (np.concatenate([np.repeat(old, C, axis=0), added], axis=1) for old, added in both)
    return working_to_free(problem.structure, Params(*parts))


def reinserted_starts(problem: ClosedForm, one: OneExpert, theta: Array, n: int, rng: np.random.Generator) -> Array:
    """Up to `n` free vectors in which an expert of the fit `theta`, shape (P,), gave way to one elsewhere.

    Each of the two whose absence costs least in turn, if so little that they may be handfuls; else the first of them.
    """
    below, level = fewer_experts(problem), evaluate(problem, theta[None]).loglik[0]
    without = np.array([without_expert(problem, theta, k) for k in range(problem.structure.n_experts)])
    cost = level - evaluate(below, without).loglik
    cheapest = np.argsort(cost)[:2]
    handfuls = cheapest[cost[cheapest] < _LITTLE * (problem.free.size - below.free.size)]
    leaving = handfuls if handfuls.size else cheapest[:1]
    parts = [inserted_starts(problem, one, without[k], n // leaving.size, rng) for k in leaving]
    return np.vstack(parts)


def without_expert(problem: ClosedForm, theta: Array, k: int) -> Array:
    """Free vector, with one expert fewer, of the fit `theta`, shape (P,), without its expert k."""
    below = fewer_experts(problem)
    p = free_to_working(problem.structure, theta[None])
    full = np.delete(np.concatenate([np.zeros_like(p.gamma[:, :1]), p.gamma], axis=1), k, axis=1)
    parts = (np.delete(part, k, axis=1) for part in parts_of(p)[1:])
    return working_to_free(below.structure, Params(full[:, 1:] - full[:, :1], *parts))[0]


def insertions(fit: Beside, features: Array, rng: np.random.Generator) -> Inserted:
    """New experts beside a fit, grown from random sets of subjects."""
    order = np.argsort(-worth(fit, np.arange(fit.base.size)[:, None]), kind="stable")
    few, many = order[:_FEW], order[:_MANY]
    alone = one_expert_problem(fit.problem)
    part, pairs = alone.take(few), np.column_stack(np.triu_indices(few.size, 1))
    pairs = pairs[np.argsort(-worth(fit, few[pairs]), kind="stable")]
    # 1. Experts fitted to random sets of subjects, then to whoever joins them or leaves. In small batches: the working
    #    arrays of more sets at once would not fit the cache.
    new = _together([_raised(fit, part, few, *_sets(features[few], pairs, rng)) for _ in range(_BATCHES)])
    # 2. What is left of them is bred: sets of some subjects of one, often with some of another, hold more of a right
    #    handful than pairs at random do. Those that would fit a few subjects exactly are no experts.
    for generation in range(1 + _GENERATIONS):
        new = new.take(distinct(_unless_exact(fit, new), _PARENTS, _SAME_PARENT))
        if not new.gain.size:
            return new
        # At the end the best without one of their subjects: there may be a maximum with and one without.
        sets, first = _bred(new, rng) if generation < _GENERATIONS else _less_one(new)
        if len(sets):  # none where all are pairs
            new = _together([new, _raised(fit, part, few, sets, first)])
    new = new.take(distinct(_unless_exact(fit, new), _FINALISTS))
    # 3. With a gate of their own, and among more subjects.
    new = replace(new, subjects=many, share=np.pad(new.share, ((0, 0), (0, many.size - few.size))))
    part = alone.take(many)
    for _ in range(_FINAL_ROUNDS):
        new = _grown(fit, part, new, tilt=True)
    return _unless_exact(fit, _weighed(fit, part, new))


def _raised(fit: Beside, part: ClosedForm, few: NDArray[np.intp], sets: Array, first: NDArray[np.intp]) -> Inserted:
    """New experts grown from `sets` of the subjects `few`, memberships (C, n), with the gate of their `first`."""
    p, source = fit.params, fit.owner[few[first]]
    params = Params(fit.gate[source][:, None], *(part[0][source][:, None] for part in parts_of(p)[1:]))
    new = Inserted(np.zeros(len(sets)), params, few, sets, source)
    for _ in range(_SET_ROUNDS):
        new = _fitted(fit, part, new, expectations(part, _alone(new), sets[:, None]), tilt=False)
    for _ in range(_GROWING):
        new = _grown(fit, part, new, tilt=False)
    return _weighed(fit, part, new)


def _less_one(new: Inserted) -> tuple[Array, NDArray[np.intp]]:
    """Memberships, shape (C, n), of the best without one of their subjects in turn, and a member of each."""
    member = new.share[np.argsort(-new.gain, kind="stable")] > _MEMBER
    member = member[member.sum(axis=1) > 2]
    which, dropped = (each[:_BATCH] for each in np.nonzero(member))
    sets = member[which].astype(float)
    sets[np.arange(len(sets)), dropped] = 0.0
    return sets, sets.argmax(axis=1)


def _together(all_of: list[Inserted]) -> Inserted:
    """All of them, which have the same subjects."""
    gain, share, source = (np.concatenate([getattr(b, name) for b in all_of]) for name in ("gain", "share", "source"))
    params = zip(*(parts_of(b.params) for b in all_of), strict=True)
    return Inserted(gain, Params(*(np.concatenate(each) for each in params)), all_of[0].subjects, share, source)


def _bred(new: Inserted, rng: np.random.Generator) -> tuple[Array, NDArray[np.intp]]:
    """Memberships, shape (C, n), of sets of two to four subjects of one new expert, half with one or two of another.

    And a member of each. Experts are drawn more often the more they gain.
    """
    order, C = np.argsort(-new.gain, kind="stable"), len(new.gain)
    sets = np.zeros((_BATCH, new.share.shape[1]), dtype=bool)
    for least, most, who in ((2, 4, np.arange(_BATCH)), (1, 2, np.arange(_BATCH // 2))):
        parents = order[(C * rng.uniform(size=who.size) ** 2).astype(int)]
        draw = np.where(
            new.share[parents] > _MEMBER, rng.uniform(size=(who.size, sets.shape[1])), 2 - new.share[parents]
        )
        chosen = draw.argsort(axis=1).argsort(axis=1) < rng.integers(least, most + 1, size=who.size)[:, None]
        sets[who] |= chosen & ((draw < 1) | (least > 1))
    return sets.astype(float), sets.argmax(axis=1)


def _unless_exact(fit: Beside, new: Inserted) -> Inserted:
    """New experts with no gain for those that fit a few subjects nearly exactly."""
    sigma = new.params.sigma[:, 0]
    largest = np.maximum(sigma, fit.params.sigma.max())
    exact = nearly_exact(fit.problem.structure, sigma, largest, new.share.sum(axis=1))
    return replace(new, gain=np.where(exact, -np.inf, new.gain))


def worth(fit: Beside, sets: NDArray[np.intp]) -> Array:
    """By how much the log-density of each set of subjects, shape (C, size), is below that under its own best expert.

    Without random effects and with a residual deviation not below a tenth of the largest: for a single subject no new
    expert gives more.
    """
    s, m = fit.problem.structure, fit.problem.experts
    if not isinstance(m, GaussianExperts):
        raise TypeError("no expert is inserted where columns are many; ask gains_little first")
    together = (each[..., sets].sum(axis=-1) for each in (m.XX, m.Xy, m.yy, m.n, m.log_weight, fit.base))
    XX, Xy, yy, n, log_weight, base = together
    XX, Xy = np.moveaxis(XX, 2, 0), Xy.T
    ridge = 1e-8 * (1 + np.trace(XX, axis1=1, axis2=2))[:, None, None] * np.eye(XX.shape[1])
    own = np.linalg.solve(XX + ridge, Xy[..., None])[..., 0]
    squares = np.maximum(yy - (own * Xy).sum(axis=1), 0.0)
    largest = float(fit.params.sigma.max())
    sigma = np.maximum(np.sqrt(squares / n), _NARROW * largest) if s.residual == "expert" else largest
    log_density = 0.5 * log_weight - n * (0.5 * LOG_2PI + np.log(sigma)) - squares / (2 * sigma**2)
    return np.asarray(log_density - base)


def _sets(features: Array, pairs: NDArray[np.intp], rng: np.random.Generator) -> tuple[Array, NDArray[np.intp]]:
    """Memberships, shape (C, n), of random sets of subjects, and a member of each.

    Subjects and pairs are ordered by worth, and drawn more often the more they are worth. Three of four sets are pairs,
    the others are neighbours in directions of random weight.
    """
    n, others = len(features), _BATCH - _PAIRS
    two = pairs[(len(pairs) * rng.uniform(size=_PAIRS) ** 2).astype(int)]
    first = (n * rng.uniform(size=others) ** 2).astype(int)
    weight = rng.exponential(size=(others, 1, features.shape[1]))
    distance = (weight * (features - features[first, None]) ** 2).sum(axis=2)
    distance[np.arange(others), first] = -1.0
    size = np.exp(rng.uniform(np.log(2), np.log(max(n / 8, 3)), size=others)).astype(int)
    near = distance.argsort(axis=1).argsort(axis=1) < size[:, None]
    paired = np.zeros((_PAIRS, n))
    paired[np.arange(_PAIRS)[:, None], two] = 1.0
    return np.vstack([paired, near]), np.append(two[:, 0], first)


def _fitted(fit: Beside, alone: ClosedForm, new: Inserted, e: Expectations, tilt: bool) -> Inserted:
    """New experts after an M-step with their shares, but for parameters that experts have in common.

    The gate of the expert that each came from is shifted to the size of the new one, or with `tilt` it takes a Newton
    step of its own.
    """
    s, params, source = fit.problem.structure, new.params, new.source
    if e.normal is None:
        raise TypeError("no expert is inserted where columns are many; ask gains_little first")
    own = np.flatnonzero(~s.common)
    normal = e.normal[:, 0][:, own[:, None], own]
    ridge = 1e-10 * (1 + np.trace(normal, axis1=1, axis2=2))[:, None, None] * np.eye(own.size)
    beta = params.beta.copy()
    beta[:, 0, own] += np.linalg.solve(normal + ridge, e.pull[:, 0, own, None])[..., 0]
    factor, sigma = fit.params.factor[0][source][:, None], fit.params.sigma[0][source][:, None]
    if s.cov_re != "common":
        free = updated_factor(alone.structure, e, params.factor)
        factor = free if s.cov_re == "expert" else factor * _length(free) / _length(factor)
    if s.residual == "expert":
        sigma = np.sqrt(np.maximum(e.residual / np.maximum(e.rows, 1e-10), 1e-10))
    gamma = _tilted(fit, new) if tilt else _shifted(fit, new)
    return replace(new, params=replace(params, gamma=gamma, beta=beta, factor=factor, sigma=sigma))


def _alone(new: Inserted) -> Params:
    """Parameters of new experts without a gate."""
    return replace(new.params, gamma=new.params.gamma[:, :0])


def _length(factor: Array) -> Array:
    return np.maximum(np.sqrt((factor**2).sum(axis=(2, 3), keepdims=True)), 1e-10)


def _grown(fit: Beside, alone: ClosedForm, new: Inserted, tilt: bool) -> Inserted:
    """New experts after one round: whoever they describe better joins, then their parameters follow their subjects."""
    odds, base = _odds(fit, new.params.gamma, new.subjects), fit.base[new.subjects]

    def joined(where: slice, log_density: Array) -> Array:
        return np.asarray(expit(odds[:, None, where] + log_density - base[where]))

    e = expectations(alone, _alone(new), joined)
    return _fitted(fit, alone, replace(new, share=e.responsibilities[:, 0]), e, tilt)


def _weighed(fit: Beside, alone: ClosedForm, new: Inserted) -> Inserted:
    """New experts with the shares and the gain that their parameters give."""
    odds = _odds(fit, new.params.gamma, np.arange(fit.base.size))
    log_ratio, params = odds[:, new.subjects] - fit.base[new.subjects], _alone(new)
    for where, experts in alone.experts.blocks(len(odds)):
        log_ratio[:, where] += experts.densities(params).log_density[:, 0]
    gain = np.logaddexp(0, log_ratio).sum(axis=1) - np.logaddexp(0, odds).sum(axis=1)
    return replace(new, gain=gain, share=expit(log_ratio))


def _shifted(fit: Beside, new: Inserted) -> Array:
    """Gate coefficients, shape (C, 1, m), of the experts that new ones came from, shifted to the size of these."""
    full = fit.gate[new.source]
    shift = np.log(np.clip(new.share.sum(axis=1), 0.1, 0.5 * fit.base.size) / fit.sizes[new.source])
    return np.asarray((full + shift[:, None] * fit.intercept)[:, None])


def _odds(fit: Beside, gamma: Array, subjects: NDArray[np.intp]) -> Array:
    """Log-odds of new experts against the fit before the responses are known, shape (C, n)."""
    return np.asarray(gamma[:, 0] @ fit.problem.W[subjects].T + fit.log_prior[0, subjects])


def _tilted(fit: Beside, new: Inserted) -> Array:
    """Gate coefficients, shape (C, 1, m), after a Newton step to those that the shares call for."""
    W, gamma = fit.problem.W, new.params.gamma
    m = W.shape[1]
    probability = expit(_odds(fit, gamma, np.arange(len(W))))  # (C, N)
    score = new.share @ W[new.subjects] - probability @ W
    outer = (W[:, :, None] * W[:, None]).reshape(len(W), m * m)
    information = ((probability * (1 - probability)) @ outer).reshape(-1, m, m)
    # Beside a covariate that separates the information vanishes; a ridge relative to its size keeps the step finite.
    size = np.maximum(np.trace(information, axis1=1, axis2=2), 1e-8)
    ridge = 1e-8 * size[:, None, None] * np.eye(m)
    step = np.linalg.solve(information + ridge, score[..., None])[..., 0]
    shift = np.abs(step @ W.T).max(axis=1)
    return np.asarray(gamma + (step * (_MAX_SHIFT / np.maximum(shift, _MAX_SHIFT))[:, None])[:, None])


def distinct(new: Inserted, n: int, same: float = _SAME_SHARE) -> NDArray[np.intp]:
    """Which `n` gain most, of those with the same subjects one; without those of none."""
    kept: list[int] = []
    size = new.share.sum(axis=1)
    for i in np.argsort(-new.gain, kind="stable"):
        if len(kept) == n or np.isneginf(new.gain[i]):
            break
        common = np.minimum(new.share[kept], new.share[i]).sum(axis=1)
        if not (common > same * np.maximum(size[kept], size[i])).any():
            kept.append(int(i))
    return np.array(kept, dtype=np.intp)
