"""Observed-data log-likelihood of a MEMoE, its score and its information, for several starts at once."""

from dataclasses import dataclass, replace
from typing import Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.inference.uncertainty import within_clusters
from mixmoe.mixed.likelihood.gaussian import LOG_2PI, GaussianExperts
from mixmoe.mixed.likelihood.protocol import Densities, Experts, LinearExperts
from mixmoe.mixed.parameters import FreeVector, Params, Structure, build_free_vector, expand, pull_back
from mixmoe.mixture.gate import GatePenalty, gate_log_probabilities, gate_scores, penalty_score
from mixmoe.numerics.complex_step import derivative_along, jacobian
from mixmoe.numerics.linalg import cholesky, logsumexp, solve_upper
from mixmoe.numerics.optimise import Evaluation

Model = TypeVar("Model", bound=Experts)
_DIFFERENCE = 1e-4  # in working coordinates; the error of a central difference is its square


@dataclass(frozen=True, slots=True)
class Problem(Generic[Model]):
    """Everything the likelihood needs, in working coordinates.

    Attributes
    ----------
    structure : Structure
    free : FreeVector
    experts : Experts
    W : ndarray, shape (N, m)
        Gate design.
    penalty : GatePenalty or None
        Log prior of the gate, part of what is maximised but not of the log-likelihood of subjects.
    restricted : bool
        Whether the restricted log-likelihood is maximised, of one expert with normal errors; see `restriction`.
    ridge : ndarray, shape (M, P), or None
        R of the penalty ``1/2 |R theta|^2`` of smooth functions, which is taken off what is maximised.
    effective : ndarray, shape (K,), or None
        Effective number of coefficients of each expert where some are penalised.
    """

    structure: Structure
    free: FreeVector
    experts: Model
    W: Array
    penalty: GatePenalty | None = None
    restricted: bool = False
    ridge: Array | None = None
    effective: Array | None = None

    @property
    def n_coefficients(self) -> Array:
        """Coefficients of each expert, shape (K,); effective ones where some are penalised."""
        if self.effective is not None:
            return self.effective
        return np.full(self.structure.n_experts, float(self.structure.n_columns))

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.W.shape[0]

    def take(self, subjects: NDArray[np.intp]) -> "Problem[Model]":
        """Likelihood problem of some of the subjects only."""
        return replace(self, experts=self.experts.take(subjects), W=self.W[subjects])


ClosedForm = Problem[GaussianExperts]


def build_problem(
    structure: Structure, experts: Model, W: Array, penalty: GatePenalty | None = None, restricted: bool = False
) -> Problem[Model]:
    """A problem from its parts."""
    return Problem(structure, build_free_vector(structure), experts, W, penalty, restricted)


@dataclass(frozen=True, slots=True)
class Restriction:
    """What turns a log-likelihood into the restricted one.

    Attributes
    ----------
    value : float
        ``-1/2 log|X'V^-1X| + p/2 log(2 pi)``; complex where a step passes through.
    scores : ndarray, shape (P, N)
        Its derivative in the free vector: each subject has her part in X'V^-1X.
    """

    value: Array
    scores: Array


def restriction(problem: Problem, theta: Array) -> Restriction:
    """REML's term at one free vector, shape (P,), of a problem with one expert and normal errors.

    Notes
    -----
    At the best fixed effects the log-likelihood with this term is that of n - p error contrasts (Harville 1974), up to
    1/2 log|X'X|, which lme4 and nlme leave out too. No new algebra is needed: with a response of zero and fixed effects
    -h the residuals are X h, so that the score in the fixed effects is X'V^-1X h. With H H' the inverse of that
    matrix, the derivative ``-1/2 tr(H'd(X'V^-1X)H)`` in the parameters of V is what the scores at the columns of H
    have beyond the score at zero, which is that of log|V|.

    References
    ----------
    Harville (1974), Biometrika 61, 383-385.
    """
    p = problem.structure.n_columns
    whole = _scores_without_response(problem, theta, -np.eye(p))[:, :p].sum(axis=2)
    L = cholesky(whole[None, :, :, None])
    H = solve_upper(L, np.eye(p)[None, :, :, None])[0, :, :, 0]
    at = _scores_without_response(problem, theta, np.vstack([np.zeros((1, p)), -H.T]))
    change = at[1:].sum(axis=0) - p * at[0]
    change[:p] = 0.0  # V does not depend on the fixed effects
    gate = np.zeros((1, 0, problem.n_subjects))
    scores = pull_back(problem.structure, problem.free, theta[None], gate, change[None, None])[0]
    return Restriction(0.5 * p * LOG_2PI - np.log(L[0, range(p), range(p), 0]).sum(), scores)


