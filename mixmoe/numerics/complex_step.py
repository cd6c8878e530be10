"""Derivatives by complex steps: exact to rounding, with no step size to choose.

For a function that is analytic in its argument, ``f(x + ih) = f(x) + i h f'(x) + O(h^2)``: the imaginary part over h is
the derivative. Nothing is subtracted, so no digit cancels, however small h is.

References
----------
Squire, W. and Trapp, G. (1998). Using complex variables to estimate derivatives of real functions. SIAM Review 40,
110-112.
"""

from collections.abc import Callable

import numpy as np

from mixmoe._typing import AnyArray, Array

# The error of the derivative is of the order h^2, so any h below 1e-8 gives full precision; this one is still so far
# from the smallest positive number (1e-308) that its products with densities and small variances do not underflow.
_STEP = 1e-30
_DIFFERENCE = 1e-4  # of unit scale; the error of a central difference is its square


def slope(function: Callable[[complex], AnyArray], analytic: bool) -> Array:
    """Derivative of a function of one number at zero.

    Parameters
    ----------
    function : callable
    analytic : bool
        Whether complex steps pass through it; else by a central difference, for arguments of unit scale.

    Returns
    -------
    ndarray, shape of the function's value
    """
    if analytic:
        return np.asarray(function(1j * _STEP).imag / _STEP)
    return np.asarray((function(_DIFFERENCE) - function(-_DIFFERENCE)) / (2 * _DIFFERENCE))


def derivative_along(function: Callable[[AnyArray], AnyArray], at: Array, direction: Array) -> Array:
    """Derivative of an analytic function along a direction.

    Parameters
    ----------
    function : callable
        Takes a complex array; what it does to it must be analytic (no ``abs``, no conjugation).
    at : ndarray
    direction : ndarray, broadcast with `at`
        For a function that takes many vectors at once, rows of directions, shape (S, P), beside one point, shape (P,).

    Returns
    -------
    ndarray, shape of the function's value
    """
    return np.asarray(function(at + 1j * (_STEP * direction)).imag / _STEP)


def jacobian(function: Callable[[AnyArray], AnyArray], at: Array) -> Array:
    """Derivatives of an analytic function in every entry of its argument.

    Parameters
    ----------
    function : callable
        As in `derivative_along`; its value is a vector, shape (M,).
    at : ndarray, of size P and any shape

    Returns
    -------
    ndarray, shape (M, P)
        Columns in the order of ``at.ravel()``.
    """
    directions = np.eye(at.size).reshape(at.size, *at.shape)
    return np.column_stack([derivative_along(function, at, direction) for direction in directions])
