"""Covariance of estimates (record, sandwich, delta method), limits inside the parameter space, bands."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import t as student

from mixmoe._typing import Array, BoolArray
from mixmoe.design.frame import shown
from mixmoe.errors import ArgumentError
from mixmoe.mixture.estimate import Flag, Parameter, ParamLayout

MANY_UNITS = 5000  # from here on the correction and the t reference change nothing that is printed
_CHUNK = 10_000  # contrasts at a time
_MANY_PARAMETERS = 40  # moments of a covariance have P^4 / 4 entries
_NO_SIZE = 1e-14  # of the largest, of products of rows that are not there or depend on one another
_LARGEST = 0.999  # leverage of one is a direction that one unit alone determines: no other tells its variance
_BOUND = 0.5  # of the leverage whose inverse multiplies scores: they are doubled at most, as in Fay & Graubard (2001)
HEAVY = 0.75  # of the leverage above which too little is left without a unit


@dataclass(frozen=True, slots=True)
class Leverage:
    """Share of each unit in the information, in coordinates in which the information of all is the identity.

    Attributes
    ----------
    share : ndarray, shape (G, r, r)
        ``h_i``, symmetric, with eigenvalues between 0 and 1.
    factor : ndarray, shape (G, r, r)
        ``(I - h_i)^(-1/2)``, or ``(I - h_i)^(-1)`` of the jackknife.
    heavy : ndarray of bool, shape (G,)
        Units with a share above `HEAVY`; only of the jackknife, whose shares are bounded.
    """

    share: Array
    factor: Array
    heavy: BoolArray


def leverage(information: Array, half: Array, jackknife: bool = False, further: BoolArray | None = None) -> Leverage:
    """Leverage of units.

    Parameters
    ----------
    information : ndarray, shape (G, P, P)
        Of each unit. Of a mixture it need not be positive definite: shares below zero, which would make scores smaller,
        are taken as zero.
    half : ndarray, shape (P, r)
        L; ``L @ L.T`` is the inverse of the information of all units.
    jackknife : bool
        Whether scores are to be those without the unit (CR3), or unbiased if the model is right (CR2).
    further : ndarray of bool, shape (r,), optional
        Columns of `half` that belong to other parameters than coefficients.

    Returns
    -------
    Leverage

    Notes
    -----
    The observed information of a unit of a mixture may exceed that of all units together, where others have less than
    none. Without it the likelihood would be convex there, and ``(I - h_i)^(-1)``, a step to the maximum without the
    unit, would go anywhere. Shares of the jackknife are bounded at a half: then scores are doubled at most, as they are
    by the bound of 3/4 that Fay & Graubard put on shares in ``(I - h_i)^(-1/2)``; so are those of CR2 in parameters of
    variance, about which a unit may say more than all together too. Shares in coefficients lie between 0 and 1.

    References
    ----------
    Fay & Graubard (2001), Biometrics 57, 1198-1206, section 2, for the bound.
    """
    return _shares(half.T @ information @ half, jackknife, further)


def _shares(matrices: Array, jackknife: bool, further: BoolArray | None) -> Leverage:
    """Leverage from ``L'J_iL``, shape (G, r, r)."""
    values, vectors = np.linalg.eigh(matrices)
    heavy, h = _within_bound(values, vectors, jackknife, further)
    across, h = np.swapaxes(vectors, 1, 2), h[:, None]
    return Leverage((vectors * h) @ across, (vectors / (1.0 - h) ** (1.0 if jackknife else 0.5)) @ across, heavy)


def _within_bound(values: Array, vectors: Array, jackknife: bool, further: BoolArray | None) -> tuple[BoolArray, Array]:
    """Which units have heavy shares in the jackknife; and shares, (G, a), along vectors, (G, r, a), within bounds."""
    if jackknife:
        return np.asarray((values > HEAVY).any(axis=1)), np.clip(values, 0.0, _BOUND)
    most = np.full_like(values, _LARGEST)
    if further is not None:
        most[(vectors[:, further] ** 2).sum(axis=1) > 0.5] = HEAVY
    return np.zeros(len(values), dtype=bool), np.clip(values, 0.0, most)


