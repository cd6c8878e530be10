"""Which columns of a design are linear combinations of columns before them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TOLERANCE = 1e-7
"""Part of a column's length that must be left after projection on the columns before it, as in R's `lm`."""

_SCREEN = 1e-3
_BLOCK = 65_536


@dataclass(frozen=True, slots=True)
class Alias:
    """A column that others make superfluous.

    Attributes
    ----------
    column : int
        Its position.
    others : tuple of int
        Positions of the columns that it is a combination of; empty for a column of zeros.
    """

    column: int
    others: tuple[int, ...]


def aliases(x: Array) -> tuple[Alias, ...]:
    """Columns that are linear combinations of those before them, in order.

    Parameters
    ----------
    x : ndarray, shape (n, p)
        Finite values.
    """
    p = x.shape[1]
    if p == 0 or x.shape[0] == 0:
        return ()
    scale = np.abs(x).max(axis=0)
    scale[scale == 0] = 1.0
    if _clearly_independent(x, scale):
        return ()
    return _dependent(_triangle(x, scale))


def _clearly_independent(x: Array, scale: Array) -> bool:
    """Whether cross-products alone settle that no column is superfluous; they lose half of the digits."""
    with np.errstate(over="ignore", invalid="ignore"):  # squares of huge values; the factorisation has them scaled
        gram = x.T @ x / np.outer(scale, scale)
    length = np.sqrt(np.diag(gram))
    if not (np.isfinite(length).all() and (length > 0).all()):
        return False
    correlation = gram / np.outer(length, length)
    try:
        return bool(np.diag(np.linalg.cholesky(correlation)).min() > _SCREEN)
    except np.linalg.LinAlgError:
        return False


def _triangle(x: Array, scale: Array) -> Array:
    """R of the QR decomposition of the scaled columns, built up block by block."""
    r = np.zeros((0, x.shape[1]))
    for start in range(0, x.shape[0], _BLOCK):
        r = np.asarray(np.linalg.qr(np.vstack([r, x[start : start + _BLOCK] / scale]), mode="r"))
    return r


def _dependent(r: Array) -> tuple[Alias, ...]:
    basis = np.zeros((r.shape[0], 0))
    kept: list[int] = []
    found: list[Alias] = []
    for j in range(r.shape[1]):
        column = r[:, j]
        length = np.linalg.norm(column)
        rest = column - basis @ (basis.T @ column)
        rest = rest - basis @ (basis.T @ rest)
        left = np.linalg.norm(rest)
        if length == 0 or left <= TOLERANCE * length:
            found.append(Alias(j, _makers(r, kept, j)))
        else:
            kept.append(j)
            basis = np.column_stack([basis, rest / left])
    return tuple(found)


def _makers(r: Array, kept: list[int], j: int) -> tuple[int, ...]:
    length = np.linalg.norm(r[:, j])
    if not kept or length == 0:
        return ()
    weights = np.linalg.lstsq(r[:, kept], r[:, j], rcond=None)[0]
    share = np.abs(weights) * np.linalg.norm(r[:, kept], axis=0) / length
    return tuple(k for k, s in zip(kept, share, strict=True) if s > 1e-6)
