"""Small dense algebra over a long trailing axis, safe for complex-step derivatives.

Matrices carry their two short axes first within the last three, ``(..., q, q, N)``: subjects lie on the last,
contiguous axis, so every operation is a handful of long vector instructions. Nothing here conjugates or takes absolute
values: an imaginary part of 1e-30 passes through and comes out as the exact derivative.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from mixmoe._typing import AnyArray, Array


def cholesky(A: Array) -> Array:
    """Lower Cholesky factors.

    Parameters
    ----------
    A : ndarray, shape (E, q, q, N)
        Symmetric positive definite matrices; only the lower triangle is read.

    Returns
    -------
    ndarray, shape (E, q, q, N)
        L with A = L L'; the strict upper triangle is zero.
    """
    L = np.zeros_like(A)
    # q is 1 to 5: loops over it cost nothing beside the operations over N subjects inside.
    for j in range(A.shape[1]):
        row = L[:, j, :j]
        L[:, j, j] = np.sqrt(A[:, j, j] - (row * row).sum(axis=1))
        for i in range(j + 1, A.shape[1]):
            L[:, i, j] = (A[:, i, j] - (L[:, i, :j] * row).sum(axis=1)) / L[:, j, j]
    return L


def cholesky_of_one(A: Array) -> Array:
    """Lower Cholesky factor of one matrix, shape (P, P), by LAPACK; complex steps pass through."""
    if not np.iscomplexobj(A):
        return np.asarray(np.linalg.cholesky(A))
    L = np.linalg.cholesky(A.real)
    # dL = L low(L^-1 dA L^-T), low(): the lower half with half of the diagonal (Murray 2016).
    inside = np.linalg.solve(L, np.linalg.solve(L, A.imag).T)
    return np.asarray(L + 1j * (L @ (np.tril(inside) - 0.5 * np.diag(np.diag(inside)))))


def solve_lower(L: Array, b: Array) -> Array:
    """Solution x of L x = b.

    Parameters
    ----------
    L : ndarray, shape (E, q, q, N)
    b : ndarray, shape (E, q, ..., N)

    Returns
    -------
    ndarray, shape of b
    """
    x = np.empty(b.shape, dtype=np.result_type(L, b))
    middle = (slice(None),) + (None,) * (b.ndim - 3)
    for i in range(L.shape[1]):
        total = b[:, i].astype(x.dtype)
        for j in range(i):
            total -= L[:, i, j][middle] * x[:, j]
        # Row by row, never the inverse of L: triangular solves are backward stable.
        x[:, i] = total / L[:, i, i][middle]
    return x


def solve_upper(L: Array, b: Array) -> Array:
    """Solution x of L' x = b, with L lower triangular; shapes as in `solve_lower`."""
    x = np.empty(b.shape, dtype=np.result_type(L, b))
    middle = (slice(None),) + (None,) * (b.ndim - 3)
    q = L.shape[1]
    for i in reversed(range(q)):
        total = b[:, i].astype(x.dtype)
        for j in range(i + 1, q):
            total -= L[:, j, i][middle] * x[:, j]
        x[:, i] = total / L[:, i, i][middle]
    return x


def inverse_from_cholesky(L: Array) -> Array:
    """(L L')^-1, shape (E, q, q, N), for the posterior covariances that are a result in themselves."""
    q, out = L.shape[1], np.empty_like(L)
    # L^-1 is lower triangular and the result symmetric: entries that are zero or known are not computed.
    half: list[list[Array]] = []
    for i in range(q):
        last = 1.0 / L[:, i, i]
        row = [-last * sum(L[:, i, k] * half[k][j] for k in range(j, i)) for j in range(i)]
        half.append([*row, last])
    for i in range(q):
        for j in range(i + 1):
            out[:, i, j] = out[:, j, i] = sum(half[k][i] * half[k][j] for k in range(i, q))
    return out


def times_real(B: Array, M: Array) -> Array:
    """B @ M for a real M; a complex B goes in two real products, as mixed types are far slower."""
    return (B.real @ M) + 1j * (B.imag @ M) if np.iscomplexobj(B) else B @ M


def multiply(A: Array, B: Array) -> Array:
    """A B subject by subject, without a path search and without copies.

    Parameters
    ----------
    A : ndarray, shape (a, b, N)
    B : ndarray, shape (E, b, N) or (E, b, d, N)

    Returns
    -------
    ndarray, shape (E, a, N) or (E, a, d, N)
    """
    if B.ndim == 4:
        A = A[:, :, None]
    out = np.zeros((B.shape[0], A.shape[0], *B.shape[2:]), dtype=np.result_type(A, B))
    for j in range(A.shape[1]):
        out += A[:, j] * B[:, None, j]
    return out


