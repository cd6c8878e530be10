"""Coefficients and thresholds of GLMM experts that run to infinity.

A covariate that separates the responses of an expert perfectly has an infinite coefficient; an ordered category without
responses of an expert has an infinite threshold, or two thresholds that meet.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.glmm import GlmmExperts
from mixmoe.mixed.likelihood.observed import Problem, subject_logliks
from mixmoe.mixed.parameters import expand
from mixmoe.mixed.thresholds import OrdinalResponse
from mixmoe.mixture.gate import posterior_probabilities

_NO_RESPONSES = 1e-3  # expected number in a category: an ascent to infinity stops at about this many
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
    tau = posterior_probabilities(subject_logliks(problem, theta))
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


@dataclass(frozen=True, slots=True)
class EmptyCategories:
    """Ordered categories in which an expert has no responses.

    Attributes
    ----------
    infinite : tuple of int
        Thresholds that are infinite, by their place among the reported ones.
    closed : tuple of int
        Steps of zero width, by their place in the free vector.
    meanings : tuple of str
        Each expert and category.
    """

    infinite: tuple[int, ...] = ()
    closed: tuple[int, ...] = ()
    meanings: tuple[str, ...] = ()


def empty_categories(problem: Problem, theta: Array) -> EmptyCategories:
    """What has no responses at a solution; nothing for other responses, and where all experts share the thresholds.

    Experts that share the steps only have no such thresholds: one of them cannot move alone.
    """
    thresholds, experts = problem.structure.thresholds, problem.experts
    if thresholds is None or not thresholds.own_steps or not isinstance(experts, GlmmExperts):
        return EmptyCategories()
    labels = cast(OrdinalResponse, experts.response).labels
    empty = _expected_counts(problem, theta, len(labels)) < _NO_RESPONSES  # (K, C)
    K, C = empty.shape
    infinite: list[int] = []
    closed: list[int] = []
    for k, row in enumerate(empty):
        bottom, top = int(np.argmin(row)), int(np.argmin(row[::-1]))
        inner = range(bottom + 1, C - 1 - top)
        closed += [int(problem.free.extra[k, j - 1]) for j in inner if row[j]]
        outer = [*range(bottom if thresholds.own_location else 0), *range(C - 1 - top, C - 1)]
        infinite += [thresholds.place(k, j, K) for j in outer]
    meanings = [f"expert {k + 1} in {labels[j]!r}" for k, j in np.argwhere(empty)]
    return EmptyCategories(tuple(infinite), tuple(closed), tuple(meanings))


def _expected_counts(problem: "Problem[GlmmExperts]", theta: Array, n_categories: int) -> Array:
    """Expected number of responses of each expert in each category, shape (K, C)."""
    rows = problem.experts.rows
    tau = rows.spread(posterior_probabilities(subject_logliks(problem, theta)).T)
    member = rows.outcome.y[:, None] == np.arange(n_categories)
    return np.asarray(tau @ member)
