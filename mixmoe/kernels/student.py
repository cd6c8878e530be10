"""Multivariate t and normal densities from a log-determinant and a squared distance; complex steps pass through."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, digamma, gammaln

from mixmoe.kernels.moments import LOG_2PI
from mixmoe.kernels.special import trigamma

Array = NDArray[Any]  # float64; complex128 where a step passes through


@dataclass(frozen=True, slots=True)
class Density:
    """Log-densities and their derivatives.

    Attributes
    ----------
    log_density : ndarray, shape (E, N)
    weight : ndarray, shape (E, N)
        Minus twice the derivative in the squared distance; one for the normal.
    log_df : ndarray, shape (E, N)
        Derivative in the logarithm of the degrees of freedom; zero for the normal.
    """

    log_density: Array
    weight: Array
    log_df: Array


def normal_density(n: Array, log_det: Array, distance: Array) -> Density:
    """Multivariate normal densities of dimension `n`, shape (N,)."""
    log_density = -0.5 * (n * LOG_2PI + log_det + distance)
    return Density(log_density, np.ones_like(log_density), np.zeros_like(log_density))


def t_density(n: Array, log_det: Array, distance: Array, df: Array) -> Density:
    """Multivariate t densities.

    Parameters
    ----------
    n : ndarray, shape (N,)
        Dimensions.
    log_det : ndarray, shape (E, N)
        Of the scale matrix.
    distance : ndarray, shape (E, N)
        Squared distance from the centre, in the metric of the scale matrix.
    df : ndarray, shape (E,)

    Returns
    -------
    Density

    References
    ----------
    Pinheiro, Liu & Wu (2001), Journal of Computational and Graphical Statistics 10, 249-276.
    """
    nu = df[:, None]
    weight = (nu + n) / (nu + distance)
    stretch = np.log1p(distance / nu)
    log_density = _log_gamma_step(nu / 2, n / 2) - 0.5 * (n * np.log(nu * np.pi) + log_det + (nu + n) * stretch)
    gain = _psi((nu + n) / 2) - _psi(nu / 2) - stretch - n / nu + weight * distance / nu
    return Density(log_density, weight, 0.5 * nu * gain)


def _log_gamma_step(x: Array, step: Array) -> Array:
    """Difference log Gamma(x + step) - log Gamma(x), accurate for large x; an imaginary part of x passes through."""
    value = gammaln(step) - betaln(step, x.real)
    return _carried(value, digamma(x.real + step) - digamma(x.real), x)


def _psi(x: Array) -> Array:
    """Digamma function; an imaginary part passes through."""
    return _carried(digamma(x.real), trigamma(x.real), x)


def _carried(value: Array, slope: Array, x: Array) -> Array:
    return value + 1j * x.imag * slope if np.iscomplexobj(x) else value
