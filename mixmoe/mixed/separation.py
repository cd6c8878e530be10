"""Coefficients of GLMM experts that run to infinity, because a covariate separates the responses perfectly."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.linalg import logsumexp
from mixmoe.mixed.laplace import GlmmExperts
from mixmoe.mixed.likelihood import Problem, subject_logliks
from mixmoe.mixed.structure import expand

Array = NDArray[np.float64]

_NO_INFORMATION = 1e-5  # per row of the expert, in a direction of orthonormal columns; at p = 0.00001 or 0.99999


@dataclass(frozen=True, slots=True)
class ExpertDirections:
    """Directions of the expert coefficients in working coordinates.

    Attributes
    ----------
    where : ndarray of int, shape (d,)
        Coefficients in the free vector.
    vectors : ndarray, shape (d, d)
        Orthonormal, one per column.
    infinite : ndarray of bool, shape (d,)
        Along these the fitted responses have no variance left: the maximum lies at infinity.
    """

    where: NDArray[np.intp]
    vectors: Array
    infinite: NDArray[np.bool_]


def expert_directions(problem: Problem, theta: Array) -> ExpertDirections | None:
    """Eigenvectors of the information of the expert coefficients, were memberships and random effects known.

    None for Gaussian experts, whose information does not depend on their coefficients.
    """
    if not isinstance(problem.experts, GlmmExperts):
        return None
    params, K, P = expand(problem.structure, problem.free, theta[None]), problem.structure.n_experts, theta.size
    joint = subject_logliks(problem, theta)
    tau = np.exp(joint - logsumexp(joint, axis=1)[:, None])
    information, size = np.zeros((P, P)), np.zeros(P)
    for where, part in problem.experts.blocks(K):
        X, weight = part.rows.X, part.densities(params).modes.weight
        for k in range(K):
            share, at = part.rows.spread(tau[where, k]), problem.free.beta[k]
            information[np.ix_(at, at)] += (X.T * (share * weight[k])) @ X
            size[at] += share.sum()
    used = np.unique(problem.free.beta)
    scale = np.sqrt(np.maximum(size[used], np.finfo(float).tiny))
    values, vectors = np.linalg.eigh(information[np.ix_(used, used)] / np.outer(scale, scale))
    return ExpertDirections(used, vectors, values < _NO_INFORMATION)
