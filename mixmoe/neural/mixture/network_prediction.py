"""What a fitted mixture of networks says of rows and subjects: means, probabilities, posteriors, partial dependence.

All values are in the units of the data. Limits of functions of the estimates are by the delta method, with derivatives
by torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from mixmoe._typing import Array, IntArray
from mixmoe.design.design import Design, continuous_columns, used_columns
from mixmoe.inference.uncertainty import critical, multiplier_critical, probability_errors, probability_limits
from mixmoe.mixture.gate import posterior_probabilities
from mixmoe.neural.blocks import Tensor, one_thread, to_array, torch
from mixmoe.neural.mixture.likelihood import Problem, Rows, expert_means, log_gate, log_joint
from mixmoe.neural.mixture.network_parameters import covariance_root
from mixmoe.output.predictions import Interval, MixtureLaw

CHUNK = 4000  # rows whose derivatives are held at once
GRID = 41  # points of a partial dependence
AVERAGED = 2_000  # rows, or subjects, at most, over which it is averaged


@dataclass(frozen=True, slots=True)
class Estimate:
    """Parameters, and what functions of coefficients and weights have their standard errors from.

    Attributes
    ----------
    problem : Problem
        Of the data of the fit.
    rows_of : callable
        From a design to rows on the scale of the network.
    theta : ndarray, shape (P,)
        Free parameters.
    cov : ndarray, shape (P, P)
        Of these, zero but for coefficients and weights.
    roots : ndarray, shape (K, q, q)
        Factors of the covariances of the random effects.
    sigma : ndarray, shape (K,)
    """

    problem: Problem
    rows_of: Callable[[Design], Rows]
    theta: Array
    cov: Array
    roots: Array
    sigma: Array


@dataclass(frozen=True, slots=True)
class Past:
    """What is known of subjects.

    Attributes
    ----------
    probabilities : ndarray, shape (N, K)
    means : ndarray, shape (N, K, q)
        Of the random effects given the expert.
    covariances : ndarray, shape (N, K, q, q)
    """

    probabilities: Array
    means: Array
    covariances: Array


def estimate_of(problem: Problem, rows_of: Any, params: Array, theta: Array, slopes: Array, cov: Array) -> Estimate:
    """The estimate from reported parameters, their derivatives in the free ones and their covariance."""
    s = problem.structure
    apart = np.zeros(s.size, dtype=bool)
    apart[np.concatenate([s.places["factor"].ravel(), s.places["sigma"]])] = True
    kept = np.flatnonzero(~apart)
    back = np.linalg.inv(slopes[np.ix_(kept, kept)])
    own = np.zeros((s.size, s.size))
    own[np.ix_(kept, kept)] = back @ cov[np.ix_(kept, kept)] @ back.T
    roots = np.array([covariance_root(s, params[places]) for places in s.places["factor"]])
    return Estimate(problem, rows_of, theta, own, roots, params[s.places["sigma"]])


def means_at(e: Estimate, rows: Rows, theta: Tensor) -> Tensor:
    """Means of the experts at random effects of zero, shape (n, K)."""
    c = e.problem.scales
    fixed = rows.X @ torch.as_tensor(c.expert @ c.center)
    return fixed[:, None] + c.response * expert_means(e.problem, rows, theta)


def probabilities_at(e: Estimate, rows: Rows, theta: Tensor) -> Tensor:
    """Probabilities of the experts by the gate, shape (N, K)."""
    return log_gate(e.problem, rows, theta).exp()


def population_at(e: Estimate, rows: Rows, theta: Tensor) -> Tensor:
    """Population means of rows each of which is a unit, shape (n, 1)."""
    return (probabilities_at(e, rows, theta) * means_at(e, rows, theta)).sum(1, keepdim=True)


Function = Callable[[Estimate, Rows, Tensor], Tensor]


def by_row(rows: Rows) -> Rows:
    """Rows each of which is a unit with the gate covariates of its subject."""
    order = torch.arange(len(rows.codes))
    return replace(rows, W=rows.W[rows.codes], gate_inputs=rows.gate_inputs[rows.codes], codes=order)


def values_of(e: Estimate, function: Function, rows: Rows) -> Array:
    """Values of a function at the estimate."""
    with torch.no_grad(), one_thread():
        return np.asarray(to_array(function(e, rows, torch.as_tensor(e.theta))))


def errors_of(e: Estimate, function: Function, rows: Rows) -> Array:
    """Standard errors of a function of rows that are units, shape (n, ...)."""
    parts = (rows.X, rows.inputs, rows.Z, rows.W, rows.gate_inputs)
    only = torch.zeros(1, dtype=torch.long)

    def alone(theta: Tensor, *row: Tensor) -> Tensor:
        X, inputs, Z, W, gate_inputs = (part[None] for part in row)
        return function(e, Rows(None, X, inputs, Z, W, gate_inputs, only), theta)[0]

    found, theta = [], torch.as_tensor(e.theta)
    slopes = torch.func.vmap(torch.func.jacrev(alone), in_dims=(None, *(0 for _ in parts)))
    with one_thread():
        for start in range(0, len(rows.codes), CHUNK):
            J = to_array(slopes(theta, *(part[start : start + CHUNK] for part in parts)))
            found.append(np.sqrt(np.einsum("...p,pr,...r->...", J, e.cov, J, optimize=True)))
    return np.concatenate(found)


def jacobian(e: Estimate, function: Callable[[Tensor], Tensor]) -> Array:
    """Derivatives of a function in the free parameters, these on the last axis."""
    with one_thread():
        return np.asarray(to_array(torch.func.jacrev(function)(torch.as_tensor(e.theta))))


def wald(estimate: Array, error: Array, alpha: float) -> Interval:
    """Normal limits."""
    half = critical(alpha) * error
    return Interval(estimate, error, estimate - half, estimate + half)


def bounded(estimate: Array, error: Array, alpha: float) -> Interval:
    """Limits of probabilities on the logit scale."""
    limits = probability_limits(estimate, error, alpha)
    return Interval(estimate, probability_errors(error), limits.lower, limits.upper)


def unknown(e: Estimate, rows: Rows) -> Past:
    """Subjects of whom only the gate tells."""
    pi = values_of(e, probabilities_at, rows)
    (N, K), q = pi.shape, e.roots.shape[1]
    D = e.roots @ np.swapaxes(e.roots, 1, 2)
    return Past(pi, np.zeros((N, K, q)), np.broadcast_to(D, (N, K, q, q)).copy())


def posterior(e: Estimate, design: Design) -> Past:
    """Memberships and random effects of the subjects of a design with response, given that."""
    rows = e.rows_of(design)
    joint = values_of(e, lambda e, rows, theta: log_joint(replace(e.problem, rows=rows), theta), rows)
    left = np.asarray(design.response, dtype=float)[:, None] - values_of(e, means_at, rows)
    Z, N, q = design.random, design.n_units, design.random.shape[1]
    ZZ, Zr = np.zeros((N, q, q)), np.zeros((N, left.shape[1], q))
    np.add.at(ZZ, design.codes, Z[:, :, None] * Z[:, None])
    np.add.at(Zr, design.codes, left[:, :, None] * Z[:, None])
    F, variance = e.roots[None], (e.sigma**2)[:, None, None]
    W = np.eye(q) + np.swapaxes(F, 2, 3) @ ZZ[:, None] @ F / variance
    C = F @ np.linalg.solve(W, np.broadcast_to(np.swapaxes(F, 2, 3), W.shape)) if q else W
    means = (C @ Zr[..., None])[..., 0] / variance[..., 0]
    return Past(posterior_probabilities(joint), means, C)


def subject_law(e: Estimate, design: Design, past: Past, noise: bool) -> MixtureLaw:
    """Distribution of each subject's mean at the rows of a design, or with `noise` of a response there."""
    means = values_of(e, means_at, e.rows_of(design))
    means = means + np.einsum("nq,nkq->nk", design.random, past.means[design.codes])
    variance = np.einsum("nq,nkqr,nr->nk", design.random, past.covariances[design.codes], design.random, optimize=True)
    variance = np.maximum(variance, 0.0) + (e.sigma**2 if noise else 0.0)
    return MixtureLaw(past.probabilities[design.codes], means, np.sqrt(variance))


