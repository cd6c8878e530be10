"""Observed-data log-likelihood of a MEMoE, its score and its information, for several starts at once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.em import Evaluation
from mixmoe.gate import gate_log_probabilities, gate_scores
from mixmoe.kernels.linalg import logsumexp
from mixmoe.kernels.moments import ExpertPosterior, Moments, expert_posterior, expert_scores
from mixmoe.mixed.structure import FreeVector, Params, Structure, build_free_vector, expand, pull_back

Array = NDArray[np.float64]

_COMPLEX_STEP = 1e-30


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything the likelihood needs, in working coordinates.

    Attributes
    ----------
    structure : Structure
    free : FreeVector
    moments : Moments
    W : ndarray, shape (N, m)
        Gate design.
    """

    structure: Structure
    free: FreeVector
    moments: Moments
    W: Array

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.W.shape[0]

    def take(self, subjects: NDArray[np.intp]) -> "Problem":
        """The same problem on some of the subjects."""
        return Problem(self.structure, self.free, self.moments.take(subjects), self.W[subjects])


def build_problem(structure: Structure, moments: Moments, W: Array) -> Problem:
    """A problem from its parts."""
    return Problem(structure, build_free_vector(structure), moments, W)


@dataclass(frozen=True, slots=True)
class Block:
    """Likelihood quantities of a run of subjects, before any sum over subjects.

    Attributes
    ----------
    where : slice
    moments : Moments
    params : Params
    posterior : ExpertPosterior
        With E = S * K.
    log_prior : ndarray, shape (S, K, n)
    log_joint : ndarray, shape (S, K, n)
    loglik : ndarray, shape (S, n)
    """

    where: slice
    moments: Moments
    params: Params
    posterior: ExpertPosterior
    log_prior: Array
    log_joint: Array
    loglik: Array

    @property
    def responsibilities(self) -> Array:
        """Posterior expert probabilities, shape (S, K, n)."""
        return np.exp(self.log_joint - self.loglik[:, None])


def flat_experts(params: Params) -> tuple[Array, Array]:
    """Factors (S * K, q, q) and residual standard deviations (S * K,)."""
    S, K, q, _ = params.factor.shape
    return params.factor.reshape(S * K, q, q), params.sigma.reshape(S * K)


def evaluate_block(problem: Problem, params: Params, where: slice, moments: Moments) -> Block:
    """Joint log-densities of the subjects in `where`."""
    S, K, p = params.beta.shape
    factor, sigma = flat_experts(params)
    post = expert_posterior(moments, params.beta.reshape(S * K, p), factor, sigma)
    log_prior = gate_log_probabilities(problem.W[where], params.gamma)
    log_joint = log_prior + post.log_density.reshape(S, K, -1)
    return Block(where, moments, params, post, log_prior, log_joint, logsumexp(log_joint, axis=1))


def block_scores(problem: Problem, theta: Array, block: Block, memberships: Array | None = None) -> Array:
    """Scores of each subject of a block in the free vector, shape (S, P, n).

    By Fisher's identity the observed-data score is the responsibility-weighted sum of the experts' scores. With
    `memberships`, shape (S, K, n), in the place of the responsibilities, the score were these known.
    """
    S, K, n = block.log_joint.shape
    factor, sigma = flat_experts(block.params)
    responsibilities = block.responsibilities if memberships is None else memberships
    experts = expert_scores(block.moments, block.posterior, factor, sigma)
    experts = experts.reshape(S, K, -1, n) * responsibilities[:, :, None]
    residual = gate_scores(block.log_prior, responsibilities)
    gate = (residual[:, :, None] * problem.W[block.where].T).reshape(S, -1, n)
    return pull_back(problem.structure, problem.free, theta, gate, experts)


def summed_scores(problem: Problem, theta: Array, block: Block) -> Array:
    """Scores summed over the subjects of a block, shape (S, P)."""
    S, K, n = block.log_joint.shape
    factor, sigma = flat_experts(block.params)
    responsibilities = block.responsibilities
    experts = expert_scores(block.moments, block.posterior, factor, sigma)
    flat = responsibilities.reshape(S * K, n, 1)
    experts = (experts @ flat).reshape(S, K, -1)
    gate = (gate_scores(block.log_prior, responsibilities) @ problem.W[block.where]).reshape(S, -1)
    return pull_back(problem.structure, problem.free, theta, gate, experts)


def evaluate(problem: Problem, theta: Array) -> Evaluation:
    """Log-likelihood and score at S free vectors, shape (S, P); complex input passes through."""
    params = expand(problem.structure, problem.free, theta)
    loglik = np.zeros(theta.shape[0], dtype=theta.dtype)
    score = np.zeros(theta.shape, dtype=theta.dtype)
    for where, moments in problem.moments.blocks(theta.shape[0] * problem.structure.n_experts):
        block = evaluate_block(problem, params, where, moments)
        loglik += block.loglik.sum(axis=1)
        score += summed_scores(problem, theta, block)
    return Evaluation(loglik, score)


def subject_scores(problem: Problem, theta: Array) -> Array:
    """Score of every subject at one free vector, shape (N, P)."""
    params = expand(problem.structure, problem.free, theta[None])
    out = np.empty((problem.n_subjects, theta.size))
    for where, moments in problem.moments.blocks(problem.structure.n_experts):
        block = evaluate_block(problem, params, where, moments)
        out[where] = block_scores(problem, theta[None], block)[0].T
    return out


def subject_logliks(problem: Problem, theta: Array) -> Array:
    """Log joint density of every subject with every expert at one free vector, shape (N, K)."""
    params = expand(problem.structure, problem.free, theta[None])
    out = np.empty((problem.n_subjects, problem.structure.n_experts))
    for where, moments in problem.moments.blocks(problem.structure.n_experts):
        out[where] = evaluate_block(problem, params, where, moments).log_joint[0].T
    return out


def observed_information(problem: Problem, theta: Array) -> Array:
    """Minus the Hessian of the log-likelihood, shape (P, P).

    The derivative of the exact score by complex steps (Squire & Trapp 1998), one direction per row of a single batched
    evaluation: no step size to choose, no digits lost.
    """
    P = theta.size
    moved = theta + 1j * _COMPLEX_STEP * np.eye(P)
    hessian = np.vstack([evaluate(problem, row).score.imag for row in np.array_split(moved, P)]) / _COMPLEX_STEP
    return -0.5 * (hessian + hessian.T)
