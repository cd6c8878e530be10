"""Maxima of the local likelihoods at all grid points, with the labels of the joint fit that they start from."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array, BoolArray
from mixmoe.varying.em_steps import LEAST_CURVATURE, limit_dispersion, solve_scaled
from mixmoe.varying.local_likelihood import (
    Local,
    NaturalTerms,
    build_local,
    local_gradient,
    local_information,
    local_loglik,
    local_start,
    natural_terms,
    positive_definite,
    state_of,
    without_information,
)
from mixmoe.varying.problem import Problem, Slots
from mixmoe.varying.windows import Block, blocks

NEWTON_ROUNDS = (6, 6, 30)  # iterations; each round goes on with the grid points that have not converged
PROFILE_ROUNDS, PROFILE_TOLERANCE = (3, 17), 1e-2  # of profiles, whose values are off by the square of a step
NEWTON_TOLERANCE = 1e-8
HALVINGS = 4
FLAT = 0.02  # curvature, relative to that with known experts, below which a direction counts as flat


@dataclass(frozen=True, slots=True)
class LocalFit:
    """Maxima of the local likelihoods.

    Attributes
    ----------
    coef : ndarray, shape (G, D, L)
        In units of the local problem's bandwidth.
    converged : ndarray of bool, shape (G,)
        Where false, `coef` holds the starting value.
    """

    coef: Array
    converged: BoolArray


@dataclass(frozen=True, slots=True)
class BoundedFit:
    """Maxima of local likelihoods some of whose dispersions run to a limit.

    Attributes
    ----------
    fit : LocalFit
        Where a dispersion ran to its limit, all of them are held at the start, and the rest is maximised.
    free : LocalFit
        With the dispersions where they ran.
    limits : ndarray of bool, shape (G, K)
        Which varying dispersions ran to a limit; no column for families without a dispersion.
    """

    fit: LocalFit
    free: LocalFit
    limits: BoolArray

    def held(self, slots: Slots) -> BoolArray:
        """Functions that are held at each grid point, shape (G, L)."""
        out = np.zeros((len(self.limits), slots.n), dtype=bool)
        out[:, slots.dispersions] = self.limits.any(axis=1, keepdims=True)
        return out


@dataclass(frozen=True, slots=True)
class LocalPart:
    """Local likelihoods with one bandwidth, their maxima, and the functions that they settle.

    Attributes
    ----------
    local : Local
    fit : LocalFit
    functions : ndarray of int
    """

    local: Local
    fit: LocalFit
    functions: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class LocalMaxima:
    """Maxima of the local likelihoods of all functions.

    Attributes
    ----------
    state : ndarray, shape (G, 2, L)
        As a state of the EM; where there is no maximum near the start, the start.
    parts : tuple of LocalPart
        One, or two where the gate has a bandwidth of its own.
    """

    state: Array
    parts: tuple[LocalPart, ...]

    @property
    def lost(self) -> BoolArray:
        """Grid points without a maximum near the start, shape (G,)."""
        return ~np.logical_and.reduce([part.fit.converged for part in self.parts])


def maximise_local(local: Local, start: Array) -> LocalFit:
    """Maxima of the local likelihoods, from a label-consistent start.

    Parameters
    ----------
    local : Local
    start : ndarray, shape (G, D, L)

    Returns
    -------
    LocalFit

    Notes
    -----
    Newton's method at all grid points of a block in lockstep, with the complete-data information where the observed
    one is not positive definite, halved where the local likelihood would fall. A point that leaves the neighbourhood
    of its start is not another maximum of the same experts. It is tried again from the polynomials of a neighbour that
    has its maximum; without success it keeps the start and is reported. An expert that has run off everywhere, as the
    zero state of counts with too many zeros does, stays where it is.
    """
    everywhere = without_information(local, start).all(axis=0)
    local = replace(local, free=local.free & ~everywhere)
    coef, done, todo = start.copy(), np.zeros(len(start), dtype=bool), np.arange(len(start))
    # Rounds: most points converge at once, and go on costing nothing while the slow ones are iterated.
    for n_iter in NEWTON_ROUNDS:
        some = local if len(todo) == len(start) else at_points(local, todo)
        for block in blocks(some.windows):
            at = todo[block.first : block.last]
            coef[at], done[at] = _newton(some, block, coef[at], n_iter)
        todo = np.flatnonzero(~done & np.isfinite(coef).all(axis=(1, 2)))
        if not len(todo):
            break
    lost = ~done | ~np.isfinite(coef).all(axis=(1, 2))
    # Maxima spread from neighbour to neighbour into gaps; each pass must win a point, so that it ends.
    every = np.arange(len(lost))
    left, right = np.maximum(every - 1, 0), np.minimum(every + 1, len(lost) - 1)
    while lost.any() and not lost.all():
        near = np.where(lost[left], right, left)
        at = every[lost & ~lost[near]]
        beside = near[at]
        again = _carried(local, coef, at, beside)
        found = again.converged
        if not found.any():
            break
        coef[at[found]], lost[at[found]] = again.coef[found], False
    coef[lost] = start[lost]
    return LocalFit(coef, ~lost)


def _carried(local: Local, coef: Array, at: NDArray[np.intp], beside: NDArray[np.intp]) -> LocalFit:
    """Maxima at some grid points, from the polynomials fitted beside them."""
    grid = local.windows.grid
    start, done = carried(local, coef[beside], grid[at] - grid[beside]), np.zeros(len(at), dtype=bool)
    some = at_points(local, at)
    for block in blocks(some.windows):
        here = slice(block.first, block.last)
        start[here], done[here] = _newton(some, block, start[here], NEWTON_ROUNDS[-1])
    return LocalFit(start, done & np.isfinite(start).all(axis=(1, 2)))


def carried(local: Local, coef: Array, shift: Array) -> Array:
    """Local polynomials (g, D, L) around points that lie further on the index by `shift`, (g,)."""
    n_powers, moved = local.free.shape[0], np.zeros_like(coef)
    t = shift[:, None] / local.windows.bandwidth
    for power in range(n_powers):  # coefficient of t^power in sum_s c_s (t + shift)^s
        for s in range(power, n_powers):
            moved[:, power] += math.comb(s, power) * t ** (s - power) * coef[:, s]
    # What is held at zero slope must not get one from the shift of the origin.
    return np.where(local.free | (np.arange(n_powers) == 0)[:, None], moved, 0.0)


def local_maxima(problem: Problem, coef: Array) -> LocalMaxima:
    """Maxima of the local likelihoods of a local-linear fit, from a state of the EM.

    A gate with a bandwidth of its own is maximised after the experts, which are held at the rows' own index values. See
    `maximise_bounded` for dispersions that run to a limit.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)

    Returns
    -------
    LocalMaxima
    """
    local, every = build_local(problem, 1), np.arange(problem.slots.n)
    fit = maximise_bounded(local, local_start(local, coef)).fit
    state = state_of(local, fit.coef)
    if problem.gate_windows is problem.windows:
        return LocalMaxima(state, (LocalPart(local, fit, every),))
    gates = problem.slots.gates
    state[..., gates] = coef[..., gates]
    alone = build_local(problem, 1, problem.gate_windows.bandwidth, held=state)
    gate_fit = maximise_local(alone, local_start(alone, state))
    state[..., gates] = gate_fit.coef[..., gates]
    return LocalMaxima(state, (LocalPart(local, fit, every[: gates.start]), LocalPart(alone, gate_fit, every[gates])))


def maximise_bounded(local: Local, start: Array) -> BoundedFit:
    """Maxima of the local likelihoods with the dispersions held wherever one of them runs to its limit.

    There the maximum is not a regular one, and draws the experts with it. The dispersions keep the values of the start,
    that of an EM, which rest on wider ground, and the rest is maximised.

    Parameters
    ----------
    local : Local
    start : ndarray, shape (G, D, L)

    Returns
    -------
    BoundedFit
    """
    problem, where = local.problem, local.problem.slots.dispersions
    # Free first: whether a dispersion runs to its limit is seen only where it may.
    fit = maximise_local(local, start)
    limits = on_limit(problem, fit.coef) & ~problem.const[where]
    points = np.flatnonzero(limits.any(axis=1))
    if not len(points):
        return BoundedFit(fit, fit, limits)
    free = local.free.copy()
    free[:, where] = False
    held = maximise_local(replace(at_points(local, points), free=free), start[points])
    coef, converged = fit.coef.copy(), fit.converged.copy()
    coef[points], converged[points] = held.coef, held.converged
    return BoundedFit(LocalFit(coef, converged), fit, limits)


def on_limit(problem: Problem, coef: Array) -> BoolArray:
    """Which log dispersions are on a limit, shape (G, K), from levels and slopes (G, D, L)."""
    level = coef[:, 0, problem.slots.dispersions]
    out: BoolArray = (level <= problem.floor) | (level >= problem.ceiling)
    return out


def at_points(local: Local, points: NDArray[np.intp]) -> Local:
    """A local problem at some of its grid points only."""
    return replace(local, windows=local.windows.with_grid(local.windows.grid[points]))


def profiled(local: Local, slot: int, start: Array) -> tuple[Array, Array]:
    """Local likelihoods with the level of one function held as it is and the rest maximised.

    Parameters
    ----------
    local : Local
    slot : int
        Function that is held.
    start : ndarray, shape (G, D, L)

    Returns
    -------
    coef : ndarray, shape (G, D, L)
    values : ndarray, shape (G,)
        Local log-likelihoods.
    """
    free = local.free.copy()
    free[:, slot] = False
    held, coef, todo = replace(local, free=free), start.copy(), np.arange(len(start))
    for n_iter in PROFILE_ROUNDS:
        some, done = at_points(held, todo), np.empty(len(todo), dtype=bool)
        for block in blocks(some.windows):
            at = todo[block.first : block.last]
            coef[at], done[block.first : block.last] = _newton(some, block, coef[at], n_iter, PROFILE_TOLERANCE)
        todo = todo[~done]
        if not len(todo):
            break
    return coef, logliks_at(held, coef)


def logliks_at(local: Local, coef: Array) -> Array:
    """Local log-likelihoods, shape (G,), of coefficients (G, D, L)."""
    values = np.empty(len(coef))
    for block in blocks(local.windows):
        at = slice(block.first, block.last)
        values[at] = local_loglik(block, natural_terms(local, block, coef[at]))
    return values


def _newton(
    local: Local, block: Block, start: Array, n_iter: int, tolerance: float = NEWTON_TOLERANCE
) -> tuple[Array, BoolArray]:
    coef, problem, dispersions = start.copy(), local.problem, local.problem.slots.dispersions
    scale = np.broadcast_to(problem.scale, coef.shape[1:])
    done = np.zeros(len(coef), dtype=bool)
    terms = natural_terms(local, block, coef)
    value = local_loglik(block, terms)
    for _ in range(n_iter):
        step = _direction(local, block, terms)
        # No part of a step may push a log dispersion beyond its limits.
        level, move = coef[:, 0, dispersions], step[:, 0, dispersions]
        down, up = (level <= problem.floor) & (move < 0.0), (level >= problem.ceiling) & (move > 0.0)
        step[:, :, dispersions] *= ~(down | up)[:, None]
        size = np.abs(step / scale).max(axis=(1, 2))
        done = size < tolerance
        if done.all():
            break
        step *= np.minimum(1.0, 2.0 / np.maximum(size, 1e-300))[:, None, None]
        for _ in range(HALVINGS + 1):
            trial = natural_terms(local, block, coef + step)
            reached = local_loglik(block, trial)
            worse = ~(reached >= value - 1e-9 * np.abs(value))
            if not worse.any():
                break
            step[worse] *= 0.3
        coef, terms, value = limit_dispersion(problem, coef + step), trial, reached
    return coef, done


def _direction(local: Local, block: Block, terms: NaturalTerms) -> Array:
    """Newton direction at each grid point of a block, (g, D, L)."""
    gradient = local_gradient(local, block, terms)
    matrix = local_information(local, block, terms.penalised(terms.information), terms.kernel)
    flat = gradient.reshape(len(gradient), -1)
    bad = ~positive_definite(matrix)
    if not bad.any():
        return solve_scaled(matrix, flat).reshape(gradient.shape)
    complete = local_information(local, block, terms.penalised(terms.complete), terms.kernel)[bad]
    step = np.empty_like(flat)
    step[~bad] = solve_scaled(matrix[~bad], flat[~bad])
    # Elsewhere with the curvature turned positive: away from saddle points, which plain EM leaves slowly.
    scale: Array = np.einsum("gii->gi", complete)
    root = 1.0 / np.sqrt(np.where(scale > LEAST_CURVATURE, scale, np.inf))  # no curvature, no step
    with np.errstate(over="ignore", invalid="ignore"):
        unit = 0.5 * (matrix[bad] + np.swapaxes(matrix[bad], 1, 2)) * root[:, :, None] * root[:, None, :]
    usable: BoolArray = np.asarray(np.isfinite(unit).all(axis=(1, 2)) & np.isfinite(flat[bad]).all(axis=1))
    values, vectors = np.linalg.eigh(np.where(usable[:, None, None], unit, np.eye(unit.shape[1])))
    # NaN where something is not finite, so that the grid point counts as lost.
    pulled: Array = np.where(usable[:, None], flat[bad], np.nan) * root
    turned: Array = np.einsum("gji,gj->gi", vectors, pulled)
    step[bad] = np.einsum("gij,gj->gi", vectors, turned / np.maximum(np.abs(values), FLAT)) * root
    return step.reshape(gradient.shape) * local.free  # turned eigenvectors are zero there only up to rounding
