"""The same problem with covariates around their means, in which the search and the smoothing work.

A line far from the origin of a covariate is hard to find: intercept and slope are all but collinear. And what is drawn
towards a line function by function (`mixmoe.varying.smoothing`) should not depend on where a covariate has its origin.
Around its means the intercept is the predictor of an average row, whatever the origin.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe.varying.estimate import Control, Run, run_em
from mixmoe.varying.problem import Problem, Slots, with_designs

Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Centring:
    """Means that go from the covariates into the intercepts.

    Attributes
    ----------
    expert, gate : ndarray, shape (p,), (m,)
        What each coefficient adds to the intercept in the centred problem; zero for the intercept itself.
    expert_intercept, gate_intercept : int
        Column of the intercept; -1 if there is none, and nothing is centred.
    """

    expert: Array
    gate: Array
    expert_intercept: int
    gate_intercept: int

    def inwards(self, slots: Slots, coef: Array) -> Array:
        """Coefficients (..., L) of the original problem as those of the centred problem."""
        return self._moved(slots, coef, 1.0)

    def outwards(self, slots: Slots, coef: Array) -> Array:
        """Coefficients (..., L) of the centred problem as those of the original problem."""
        return self._moved(slots, coef, -1.0)

    def matrix(self, slots: Slots) -> Array:
        """Coefficients of the original problem from those of the centred problem, shape (L, L)."""
        return self.outwards(slots, np.eye(slots.n)).T

    def _moved(self, slots: Slots, coef: Array, sign: float) -> Array:
        out = coef.copy()
        for c in range(slots.n_experts):
            if self.expert_intercept >= 0:
                where = slots.expert(c)
                out[..., where.start + self.expert_intercept] += sign * (coef[..., where] @ self.expert)
            if c and self.gate_intercept >= 0:
                where = slots.gate(c)
                out[..., where.start + self.gate_intercept] += sign * (coef[..., where] @ self.gate)
        return out


def centred(problem: Problem) -> tuple[Problem, Centring]:
    """The problem with centred covariates, and the way between the two.

    Parameters
    ----------
    problem : Problem

    Returns
    -------
    tuple
        A covariate with a varying coefficient is not centred beside a constant intercept, which would have to vary.
    """
    rows, slots, const = problem.rows, problem.slots, problem.const
    p, m = slots.n_expert_columns, slots.n_gate_columns
    experts = const[slots.experts].reshape(slots.n_experts, p)
    gates = const[slots.gates].reshape(slots.n_experts - 1, m)
    design, expert, first = _around_means(rows.design, rows.weights, experts)
    gate, shift, second = _around_means(rows.gate, rows.weights, gates)
    return with_designs(problem, design, gate), Centring(expert, shift, first, second)


def _around_means(design: Array, weights: Array, const: BoolArray) -> tuple[Array, Array, int]:
    """Centred columns, what each adds to the intercept, and the column of the intercept (-1 for none).

    Parameters
    ----------
    design : ndarray, shape (n, q)
    weights : ndarray, shape (n,)
    const : ndarray of bool, shape (experts, q)
    """
    still = np.flatnonzero((np.ptp(design, axis=0) == 0.0) & (design[0] != 0.0))
    if not len(still) or not len(const):
        return design, np.zeros(design.shape[1]), -1
    intercept = int(still[0])
    means = np.average(design, axis=0, weights=weights)
    fixed = const[:, [intercept]] & ~const
    means[fixed.any(axis=0) | _of_groups(design)] = 0.0
    means[still] = 0.0
    return design - means, means / design[0, intercept], intercept


def _of_groups(design: Array) -> BoolArray:
    """Columns that are zero outside a group of rows: indicators, and other columns within one.

    Their origin is the reference group. A coefficient that runs off in one group would take a centred intercept along.
    """
    groups = [column != 0.0 for column in design.T if set(np.unique(column)) == {0.0, 1.0}]
    inside = [[not column[~group].any() for group in groups] for column in design.T]
    return np.array([any(row) for row in inside], dtype=np.bool_)


def run_around_means(problem: Problem, start: Array, control: Control) -> Run:
    """EM from one start in the centred problem, its functions as those of the original one.

    Parameters
    ----------
    problem : Problem
    start : ndarray, shape (G, 2, L)
    control : Control

    Returns
    -------
    Run
    """
    inner, centring = centred(problem)
    run = run_em(inner, centring.inwards(inner.slots, start), control)
    return replace(run, coef=centring.outwards(inner.slots, run.coef))


def turned_covariance(covariance: Array, turn: Array) -> Array:
    """Covariance of the original coefficients from that of the centred ones.

    Parameters
    ----------
    covariance : ndarray, shape (G, L, G, L)
        NaN of a function stays with those it is part of.
    turn : ndarray, shape (L, L)
        See `Centring.matrix`.

    Returns
    -------
    ndarray, shape (G, L, G, L)
    """
    parts = [np.flatnonzero(row) for row in turn]
    out = np.empty_like(covariance)
    for a, rows in enumerate(parts):
        left = np.einsum("r,grhl->ghl", turn[a, rows], covariance[:, rows])
        for b, columns in enumerate(parts):
            out[:, a, :, b] = left[:, :, columns] @ turn[b, columns]
    return out
