"""How single subjects move the estimates of a MEMoE, and how memberships move with the estimates."""

from dataclasses import dataclass

import numpy as np

from mixmoe._typing import Array
from mixmoe.families import FirstOrder, Likelihood
from mixmoe.mixed.information import find_boundary, informative_basis, invert_information
from mixmoe.mixed.likelihood.observed import (
    Problem,
    block_scores,
    evaluate,
    evaluate_block,
    observed_information,
    subject_scores,
)
from mixmoe.mixed.parameters import Coordinates, free_to_reported, free_to_reported_jacobian, free_to_working
from mixmoe.numerics.optimise import Evaluation


def first_order(problem: Problem, coordinates: Coordinates, theta: Array) -> FirstOrder:
    """Scores, inverse information and derivatives of the responsibilities at a solution.

    Parameters
    ----------
    problem : Problem
    coordinates : Coordinates
    theta : ndarray, shape (P,)

    Returns
    -------
    FirstOrder
    """
    at = find_boundary(problem, coordinates, theta)
    inverse = invert_information(observed_information(problem, at.theta), informative_basis(problem, at))
    jacobian = free_to_reported_jacobian(problem.structure, coordinates, at.theta)
    jacobian[list(at.blank)] = np.nan
    scores = expert_subject_scores(problem, at.theta)
    observed = subject_scores(problem, at.theta) if problem.restricted else scores.observed
    return FirstOrder(observed, inverse.matrix, jacobian, scores.slopes)


@dataclass(frozen=True, slots=True)
class SubjectScores:
    """Scores of the subjects.

    Attributes
    ----------
    observed : ndarray, shape (N, P)
    slopes : ndarray, shape (N, K, P)
        Derivatives of the responsibilities.
    """

    observed: Array
    slopes: Array


def expert_subject_scores(problem: Problem, theta: Array) -> SubjectScores:
    """Scores of the subjects and derivatives ``tau_ik (s_ik - s_i)`` of their responsibilities.

    s_ik is the score of subject i were she known to belong to expert k, and s_i their responsibility-weighted mean.
    """
    K = problem.structure.n_experts
    params = free_to_working(problem.structure, theta[None])
    out = SubjectScores(np.empty((problem.n_subjects, theta.size)), np.empty((problem.n_subjects, K, theta.size)))
    for where, experts in problem.experts.blocks(K):
        block = evaluate_block(problem, params, where, experts)
        tau = block.responsibilities
        out.observed[where] = block_scores(problem, theta[None], block)[0].T
        for k in range(K):
            known = np.zeros_like(tau)
            known[:, k] = 1.0
            given = block_scores(problem, theta[None], block, known)[0].T
            out.slopes[where, k] = tau[0, k][:, None] * (given - out.observed[where])
    return out


def likelihood_at(problem: Problem, coordinates: Coordinates, theta: Array, loglik: float) -> Likelihood:
    """The log-likelihood around a solution, in units of the response.

    Parameters
    ----------
    problem : Problem
    coordinates : Coordinates
    theta : ndarray, shape (P,)
    loglik : float
        At the solution, in units of the response.

    Returns
    -------
    Likelihood
    """
    at = find_boundary(problem, coordinates, theta)
    inverse = invert_information(observed_information(problem, at.theta), informative_basis(problem, at))
    shift = loglik - float(evaluate(problem, at.theta[None]).loglik[0])

    def shifted(points: Array) -> Evaluation:
        e = evaluate(problem, points)
        return Evaluation(e.loglik + shift, e.score)

    def reported(point: Array) -> Array:
        return free_to_reported(problem.structure, coordinates, point[None])[0]

    def jacobian(point: Array) -> Array:
        return np.nan_to_num(free_to_reported_jacobian(problem.structure, coordinates, point))

    return Likelihood(at.theta, inverse.matrix, shifted, reported, jacobian)
