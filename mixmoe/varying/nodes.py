"""Responses that stand for the distribution of a fitted mixture, for expectations under the model.

Gauss-Hermite nodes for a normal response; for a discrete one a lattice with weights in proportion to the density, which
is the trapezoidal rule where values are many.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.distribution import Outcome
from mixmoe.varying.problem import Problem
from mixmoe.varying.steps import Natural

Array = NDArray[np.float64]

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
        make = _lattice if problem.family.discrete else _hermite
        out += make(problem, eta, delta, np.exp(log_gate))
    return tuple(out)


def _hermite(problem: Problem, eta: Array, delta: Array, prob: Array) -> list[Node]:
    """Nodes of one expert with a normal response."""
    t, raw = np.polynomial.hermite.hermgauss(HERMITE)
    values = eta + np.exp(delta) * np.sqrt(2.0) * t[:, None]
    return [Node(_outcome(problem, y), prob * w / np.sqrt(np.pi)) for y, w in zip(values, raw, strict=True)]


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
