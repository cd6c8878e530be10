"""Effective degrees of freedom and criteria of a varying-coefficient fit.

References
----------
Fan, J. and Gijbels, I. (1996). Local Polynomial Modelling and Its Applications, section 4.3.
Hurvich, C. M., Simonoff, J. S. and Tsai, C.-L. (1998). Smoothing parameter selection in nonparametric regression using
an improved Akaike information criterion. JRSS B 60, 271-293.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.local import epanechnikov
from mixmoe.varying.centring import centred
from mixmoe.varying.local_likelihood import (
    assemble_terms,
    build_local,
    local_information,
    local_pieces,
    local_start,
    natural_design,
    whole_block,
)
from mixmoe.varying.problem import Problem
from mixmoe.varying.steps import own_natural

Array = NDArray[np.float64]

NUMBERS_HELD = 1 << 20  # in the matrices of the rows that are handled at once


@dataclass(frozen=True, slots=True)
class Fitness:
    """Criteria that charge the effective number of parameters.

    Attributes
    ----------
    df : float
        Sum of the rows' leverages at their own index values, plus the number of constants.
    aic, aicc, bic : float
    """

    df: float
    aic: float
    aicc: float
    bic: float


def effective_df(problem: Problem, coef: Array) -> float:
    """Sum of the leverages of the rows in the fits at their own index values, plus the constants.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)

    Returns
    -------
    float

    Notes
    -----
    Row i has leverage ``K(0) w_i tr(B_i Z_i H(u_i)^-1 Z_i')``, with B_i its complete-data information in the natural
    parameters and H the same information of the window around it: what a row would have if its expert were known. No
    row of weight one has a leverage above the number of its natural parameters. Beside a grid point at which an expert
    has died out the interpolated inverse gives it one; it then counts with the better of its two grid points.
    """
    n_const = int(problem.const.sum())
    if problem.const.all():
        return float(n_const)
    problem, centring = centred(problem)
    coef = centring.inwards(problem.slots, coef)
    variance = _level_variances(problem, coef)  # (G, L, L)
    total, most = 0.0, problem.slots.n_experts * (2 + problem.slots.has_dispersion) - 1
    grid, index = problem.windows.grid, problem.rows.index
    left = np.clip(np.searchsorted(grid, index, side="right") - 1, 0, len(grid) - 2)
    share = (index - grid[left]) / (grid[left + 1] - grid[left])
    natural = own_natural(problem, coef)
    terms = assemble_terms(problem, whole_block(problem.rows.n), natural.eta, natural.delta, natural.log_gate)
    local, peak = build_local(problem, 1), float(epanechnikov(np.zeros(1))[0])
    chunk = max(NUMBERS_HELD // problem.slots.n**2, 1)
    for start in range(0, problem.rows.n, chunk):
        rows = slice(start, min(start + chunk, problem.rows.n))
        design = natural_design(local, rows, np.zeros(rows.stop - start))[:, :, : problem.slots.n]
        curvature = np.moveaxis(terms.complete[:, :, rows], -1, 0) * problem.rows.weights[rows, None, None]
        outer = peak * np.swapaxes(design, 1, 2) @ curvature @ design  # (rows, L, L)
        before, after = (np.einsum("njk,njk->n", outer, variance[left[rows] + side]) for side in (0, 1))
        leverage = (1.0 - share[rows]) * before + share[rows] * after
        bound = most * np.maximum(problem.rows.weights[rows], 1.0)
        fewer = np.clip(np.minimum(before, after), 0.0, bound)
        total += float(np.where(np.abs(leverage) > bound, fewer, leverage).sum())
    return total + n_const


def _level_variances(problem: Problem, coef: Array) -> Array:
    """Inverse complete-data information of the levels at each grid point, zero for constants."""
    local = build_local(problem, 1)
    n_slots, free = problem.slots.n, local.free[0]
    out = np.zeros((len(coef), n_slots, n_slots))
    for block, terms in local_pieces(local, local_start(local, coef)):
        matrix = local_information(local, block, terms.complete, terms.kernel)
        inverse = np.linalg.pinv(0.5 * (matrix + np.swapaxes(matrix, 1, 2)), rcond=1e-10, hermitian=True)
        out[block.first : block.last] = inverse[:, :n_slots, :n_slots] * (free[:, None] & free)
    return out


def fitness(loglik: float, df: float, n: int) -> Fitness:
    """AIC, AICc and BIC with an effective number of parameters.

    Parameters
    ----------
    loglik : float
    df : float
    n : int
        Rows.

    Returns
    -------
    Fitness
        AICc is infinite where ``df >= n - 1``.
    """
    aic = -2.0 * loglik + 2.0 * df
    spare = n - df - 1.0
    aicc = aic + 2.0 * df * (df + 1.0) / spare if spare > 0.0 else np.inf
    return Fitness(df, aic, float(aicc), -2.0 * loglik + df * float(np.log(n)))
