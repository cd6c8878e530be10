"""Permutations of the experts: the reported order, exchanges as starting values, and those that cost nothing."""

import numpy as np
from numpy.typing import NDArray

from mixmoe.design import Design
from mixmoe.em import Flag
from mixmoe.inference.cells import Predictor, ambiguity_flag, cheapest_exchange, linked_cells, pairs_of
from mixmoe.kernels.linalg import logsumexp
from mixmoe.varying.problem import Problem, Slots
from mixmoe.varying.steps import Natural, own_natural

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


def label_flag(design: Design, order: NDArray[np.intp], problem: Problem, natural: Natural) -> Flag | None:
    """A flag if labels could be exchanged within cells of the gate's factors at hardly any cost.

    Parameters
    ----------
    design : Design
    order : ndarray of int, shape (n,)
        Row of the design behind each row of the problem.
    problem : Problem
    natural : Natural
        Predictors of the rows at the estimate.

    Notes
    -----
    Functions of the index, the same for all rows of a cell, are exchanged as constants are. A dispersion, which is a
    function of the index alone, stays as it is.
    """
    slots, rows = problem.slots, problem.rows
    if slots.n_experts == 1:
        return None
    cells = _cells(problem)
    if not cells.any():
        return None
    exchanged = {}
    for first, second in pairs_of(slots.n_experts):
        swapped = np.arange(slots.n_experts)
        swapped[[first, second]] = second, first
        delta = natural.delta[swapped] if slots.has_dispersion else natural.delta
        exchanged[first, second] = _row_logliks(problem, natural, delta)
    found = cheapest_exchange(cells, _row_logliks(problem, natural, natural.delta), exchanged)
    in_design = np.empty(rows.n, dtype=np.intp)
    in_design[order] = cells
    return ambiguity_flag(design, in_design, slots.n_experts, found, "" if problem.const.all() else "const({})")


def _cells(problem: Problem) -> NDArray[np.intp]:
    """Cells of the rows by gate and experts, functions and constants each, shape (n,)."""
    slots, rows = problem.slots, problem.rows
    units = np.arange(rows.n)
    constant = problem.const[slots.gate(1)]
    gate = [Predictor(rows.gate[:, which], units) for which in (~constant, constant) if which.any()]
    if not gate or not linked_cells(gate, rows.n).any():  # the usual case, at the least cost
        return np.zeros(rows.n, dtype=np.intp)
    constant = problem.const[slots.expert(0)]
    experts = [Predictor(rows.design[:, which], units) for which in (~constant, constant) if which.any()]
    return linked_cells([*gate, *experts], rows.n)


def _row_logliks(problem: Problem, natural: Natural, delta: Array) -> Array:
    """Weighted log-likelihood of each row with given log dispersions, shape (n,)."""
    joint = natural.log_gate + problem.family.log_density(problem.rows.outcome, natural.eta, delta)
    return np.asarray(logsumexp(joint, axis=0) * problem.rows.weights)
