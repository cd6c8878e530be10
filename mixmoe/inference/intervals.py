"""Confidence limits that stay inside the parameter space."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

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


def critical(alpha: float, df: Array | float = np.inf) -> Array:
    """Upper quantiles of t, shape of `df`; normal where the degrees of freedom are infinite."""
    return np.asarray(student.isf(checked_alpha(alpha) / 2, df), dtype=float)


def wald_limits(
    params: Array, bse: Array, layout: ParamLayout, alpha: float = 0.05, df: Array | float = np.inf
) -> Limits:
    """Wald limits on the scale on which each parameter is closest to normal.

    Parameters
    ----------
    params, bse : ndarray, shape (P,)
    layout : ParamLayout
    alpha : float
        One minus the level.
    df : ndarray, shape (P,), or float
        Degrees of freedom of t quantiles.

    Returns
    -------
    Limits

    Notes
    -----
    Coefficients: ``b +- t se``. Standard deviations, dispersions, rates and degrees of freedom: ``s exp(+- t se / s)``,
    positive. Correlations: Fisher's ``tanh(atanh r +- t se / (1 - r^2))``, inside (-1, 1).
    """
    half = critical(alpha, df) * bse
    scales = scales_of(layout)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lower, upper = params - half, params + half
        log, atanh = scales == "log", scales == "atanh"
        factor = np.exp(half[log] / params[log])
        lower[log], upper[log] = params[log] / factor, params[log] * factor
        centre, reach = np.arctanh(params[atanh]), half[atanh] / (1 - params[atanh] ** 2)
        lower[atanh], upper[atanh] = np.tanh(centre - reach), np.tanh(centre + reach)
    return Limits(lower, upper)


def scales_of(layout: ParamLayout) -> NDArray[np.object_]:
    """`scale_of` each parameter, shape (P,)."""
    return np.array([scale_of(p) for p in layout.parameters], dtype=object)


def wald_statistics(params: Array, bse: Array, layout: ParamLayout) -> Array:
    """Statistics of the hypotheses that single parameters are zero, shape (P,); NaN where these mean nothing.

    On the scale of the limits, so that a p-value below alpha and limits that exclude zero are the same: that of a
    correlation is Fisher's ``atanh(r) (1 - r^2) / se``.
    """
    atanh = scales_of(layout) == "atanh"
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = params / bse
        statistic[atanh] = np.arctanh(params[atanh]) * (1 - params[atanh] ** 2) / bse[atanh]
    return np.where([p.tested for p in layout.parameters], statistic, np.nan)


def two_sided(statistic: Array, df: Array | float = np.inf) -> Array:
    """P-values of t statistics, of z statistics where the degrees of freedom are infinite; NaN where these are."""
    return np.asarray(2.0 * student.sf(np.abs(statistic), df), dtype=float)


def acceleration(influence: Array) -> Array:
    """A sixth of the skewness of the influence of units on estimates, shape (P,), from shape (N, P).

    References
    ----------
    Efron (1987), JASA 82, 171-185, equation 4.4.
    """
    centred = influence - influence.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((centred**3).sum(axis=0) / (6.0 * (centred**2).sum(axis=0) ** 1.5))


def bca_limits(params: Array, draws: Array, acceleration: Array, alpha: float = 0.05) -> Limits:
    """Bias-corrected and accelerated limits from bootstrap replicates; they follow any change of scale.

    Parameters
    ----------
    params : ndarray, shape (P,)
    draws : ndarray, shape (B, P)
    acceleration : ndarray, shape (P,)
        NaN, as at an end of the parameter's space, gives NaN.
    alpha : float

    Returns
    -------
    Limits

    References
    ----------
    Efron (1987), JASA 82, 171-185, equation 3.9. Replicates equal to the estimate count half.
    """
    n = len(draws)
    below = ((draws < params).sum(axis=0) + 0.5 * (draws == params).sum(axis=0)) / n
    bias = ndtri(np.clip(below, 0.5 / n, 1.0 - 0.5 / n))
    ends = []
    for z in (-1.0, 1.0) * critical(alpha):
        moved = bias + z
        level = ndtr(bias + moved / (1.0 - acceleration * moved))
        ends.append(np.array([_quantile(column, at) for column, at in zip(draws.T, level, strict=True)]))
    return Limits(*ends)


def _quantile(values: Array, level: float) -> float:
    return float(np.quantile(values, level, method="weibull")) if np.isfinite(level) else np.nan
