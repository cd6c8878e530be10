"""Covariance of estimates (record, delta method), limits inside the parameter space, bands."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import t as student

from mixmoe._typing import Array
from mixmoe.design.frame import shown
from mixmoe.errors import ArgumentError
from mixmoe.inference.small_samples import Moments
from mixmoe.mixture.estimate import Flag, ParamLayout

CovType = Literal["nonrobust", "robust", "cluster", "bootstrap"]
COV_TYPES: tuple[str, ...] = get_args(CovType)
DESCRIPTIONS = {
    "nonrobust": "inverse observed information",
    "robust": "sandwich over independent units",
    "cluster": "sandwich over clusters",
    "bootstrap": "bootstrap over independent units",
}


@dataclass(frozen=True, slots=True)
class Draws:
    """Replicates of the estimates, and what limits from them need.

    Attributes
    ----------
    values : ndarray, shape (B, P)
    acceleration : ndarray, shape (P,)
        A sixth of the skewness of the influence of the units on each estimate.
    """

    values: Array
    acceleration: Array


@dataclass(frozen=True, slots=True)
class ParamCov:
    """Covariance of a parameter vector.

    Attributes
    ----------
    matrix : ndarray, shape (P, P)
        Covariance of the estimates; a parameter without a valid standard error (on the boundary of its space)
        has NaN in its row and column.
    kind : {"nonrobust", "robust", "cluster", "bootstrap"}
    note : str
        What a reader must know about it: clusters, replicates, corrections.
    corrected : bool
        Whether it has the small-sample correction of its family, where that can be left out.
    bounded : ndarray, shape (P, P), or None
        The same for functions that have a limit where gate coefficients are infinite (probabilities and their means):
        directions to infinity, along which such functions no longer change, count as known. None if there are none.
    infinite : ndarray, shape (P, s), or None
        These directions. A function that still changes along one of them has no finite limit.
    flags : tuple of Flag
        What a reader must know about the standard errors.
    moments : Moments or None
        From which the degrees of freedom of t and F statistics follow; None where these are normal and chi-squared.
    draws : Draws or None
        Replicates of a bootstrap.
    given : ndarray, shape (P, P), or None
        `of_bounded` given the smoothing parameters of functions, where the others are of a fit that is smoothed less.
    shift : ndarray, shape (P,), or None
        How far that fit lies from the estimates: limits and bands of functions are centred there.
    """

    matrix: Array
    kind: CovType
    note: str = ""
    corrected: bool = True
    bounded: Array | None = None
    infinite: Array | None = None
    flags: tuple[Flag, ...] = ()
    moments: Moments | None = None
    draws: Draws | None = None
    given: Array | None = None
    shift: Array | None = None

    @property
    def of_bounded(self) -> Array:
        """What functions of the expert probabilities have their standard errors from, shape (P, P)."""
        return self.matrix if self.bounded is None else self.bounded

    @property
    def of_tests(self) -> Array:
        """What tests of functions have their statistics from, whose null distribution is that given lambda."""
        return self.of_bounded if self.given is None else self.given

    def turned(self, jacobian: Array) -> "ParamCov":
        """The same of parameters that are functions of these, shape (P, P), such as those under other labels.

        Without draws, whose values are not linear in them.
        """
        return replace(
            self,
            matrix=delta_cov(jacobian, self.matrix),
            bounded=None if self.bounded is None else delta_cov(jacobian, self.bounded),
            infinite=None if self.infinite is None else jacobian @ self.infinite,
            given=None if self.given is None else delta_cov(jacobian, self.given),
            shift=None if self.shift is None else jacobian @ self.shift,
            draws=None,
        )


def checked_cov_type(kind: str) -> CovType:
    """`kind` if it names a covariance type.

    Raises
    ------
    ArgumentError
        If it does not.
    """
    for known in COV_TYPES:
        if kind == known:
            return known  # type: ignore[return-value]
    raise ArgumentError(f"cov_type must be one of {', '.join(map(repr, COV_TYPES))}, got {kind!r}")


def within_clusters(values: Array, clusters: NDArray[np.int64] | None = None) -> Array:
    """Sums of the values of units within clusters, shape (G, ...); the values if every unit is its own.

    Parameters
    ----------
    values : ndarray, shape (N, ...)
    clusters : ndarray of int, shape (N,), optional
        Codes 0..G-1 of the cluster of each unit.

    Returns
    -------
    ndarray, shape (G, ...)
    """
    if clusters is None:
        return values
    summed = np.zeros((int(clusters.max(initial=-1)) + 1, *values.shape[1:]), dtype=values.dtype)
    np.add.at(summed, clusters, values)
    return summed


def without_parameters(matrix: Array, positions: list[int]) -> Array:
    """Copy of a covariance in which some parameters have no valid standard error.

    Parameters
    ----------
    matrix : ndarray, shape (P, P)
    positions : list of int
        Parameters whose rows and columns become NaN.

    Returns
    -------
    ndarray, shape (P, P)
    """
    result = np.array(matrix, dtype=float)
    result[positions, :] = np.nan
    result[:, positions] = np.nan
    return result


def delta_cov(jacobian: Array, matrix: Array) -> Array:
    """Covariance of functions of the estimates, to first order.

    Parameters
    ----------
    jacobian : ndarray, shape (R, P)
        Derivatives of R functions by P parameters; a linear hypothesis is its own Jacobian.
    matrix : ndarray, shape (P, P)
        Covariance of the parameters, NaN where there is none.

    Returns
    -------
    ndarray, shape (R, R)
        ``J V J'``. A function that does not depend on a parameter without covariance is not touched by it; one
        that does has NaN in its row and column.
    """
    jacobian = np.atleast_2d(np.asarray(jacobian, dtype=float))
    missing = np.isnan(np.diag(matrix))
    used = np.where(missing[:, None] | missing[None, :], 0.0, matrix)
    result = jacobian @ used @ jacobian.T
    touched = (jacobian[:, missing] != 0).any(axis=1)
    return without_parameters(result, list(np.flatnonzero(touched)))


def delta_se(jacobian: Array, matrix: Array) -> Array:
    """Standard errors of functions of the estimates, shape (R,); see `delta_cov`."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.diag(delta_cov(jacobian, matrix)))


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
    positive. Correlations: Fisher's ``tanh(atanh r +- t se / (1 - r^2))``, inside (-1, 1). Probabilities of a certain
    zero: those of the log odds, ``expit(logit p +- t se / (p (1 - p)))``.
    """
    half = critical(alpha, df) * bse
    lower, upper = params - half, params + half
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for scale, maps in _MAPS.items():
            at = layout.scales == scale
            # The delta method on either scale: the standard error of log s is se / s, of atanh r it is se / (1 - r^2).
            centre, reach = maps.forth(params[at]), half[at] * maps.slope(params[at])
            lower[at], upper[at] = maps.back(centre - reach), maps.back(centre + reach)
    return Limits(lower, upper)


_LARGEST_ERROR = 0.5  # standard deviation of a coin, the largest that something between 0 and 1 can have


def probability_errors(errors: Array) -> Array:
    """Standard errors of probabilities; NaN where the delta method gives more than any probability can have."""
    return np.where(errors > _LARGEST_ERROR, np.nan, errors)


def probability_limits(probabilities: Array, errors: Array, alpha: float = 0.05, shift: Array | float = 0.0) -> Limits:
    """Limits of probabilities on the scale of log odds.

    Parameters
    ----------
    probabilities, errors : ndarray
        Of one shape; standard errors by the delta method.
    alpha : float
    shift : ndarray
        Of the log odds, to where limits lie around.

    Returns
    -------
    Limits
        0 and 1, which say that nothing is known, where the error exceeds what a probability can have; the probability
        itself where its error is zero; NaN where it has none.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        half = critical(alpha) * errors / (probabilities * (1.0 - probabilities))
        centre = logit(probabilities) + shift
        lower, upper = expit(centre - half), expit(centre + half)
    known, unknown = errors == 0, errors > _LARGEST_ERROR
    lower, upper = np.where(unknown, 0.0, lower), np.where(unknown, 1.0, upper)
    return Limits(np.where(known, probabilities, lower), np.where(known, probabilities, upper))


