"""A penalty of the gate in every likelihood of the family: the local ones at all grid points, that of the constants.

Notes
-----
A penalty acts like further units of known expert (`mixmoe.mixture.gate`). Those of a Bayes constant lie at the rows of
the data and take part in a window as their rows do, so that the constant is one number of rows for the whole data,
whatever the bandwidth. Firth's penalty of a window is half the log determinant of the information of the local gate,
lines and all, times the peak of the kernel: the row at the grid point itself then counts once, as in a likelihood
without a kernel, which both penalties equal at an infinite bandwidth.

The gate then solves the local score equation with the scores of these units. Their numbers are held when it is
differentiated; for a Bayes constant that is exact.

References
----------
Firth, D. (1993). Bias reduction of maximum likelihood estimates. Biometrika 80, 27-38.
Clogg, C. C., Rubin, D. B., Schenker, N., Schultz, B. and Weidman, L. (1991). Multiple imputation of industry and
occupation codes in census public-use samples using Bayesian logistic regression. JASA 86, 68-78.
"""

from dataclasses import dataclass

import numpy as np

from mixmoe._typing import Array, BoolArray
from mixmoe.mixture.gate import GatePenalty, Weighted
from mixmoe.varying.problem import Block, Rows, epanechnikov

PEAK = float(epanechnikov(np.zeros(1))[0])


@dataclass(frozen=True, slots=True)
class WindowPrior:
    """What a penalty adds to the local likelihoods of a block.

    Attributes
    ----------
    units : ndarray, shape (K, pairs)
        Units of each expert that are added for the kernel weight of each pair.
    value : ndarray, shape (g,)
        Log prior of each grid point.
    """

    units: Array
    value: Array


def window_prior(penalty: GatePenalty, rows: Rows, block: Block, log_gate: Array, free: BoolArray) -> WindowPrior:
    """The penalty in the windows of a block.

    Parameters
    ----------
    penalty : GatePenalty
    rows : Rows
    block : Block
    log_gate : ndarray, shape (K, pairs)
        Log probabilities of the local gate.
    free : ndarray of bool, shape (D, (K - 1) m)
        Powers and functions that are estimated locally.

    Returns
    -------
    WindowPrior
    """
    powers, m, total = len(free), rows.gate.shape[1], float(rows.weights.sum())
    order = free.reshape(powers, -1, m).swapaxes(0, 1).ravel()  # by expert, then power, then column
    units, value = np.empty_like(log_gate), np.empty(block.last - block.first)
    for g in range(len(value)):
        span, part = slice(int(block.offsets[g]), int(block.offsets[g + 1])), block.part(g)
        t = block.t[span, None, None] ** np.arange(powers)[:, None]  # (w, D, 1)
        design = (t * rows.gate[part][:, None, :]).reshape(-1, powers * m)
        at = Weighted(block.kernel[span] * rows.weights[part] / PEAK, total, order)
        units[:, span] = penalty.units(design, log_gate[None, :, span], at)[0]
        value[g] = PEAK * penalty.value(design, log_gate[None, :, span], at)[0]
    return WindowPrior(units, value)


def global_units(penalty: GatePenalty, rows: Rows, log_gate: Array, free: BoolArray) -> Array:
    """Units of each expert that are added for the weight of each row in the likelihood of the constants, (S, K, n).

    Parameters
    ----------
    penalty : GatePenalty
    rows : Rows
    log_gate : ndarray, shape (S, K, n)
        At the rows' own index values.
    free : ndarray of bool, shape ((K - 1) m,)
        Coefficients that are constants.
    """
    return penalty.units(rows.gate, log_gate, Weighted(rows.weights, float(rows.weights.sum()), free))


def unit_score(units: Array, prob: Array) -> Array:
    """Scores of added units (..., K, n) in the predictors of experts 2 .. K at probabilities (..., K - 1, n)."""
    return np.asarray(units[..., 1:, :] - prob * units.sum(axis=-2, keepdims=True))


def unit_information(units: Array, prob: Array) -> Array:
    """Information of added units (K, n) in the predictors of experts 2 .. K, shape (K - 1, K - 1, n)."""
    return np.asarray(units.sum(axis=0) * (np.eye(len(prob))[:, :, None] * prob - prob[:, None] * prob))
