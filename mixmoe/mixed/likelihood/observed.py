"""Observed-data log-likelihood of a MEMoE, its score and its information, for several starts at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.columns import has_many_columns
from mixmoe.mixed.likelihood.gaussian import LOG_2PI, GaussianExperts, GaussianRowExperts
from mixmoe.mixed.likelihood.protocol import (
    Densities,
    Experts,
    LinearExperts,
    RowDensities,
    ScoresByRow,
)
from mixmoe.mixed.likelihood.spread import SpreadExperts, SpreadPart
from mixmoe.mixed.parameters import FreeVector, Params, Structure, derivatives_in_free, free_to_working
from mixmoe.mixture.gate import GatePenalty, gate_log_probabilities, gate_scores, penalty_score, penalty_value
from mixmoe.numerics.linalg import cholesky_of_one, normalised
from mixmoe.numerics.optimise import Evaluation

Model = TypeVar("Model", bound=Experts)
Found = TypeVar("Found")


@dataclass(frozen=True)
class Problem(Generic[Model]):
    """Everything the likelihood needs, in working coordinates. Not slotted: what follows from it is kept.

    Attributes
    ----------
    structure : Structure
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
    ridge_of_limits : ndarray, shape (M, P), or None
        R of the fit around which limits lie, where smoothing parameters are estimated.
    priors_of_limits : ndarray, shape (M, P), or None
        Scores of priors in the covariance of that fit, see `smooth.marginal.priors_of_limits`.
    """

    structure: Structure
    experts: Model
    W: Array
    penalty: GatePenalty | None = None
    restricted: bool = False
    ridge: Array | None = None
    effective: Array | None = None
    ridge_of_limits: Array | None = None
    priors_of_limits: Array | None = None

    @cached_property
    def free(self) -> FreeVector:
        """Where everything lies in the free vector."""
        return self.structure.free

    @cached_property
    def n_coefficients(self) -> Array:
        """Coefficients of each expert, shape (K,); effective ones where some are penalised."""
        if self.effective is not None:
            return self.effective
        return np.full(self.structure.n_experts, float(self.structure.n_columns))

    @cached_property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.W.shape[0]

    @cached_property
    def has_many_columns(self) -> bool:
        """Whether experts keep rows and have more columns than subjects have rows."""
        experts = self.experts
        return experts.by_rows and has_many_columns(self.structure.n_columns, experts.counts)

    def take(self, subjects: NDArray[np.intp]) -> "Problem[Model]":
        """Likelihood problem of some of the subjects only."""
        return replace(self, experts=self.experts.take(subjects), W=self.W[subjects])


ClosedForm = Problem[GaussianExperts | GaussianRowExperts]


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
    groups = [np.arange(p)[at : at + _AT_ONCE] for at in range(0, p, _AT_ONCE)]
    eye, whole = np.eye(p), np.empty((p, p), dtype=theta.dtype)
    for columns in groups:
        found = _without_response(problem, theta, -eye[columns])
        whole[columns] = sum((at.summed_scores(np.ones((columns.size, 1, n)))[:, 0, :p] for at, n in found), 0)
    L = cholesky_of_one(whole)
    H: Array = np.asarray(np.linalg.solve(L, eye))  # transposed: its rows are the directions
    # V does not depend on the fixed effects: only scores in the other parameters count.
    change: Array = -p * _other_scores(problem, theta, np.zeros((1, p)))
    for columns in groups:
        change = change + _other_scores(problem, theta, -H[columns])
    in_all = np.concatenate([np.zeros((p, problem.n_subjects)), change])[None, None]
    scores = derivatives_in_free(problem.structure, theta[None], np.zeros((1, 0, problem.n_subjects)), in_all)[0]
    return Restriction(0.5 * p * LOG_2PI - np.log(np.diag(L)).sum(), scores)


_AT_ONCE = 50  # vectors of fixed effects, so that arrays of their rows stay small


def _other_scores(problem: Problem, theta: Array, beta: Array) -> Array:
    """Scores in all but the fixed effects were all responses zero, summed over vectors of these, shape (D - p, N)."""
    p = beta.shape[1]
    parts = []
    for at, _ in _without_response(problem, theta, beta):
        scores = at.row_scores().others if isinstance(at, ScoresByRow) else at.scores()[:, 0, p:]
        parts.append(scores.sum(axis=0))
    return np.concatenate(parts, axis=-1)


def _without_response(problem: Problem, theta: Array, beta: Array) -> Iterator[tuple[Densities, int]]:
    """Densities of the expert were all responses zero, at fixed effects of shape (S, p), and numbers of subjects."""
    one = free_to_working(problem.structure, theta[None])
    S = len(beta)
    parts = (np.repeat(part, S, axis=0) for part in (one.factor, one.sigma, one.extra))
    gamma, fixed = np.zeros((S, 0, problem.structure.n_gate)), beta[:, None].astype(theta.dtype)
    params = Params(gamma, fixed, *parts)
    for where, experts in cast(LinearExperts, problem.experts).without_response().blocks(S):
        yield experts.densities(params), where.stop - where.start


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
    responsibilities : ndarray, shape (S, K, n)
        Posterior expert probabilities.
    """

    where: slice
    densities: Densities
    log_prior: Array
    log_joint: Array
    loglik: Array
    responsibilities: Array