def one_step_ahead(e: Estimate, design: Design) -> MixtureLaw:
    """Distribution of each response given the earlier rows of its subject."""
    y = np.asarray(design.response, dtype=float)
    rows = e.rows_of(design)
    means = values_of(e, means_at, rows)
    past = unknown(e, rows)
    log_weight, effect, spread = np.log(past.probabilities), past.means, past.covariances
    law = MixtureLaw(np.empty_like(means), np.empty_like(means), np.empty_like(means))
    for visit in range(int(design.counts.max())):
        who = np.flatnonzero(design.counts > visit)
        at = design.starts[who] + visit
        z = design.random[at]
        # The normal prediction of the next row by each expert, before it is seen.
        reach = np.einsum("nkqr,nr->nkq", spread[who], z)
        sd = np.sqrt(np.einsum("nq,nkq->nk", z, reach) + e.sigma**2)
        mean = means[at] + np.einsum("nq,nkq->nk", z, effect[who])
        law.weights[at], law.means[at], law.sd[at] = posterior_probabilities(log_weight[who]), mean, sd
        # Bayes' rule for the experts, recursive least squares for the effects.
        surprise = y[at][:, None] - mean
        log_weight[who] += norm.logpdf(surprise, scale=sd)
        effect[who] += reach * (surprise / sd**2)[..., None]
        spread[who] -= reach[..., :, None] * reach[..., None, :] / (sd**2)[..., None, None]
    return law