def corrected_by_factors(
    scores: Array,
    factors: Array,
    matrices: Array,
    half: Array,
    jackknife: bool = False,
    further: BoolArray | None = None,
) -> tuple[Array, BoolArray]:
    """`corrected_scores` of units whose information is ``F_i' C_i F_i``, at no cost of the size of all parameters.

    Parameters
    ----------
    scores : ndarray, shape (G, P)
    factors : ndarray, shape (G, d, r)
        ``F_i L``, with few rows d.
    matrices : ndarray, shape (G, d, d)
        C_i.
    half : ndarray, shape (P, r)
        L, as for `leverage`.
    jackknife, further
        As for `leverage`.

    Returns
    -------
    scores : ndarray, shape (G, r)
    heavy : ndarray of bool, shape (G,)
        As of `Leverage`.
    """
    flat = scores @ half
    if factors.shape[1] >= factors.shape[2]:
        units = _shares(np.swapaxes(factors, 1, 2) @ matrices @ factors, jackknife, further)
        return corrected_scores(scores, half, units), units.heavy
    # L'J_iL acts on the rows of F_i L only. Orthonormal ones are B'F_i L, B from the eigenvectors of their products.
    size, vectors = np.linalg.eigh(factors @ np.swapaxes(factors, 1, 2))
    size = np.maximum(size, 0.0)[:, None]
    used = size > _NO_SIZE * size.max(axis=2, keepdims=True)
    root = np.where(used, np.sqrt(size), 0.0)
    left = vectors * root
    share, turn = np.linalg.eigh(np.swapaxes(left, 1, 2) @ matrices @ left)
    B = (vectors * np.where(used, 1 / np.where(used, root, 1.0), 0.0)) @ turn
    heavy, share = _within_bound(share, np.swapaxes(factors, 1, 2) @ B, jackknife, further)
    along = np.einsum("gdr,gr->gd", factors, flat)
    along = np.einsum("gda,gd->ga", B, along) * ((1.0 - share) ** (-1.0 if jackknife else -0.5) - 1.0)
    return np.asarray(flat + np.einsum("gdr,gd->gr", factors, np.einsum("gda,ga->gd", B, along))), heavy


