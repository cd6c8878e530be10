"""Coefficients and thresholds that run to infinity.

A covariate that tells experts apart perfectly has an infinite coefficient in the gate.

A covariate that separates the responses of an expert perfectly has an infinite coefficient; an ordered category without
responses of an expert has an infinite threshold, or two thresholds that meet.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.observed import Problem
from mixmoe.mixed.parameters import free_to_working
from mixmoe.mixture.gate import gate_information, gate_log_probabilities

_NO_RESPONSES = 1e-3  # expected number in a category: an ascent to infinity stops at about this many
_NO_GATE_INFORMATION = 1e-6  # per subject, in a direction of orthonormal gate columns
_NO_INFORMATION = 1e-5  # per row of the expert, in a direction of orthonormal columns; at p = 0.00001 or 0.99999


@dataclass(frozen=True, slots=True)
class GateDirections:
    """Directions of the gate coefficients in working coordinates.

    Attributes
    ----------
    vectors : ndarray, shape (d, d)
        Orthonormal, one per column.
    infinite : ndarray of bool, shape (d,)
        Along these the gate separates the experts perfectly: the maximum lies at infinity.
    """

    vectors: Array
    infinite: NDArray[np.bool_]


def gate_directions(problem: Problem, theta: Array) -> GateDirections:
    """Eigenvectors of the information of the gate, were the memberships known."""
    gamma = free_to_working(problem.structure, theta[None]).gamma
    weights = np.ones(problem.n_subjects)
    information = gate_information(problem.W, gate_log_probabilities(problem.W, gamma), weights)[0]
    values, vectors = np.linalg.eigh(information / problem.n_subjects)
    if problem.penalty is not None:  # the prior keeps all coefficients finite
        return GateDirections(vectors, np.zeros(values.size, dtype=bool))
    return GateDirections(vectors, values < _NO_GATE_INFORMATION)


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


def expert_directions(problem: Problem, theta: Array, tau: Array) -> ExpertDirections | None:
    """Eigenvectors of the information of the expert coefficients, were memberships and random effects known.

    `tau` are the responsibilities at `theta`, shape (N, K). None for Gaussian experts, whose information does not
    depend on their coefficients.
    """
    params, P = free_to_working(problem.structure, theta[None]), theta.size
    found = problem.experts.coefficient_information(params, tau)
    if found is None:
        return None
    information, size = np.zeros((P, P)), np.zeros(P)
    for k, at in enumerate(problem.free.beta):  # shared coefficients gather what all experts say of them
        information[np.ix_(at, at)] += found.matrices[k]
        size[at] += found.sizes[k]
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


def empty_categories(problem: Problem, tau: Array) -> EmptyCategories:
    """What has no responses, given responsibilities of shape (N, K).

    Nothing for other responses, and where all experts share the thresholds. Experts that share the steps only have no
    such thresholds: one of them cannot move alone.
    """
    thresholds = problem.structure.thresholds
    if thresholds is None or not thresholds.own_steps:
        return EmptyCategories()
    counts = problem.experts.category_counts(tau)
    if counts is None:
        return EmptyCategories()
    labels, empty = counts.labels, counts.expected < _NO_RESPONSES  # (K, C)
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
