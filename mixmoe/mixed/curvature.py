"""Second and third derivatives of the likelihood of a mixture with many coefficients.

By Louis' identity the observed information is what it were with known memberships, less what they leave in the dark::

    H = sum_ik tau_ik J_ik - sum_i (sum_k tau_ik s_ik s_ik' - s_i s_i')

Scores of subjects are at hand, and in the coefficients of normal experts J is X'V^-1X: only the few other parameters
need derivatives of scores.

References
----------
Louis (1982), JRSS B 44, 226-233.
"""

from dataclasses import replace
from typing import cast

import numpy as np

from mixmoe._typing import AnyArray, Array
from mixmoe.mixed.likelihood.gaussian import ClosedExperts
from mixmoe.mixed.likelihood.hessian import observed_information
from mixmoe.mixed.likelihood.observed import ClosedForm, Problem, block_scores, likelihood_blocks, subject_logliks
from mixmoe.mixed.parameters import (
    derivatives_in_free,
    free_to_working,
)
from mixmoe.mixture.gate import (
    gate_information,
    gate_log_probabilities,
    gate_scores,
    posterior_probabilities,
)
from mixmoe.numerics.linalg import derivative_along, floored_inverse

_FLOOR = 1e-10  # of the largest eigenvalue of an information that counts
_HALF_STEP = 0.03  # of second differences, in posterior standard deviations


def information(problem: Problem, theta: Array) -> Array:
    """Minus the Hessian of the log-likelihood without penalties of functions, shape (P, P)."""
    plain = isinstance(problem.experts, ClosedExperts) and problem.penalty is None and not problem.restricted
    if not plain or problem.has_many_columns:
        return observed_information(problem, theta)
    tau = posterior_probabilities(subject_logliks(problem, theta))
    return _known_information(problem, theta, tau) - _missing_information(problem, theta)


def whole_information(problem: Problem, theta: Array) -> Array:
    """Information with the penalties of functions, shape (P, P)."""
    if problem.ridge is None:
        return observed_information(problem, theta)
    return information(replace(problem, ridge=None), theta) + problem.ridge.T @ problem.ridge


def first_inverse_of_functions(problem: Problem, theta: Array) -> Array:
    """Inverse information from which an ascent with penalties starts, shape (1, P, P): scores alone know none."""
    A = whole_information(problem, theta)
    scale = np.sqrt(np.maximum(np.abs(np.diag(A)), np.finfo(float).tiny))
    unit = np.outer(scale, scale)
    return (floored_inverse(A / unit, share=_FLOOR) / unit)[None]


def _known_information(problem: Problem, theta: Array, tau: Array) -> Array:
    """Information of normal experts with known memberships, shape (P, P)."""
    params = free_to_working(problem.structure, theta[None])
    J = np.zeros((theta.size, theta.size))
    for beta, block in zip(problem.free.beta, _normal_matrices(problem, theta, tau), strict=True):
        J[np.ix_(beta, beta)] += block
    if problem.structure.n_experts > 1:
        log_prior = gate_log_probabilities(problem.W, params.gamma)
        gate = gate_information(problem.W, log_prior, np.ones(problem.n_subjects))[0]
        J[problem.free.gate, problem.free.gate] = gate
    coefficients = np.union1d(np.arange(theta.size)[problem.free.gate], problem.free.beta)
    others = np.setdiff1d(np.arange(theta.size), coefficients)
    steps = np.eye(theta.size)[others]
    slopes = -np.array([derivative_along(lambda at: known_scores(problem, at[None], tau)[0], theta, d) for d in steps])
    if others.size:
        J[others] = slopes
        J[:, others] = slopes.T
        J[np.ix_(others, others)] = 0.5 * (slopes[:, others] + slopes[:, others].T)
    return J


def _normal_matrices(problem: Problem, theta: AnyArray, tau: Array) -> AnyArray:
    """Sums over subjects of tau X'V^-1X of normal experts, shape (K, p, p); passes complex steps through."""
    params = free_to_working(problem.structure, theta[None])
    s = problem.structure
    out = np.zeros((s.n_experts, s.n_columns, s.n_columns), dtype=theta.dtype)
    for where, experts in cast(ClosedForm, problem).experts.blocks(s.n_experts):
        out += experts.densities(params).normal_matrix(tau[where].T)
    return out


def _missing_information(problem: Problem, theta: Array) -> Array:
    """What unknown memberships take from the information, shape (P, P)."""
    K = problem.structure.n_experts
    out = np.zeros((theta.size, theta.size))
    if K == 1:
        return out
    for block in likelihood_blocks(problem, theta[None]):
        tau = block.responsibilities
        mean = np.zeros((theta.size, tau.shape[2]))
        for k in range(K):
            known = np.zeros_like(tau)
            known[:, k] = 1.0
            score = block_scores(problem, theta[None], block, known)[0]
            out += (score * tau[0, k]) @ score.T
            mean += score * tau[0, k]
        out -= mean @ mean.T
    return out


def known_scores(problem: Problem, theta: AnyArray, tau: Array) -> AnyArray:
    """Summed scores at S free vectors, shape (S, P), were memberships known to be `tau`, shape (N, K)."""
    params = free_to_working(problem.structure, theta)
    S = theta.shape[0]
    out = np.zeros(theta.shape, dtype=theta.dtype)
    for where, experts in problem.experts.blocks(S * problem.structure.n_experts):
        weights = np.broadcast_to(tau[where].T, (S, *tau[where].T.shape))
        of_experts = experts.densities(params).summed_scores(weights)
        residual = gate_scores(gate_log_probabilities(problem.W[where], params.gamma), weights)
        gate = residual @ problem.W[where]
        out += derivatives_in_free(problem.structure, theta, gate.reshape(S, -1), of_experts)
    return out


def determinant_slope(problem: Problem, theta: Array, half: Array) -> Array:
    """Derivatives of ``-1/2 tr(V J)``, V = half half' held, J the information with known memberships, shape (P,).

    Half the sum of the second derivatives of the score along the columns v of `half`, shape (P, M). Normal scores are
    quadratic in coefficients, so that second differences are exact there.
    """
    tau = posterior_probabilities(subject_logliks(problem, theta))
    # Of many columns a few differences of scores cost less than p by p matrices for each parameter of variance.
    if isinstance(problem.experts, ClosedExperts) and not problem.has_many_columns:
        return _slope_of_normal(problem, theta, half @ half.T, tau)
    centre, bent = known_scores(problem, theta[None], tau)[0], np.zeros(theta.size)
    for v in _HALF_STEP * half.T:
        ends = known_scores(problem, np.vstack([theta + v, theta - v]), tau)
        bent += (ends.sum(axis=0) - 2 * centre) / _HALF_STEP**2
    return 0.5 * bent


def _slope_of_normal(problem: Problem, theta: Array, V: Array, tau: Array) -> Array:
    """`determinant_slope` of normal experts, in whose parameters of variance alone it differs from zero."""

    def half_trace(at: AnyArray) -> AnyArray:
        pairs = zip(problem.free.beta, _normal_matrices(problem, at, tau), strict=True)
        return np.array([-0.5 * sum((V[np.ix_(beta, beta)] * block).sum() for beta, block in pairs)])

    out, free = np.zeros(theta.size), problem.free
    for j in np.unique(np.concatenate([free.factor.ravel(), free.scale[free.scale >= 0], free.log_sigma])):
        out[j] = derivative_along(half_trace, theta, np.eye(theta.size)[j])[0]
    return out
