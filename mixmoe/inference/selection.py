"""Criteria for choosing among mixtures."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Criteria:
    """Information criteria of one fit; smaller is better, except for `entropy`.

    Attributes
    ----------
    loglik : float
    npar : int
        Number of estimated parameters.
    n_units : int
        Independent units (subjects), the N of the criteria.
    aic, bic, sabic, icl : float
        Akaike; Schwarz; Schwarz with the sample size adjusted to (N + 2) / 24; integrated classification likelihood.
    entropy : float
        Relative entropy R^2 in [0, 1]; 1 means that every unit belongs to one expert without doubt.
    """

    loglik: float
    npar: int
    n_units: int
    aic: float
    bic: float
    sabic: float
    icl: float
    entropy: float


def criteria(loglik: float, npar: int, responsibilities: Array) -> Criteria:
    """All criteria of one fit.

    Parameters
    ----------
    loglik : float
    npar : int
    responsibilities : ndarray, shape (N, K)

    Returns
    -------
    Criteria
    """
    n_units = responsibilities.shape[0]
    return Criteria(
        loglik=loglik,
        npar=npar,
        n_units=n_units,
        aic=aic(loglik, npar),
        bic=bic(loglik, npar, n_units),
        sabic=sabic(loglik, npar, n_units),
        icl=icl(loglik, npar, responsibilities),
        entropy=entropy_r2(responsibilities),
    )


def aic(loglik: float, npar: int) -> float:
    """Akaike's criterion, ``-2 l + 2 P`` (Akaike 1974)."""
    return -2.0 * loglik + 2.0 * npar


def bic(loglik: float, npar: int, n_units: float) -> float:
    """Schwarz' criterion, ``-2 l + P log N``, with N the number of independent units, not of rows (Schwarz 1978)."""
    return float(-2.0 * loglik + npar * np.log(n_units))


def sabic(loglik: float, npar: int, n_units: int) -> float:
    """Schwarz' criterion with N replaced by (N + 2) / 24 (Sclove 1987)."""
    return bic(loglik, npar, (n_units + 2) / 24)


def icl(loglik: float, npar: int, responsibilities: Array) -> float:
    """Integrated classification likelihood, ``BIC + 2 EN`` (Biernacki, Celeux & Govaert 2000)."""
    return bic(loglik, npar, responsibilities.shape[0]) + 2.0 * classification_entropy(responsibilities)


def classification_entropy(responsibilities: Array) -> float:
    """Doubt about the membership of all units, ``EN = -sum_ik tau_ik log tau_ik``."""
    return float(entr(np.clip(responsibilities, 0.0, 1.0)).sum())


def entropy_r2(responsibilities: Array) -> float:
    """Relative entropy ``1 - EN / (N log K)`` in [0, 1] (Ramaswamy et al. 1993); 1 for a single expert.

    Parameters
    ----------
    responsibilities : ndarray, shape (N, K)

    Returns
    -------
    float
    """
    n_units, n_experts = responsibilities.shape
    if n_experts == 1:
        return 1.0
    relative = 1.0 - classification_entropy(responsibilities) / (n_units * np.log(n_experts))
    return float(np.clip(relative, 0.0, 1.0))


def clc(loglik: float, responsibilities: Array) -> float:
    """Classification likelihood criterion, ``-2 l + 2 EN`` (Biernacki & Govaert 1997)."""
    return -2.0 * loglik + 2.0 * classification_entropy(responsibilities)
