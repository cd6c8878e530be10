"""Limits of gate coefficients that follow the shape of the likelihood instead of a parabola.

References
----------
McCullagh, P. and Nelder, J. A. (1989). Generalized Linear Models, 2nd ed., chapter 7.4 and appendix C: the signed root
of the likelihood ratio, whose distribution is closer to the normal than that of the estimate over its standard error.
Hauck, W. W. and Donner, A. (1977). Wald's test as applied to hypotheses in logit analysis. JASA 72, 851-853.

Notes
-----
The standard error of a log odds grows with its distance from zero. An estimate that is far out therefore looks less
certain than it is, and limits at a multiple of its standard error hold too often where few rows carry it (Hauck and
Donner). The signed root r of the likelihood ratio of a value at distance d from the estimate solves
``r^2 = 2 int_0^d (d - x) c(x) dx`` with c the curvature of the log-likelihood along the coefficient. Its shape is taken
from the multinomial logit of the gate with known experts, other coefficients profiled out, and its size from the
standard error of the estimate, robust as that is. A limit lies where r is the factor of the band.
"""

from dataclasses import replace

import numpy as np
from scipy.interpolate import CubicSpline

from mixmoe._typing import Array, IntArray
from mixmoe.mixture.gate import Weighted, gate_information
from mixmoe.numerics.linalg import log_softmax
from mixmoe.varying.bands import MOST_ROWS, BandSet
from mixmoe.varying.gate_penalty import PEAK
from mixmoe.varying.interpolation import wrapped
from mixmoe.varying.local_likelihood import positive_definite
from mixmoe.varying.problem import Problem, epanechnikov

REACH = 2.0  # how far the curvature is followed, as a multiple of the largest factor
SHIFTS = 17  # values at which it is taken, the estimate in the middle
FINE = 201


def with_gate_limits(problem: Problem, levels: Array, bands: BandSet, shown: IntArray) -> BandSet:
    """Bands of the coefficient functions with the limits of the gate from the signed root.

    Parameters
    ----------
    problem : Problem
    levels : ndarray, shape (G, L)
        Where the bands are centred.
    bands : BandSet
    shown : ndarray of int, shape (R,)
        Function of each band.

    Returns
    -------
    BandSet
        The same with more than `MOST_ROWS` rows, where it makes no difference.
    """
    gates = problem.slots.gates
    where = np.flatnonzero((shown >= gates.start) & (shown < gates.stop))
    if not len(where) or problem.rows.n > MOST_ROWS:
        return bands
    simultaneous, pointwise = bands.simultaneous.copy(), bands.pointwise.copy()
    for g in range(len(levels)):
        for r in where:
            most = simultaneous[:, g, r].max()
            if np.isfinite(bands.se[g, r] * most):
                shifts = np.linspace(-REACH * most, REACH * most, SHIFTS)
                shape = curvature(problem, levels[g], g, int(shown[r]), bands.se[g, r] * shifts)
                simultaneous[:, g, r] = distances(shifts, shape, simultaneous[0, g, r])
                pointwise[:, g, r] = distances(shifts, shape, pointwise[0, g, r])
    return replace(bands, simultaneous=simultaneous, pointwise=pointwise)


def curvature(problem: Problem, levels: Array, g: int, slot: int, shifts: Array) -> Array:
    """Curvature of the log-likelihood along one gate coefficient, over that at the estimate.

    Parameters
    ----------
    problem : Problem
    levels : ndarray, shape (L,)
        At the grid point.
    g : int
        Grid point.
    slot : int
        The coefficient.
    shifts : ndarray, shape (S,)
        Distances from the estimate, the one in the middle zero.

    Returns
    -------
    ndarray, shape (S,)
        Ones where the gate is not identified with known experts.
    """
    slots, windows = problem.slots, problem.gate_windows
    rows = windows.part(g)
    x, k, m = problem.rows.gate[rows], slots.n_experts, slots.n_gate_columns
    t = wrapped(windows.index[rows] - windows.grid[g], windows.period) / windows.widths[g]
    kernel = epanechnikov(t) * problem.rows.weights[rows]
    zeta = np.zeros((len(shifts), k, len(x)))
    zeta[:, 1:] = levels[slots.gates].reshape(k - 1, m) @ x.T
    expert, column = divmod(slot - slots.gates.start, m)
    zeta[:, 1 + expert] += shifts[:, None] * x[:, column]
    penalty = problem.rows.penalty
    if penalty is not None:  # its units at the estimate count as rows do
        free = ~problem.const[slots.gates]
        at = Weighted(kernel / PEAK, float(problem.rows.weights.sum()), free)
        added = penalty.units(x, log_softmax(zeta[len(shifts) // 2], axis=0)[None], at)[0]
        kernel = kernel * (1.0 + added.sum(axis=0))
    vary = np.flatnonzero(~problem.const[slots.gates])
    flat = gate_information(x, log_softmax(zeta, axis=1), kernel)[:, vary[:, None], vary]
    if not positive_definite(flat).all():
        return np.ones(len(shifts))
    own = int(np.flatnonzero(vary == slot - slots.gates.start)[0])
    out = 1.0 / np.linalg.inv(flat)[:, own, own]
    return np.asarray(out / out[len(out) // 2], dtype=np.float64)


def distances(shifts: Array, shape: Array, factor: float) -> Array:
    """How far below and above the estimate the signed root is `factor`, in standard errors, shape (2,).

    Parameters
    ----------
    shifts : ndarray, shape (S,)
        In standard errors.
    shape : ndarray, shape (S,)
        Curvature there over that at the estimate.
    factor : float
    """
    spline = CubicSpline(shifts, shape)
    first, second = spline.antiderivative(1), spline.antiderivative(2)
    at = np.linspace(0.0, shifts[-1], FINE)
    out = np.empty(2)
    for side, sign in enumerate((-1.0, 1.0)):
        twice = 2.0 * (second(sign * at) - second(0.0) - first(0.0) * sign * at)
        root = np.maximum.accumulate(np.sqrt(np.maximum(twice, 0.0)))
        slope = (root[-1] - root[-2]) / (at[-1] - at[-2])
        beyond = at[-1] + (factor - root[-1]) / slope if factor > root[-1] and slope > 0.0 else np.inf
        out[side] = np.interp(factor, root, at) if factor <= root[-1] else beyond
    return out