def _scores_without_response(problem: Problem, theta: Array, beta: Array) -> Array:
    """Scores of the expert were all responses zero, shape (S, D, N), at other fixed effects, shape (S, p)."""
    one = expand(problem.structure, problem.free, theta[None])
    S = len(beta)
    parts = (np.repeat(part, S, axis=0) for part in (one.factor, one.sigma, one.extra))
    gamma, fixed = np.zeros((S, 0, problem.structure.n_gate)), beta[:, None].astype(theta.dtype)
    params = Params(gamma, fixed, *parts)
    blocks = cast(LinearExperts, problem.experts).without_response().blocks(S)
    return np.concatenate([experts.densities(params).scores()[:, 0] for _, experts in blocks], axis=-1)


@dataclass(frozen=True, slots=True)
class Block:
    """Likelihood quantities of a run of subjects, before any sum over subjects.

    Attributes
    ----------
    where : slice
    densities : Densities
    log_prior : ndarray, shape (S, K, n)
    log_joint : ndarray, shape (S, K, n)
    loglik : ndarray, shape (S, n)
    """

    where: slice
    densities: Densities
    log_prior: Array
    log_joint: Array
    loglik: Array

    @property
    def responsibilities(self) -> Array:
        """Posterior expert probabilities, shape (S, K, n)."""
        return np.exp(self.log_joint - self.loglik[:, None])


def evaluate_block(problem: Problem, params: Params, where: slice, experts: Experts) -> Block:
    """Joint log-densities of the subjects in `where`."""
    densities = experts.densities(params)
    log_prior = gate_log_probabilities(problem.W[where], params.gamma)
    log_joint = log_prior + densities.log_density
    return Block(where, densities, log_prior, log_joint, logsumexp(log_joint, axis=1))


def block_scores(problem: Problem, theta: Array, block: Block, memberships: Array | None = None) -> Array:
    """Scores of each subject of a block in the free vector, shape (S, P, n).

    By Fisher's identity the observed-data score is the responsibility-weighted sum of the experts' scores. With
    `memberships`, shape (S, K, n), in the place of the responsibilities, the score were these known.
    """
    S, _, n = block.log_joint.shape
    responsibilities = block.responsibilities if memberships is None else memberships
    # Fisher's identity: the score of log sum exp is the posterior mean of the scores, with no term for the
    # responsibilities' own change.
    experts = block.densities.scores() * responsibilities[:, :, None]
    residual = gate_scores(block.log_prior, responsibilities)
    gate = (residual[:, :, None] * problem.W[block.where].T).reshape(S, -1, n)
    return pull_back(problem.structure, problem.free, theta, gate, experts)


def summed_scores(problem: Problem, theta: Array, block: Block) -> Array:
    """Scores summed over the subjects of a block, shape (S, P)."""
    responsibilities = block.responsibilities
    experts = block.densities.summed_scores(responsibilities)
    gate = gate_scores(block.log_prior, responsibilities) @ problem.W[block.where]
    return pull_back(problem.structure, problem.free, theta, gate.reshape(theta.shape[0], -1), experts)


