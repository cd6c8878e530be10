"""EM for a MEMoE, many starts in lockstep.

Two conditional steps alternate (AECM, Meng & van Dyk 1997): one treats only the memberships as missing and updates gate
and fixed effects by generalised least squares, the other treats the random effects as missing too and updates their
covariances and the residual variances. Neither can lower the log-likelihood.
"""

from dataclasses import dataclass, replace

import numpy as np

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.gaussian import (
    flat_experts,
    summed_expert_scores,
    summed_second_moments,
    weighted_normal_matrix,
)
from mixmoe.mixed.likelihood.observed import ClosedForm
from mixmoe.mixed.parameters import Params, Structure, contract, expand
from mixmoe.mixture.gate import gate_log_probabilities, gate_step
from mixmoe.numerics.linalg import logsumexp

_SMALLEST = 1e-10  # variances below this fraction of the pooled residual variance are not resolved


@dataclass(frozen=True, slots=True)
class Expectations:
    """Responsibility-weighted sums over subjects.

    Attributes
    ----------
    loglik : ndarray, shape (S,)
    responsibilities : ndarray, shape (S, K, N)
    subjects, rows : ndarray, shape (S, K)
        Expected numbers of subjects and rows of each expert.
    pull : ndarray, shape (S, K, p)
        X'V^-1 r.
    normal : ndarray, shape (S, K, p, p)
        X'V^-1 X.
    second_moment : ndarray, shape (S, K, q, q)
        Sum of E[b b'].
    residual : ndarray, shape (S, K)
        Sum of E|r - Z b|^2.
    """

    loglik: Array
    responsibilities: Array
    subjects: Array
    rows: Array
    pull: Array
    normal: Array
    second_moment: Array
    residual: Array


def expectations(problem: ClosedForm, params: Params, given: Array | None = None) -> Expectations:
    """E-step at `params`; responsibilities `given`, shape (S, K, N), replace the posterior ones."""
    S, K, p = params.beta.shape
    q, N = problem.structure.n_random, problem.n_subjects
    factor, sigma = flat_experts(params)
    loglik, responsibilities = np.zeros(S), np.empty((S, K, N))
    pull, normal = np.zeros((S * K, p)), np.zeros((S * K, p, p))
    second, residual, rows = np.zeros((S * K, q, q)), np.zeros(S * K), np.zeros(S * K)
    for where, experts in problem.experts.blocks(S * K):
        densities, moments = experts.densities(params), experts.moments
        posterior = densities.posterior
        log_joint = gate_log_probabilities(problem.W[where], params.gamma) + densities.log_density
        block_loglik = logsumexp(log_joint, axis=1)
        loglik += block_loglik.sum(axis=1)
        found = np.exp(log_joint - block_loglik[:, None]) if given is None else given[..., where]
        responsibilities[..., where] = found
        weights = found.reshape(S * K, -1)
        scores = summed_expert_scores(moments, posterior, factor, sigma, weights)
        pull += scores[:, :p]
        normal += weighted_normal_matrix(moments, posterior, factor, sigma, weights)
        second += summed_second_moments(posterior, factor, sigma, weights)
        residual += sigma**2 * (scores[:, -1] + weights @ moments.n)
        rows += weights @ moments.n
    return Expectations(
        loglik,
        responsibilities,
        responsibilities.sum(axis=2),
        rows.reshape(S, K),
        pull.reshape(S, K, p),
        normal.reshape(S, K, p, p),
        second.reshape(S, K, q, q),
        residual.reshape(S, K),
    )


def update_means(problem: ClosedForm, params: Params, e: Expectations) -> Params:
    """Gate by one Newton step, fixed effects by generalised least squares given the responsibilities."""
    gamma = gate_step(problem.W, e.responsibilities, params.gamma)
    where = problem.free.beta - problem.free.gate.stop  # (K, p)
    size = int(where.max()) + 1
    S = params.beta.shape[0]
    normal, pull = np.zeros((S, size, size)), np.zeros((S, size))
    for k, columns in enumerate(where):
        normal[:, columns[:, None], columns] += e.normal[:, k]
        pull[:, columns] += e.pull[:, k]
    ridge = 1e-10 * (1 + np.trace(normal, axis1=1, axis2=2)[:, None, None] / size) * np.eye(size)
    step = np.linalg.solve(normal + ridge, pull[..., None])[..., 0]
    return replace(params, gamma=gamma, beta=params.beta + step[:, where])


def update_variances(problem: ClosedForm, params: Params, e: Expectations) -> Params:
    """Gate by one Newton step, covariances and residual variances from the expected second moments."""
    s = problem.structure
    gamma = gate_step(problem.W, e.responsibilities, params.gamma)
    if not s.has_sigma:
        return replace(params, gamma=gamma, factor=updated_factor(s, e, params.factor))
    if s.residual == "common":
        variance = np.broadcast_to((e.residual.sum(axis=1) / e.rows.sum(axis=1))[:, None], e.rows.shape)
    else:
        variance = e.residual / np.maximum(e.rows, np.finfo(float).tiny)
    sigma = np.sqrt(np.maximum(variance, _SMALLEST))
    return replace(params, gamma=gamma, factor=updated_factor(s, e, params.factor), sigma=sigma)


def updated_factor(s: Structure, e: Expectations, old: Array) -> Array:
    """Factors of the random-effect covariances, shape (S, K, q, q), that the expected second moments call for."""
    if not s.n_random:
        return old
    counts = np.maximum(e.subjects, np.finfo(float).tiny)[..., None, None]
    moment = e.second_moment if s.correlated else e.second_moment * np.eye(s.n_random)
    if s.cov_re == "expert":
        return _factor(moment / counts)
    if s.cov_re == "common":
        D = moment.sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True)
        return np.broadcast_to(_factor(D), old.shape)
    reference = _factor(np.einsum("skab,skcb->skac", old[:, :1], old[:, :1]))
    omega2 = np.einsum("skaa->sk", np.linalg.solve(_square(reference), moment)) / (s.n_random * counts[..., 0, 0])
    omega2 = np.maximum(omega2, _SMALLEST)
    D = (moment / omega2[..., None, None]).sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True)
    return _factor(D) * np.sqrt(omega2)[..., None, None]


def _square(factor: Array) -> Array:
    return factor @ np.swapaxes(factor, -1, -2)


def _factor(D: Array) -> Array:
    floor = _SMALLEST * (1 + np.einsum("...aa->...", D))[..., None, None] * np.eye(D.shape[-1])
    return np.linalg.cholesky(D + floor)


def em_iterations(problem: ClosedForm, theta: Array, n_iter: int) -> tuple[Array, Array]:
    """Free vectors (S, P) after `n_iter` pairs of conditional steps, and log-likelihoods before each, (S, 2n)."""
    trace = np.empty((theta.shape[0], 2 * n_iter))
    params = expand(problem.structure, problem.free, theta)
    for i in range(n_iter):
        e = expectations(problem, params)
        trace[:, 2 * i] = e.loglik
        params = update_means(problem, params, e)
        e = expectations(problem, params)
        trace[:, 2 * i + 1] = e.loglik
        params = update_variances(problem, params, e)
    return contract(problem.structure, params), trace
