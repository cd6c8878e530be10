"""Starting values that add an expert to a fit where it gains most.

A mixture with more experts than the data have groups has its maxima where a new expert takes a handful of subjects that
are alike, and there are as many as handfuls: cuts across the subjects do not find them. Here each of many subjects
stands with its neighbours, in several ways, for a new expert, which is fitted while all others stay as they are; this
needs few subjects and one expert at a time, so that hundreds of places can be looked at for the cost of a few ascents.

References
----------
Vlassis & Likas (2002), Neural Processing Letters 15, 77-87; Verbeek, Vlassis & Krose (2003), Neural Computation 15,
469-485.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.em import expectations, update_means, update_variances
from mixmoe.mixed.likelihood.observed import ClosedForm, evaluate, subject_logliks
from mixmoe.mixed.parameters import Params, contract, expand
from mixmoe.mixed.starting_values import (
    OneExpert,
    double_expert,
    fewer_experts,
    one_expert_problem,
    refit,
    repeat_expert,
)
from mixmoe.mixture.gate import posterior_probabilities
from mixmoe.numerics.linalg import logsumexp

_LITTLE = 10.0  # log-likelihood per further parameter up to which an expert may be a handful of subjects
_PLACES = 100  # neighbourhoods in which new experts are tried, at most, and
_PER_PLACE = 20  # subjects for each of them
_LOCAL = 80  # subjects of each
_WAYS = 24  # handfuls of each
_ROUNDS = 4  # EM steps of the new expert alone
_SMALLEST = 4  # subjects of a handful
_NARROW = 0.1  # of the residual deviations of the others is what a new expert may have at least
_SAME_SHARE = 0.5  # of the smaller of two new experts that is in both if they are one


@dataclass(frozen=True, slots=True)
class Inserted:
    """A new expert beside a fit that stays as it is.

    Attributes
    ----------
    gain : float
        In log-likelihood.
    source : int
        Expert whose parameters it started from.
    subjects : ndarray of int
    share : ndarray
        Of each of these that belongs to it.
    """

    gain: float
    source: int
    subjects: NDArray[np.intp]
    share: Array


def gains_little(problem: ClosedForm, smaller: Array, level: float) -> bool:
    """Whether a log-likelihood lies so little above that of a fit with one expert fewer that a handful of subjects may.

    A group of its own gains hundreds; where there is none, the highest maxima are those of the right handful. An expert
    with as many coefficients of its own as a handful has subjects would fit these exactly, whichever they are.
    """
    if (~problem.structure.common).sum() >= _LOCAL // 2:
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
    below = fewer_experts(problem)
    params = expand(below.structure, below.free, smaller[None])
    joint = subject_logliks(below, smaller).T
    found = _best(insertions(below, one, params, joint, rng), n, problem.n_subjects)
    if not found:
        return np.empty((0, problem.free.size))
    current = posterior_probabilities(joint, axis=0)  # (K - 1, N)
    given = np.array([_with_new(current, new) for new in found])
    each = [double_expert(problem, params, new.source) for new in found]
    names = ("gamma", "beta", "factor", "sigma", "extra")
    start = Params(*(np.concatenate([getattr(p, name) for p in each]) for name in names))
    return contract(problem.structure, refit(problem, start, given))


def reinserted_starts(problem: ClosedForm, one: OneExpert, theta: Array, n: int, rng: np.random.Generator) -> Array:
    """Up to `n` free vectors in which an expert of the fit `theta`, shape (P,), gave way to one elsewhere.

    It is one of the two whose absence costs least.
    """
    below = fewer_experts(problem)
    without = [without_expert(problem, theta, k) for k in range(problem.structure.n_experts)]
    cost = [-float(logsumexp(subject_logliks(below, each), axis=1).sum()) for each in without]
    k = int(rng.choice(np.argsort(cost)[:2]))
    return inserted_starts(problem, one, without[k], n, rng)


def without_expert(problem: ClosedForm, theta: Array, k: int) -> Array:
    """Free vector, with one expert fewer, of the fit `theta`, shape (P,), without its expert k."""
    below = fewer_experts(problem)
    p = expand(problem.structure, problem.free, theta[None])
    full = np.delete(np.concatenate([np.zeros_like(p.gamma[:, :1]), p.gamma], axis=1), k, axis=1)
    parts = (np.delete(part, k, axis=1) for part in (p.beta, p.factor, p.sigma, p.extra))
    return contract(below.structure, Params(full[:, 1:] - full[:, :1], *parts))[0]


def insertions(
    below: ClosedForm, one: OneExpert, params: Params, joint: Array, rng: np.random.Generator
) -> list[Inserted]:
    """New experts around some subjects, beside a fit with log joint densities of shape (K - 1, N)."""
    alone = one_expert_problem(below)
    base, owner = logsumexp(joint, axis=0), joint.argmax(axis=0)
    N = base.size
    out = []
    for place in rng.choice(N, min(-(-N // _PER_PLACE), _PLACES), replace=False):
        k = int(owner[place])
        near = _nearest(one.features, place, np.flatnonzero(owner == k))
        if near.size <= _SMALLEST:
            continue
        given = _handfuls(one.features[near], rng)
        gain, share = _fit_alone(alone.take(near), _of(params, k), base[near], given, N)
        out += [Inserted(float(g), k, near, r) for g, r in zip(gain, share, strict=True)]
    return out


def _of(params: Params, k: int) -> Params:
    parts = (params.beta, params.factor, params.sigma, params.extra)
    return Params(params.gamma[:, :0], *(part[:, k : k + 1] for part in parts))


def _nearest(features: Array, place: np.intp, among: NDArray[np.intp]) -> NDArray[np.intp]:
    """The subjects nearest to one, itself first."""
    distance = ((features[among] - features[place]) ** 2).sum(axis=1)
    return among[np.argsort(distance, kind="stable")[:_LOCAL]]


def _handfuls(features: Array, rng: np.random.Generator) -> Array:
    """Memberships, shape (ways, 1, n), of subjects next to one another in directions of random weight.

    They lie around subjects of the nearer half, whose own neighbours are among these.
    """
    n = len(features)
    centre = features[rng.integers(max(n // 2, 1), size=_WAYS)]
    weight = rng.exponential(size=(_WAYS, 1, features.shape[1]))
    weight[: _WAYS // 3] = 1.0
    distance = (weight * (features - centre[:, None]) ** 2).sum(axis=2)
    size = np.exp(rng.uniform(np.log(_SMALLEST), np.log(max(n / 2, _SMALLEST + 1)), size=_WAYS)).astype(int)
    rank = distance.argsort(axis=1).argsort(axis=1)
    return (rank < size[:, None])[:, None].astype(float)


def _fit_alone(alone: ClosedForm, start: Params, base: Array, given: Array, n_all: int) -> tuple[Array, Array]:
    """Gains, shape (S,), of a new expert beside log-densities `base`, and its shares of subjects, (S, n)."""
    s, floor = alone.structure, _NARROW * float(start.sigma.max())
    params = repeat_expert(s, start, len(given))
    share = given
    for _ in range(_ROUNDS):
        params = update_means(alone, params, expectations(alone, params, share))
        params = update_variances(alone, params, expectations(alone, params, share))
        if s.has_sigma:
            params = replace(params, sigma=np.maximum(params.sigma, floor))
        size = np.clip(share.sum(axis=(1, 2)) / n_all, 1e-6, 0.5)[:, None]
        ratio = alone.experts.densities(params).log_density[:, 0] - base + np.log(size / (1 - size))
        share = (1 / (1 + np.exp(-np.clip(ratio, -50, 50))))[:, None]
    gain = np.logaddexp(0, ratio).sum(axis=1) + n_all * np.log1p(-size[:, 0])
    return gain, share[:, 0]


def _best(found: list[Inserted], n: int, n_subjects: int) -> list[Inserted]:
    """The `n` that gain most, of those with the same subjects one."""
    out: list[Inserted] = []
    kept = np.zeros((n, n_subjects))
    for new in sorted(found, key=lambda i: -i.gain):
        if len(out) == n:
            break
        common = np.minimum(kept[: len(out), new.subjects], new.share).sum(axis=1)
        smaller = np.minimum(kept[: len(out)].sum(axis=1), new.share.sum())
        if not (common > _SAME_SHARE * smaller).any():
            kept[len(out), new.subjects] = new.share
            out.append(new)
    return out


def _with_new(current: Array, new: Inserted) -> Array:
    """Responsibilities, shape (K, N), with the new expert last."""
    share = np.full(current.shape[1], 1e-6)
    share[new.subjects] = np.maximum(new.share, 1e-6)
    return np.vstack([current * (1 - share), share])