def evaluate(problem: Problem, theta: Array) -> Evaluation:
    """Log-likelihood, penalised if the gate is, restricted if that is asked for, and score at S vectors, shape (S, P).

    Complex input passes through analytic experts.
    """
    params = expand(problem.structure, problem.free, theta)
    loglik = np.zeros(theta.shape[0], dtype=theta.dtype)
    score = np.zeros(theta.shape, dtype=theta.dtype)
    for where, experts in problem.experts.blocks(theta.shape[0] * problem.structure.n_experts):
        block = evaluate_block(problem, params, where, experts)
        loglik += block.loglik.sum(axis=1)
        score += summed_scores(problem, theta, block)
    if problem.penalty is not None:
        loglik += problem.penalty.value(problem.W, params.gamma)
        score[:, problem.free.gate] += penalty_score(problem.penalty, problem.W, params.gamma).reshape(
            theta.shape[0], -1
        )
    if problem.ridge is not None:
        # Not by R'R: the digits that R theta loses to a penalty without bound would be lost twice.
        held = theta @ problem.ridge.T
        loglik -= 0.5 * (held * held).sum(axis=1)
        score -= held @ problem.ridge
    if problem.restricted:
        for i, point in enumerate(theta):
            term = restriction(problem, point)
            loglik[i] += term.value
            score[i] += term.scores.sum(axis=1)
    return Evaluation(loglik, score)


def penalty_at(problem: Problem, theta: Array) -> float:
    """Log prior of gate and smooth functions at one free vector, shape (P,); zero if nothing is penalised."""
    smooth = 0.0 if problem.ridge is None else -0.5 * float(((problem.ridge @ theta) ** 2).sum())
    if problem.penalty is None:
        return smooth
    gamma = expand(problem.structure, problem.free, theta[None]).gamma
    return smooth + float(problem.penalty.value(problem.W, gamma)[0])


def subject_scores(problem: Problem, theta: Array) -> Array:
    """Score of every subject at one free vector, shape (N, P); complex as the vector is, for analytic experts.

    Of a restricted log-likelihood with the part of the subject in its term, so that the sum is the whole score.
    """
    params = expand(problem.structure, problem.free, theta[None])
    out = np.empty((problem.n_subjects, theta.size), dtype=theta.dtype)
    for where, experts in problem.experts.blocks(problem.structure.n_experts):
        block = evaluate_block(problem, params, where, experts)
        out[where] = block_scores(problem, theta[None], block)[0].T
    if problem.restricted:
        out += restriction(problem, theta).scores.T
    return out


def subject_logliks(problem: Problem, theta: Array) -> Array:
    """Log joint density of every subject with every expert at one free vector, shape (N, K)."""
    params = expand(problem.structure, problem.free, theta[None])
    out = np.empty((problem.n_subjects, problem.structure.n_experts))
    for where, experts in problem.experts.blocks(problem.structure.n_experts):
        out[where] = evaluate_block(problem, params, where, experts).log_joint[0].T
    return out


def observed_information(problem: Problem, theta: Array) -> Array:
    """Minus the Hessian of the log-likelihood, shape (P, P).

    The derivative of the exact score: by complex steps (Squire & Trapp 1998) where the experts let them through, one
    direction per row, with no step size to choose and no digits lost; else by central differences.
    """
    if problem.experts.analytic:
        # One direction at a time: P complex copies of the moments at once would not fit the cache.
        hessian = jacobian(lambda moved: evaluate(problem, moved[None]).score[0], theta)
        return -0.5 * (hessian + hessian.T)
    steps = _DIFFERENCE * np.eye(theta.size)
    # Central differences of the exact score lose a third of the digits; second ones of the likelihood would lose half.
    rows = [evaluate(problem, np.vstack([theta + step, theta - step])).score for step in steps]
    hessian = np.array([row[0] - row[1] for row in rows]) / (2 * _DIFFERENCE)
    return -0.5 * (hessian + hessian.T)


def unit_information(problem: Problem, theta: Array, clusters: NDArray[np.int64] | None = None) -> Array:
    """Minus the Hessian of the log-likelihood of every subject or cluster, shape (G, P, P)."""
    P = theta.size
    columns = []
    for step in np.eye(P):
        if problem.experts.analytic:
            slope = derivative_along(lambda moved: subject_scores(problem, moved), theta, step)
        else:
            ends = [subject_scores(problem, theta + sign * _DIFFERENCE * step) for sign in (1.0, -1.0)]
            slope = (ends[0] - ends[1]) / (2 * _DIFFERENCE)
        columns.append(within_clusters(slope, clusters))
    hessian = np.stack(columns, axis=1)
    return -0.5 * (hessian + np.swapaxes(hessian, 1, 2))