@dataclass(frozen=True, slots=True)
class _Map:
    """A scale, the way back from it, and its derivative by the parameter."""

    forth: Callable[[Array], Array]
    back: Callable[[Array], Array]
    slope: Callable[[Array], Array]


_MAPS = {
    "log": _Map(np.log, np.exp, lambda v: 1.0 / v),
    "atanh": _Map(np.arctanh, np.tanh, lambda v: 1.0 / (1.0 - v**2)),
    "logit": _Map(logit, expit, lambda v: 1.0 / (v * (1.0 - v))),
}


def on_scales(params: Array, scales: NDArray[np.object_]) -> Array:
    """Parameters on their scales, shape (P,)."""
    result = np.array(params, dtype=float)
    for scale, maps in _MAPS.items():
        result[scales == scale] = maps.forth(result[scales == scale])
    return result


def from_scales(values: Array, scales: NDArray[np.object_]) -> Array:
    """Parameters from their values on their scales, shape (P,)."""
    result = np.array(values, dtype=float)
    for scale, maps in _MAPS.items():
        result[scales == scale] = maps.back(result[scales == scale])
    return result


def slopes_of_scales(params: Array, scales: NDArray[np.object_]) -> Array:
    """Derivatives of the scales by the parameters, shape (P,)."""
    result = np.ones(len(params))
    for scale, maps in _MAPS.items():
        result[scales == scale] = maps.slope(params[scales == scale])
    return result


