"""Starting values from a fit with one expert fewer, each of whose experts is split."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.linalg import logsumexp
from mixmoe.mixed.em_step import em_iterations
from mixmoe.mixed.likelihood import Model, Problem, build_problem, subject_logliks
from mixmoe.mixed.starts import OneExpert, closed_form_problem, random_side, refit, with_extras, without_extras
from mixmoe.mixed.structure import Params, contract, expand

Array = NDArray[np.float64]

_SPLITS = 4  # of each expert


def fewer_experts(problem: Problem[Model]) -> Problem[Model]:
    """The likelihood of the model with one expert fewer on the same data."""
    s = problem.structure
    return build_problem(replace(s, n_experts=s.n_experts - 1), problem.experts, problem.W, problem.penalty)


def carried_starts(problem: Problem, one: OneExpert, smaller: Array, n_em: int, rng: np.random.Generator) -> Array:
    """Free vectors that split the experts of a fit with one expert fewer.

    Parameters
    ----------
    problem : Problem
        With K experts.
    one : OneExpert
    smaller : ndarray, shape (P',)
        Free vector of the fit with K - 1 experts.
    n_em : int
        EM steps of each split.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray, shape (1 + 4 (K - 1), P)
        First the smaller fit itself, written with its largest expert twice, whose log-likelihood no later ascent can
        fall below; then each expert split four times.
    """
    below = fewer_experts(problem)
    params = expand(below.structure, below.free, smaller[None])
    joint = subject_logliks(below, smaller).T
    current = np.exp(joint - logsumexp(joint, axis=0))  # (K - 1, N)
    doubled = [double_expert(problem, params, k) for k in range(len(current))]
    nested = contract(problem.structure, doubled[int(current.sum(axis=1).argmax())])
    at = np.repeat(np.arange(len(current)), _SPLITS)
    given = np.array([_split(current, int(k), one.features, rng) for k in at])
    closed = closed_form_problem(problem, one.params)
    parts = zip(*(_parts(without_extras(doubled[k])) for k in at), strict=True)
    start = refit(closed, Params(*(np.concatenate(part) for part in parts)), given)
    found, _ = em_iterations(closed, contract(closed.structure, start), n_em)
    return np.vstack([nested, with_extras(problem, found, one.params)])


def _parts(params: Params) -> tuple[Array, ...]:
    return params.gamma, params.beta, params.factor, params.sigma, params.extra


def double_expert(problem: Problem, params: Params, k: int) -> Params:
    """Parameters in which expert k stands twice, the second time last, each with half of its probability."""
    intercept = np.linalg.lstsq(problem.W, np.ones(problem.n_subjects), rcond=None)[0]
    first = np.zeros((params.beta.shape[0], 1, intercept.size))
    full = np.concatenate([first, params.gamma], axis=1)
    full = np.concatenate([full, full[:, k : k + 1]], axis=1)
    full[:, [k, -1]] -= np.log(2.0) * intercept
    others = (np.concatenate([part, part[:, k : k + 1]], axis=1) for part in _parts(params)[1:])
    return Params(full[:, 1:] - full[:, :1], *others)


def _split(current: Array, k: int, features: Array, rng: np.random.Generator) -> Array:
    """Responsibilities, shape (K, N), of which part of expert k of K - 1 goes to a new, last expert."""
    given = np.vstack([current, current[k] * random_side(current[k], features, rng)])
    given[k] -= given[-1]
    return given
