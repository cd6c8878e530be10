"""Responses drawn from given functions, and resamples of clusters."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixmoe.varying.estimate import Control
from mixmoe.varying.problem import Problem
from mixmoe.varying.steps import own_natural

Array = NDArray[np.float64]
IntArray = NDArray[np.intp]

REFIT = Control(tolerance=1e-4, max_iter=100)  # of warm-started refits to draws


def draw_responses(problem: Problem, coef: Array, rng: np.random.Generator) -> Array:
    """One response for each sorted row: expert from the gate, response from the expert."""
    natural = own_natural(problem, coef)
    rank = np.argsort(np.argsort(-np.exp(natural.log_gate).mean(axis=1), kind="stable"))  # labels change no draw
    noisy = natural.log_gate + rng.gumbel(size=natural.log_gate.shape)[rank]
    chosen = noisy.argmax(axis=0)
    each = np.arange(problem.rows.n)
    eta, delta = natural.eta[chosen, each], natural.delta[chosen, each]
    return problem.family.draw(rng, eta, delta, problem.rows.outcome.trials)


def with_draw(problem: Problem, coef: Array, rng: np.random.Generator) -> Problem:
    """The problem with a response drawn from given functions, covariates and index as they are."""
    y = draw_responses(problem, coef, rng)
    rows = problem.rows.with_response(y, problem.family.constant(y, problem.rows.outcome.trials))
    return replace(problem, rows=rows)


def with_cluster_draw(problem: Problem, clusters: IntArray, rng: np.random.Generator) -> Problem:
    """The problem with clusters drawn with replacement, as weights of their rows."""
    n = int(clusters.max()) + 1
    counts = rng.multinomial(n, np.full(n, 1.0 / n)).astype(float)
    return replace(problem, rows=problem.rows.with_weights(problem.rows.weights * counts[clusters]))