def wald_statistics(params: Array, bse: Array, layout: ParamLayout) -> Array:
    """Statistics of the hypotheses that single parameters are zero, shape (P,); NaN where these mean nothing.

    On the scale of the limits, so that a p-value below alpha and limits that exclude zero are the same: that of a
    correlation is Fisher's ``atanh(r) (1 - r^2) / se``.
    """
    atanh = layout.scales == "atanh"
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
    # Median bias: the normal quantile of the share of replicates below the estimate, bounded where all lie on one side.
    below = ((draws < params).sum(axis=0) + 0.5 * (draws == params).sum(axis=0)) / n
    bias = ndtri(np.clip(below, 0.5 / n, 1.0 - 0.5 / n))
    ends = []
    for z in (-1.0, 1.0) * critical(alpha):
        moved = bias + z
        # Equation 3.9: the level at which the percentile is read, moved by the bias and by the skewness of the
        # influence.
        level = ndtr(bias + moved / (1.0 - acceleration * moved))
        ends.append(np.array([_quantile(column, at) for column, at in zip(draws.T, level, strict=True)]))
    return Limits(*ends)


def _quantile(values: Array, level: float) -> float:
    return float(np.quantile(values, level, method="weibull")) if np.isfinite(level) else np.nan


def multiplier_critical(covariance: Array, alpha: float, draws: int, rng: np.random.Generator) -> float:
    """Quantile of the largest absolute studentised deviation over the grid.

    Parameters
    ----------
    covariance : ndarray, shape (G, G)
        Covariance of one function at the grid points; points with NaN are left out.
    alpha : float
        One minus the level of the band.
    draws : int
    rng : numpy.random.Generator

    Returns
    -------
    float

    Notes
    -----
    Given the data, the process with Gaussian multipliers is Gaussian with the covariance of the influence functions, so
    it is drawn from that directly; multipliers for each row would give the same distribution at a higher cost.
    """
    kept = np.isfinite(np.diag(covariance)) & (np.diag(covariance) > 0.0)
    if not kept.any():
        return float("nan")
    inner = covariance[np.ix_(kept, kept)]
    root = np.sqrt(np.diag(inner))
    values, vectors = np.linalg.eigh(inner / np.outer(root, root))
    factor = vectors * np.sqrt(np.clip(values, 0.0, None))
    maxima = np.abs(rng.standard_normal((draws, len(inner))) @ factor.T).max(axis=1)
    return float(np.quantile(maxima, 1.0 - alpha))