@dataclass(frozen=True, slots=True)
class Dependence:
    """Averages over the data along one column, with their limits.

    Attributes
    ----------
    column : str
    x : ndarray, shape (G,)
    values, errors, low, high, band_low, band_high : ndarray, shape (G, K)
        Pointwise limits, and simultaneous ones over the grid.
    """

    column: str
    x: Array
    values: Array
    errors: Array
    low: Array
    high: Array
    band_low: Array
    band_high: Array


def inputs_along(design: Design, section: str) -> list[str]:
    """Columns of numbers that a section uses."""
    numeric = continuous_columns(design)
    return [name for name in used_columns(design, section) if name in numeric]


def dependence(
    e: Estimate, design: Design, column: str, section: str, alpha: float, draws: int, rng: np.random.Generator
) -> Dependence:
    """Partial dependence of the experts' means, or of the probabilities by the gate, on one column.

    The average of the function over the rows (of the gate: subjects) of the data with the column set to each value of a
    grid over its range, the other columns as they are (Friedman 2001, section 8.2). Of more than 2,000 rows over so
    many that are spread evenly.
    """
    frame = design.frame if section == "expert" else design.frame.iloc[design.starts]
    chosen = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, AVERAGED).astype(int))]
    x = np.linspace(float(frame[column].min()), float(frame[column].max()), GRID)
    made = pd.concat([chosen] * GRID, ignore_index=True)
    made[column] = np.repeat(x, len(chosen))
    if design.names.group is not None:
        made = made.drop(columns=design.names.group)  # each row is a unit of its own
    others = ("random", "gate") if section == "expert" else ("random", "expert")
    rows = by_row(e.rows_of(design.for_new(made, without=others)))
    function = means_at if section == "expert" else probabilities_at

    def averaged(theta: Tensor) -> Tensor:
        return function(e, rows, theta).reshape(GRID, len(chosen), -1).mean(1)

    values = np.asarray(to_array(averaged(torch.as_tensor(e.theta))))
    J = jacobian(e, averaged)  # (G, K, P)
    V = np.einsum("gkp,pr,hkr->kgh", J, e.cov, J, optimize=True)
    errors = np.sqrt(np.einsum("kgg->gk", V))
    wide = np.array([multiplier_critical(one, alpha, draws, rng) for one in V])
    if section == "expert":
        point, band = critical(alpha) * errors, wide * errors
        return Dependence(column, x, values, errors, values - point, values + point, values - band, values + band)
    odds = errors / np.maximum(values * (1 - values), 1e-300)
    ends = [_moved(values, sign * size * odds) for size in (float(critical(alpha)), wide) for sign in (-1, 1)]
    return Dependence(column, x, values, errors, *ends)


def _moved(probabilities: Array, by: Array) -> Array:
    """Probabilities moved on the scale of log odds."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        odds = np.log(probabilities) - np.log1p(-probabilities) + by
        return np.asarray(np.where(np.isfinite(odds), 1.0 / (1.0 + np.exp(-odds)), probabilities))


def drawn(e: Estimate, design: Design, rng: np.random.Generator) -> Array:
    """One response per row, shape (n,)."""
    rows = e.rows_of(design)
    pi, means = values_of(e, probabilities_at, rows), values_of(e, means_at, rows)
    member: IntArray = (rng.random((len(pi), 1)) > pi.cumsum(axis=1)[:, :-1]).sum(axis=1)
    effects = np.einsum("nqr,nr->nq", e.roots[member], rng.normal(size=(len(pi), e.roots.shape[1])))
    own: NDArray[np.int64] = member[design.codes]
    away = (design.random * effects[design.codes]).sum(axis=1) + e.sigma[own] * rng.normal(size=design.n)
    return np.asarray(means[np.arange(design.n), own] + away)
