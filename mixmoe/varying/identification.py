"""Constant coefficients that coefficient functions make superfluous.

Notes
-----
A constant coefficient of a function of the index, beside an intercept that varies, has no value of its own: the
intercept takes over whatever the constant gives up. The same holds for ``const(z * u)`` beside a function of z, and for
combinations of several constants. Such columns are found by what functions of the varying terms leave of them: cubic
Hermite functions with knots at quantiles of the index, about one for each bandwidth, so that they bend as much as the
model's functions can. A step along the index is no such function, and its constant coefficient stands.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mixmoe.kernels.local import Windows, hermite_matrix
from mixmoe.varying.problem import Problem, Rows

Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

LEFT = 1e-4  # share of the squares of a constant term that functions of the varying terms must leave
MOST_INTERVALS = 20  # of the functions with which constant terms are compared
COLLINEAR = 1e-10  # share of the largest eigenvalue below which functions count as collinear
SHOWN = 4  # terms that a message names
VALUES_PER_BEND = 4  # different index values for each coefficient of these functions, at least


def constants_fault(
    problem: Problem, windows: Windows, design: Array, const: BoolArray, names: Sequence[str], index_name: str
) -> str | None:
    """What is wrong with constant coefficients of what functions of the varying terms explain, None if there are none.

    Parameters
    ----------
    problem : Problem
    windows : Windows
        Of these functions.
    design : ndarray, shape (n, p)
        Columns of the experts or of the gate.
    const : ndarray of bool, shape (p,)
        Which coefficients are constant.
    names : sequence of str
    index_name : str

    Returns
    -------
    str or None
        Names the columns.
    """
    if const.all() or not const.any():
        return None
    loading = superfluous(problem.rows, design, const, _knots(windows, int((~const).sum())))
    if loading is None:
        return None
    held = [name for name, constant in zip(names, const, strict=True) if constant]
    found = np.flatnonzero(loading > 0.1 * loading.max())
    named = ", ".join(repr(held[j]) for j in found[:SHOWN]) + (f" and {len(found) - SHOWN} more" * (len(found) > SHOWN))
    beside = ", ".join(repr(name) for name, constant in zip(names, const, strict=True) if not constant)
    return (
        f"a constant coefficient of {named} cannot be told from the functions of {index_name} beside it, those of "
        f"{beside}: as a function of the index, times one of these terms, it is part of them already; leave it out, "
        "or hold these constant too"
    )


def _knots(windows: Windows, varying: int) -> Array:
    """Quantiles of the index, about a bandwidth apart, with enough different values between them."""
    distinct = np.unique(windows.index)
    wanted = int(np.ceil(np.ptp(distinct) / windows.bandwidth))
    intervals = max(1, min(wanted, MOST_INTERVALS, len(distinct) // (2 * VALUES_PER_BEND * varying)))
    return np.unique(np.quantile(distinct, np.linspace(0.0, 1.0, intervals + 1)))


def superfluous(rows: Rows, design: Array, const: BoolArray, knots: Array) -> Array | None:
    """Loadings on the constant terms of the combination that functions explain, None if they explain none.

    Parameters
    ----------
    rows : Rows
    design : ndarray, shape (n, p)
    const : ndarray of bool, shape (p,)
    knots : ndarray, shape (g,)

    Returns
    -------
    ndarray, shape (C,), or None
    """
    root = np.sqrt(rows.weights)[:, None]
    held, varying = design[:, const] * root, design[:, ~const] * root
    basis = hermite_matrix(knots, float(np.ptp(knots)), rows.index)
    functions = sparse.hstack([basis.multiply(column[:, None]) for column in varying.T]).tocsr()
    unit, upper = np.linalg.qr(_left_by(held, varying))
    values, vectors = np.linalg.eigh(_squares_left(unit, functions))
    if values[0] >= LEFT:
        return None
    coefficients = np.linalg.lstsq(upper, vectors[:, 0], rcond=None)[0]
    out: Array = np.abs(coefficients) * np.sqrt(np.einsum("ij,ij->j", upper, upper))
    return out


def _left_by(columns: Array, others: Array) -> Array:
    """Residuals of the least-squares fit of columns, scaled to unit length, by others."""
    out: Array = _unit(columns) - _unit(others) @ np.linalg.lstsq(_unit(others), _unit(columns), rcond=None)[0]
    return out


def _unit(columns: Array) -> Array:
    length = np.sqrt((columns**2).sum(axis=0))
    out: Array = columns / np.where(length > 0.0, length, 1.0)
    return out


def _squares_left(columns: Array, functions: sparse.csr_array) -> Array:
    """Products of what functions, which may be collinear, leave of columns of unit length, shape (C, C)."""
    gram = (functions.T @ functions).toarray()
    size = np.sqrt(np.diag(gram))
    size = np.where(size > 0.0, size, 1.0)
    cross = (functions.T @ columns) / size[:, None]
    explained = cross.T @ np.linalg.pinv(gram / np.outer(size, size), rcond=COLLINEAR, hermitian=True) @ cross
    return np.asarray(columns.T @ columns - explained, dtype=np.float64)