def corrected_scores(scores: Array, half: Array, units: Leverage) -> Array:
    """Scores ``(I - h_i)^(-1/2) L' s_i`` or ``(I - h_i)^(-1) L' s_i``, shape (G, r).

    Parameters
    ----------
    scores : ndarray, shape (G, P)
    half : ndarray, shape (P, r)
        L, as for `leverage`.
    units : Leverage

    Returns
    -------
    ndarray, shape (G, r)

    Notes
    -----
    If the model is right, ``L' s_i`` has covariance ``h_i - h_i^2`` to first order, and the corrected one ``h_i``;
    these add up to the identity, the information. With normal errors and known variances this is CR2. The exponent -1
    gives the change of the estimate without the unit to first order, which is CR3, and more than makes up for the bias.

    References
    ----------
    Bell & McCaffrey (2002), Survey Methodology 28, 169-181. Kauermann & Carroll (2001), JASA 96, 1387-1396, for scores
    of any likelihood. Mancl & DeRouen (2001), Biometrics 57, 126-134, for the exponent -1.
    """
    return np.einsum("grs,gs->gr", units.factor, scores @ half)


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and covariance of a sandwich over its sampling distribution, if the model is right.

    Attributes
    ----------
    mean : ndarray, shape (P, P)
    spread : ndarray, shape (M, M)
        Covariance of its lower triangle, row by row; M = P (P + 1) / 2.
    """

    mean: Array
    spread: Array


def sandwich_moments(weights: Array, units: Leverage) -> Moments | None:
    """Moments of ``V = sum_i v_i v_i'``, where ``v_i = weights (I - h_i)^(-1/2) L' s_i`` are normal.

    Parameters
    ----------
    weights : ndarray, shape (P, r)
        From the coordinates of the leverage to the reported parameters.
    units : Leverage

    Returns
    -------
    Moments or None
        None if the parameters are too many to keep them.

    Notes
    -----
    ``Cov(v_i, v_j) = K_ij = 1[i = j] D_i - U_i U_j'`` with ``B_i = weights (I - h_i)^(-1/2)``, ``D_i = B_i h_i B_i'``
    and ``U_i = B_i h_i``; and by Isserlis ``Cov(V_ab, V_cd) = sum_ij K_ij[a,c] K_ij[b,d] + K_ij[a,d] K_ij[b,c]``.
    """
    P, r = weights.shape
    # The covariance of the triangle has P^4 / 4 entries.
    if P > _MANY_PARAMETERS:
        return None
    B = weights @ units.factor
    U = B @ units.share  # (G, P, r)
    # D_i = B_i h_i B_i' and E_i = U_i U_i': together the variance of v_i itself.
    D, E = U @ np.swapaxes(B, 1, 2), U @ np.swapaxes(U, 1, 2)
    d, e = D.reshape(-1, P * P), E.reshape(-1, P * P)
    cross = d.T @ e
    # The part of i = j: (D - E)(D - E) less EE, which the sum over all pairs below has counted.
    alone = (d.T @ d - cross - cross.T).reshape(P, P, P, P)  # [a, c, b, d]
    flat = U.reshape(-1, P * r)
    # Sum over all pairs i, j of U_i U_j' twice over factors into one product of sums: no loop over pairs.
    pairs = (flat.T @ flat).reshape(P, r, P, r).transpose(0, 2, 1, 3).reshape(P * P, r * r)
    between = (pairs @ pairs.T).reshape(P, P, P, P).transpose(0, 2, 1, 3)  # from [a, b, c, d]
    total = alone + between
    # Isserlis: the two pairings of four normal factors.
    covariance = total.transpose(0, 2, 1, 3) + total.transpose(0, 2, 3, 1)  # [a, b, c, d]
    rows, columns = np.tril_indices(P)
    lower = covariance[rows, columns][:, rows, columns]
    return Moments((D - E).sum(axis=0), lower)


def degrees_of_freedom(moments: Moments | None, contrasts: Array) -> Array:
    """Degrees of freedom of the t statistic of each linear combination of parameters, ``2 E[c'Vc]^2 / Var[c'Vc]``.

    Parameters
    ----------
    moments : Moments or None
    contrasts : ndarray, shape (n, P)

    Returns
    -------
    ndarray, shape (n,)
        Infinite without moments, and for a combination that has no variance; NaN where there is no standard error.

    References
    ----------
    Bell & McCaffrey (2002), section 4, after Satterthwaite (1946), Biometrics Bulletin 2, 110-114.
    """
    if moments is None:
        return np.full(len(contrasts), np.inf)
    if len(contrasts) > _CHUNK:
        blocks = (contrasts[first : first + _CHUNK] for first in range(0, len(contrasts), _CHUNK))
        return np.concatenate([degrees_of_freedom(moments, block) for block in blocks])
    rows, columns = np.tril_indices(contrasts.shape[1])
    # c'Vc over the lower triangle of V, whose entries off the diagonal count twice.
    weights = contrasts[:, rows] * contrasts[:, columns] * np.where(rows == columns, 1.0, 2.0)
    mean, variance = weights @ moments.mean[rows, columns], np.einsum("nm,nm->n", weights @ moments.spread, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(~weights.any(axis=1), np.inf, 2.0 * mean**2 / variance)


def joint_degrees_of_freedom(moments: Moments | None, contrasts: Array) -> float:
    """Degrees of freedom eta of the covariance of several linear combinations, as if it were a Wishart matrix.

    Parameters
    ----------
    moments : Moments or None
    contrasts : ndarray, shape (q, P)
        Linearly independent.

    Returns
    -------
    float
        With the Wald statistic Q, ``(eta - q + 1) / (eta q) Q`` is referred to F with q and ``eta - q + 1`` degrees of
        freedom. Infinite without moments.

    References
    ----------
    Pustejovsky & Tipton (2018), Journal of Business & Economic Statistics 36, 672-683: approximate Hotelling's T^2 with
    the total variance matched ("HTZ").
    """
    if moments is None:
        return np.inf
    q = len(contrasts)
    values, vectors = np.linalg.eigh(contrasts @ moments.mean @ contrasts.T)
    if values[0] <= 0:
        return np.nan
    T = (vectors / np.sqrt(values)).T @ contrasts
    rows, columns = np.tril_indices(contrasts.shape[1])
    outer = T[:, None, rows] * T[None, :, columns]
    pairs = np.where(rows == columns, outer, outer + T[:, None, columns] * T[None, :, rows])  # (q, q, M)
    return float(q * (q + 1) / np.einsum("stm,mn,stn->", pairs, moments.spread, pairs, optimize=True))


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


Scale = Literal["identity", "log", "atanh", "logit"]


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
    """Scale on which a parameter is closest to normal: log of deviations, Fisher's of correlations, odds of shares."""
    if parameter.block == "random" and parameter.term.startswith("corr"):
        return "atanh"
    if parameter.block == "residual" and parameter.term == "rho":
        return "atanh"
    if parameter.block == "residual" and parameter.term.partition("(")[0] == "zeros":
        return "logit"
    if (parameter.block == "threshold" and parameter.term.startswith("cut")) or parameter.block == "other":
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
    positive. Correlations: Fisher's ``tanh(atanh r +- t se / (1 - r^2))``, inside (-1, 1). Probabilities of a certain
    zero: those of the log odds, ``expit(logit p +- t se / (p (1 - p)))``.
    """
    scales = scales_of(layout)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # The delta method on either scale: the standard error of log s is se / s, that of atanh r is se / (1 - r^2).
        centre, half = on_scales(params, scales), critical(alpha, df) * bse * slopes_of_scales(params, scales)
        return Limits(from_scales(centre - half, scales), from_scales(centre + half, scales))


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
