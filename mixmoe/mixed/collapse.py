"""Spurious maxima: an expert that fits a few subjects nearly exactly, where the likelihood is unbounded.

References
----------
McLachlan & Peel (2000), Finite Mixture Models, section 3.10.
"""

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.observed import Problem
from mixmoe.mixed.parameters import Params, Structure, free_to_working
from mixmoe.mixture.gate import gate_log_probabilities

_SIGMA_COLLAPSED = 1e-3  # fraction of the one-expert residual standard deviation
_SIGMA_OF_FEW = 0.1  # fraction of the largest, for an expert with at most this many subjects more than coefficients:
_FEW = 2


def collapsed(problem: Problem, sigma_one: float, theta: Array) -> NDArray[np.bool_]:
    """Which of the points, shape (S, P), are spurious maxima.

    The residual deviation of an expert has vanished beside that of the one-expert model, or it is far below that of
    another expert while hardly more subjects than coefficients belong to it.
    """
    params = free_to_working(problem.structure, theta)
    noise = residual_deviations(problem.structure, params)
    largest = noise.max(axis=1, keepdims=True)
    out = np.asarray((noise < _SIGMA_COLLAPSED * sigma_one).any(axis=1))
    # Subjects are counted where it may matter, and for one point, (K, N), at a time.
    for i in np.flatnonzero((noise < _SIGMA_OF_FEW * largest).any(axis=1) & ~out):
        subjects = np.exp(gate_log_probabilities(problem.W, params.gamma[[i]]))[0].sum(axis=1)
        out[i] = nearly_exact(problem.structure, noise[i], largest[i], subjects).any()
    return out


def nearly_exact(s: Structure, noise: Array, largest: Array, subjects: Array) -> NDArray[np.bool_]:
    """Whether experts with these residual deviations and numbers of subjects fit a few of them nearly exactly."""
    few = subjects <= (~s.common).sum() + _FEW
    return np.asarray(few & (noise < _SIGMA_OF_FEW * largest))


def residual_deviations(s: Structure, params: Params) -> Array:
    """Residual deviations, or what stands for them where responses have a precision, shape (S, K); else ones."""
    for extra, where in s.spans:
        if extra.precision:
            return np.asarray(np.exp(-0.5 * params.extra[:, :, where.start]))
    return params.sigma