def logsumexp(a: Array, axis: int) -> Array:
    """log(sum(exp(a))) along an axis, without overflow; the axis is dropped."""
    peak = a.real.max(axis=axis, keepdims=True)
    # Where all are -inf, -inf - -inf would be NaN; with a peak of zero the result is -inf, as it should be.
    peak = np.where(np.isfinite(peak), peak, 0.0)
    return np.log(np.exp(a - peak).sum(axis=axis)) + np.squeeze(peak, axis=axis)


def normalised(a: Array, axis: int) -> tuple[Array, Array]:
    """log(sum(exp(a))) along an axis, which is dropped, and exp(a) divided by that sum, without overflow."""
    peak = a.real.max(axis=axis, keepdims=True)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    shares = np.exp(a - peak)
    total = shares.sum(axis=axis, keepdims=True)
    shares /= total
    return np.squeeze(np.log(total) + peak, axis=axis), shares


def log_softmax(a: Array, axis: int) -> Array:
    """Log of ``exp(a) / sum(exp(a))`` along an axis."""
    # Less its peak first: a sum of a large peak and a small logarithm would round the logarithm away.
    shifted = a - a.real.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def semidefinite_cholesky(D: Array, tol: float = 1e-12, floor: float = 0.0) -> Array:
    """Lower T with D = T T' for a positive semidefinite matrix; a null direction gives a zero column.

    Parameters
    ----------
    D : ndarray, shape (q, q)
    tol : float
        A pivot below ``tol`` times its diagonal entry counts as zero.
    floor : float
        A pivot below this counts as zero.

    Returns
    -------
    ndarray, shape (q, q)
    """
    q = D.shape[0]
    T = np.zeros((q, q))
    for j in range(q):
        pivot = D[j, j] - T[j, :j] @ T[j, :j]
        # A null direction of D has pivots of rounding only; dividing by their roots would fill the column with noise.
        if pivot > max(tol * D[j, j], floor, np.finfo(float).tiny):
            T[j, j] = np.sqrt(pivot)
            T[j + 1 :, j] = (D[j + 1 :, j] - T[j + 1 :, :j] @ T[j, :j]) / T[j, j]
    return T


def floored_inverse(A: Array, floor: float = 0.0, share: float = 0.0) -> Array:
    """Inverse of a symmetric matrix, shape (P, P), its eigenvalues by their size.

    Each counts as `floor` at least, and as this `share` of the largest. Away from a maximum an information has negative
    eigenvalues, and a step along them still goes uphill.
    """
    if not A.size:  # LAPACK takes no empty matrix
        return A
    # Where all are larger, which one factorisation tells, the plain inverse is several times cheaper. No eigenvalue is
    # larger than a row sum.
    least = max(floor, share * float(np.abs(A).sum(axis=0).max(initial=0.0)))
    if lapack.dpotrf(A - least * np.eye(len(A)), lower=True)[1] == 0:
        half, _ = lapack.dpotrf(A, lower=True)
        inverse, _ = lapack.dpotri(half, lower=True)
        return np.asarray(np.tril(inverse) + np.tril(inverse, -1).T)
    values, vectors = np.linalg.eigh(A)
    size = np.abs(values)
    return np.asarray((vectors / np.maximum(size, max(floor, share * size.max(initial=0.0)))) @ vectors.T)


def orthogonal_columns(X: AnyArray, first: NDArray[np.bool_]) -> AnyArray:
    """A with X A^-1 of unit mean squares and orthogonal, the columns not in `first` made orthogonal to those in it."""
    if not X.shape[1]:
        return np.zeros((0, 0))
    order = np.concatenate([np.flatnonzero(first), np.flatnonzero(~first)])
    A = np.zeros((X.shape[1], X.shape[1]))
    # QR of the columns, not a Cholesky factor of their cross-products, which would square the condition number.
    A[np.ix_(order, order)] = np.linalg.qr(X[:, order], mode="r") / np.sqrt(X.shape[0])
    return A


def apply_inverse(X: AnyArray, A: AnyArray) -> AnyArray:
    """X A^-1."""
    return np.linalg.solve(A.T, X.T).T if X.shape[1] else X


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
