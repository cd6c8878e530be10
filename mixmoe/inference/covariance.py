"""Covariance of estimates: the record, the sandwich and the delta method."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mixmoe.em import Flag
from mixmoe.errors import ArgumentError
from mixmoe.inference.small_samples import Moments

Array = NDArray[np.float64]
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

    @property
    def of_bounded(self) -> Array:
        """What functions of the expert probabilities have their standard errors from, shape (P, P)."""
        return self.matrix if self.bounded is None else self.bounded


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


def meat(scores: Array, clusters: NDArray[np.int64] | None = None) -> Array:
    """Sum of outer products of scores, the middle of the sandwich.

    Parameters
    ----------
    scores : ndarray, shape (N, P)
        Score of each independent unit at the estimate.
    clusters : ndarray of int, shape (N,), optional
        Codes 0..G-1 of the cluster of each unit; scores are added up within clusters first.

    Returns
    -------
    ndarray, shape (P, P)
    """
    scores = within_clusters(scores, clusters)
    return np.asarray(scores.T @ scores)


def sandwich(a_inverse: Array, middle: Array) -> Array:
    """Covariance ``A^-1 B A^-1`` of an estimate whose model may be wrong.

    Parameters
    ----------
    a_inverse : ndarray, shape (P, P)
        Inverse of the observed information.
    middle : ndarray, shape (P, P)
        Sum of outer products of scores, see `meat`.

    Returns
    -------
    ndarray, shape (P, P)

    References
    ----------
    White (1982), Econometrica 50, 1-25, theorem 3.2.
    """
    product = a_inverse @ middle @ a_inverse.T
    return (product + product.T) / 2


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
