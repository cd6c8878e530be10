"""Working coordinates and likelihood of a MEMoE from cross-products of its subjects, without their rows."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.gaussian import GaussianExperts
from mixmoe.mixed.likelihood.patterns import patterned
from mixmoe.mixed.likelihood.spread import SpreadExperts, SpreadPart
from mixmoe.mixed.options import check_numbers, exact_within, one_row_each, without_noise
from mixmoe.mixed.parameters import Coordinates, Structure
from mixmoe.numerics.linalg import apply_inverse, orthogonal_columns
from mixmoe.partitions.moments import BySubject, Reference, Sums, signs_in_memory, unpacked
from mixmoe.partitions.streamed import StreamedDesign
from mixmoe.responses.distribution import constant_within

_RUN = 20_000  # subjects whose matrices are unpacked at a time
_NO_NOISE = 1e-10  # of the size of the response, a residual that is none
_NOTHING_LEFT = 1e-7  # the same where it is known from cross-products, which lose half of the digits


def coordinates_of_sums(
    sums: Sums, kept: NDArray[np.intp], s: Structure, design: StreamedDesign, gaussian: bool
) -> Coordinates:
    """Working coordinates from triangles of all rows; see `mixmoe.mixed.options.coordinates_of`.

    Parameters
    ----------
    sums : Sums
    kept : ndarray of int, shape (p,)
        Places of the expert columns that are no combination of others.
    s : Structure
    design : StreamedDesign
    gaussian : bool
        Whether the response is normal, and has working coordinates too.

    Raises
    ------
    DesignError
        If the expert columns reproduce a Gaussian response exactly.
    """
    n, near = design.n, sums.reference
    weight = sums.weight / n
    # Columns and response of the data, rotated: products of n rows are those of these few.
    rows = sums.expert / np.sqrt(weight)
    X, y = rows[:, :-1] @ near.expert[:, kept], rows[:, -1]
    root, order = np.sqrt(weight), np.argsort(s.common, kind="stable")
    expert = _with_signs(
        orthogonal_columns(X, ~s.common) * np.sqrt(len(X) / n), sums.first.expert[:, kept] / root, order, n
    )
    Z = sums.random @ near.random / np.sqrt(weight)
    if s.correlated:
        whole = orthogonal_columns(Z, np.ones(Z.shape[1], dtype=bool)) * np.sqrt(max(len(Z), 1) / n)
        random = _with_signs(whole, sums.first.random / root, np.arange(Z.shape[1]), n)
    else:
        random = np.diag(np.sqrt((Z**2).sum(axis=0) / n))
    gate = orthogonal_columns(design.gate, np.ones(design.gate.shape[1], dtype=bool))
    if not gaussian:
        return Coordinates(np.zeros(len(expert)), 1.0, expert, random, gate)
    Q = apply_inverse(X, expert)
    inside = Q.T @ y / n
    left = y - Q @ inside
    scale = float(np.sqrt((left @ left) / n)) * near.scale
    response = near.scale * y + rows[:, :-1] @ (near.expert @ near.center)
    if scale <= _NO_NOISE * np.sqrt((response @ response) / n):
        raise without_noise(scale)
    # What is left out as superfluous has a coefficient of zero: its part of the reference goes to the others.
    center = np.linalg.lstsq(X, rows[:, :-1] @ (near.expert @ near.center), rcond=None)[0]
    center = center + near.scale * np.linalg.solve(expert, inside)
    return Coordinates(center, scale, expert, random, gate, weight=weight)


def _with_signs(A: Array, top: Array, order: NDArray[np.intp], n: int) -> Array:
    """A of orthogonal columns with the signs that it has in memory; `top` are the first of the n rows."""
    signs = np.ones(len(A))
    signs[order] = signs_in_memory(A[np.ix_(order, order)] * np.sqrt(n), top[: len(A), order])
    return signs[:, None] * A


def experts_of_sums(sums: Sums, kept: Mapping[str, NDArray[np.bool_]], c: Coordinates) -> Any:
    """Cross-products of every subject in working coordinates, `SpreadExperts` where workers keep them.

    Parameters
    ----------
    sums : Sums
    kept : mapping of str to ndarray of bool
        Columns of experts and gate that are no combination of others.
    c : Coordinates
    """
    M = _change(sums.reference, np.flatnonzero(kept["expert"]), c)
    if sums.kept is None:
        return _experts_of(sums.subjects, M, c)
    parts = sums.kept.kept(partial(_part_of, M=M, c=c, gate=kept["gate"]))
    return SpreadExperts(parts, sums.subjects.sums[0].astype(np.intp), np.cumsum(parts.mapped(_size)))


def _part_of(subjects: BySubject, M: Array, c: Coordinates, gate: NDArray[np.bool_]) -> SpreadPart:
    W = np.column_stack([values for values, used in zip(subjects.first, gate, strict=True) if used])
    return SpreadPart(_experts_of(subjects, M, c), apply_inverse(W, c.gate))


def _size(part: SpreadPart) -> int:
    return part.experts.n_subjects


def _experts_of(subjects: BySubject, M: Array, c: Coordinates) -> GaussianExperts:
    """Cross-products of subjects, from those near the reference by a change of columns, see `_change`."""
    n, log_weight, *packed = subjects.sums
    N, p, q = n.size, len(c.expert), len(c.random)
    x, z = slice(1, 1 + p), slice(1 + p, 1 + p + q)
    out = GaussianExperts(
        n=n,
        yy=np.empty(N),
        Xy=np.empty((p, N)),
        XX=np.empty((p, p, N)),
        Zy=np.empty((q, N)),
        ZX=np.empty((q, p, N)),
        ZZ=np.empty((q, q, N)),
        # Weights are divided by their mean.
        log_weight=log_weight - n * np.log(c.weight),
    )
    for start in range(0, N, _RUN):
        at = slice(start, min(start + _RUN, N))
        gram = unpacked(tuple(packed), at) / c.weight
        gram = np.einsum("ca,cdn->adn", M, gram, optimize=True)
        gram = np.einsum("adn,db->abn", gram, M, optimize=True)
        out.yy[at], out.Xy[:, at], out.XX[..., at] = gram[0, 0], gram[x, 0], gram[x, x]
        out.Zy[:, at], out.ZX[..., at], out.ZZ[..., at] = gram[z, 0], gram[z, x], gram[z, z]
    return patterned(out)


def _change(near: Reference, kept: NDArray[np.intp], c: Coordinates) -> Array:
    """Working response and columns as combinations of those near the reference, shape (1 + p0 + q, 1 + p + q)."""
    p0, p, q = len(near.expert), len(kept), len(near.random)
    M = np.zeros((1 + p0 + q, 1 + p + q))
    M[0, 0] = near.scale / c.scale
    whole = np.zeros(p0)
    whole[kept] = c.center
    M[1 : 1 + p0, 0] = near.expert @ (near.center - whole) / c.scale
    M[1 : 1 + p0, 1 : 1 + p] = np.linalg.solve(c.expert.T, near.expert[:, kept].T).T
    M[1 + p0 :, 1 + p :] = np.linalg.solve(c.random.T, near.random.T).T
    return M


def check_identified(design: StreamedDesign, sums: Sums, n_experts: int) -> None:
    """Raise unless data of this kind can tell the parameters apart; see `mixmoe.mixed.options.check_identified`.

    Raises
    ------
    ArgumentError
        For more experts than subjects.
    DesignError
        For an expert part without columns, or rows that cannot tell random effects from residuals.
    """
    check_numbers(design, n_experts)
    if design.names.random and design.n == design.n_units:
        raise one_row_each(design)
    if "Intercept" in design.names.random:
        _check_within(design, sums)


def _check_within(design: StreamedDesign, sums: Sums) -> None:
    """Refuse responses that random intercepts, alone or with the expert columns, reproduce exactly."""
    near, width = sums.reference, 1 + len(sums.reference.expert) + len(sums.reference.random)
    constant, response = np.zeros(width), np.zeros(width)
    constant[1 + len(near.expert) :] = near.random[:, design.names.random.index("Intercept")]
    response[0], response[1 : 1 + len(near.expert)] = near.scale, near.expert @ near.center
    whole, within = np.sum(sums.over_subjects(partial(_whole_and_within, constant=constant)), axis=0)
    size = np.sqrt(response @ whole @ response)
    if np.sqrt(max(float(response @ within @ response), 0.0)) <= _NOTHING_LEFT * size:
        raise constant_within(design.names.response)
    x, left = slice(1, 1 + len(near.expert)), response.copy()
    left[x] -= np.linalg.lstsq(within[x, x], within[x] @ response, rcond=None)[0]
    if np.sqrt(max(float(left @ within @ left), 0.0)) <= _NOTHING_LEFT * size:
        raise exact_within(design.names.response)


def _whole_and_within(subjects: BySubject, constant: Array) -> Array:
    """Sums of products over subjects, as they are and around the weighted mean of each, shape (2, w, w)."""
    width = constant.size
    out = np.zeros((2, width, width))
    n, _, *packed = subjects.sums
    for start in range(0, n.size, _RUN):
        gram = unpacked(tuple(packed), slice(start, min(start + _RUN, n.size)))
        along = np.einsum("abn,b->an", gram, constant)
        out[0] += gram.sum(axis=2)
        out[1] += gram.sum(axis=2) - (along / (constant @ along)) @ along.T
    return out