def evaluate_block(problem: Problem, params: Params, where: slice, experts: Experts) -> Block:
    """Joint log-densities of the subjects in `where`."""
    densities = experts.densities(params)
    log_prior = gate_log_probabilities(problem.W[where], params.gamma)
    log_joint = log_prior + densities.log_density
    loglik, responsibilities = normalised(log_joint, axis=1)
    return Block(where, densities, log_prior, log_joint, loglik, responsibilities)


def likelihood_blocks(problem: Problem, theta: Array, at_once: int | None = None) -> Iterator[Block]:
    """Likelihood quantities of all subjects at S vectors, shape (S, P), one run of subjects after the other.

    A run is short enough that `at_once` numbers of each subject stay in cache, by default one of each expert and start.
    """
    params = free_to_working(problem.structure, theta)
    for where, experts in problem.experts.blocks(at_once or len(theta) * problem.structure.n_experts):
        yield evaluate_block(problem, params, where, experts)


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
    return derivatives_in_free(problem.structure, theta, gate, experts)


def summed_squares(problem: Problem, theta: Array) -> Array:
    """Sums of squared scores at S vectors, shape (S, P), of experts that keep rows: those of coefficients by rows.

    The scale of the information at hardly more than the cost of the score, whatever the number of columns.
    """
    out = np.zeros(theta.shape)
    for block in likelihood_blocks(problem, theta):
        tau = block.responsibilities
        gate = gate_scores(block.log_prior, tau) ** 2 @ problem.W[block.where] ** 2
        squares = cast(RowDensities, block.densities).summed_squares(tau)
        out += derivatives_in_free(problem.structure, theta, gate.reshape(len(theta), -1), squares)
    return out


def by_workers(experts: SpreadExperts, structure: Structure, task: Callable[[Problem], Found]) -> list[Found]:
    """What a task finds for the subjects of each part of experts that workers keep, in the order of the subjects.

    Without penalties and the term of a restricted likelihood, which are not of subjects.
    """
    return experts.mapped(partial(_on_part, task=task, structure=structure))


def _on_part(part: SpreadPart, task: Callable[[Problem], Found], structure: Structure) -> Found:
    return task(Problem(structure, part.experts, part.W))


def evaluate(problem: Problem, theta: Array) -> Evaluation:
    """Log-likelihood, penalised if the gate is, restricted if that is asked for, and score at S vectors, shape (S, P).

    Complex input passes through analytic experts.
    """
    s, experts = problem.structure, problem.experts
    loglik, score = np.zeros(len(theta), dtype=theta.dtype), np.zeros(theta.shape, dtype=theta.dtype)
    # 1. Subjects: where workers keep them, or here, run by run.
    if isinstance(experts, SpreadExperts):
        for part in by_workers(experts, s, partial(evaluate, theta=theta)):
            loglik += part.loglik
            score += part.score
    else:
        for block in likelihood_blocks(problem, theta):
            loglik += block.loglik.sum(axis=1)
            # Fisher's identity: the score is that of known memberships, each weighted by its probability.
            in_experts = block.densities.summed_scores(block.responsibilities)
            in_gate = gate_scores(block.log_prior, block.responsibilities) @ problem.W[block.where]
            score += derivatives_in_free(s, theta, in_gate.reshape(len(theta), -1), in_experts)
    # 2. What is not of subjects: the priors of gate and functions, and REML's term.
    if problem.penalty is not None:
        gamma = free_to_working(s, theta).gamma
        loglik += penalty_value(problem.penalty, problem.W, gamma)
        score[:, problem.free.gate] += penalty_score(problem.penalty, problem.W, gamma).reshape(len(theta), -1)
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
    gamma = free_to_working(problem.structure, theta[None]).gamma
    return smooth + float(penalty_value(problem.penalty, problem.W, gamma)[0])


def subject_scores(problem: Problem, theta: Array) -> Array:
    """Score of every subject at one free vector, shape (N, P); complex as the vector is, for analytic experts.

    Of a restricted log-likelihood with the part of the subject in its term, so that the sum is the whole score.
    """
    s, experts = problem.structure, problem.experts
    if isinstance(experts, SpreadExperts):
        out = np.concatenate(by_workers(experts, s, partial(subject_scores, theta=theta)))
    else:
        out = np.empty((problem.n_subjects, theta.size), dtype=theta.dtype)
        for block in likelihood_blocks(problem, theta[None]):
            out[block.where] = block_scores(problem, theta[None], block)[0].T
    if problem.restricted:
        out += restriction(problem, theta).scores.T
    return out


def summed_products(problem: Problem, theta: Array) -> Array:
    """Sums over subjects of the outer products of their scores, (S, P, P), at S vectors; of a plain log-likelihood."""
    S, P = theta.shape
    out = np.zeros((S, P, P))
    if isinstance(problem.experts, SpreadExperts):
        return sum(by_workers(problem.experts, problem.structure, partial(summed_products, theta=theta)), out)
    # Block by block: scores of all subjects would be the largest array of a fit.
    for block in likelihood_blocks(problem, theta, S * max(P, problem.structure.n_experts)):
        scores = np.nan_to_num(block_scores(problem, theta, block))
        out += scores @ np.swapaxes(scores, 1, 2)
    return out


def subject_logliks(problem: Problem, theta: Array) -> Array:
    """Log joint density of every subject with every expert at one free vector, shape (N, K)."""
    if isinstance(problem.experts, SpreadExperts):
        return np.concatenate(by_workers(problem.experts, problem.structure, partial(subject_logliks, theta=theta)))
    out = np.empty((problem.n_subjects, problem.structure.n_experts))
    for block in likelihood_blocks(problem, theta[None]):
        out[block.where] = block.log_joint[0].T
    return out
