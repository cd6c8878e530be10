"""Effective degrees of freedom, and responses that stand for the fitted distribution in expectations.

Gauss-Hermite nodes for a normal response; for a discrete one a lattice with weights in proportion to the density, which
is the trapezoidal rule where values are many.

References
----------
Fan, J. and Gijbels, I. (1996). Local Polynomial Modelling and Its Applications, section 4.3.
Hurvich, C. M., Simonoff, J. S. and Tsai, C.-L. (1998). Smoothing parameter selection in nonparametric regression using
an improved Akaike information criterion. JRSS B 60, 271-293.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, stdtrit

from mixmoe._typing import Array
from mixmoe.responses.distribution import Outcome
from mixmoe.responses.exponential import StudentT
from mixmoe.responses.zero_inflated import ZeroInflated
from mixmoe.varying.em_steps import Natural, own_natural
from mixmoe.varying.interpolation import linear_matrix
from mixmoe.varying.joint_em import centred
from mixmoe.varying.local_likelihood import (
    assemble_terms,
    build_local,
    local_information,
    local_pieces,
    local_start,
    natural_design,
    whole_block,
)
from mixmoe.varying.problem import Problem, epanechnikov

NUMBERS_HELD = 1 << 20  # in the matrices of the rows that are handled at once


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
    terms = assemble_terms(problem, whole_block(problem.rows.n), natural.eta, natural.delta, natural.log_gate)
    local, peak = build_local(problem, 1), float(epanechnikov(np.zeros(1))[0])
    chunk = max(NUMBERS_HELD // problem.slots.n**2, 1)
    for start in range(0, problem.rows.n, chunk):
        rows = slice(start, min(start + chunk, problem.rows.n))
        design = natural_design(local, rows, np.zeros(rows.stop - start))[:, :, : problem.slots.n]
        curvature = np.moveaxis(terms.complete[:, :, rows], -1, 0) * problem.rows.weights[rows, None, None]
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
