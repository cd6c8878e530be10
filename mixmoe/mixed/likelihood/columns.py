"""Columns of the fixed effects row by row, and products with them.

Cross-products of p columns take p by p numbers of each subject. Where columns are many, the dummies of a factor above
all, sums over rows are cheaper, and they are mostly zero before they are made orthogonal: no product below takes more
than the entries that are not, besides products of p by p matrices.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import bsr_array, csr_array

from mixmoe._typing import AnyArray, Array
from mixmoe.numerics.linalg import apply_inverse, times_real

MANY_COLUMNS = 40  # from here on sums over rows are cheaper than cross-products, where subjects have fewer rows
_SPARSE = 0.1  # share of entries that are not zero, up to which products with them are the cheaper ones


def has_many_columns(p: int, counts: NDArray[np.intp]) -> bool:
    """Whether the fixed effects have so many columns that their cross-products by subject, p by p, cost more than rows.

    Parameters
    ----------
    p : int
    counts : ndarray of int, shape (N,)
        Rows of each subject.
    """
    return p >= MANY_COLUMNS and p >= counts.mean()


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of the fixed effects, X, and what makes products with them cheap.

    Attributes
    ----------
    dense : ndarray, shape (p, n)
    sparse : scipy.sparse.csr_array, shape (n, p), or None
        Columns that are mostly zero, before they were made orthogonal.
    basis : ndarray, shape (p, p), or None
        What the sparse ones are multiplied by.
    """

    dense: AnyArray
    sparse: csr_array | None = None
    basis: Array | None = None

    def __len__(self) -> int:
        return len(self.dense)

    def predictor(self, beta: AnyArray) -> AnyArray:
        """Linear predictor of each row, shape (E, n), for coefficients of shape (E, p)."""
        if self.sparse is None or self.basis is None:
            return times_real(beta, self.dense)
        return np.ascontiguousarray((self.sparse @ times_real(beta, self.basis.T).T).T)

    def gathered(self, values: AnyArray) -> AnyArray:
        """Sums over rows of columns times values, shape (E, p), for values of shape (E, n)."""
        if self.sparse is None or self.basis is None:
            return times_real(values, self.dense.T)
        return times_real((self.sparse.T @ values.T).T, self.basis)

    def gram(self, weights: Array) -> Array:
        """X'X, rows weighted, shape (p, p), for weights of shape (n,)."""
        if self.sparse is None:
            return np.asarray((self.dense * weights) @ self.dense.T)
        return self.in_basis((self.sparse.T @ (self.sparse * weights[:, None])).toarray())

    def between(self, blocks: Array) -> Array:
        """X'BX, shape (p, p), for B with blocks of shape (c, m, m) on its diagonal, of c runs of m rows."""
        c, m, _ = blocks.shape
        if self.sparse is None:
            X = self.dense.T
            return np.asarray(X.T @ (blocks @ X.reshape(c, m, -1)).reshape(X.shape))
        B = bsr_array((blocks, np.arange(c), np.arange(c + 1)), shape=(c * m, c * m)).tocsr()
        return self.in_basis((self.sparse.T @ (B @ self.sparse)).toarray())

    def summed(self, z: Array, starts: NDArray[np.intp]) -> csr_array:
        """Sums over the rows of each subject of the columns times z, shape (N, p), in no basis yet."""
        indicator = csr_array((z, np.arange(z.size), np.append(starts, z.size)))
        return csr_array(indicator @ (self.dense.T if self.sparse is None else self.sparse))

    def at(self, rows: "slice | NDArray[np.intp]") -> "Columns":
        """Some of the rows."""
        return Columns(self.dense[:, rows], None if self.sparse is None else self.sparse[rows], self.basis)

    def scaled(self, factor: Array) -> "Columns":
        """Rows multiplied by numbers, shape (n,)."""
        sparse = None if self.sparse is None else csr_array(self.sparse * factor[:, None])
        return Columns(self.dense * factor, sparse, self.basis)

    def turned(self, dense: Array, by: csr_array) -> "Columns":
        """Columns multiplied by a matrix of shape (n, n) that mixes rows of a subject; `dense` is this product."""
        if self.sparse is None:
            return Columns(dense)
        return _unless_filled(dense, csr_array(by @ self.sparse), self.basis)

    def in_basis(self, product: AnyArray) -> AnyArray:
        """Products of sparse columns with one another, shape (p, p), as those of the columns themselves."""
        if self.basis is None:
            return product
        return times_real(times_real(product.T, self.basis).T, self.basis)


def columns_of(X: Array, A: Array) -> Columns:
    """The columns ``X A^-1``, for X of shape (n, p) as they were written."""
    dense = np.ascontiguousarray(apply_inverse(X, A).T)
    if X.shape[1] < MANY_COLUMNS:
        return Columns(dense)
    return _unless_filled(dense, csr_array(X), np.asarray(np.linalg.inv(A)))


def _unless_filled(dense: Array, sparse: csr_array, basis: Array | None) -> Columns:
    """Columns with their sparse form, if that is sparse."""
    return Columns(dense, sparse, basis) if sparse.count_nonzero() <= _SPARSE * dense.size else Columns(dense)
