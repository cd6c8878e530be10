"""The score equation of the constant coefficients, in which the functions enter by their estimates.

See `mixmoe.varying.sandwich` for the influence of the rows that follows from it.
"""

from dataclasses import replace

import numpy as np

from mixmoe._typing import Array, BoolArray, IntArray
from mixmoe.varying.em_steps import Natural, WindowPrior, global_units, own_natural
from mixmoe.varying.local_likelihood import (
    Local,
    assemble_terms,
    constants_without_information,
    masked_information,
    natural_design,
    state_of,
    whole_block,
)
from mixmoe.varying.local_maximum import FLAT, on_limit
from mixmoe.varying.problem import Problem

SINGULAR = 1e-12  # smallest singular value of the scaled equation of the constants with which it is solved


def is_flat(full: Array, complete: Array, free: BoolArray) -> bool:
    """Whether some informations (g, D L, D L) have a direction without curvature, by that with known experts."""
    diagonal = np.einsum("gii->gi", complete)
    seen = free & (diagonal > 0.0)
    root = 1.0 / np.sqrt(np.where(seen, diagonal, 1.0))
    unit = masked_information(full, seen)
    scale = np.where(seen, root, 1.0)
    return bool((np.linalg.eigvalsh(unit * scale[:, :, None] * scale[:, None, :])[:, 0] < FLAT).any())


class ConstantsEquation:
    """The global score equation of the constants, accumulated over grid points.

    Parameters
    ----------
    local : Local
    coef : ndarray, shape (G, D, L)
    slots : ndarray of int, shape (C,)
    added : int or None
        See `influence`.
    expected : ndarray, shape (d, d, n), optional
        Information of the rows in place of the observed one.
    """

    def __init__(
        self, local: Local, coef: Array, slots: IntArray, added: int | None, expected: Array | None = None
    ) -> None:
        problem, d = local.problem, local.free.shape[0]
        rows, n_slots = problem.rows, local.free.shape[1]
        natural = own_natural(problem, state_of(local, coef))
        terms = assemble_terms(problem, whole_block(slice(0, rows.n)), natural)
        terms = replace(terms, prior=_prior_of_constants(problem, natural))
        score = terms.score if added is None else terms.added_score(added)
        design = natural_design(local, slice(None), np.zeros(rows.n))[:, :, :n_slots]  # (n, d, L)
        weights = rows.weights
        information = terms.information if expected is None else expected
        curvature = np.moveaxis(terms.penalised(information), -1, 0) * weights[:, None, None]
        mixed = np.swapaxes(design[:, :, slots], 1, 2) @ curvature @ design  # (n, C, L)
        self._score = np.einsum("nd,ndc->nc", score.T * weights[:, None], design[:, :, slots])
        self._matrix = mixed[:, :, slots].sum(axis=0)
        self._reach = _through_interpolation(local, mixed, d)  # (C, G, D, L)
        self._free = local.free
        at_limit = np.zeros(n_slots, dtype=bool)
        at_limit[problem.slots.dispersions] = on_limit(problem, coef).any(axis=0)
        self._known = ~(constants_without_information(problem, natural) | at_limit)[slots]

    def add(self, g: int, rows: slice | IntArray, move: Array, drift: Array) -> None:
        """Subtract what the functions at grid point g contribute."""
        reach = (self._reach[:, g] * self._free).reshape(len(self._reach), -1)
        self._score[rows] -= move @ reach.T  # no row is in a window twice
        self._matrix = self._matrix + reach @ drift

    def solve(self) -> Array:
        """Influence of the rows on the constants, (n, C); NaN for those that the rows say nothing about."""
        out, known = np.full(self._score.shape, np.nan), self._known
        matrix = self._matrix[np.ix_(known, known)]
        size = np.sqrt(np.abs(np.diag(matrix)))
        if np.isfinite(matrix).all() and (size > 0.0).all() and known.any():
            unit = matrix / np.outer(size, size)
            if np.linalg.svd(unit, compute_uv=False)[-1] > SINGULAR:
                out[:, known] = np.linalg.solve(unit, (self._score[:, known] / size).T).T / size
        return out


def _prior_of_constants(problem: Problem, natural: Natural) -> WindowPrior | None:
    """What a penalty of the gate adds to the likelihood of its constants."""
    rows, slots = problem.rows, problem.slots
    free = problem.const[slots.gates]
    if rows.penalty is None or not free.any():
        return None
    return WindowPrior(global_units(rows.penalty, rows, natural.log_gate[None], free)[0], np.zeros(1))


def _through_interpolation(local: Local, mixed: Array, d: int) -> Array:
    """Sums of the mixed curvature over rows by grid point and power, (C, G, D, L)."""
    problem = local.problem
    _, c, n_slots = mixed.shape
    flat = mixed.reshape(len(mixed), -1)
    summed = np.asarray(problem.levels.T @ flat).reshape(-1, 2, c, n_slots)
    gates = problem.slots.gates
    other = np.asarray(problem.gate_levels.T @ flat).reshape(-1, 2, c, n_slots)
    summed[..., gates] = other[..., gates]
    out = np.zeros((c, len(summed), d, n_slots))
    out[:, :, : min(d, 2)] = np.moveaxis(summed, 2, 0)[:, :, : min(d, 2)]
    return out
