"""Permutations of the experts: the order that is reported, and exchanges along part of the index as starting values."""

import numpy as np
from numpy.typing import NDArray

from mixmoe.varying.problem import Problem, Slots
from mixmoe.varying.steps import own_natural

Array = NDArray[np.float64]

MOVES = 3  # exchanges tried for each pair of experts
CLOSE = 2.0  # squared distance of two experts, in units of noise, above which they are not exchanged


def permute_experts(slots: Slots, coef: Array, order: NDArray[np.intp]) -> Array:
    """The same functions with the experts in another order, the gate against the new first one.

    Parameters
    ----------
    slots : Slots
    coef : ndarray, shape (..., L)
    order : ndarray of int, shape (K,)
        Old position of each new expert.

    Returns
    -------
    ndarray, shape (..., L)
    """
    out, k = coef.copy(), slots.n_experts
    lead = coef.shape[:-1]
    out[..., slots.experts] = coef[..., slots.experts].reshape(*lead, k, -1)[..., order, :].reshape(*lead, -1)
    if slots.has_dispersion:
        out[..., slots.dispersions] = coef[..., slots.dispersions][..., order]
    if k > 1:
        full = np.zeros((*lead, k, slots.n_gate_columns))
        full[..., 1:, :] = coef[..., slots.gates].reshape(*lead, k - 1, -1)
        moved = full[..., order, :]
        out[..., slots.gates] = (moved[..., 1:, :] - moved[..., :1, :]).reshape(*lead, -1)
    return out


def reported_order(problem: Problem, coef: Array) -> NDArray[np.intp]:
    """Experts by their mean gate probability over the rows, largest first, as in the other families.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)

    Returns
    -------
    ndarray of int, shape (K,)
    """
    shares = np.exp(own_natural(problem, coef).log_gate) @ problem.rows.weights
    return np.argsort(-shares, kind="stable")


def exchanges(problem: Problem, coef: Array) -> list[Array]:
    """States in which two experts change places from a point on where they come close.

    A mixture whose experts nearly meet has a second mode in which they are connected the wrong way; labels are
    consistent in both, only the likelihood tells them apart.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)

    Returns
    -------
    list of ndarray, shape (G, 2, L)
    """
    slots, k = problem.slots, problem.slots.n_experts
    scaled = (coef[:, 0, slots.experts] / problem.scale[slots.experts]).reshape(len(coef), k, -1)
    found = []
    for a in range(k):
        for b in range(a):
            distance = ((scaled[:, a] - scaled[:, b]) ** 2).sum(axis=-1)
            order = np.arange(k)
            order[[a, b]] = order[[b, a]]
            swapped = np.where(problem.const, coef, permute_experts(slots, coef, order))
            for g in _minima(distance):
                found.append(np.concatenate([coef[:g], swapped[g:]]))
    return found


def _minima(distance: Array) -> NDArray[np.intp]:
    """The smallest interior local minima of a distance along the grid."""
    inner = np.arange(2, len(distance) - 2)
    lowest = (distance[inner] <= distance[inner - 1]) & (distance[inner] <= distance[inner + 1])
    places = inner[lowest & (distance[inner] < CLOSE)]
    return places[np.argsort(distance[places], kind="stable")][:MOVES]
