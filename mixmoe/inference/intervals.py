"""Confidence limits that stay inside the parameter space."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import norm

from mixmoe._frame import shown
from mixmoe.errors import ArgumentError
from mixmoe.layout import Parameter, ParamLayout

Array = NDArray[np.float64]
Scale = Literal["identity", "log", "atanh"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Confidence limits.

    Attributes
    ----------
    lower, upper : ndarray, shape (P,)
        NaN where there is no valid standard error.
    """

    lower: Array
    upper: Array


def scale_of(parameter: Parameter) -> Scale:
    """Scale on which a parameter is closest to normal: log for standard deviations, atanh for correlations."""
    if parameter.block == "random" and parameter.term.startswith("corr"):
        return "atanh"
    if parameter.block == "residual" and parameter.term == "rho":
        return "atanh"
    if parameter.block == "threshold" and parameter.term.startswith("cut"):
        return "identity"
    return "identity" if parameter.tested else "log"


def checked_alpha(alpha: float) -> float:
    """`alpha` if it lies between 0 and 1.

    Raises
    ------
    ArgumentError
        If it does not.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.number) or not 0 < alpha < 1:
        raise ArgumentError(f"alpha must be a number between 0 and 1, e.g. 0.05 for 95 % limits, got {shown(alpha)}")
    return float(alpha)


def wald_limits(params: Array, bse: Array, layout: ParamLayout, alpha: float = 0.05) -> Limits:
    """Wald limits on the scale on which each parameter is closest to normal.

    Parameters
    ----------
    params, bse : ndarray, shape (P,)
    layout : ParamLayout
    alpha : float
        One minus the level.

    Returns
    -------
    Limits

    Notes
    -----
    Coefficients: ``b +- z se``. Standard deviations, dispersions, rates and degrees of freedom: ``s exp(+- z se / s)``,
    positive. Correlations: Fisher's ``tanh(atanh r +- z se / (1 - r^2))``, inside (-1, 1).
    """
    z = norm.isf(checked_alpha(alpha) / 2)
    scales = np.array([scale_of(p) for p in layout.parameters], dtype=object)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lower, upper = params - z * bse, params + z * bse
        log, atanh = scales == "log", scales == "atanh"
        factor = np.exp(z * bse[log] / params[log])
        lower[log], upper[log] = params[log] / factor, params[log] * factor
        centre, half = np.arctanh(params[atanh]), z * bse[atanh] / (1 - params[atanh] ** 2)
        lower[atanh], upper[atanh] = np.tanh(centre - half), np.tanh(centre + half)
    return Limits(lower, upper)


def two_sided(z: Array) -> Array:
    """P-values of z statistics, NaN where these are."""
    return 2.0 * ndtr(-np.abs(z))
