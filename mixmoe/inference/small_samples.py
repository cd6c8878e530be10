"""Sandwiches from few units: scores corrected for leverage, and the moments behind t and F statistics."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mixmoe._typing import Array, BoolArray, IntArray

MANY_UNITS = 5000  # from here on the correction and the t reference change nothing that is printed
_CHUNK = 10_000  # contrasts at a time
_MANY_PARAMETERS = 40  # moments of a covariance have P^4 / 4 entries
_NO_SIZE = 1e-14  # of the largest, of products of rows that are not there or depend on one another
_LARGEST = 0.999  # leverage of one is a direction that one unit alone determines: no other tells its variance
_BOUND = 0.5  # of the leverage whose inverse multiplies scores: they are doubled at most, as in Fay & Graubard (2001)
_LEAST = 0.05  # share of its own score left to a row or cluster, at least: on its own it says nothing about its error
_ROWS = 4096  # of clusters of one size, whose factors are held at once
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


def leverage(matrices: Array, jackknife: bool = False, further: BoolArray | None = None) -> Leverage:
    """Leverage of units.

    Parameters
    ----------
    matrices : ndarray, shape (G, r, r)
        ``L' J_i L`` of each unit with information J_i; ``L L'`` is the inverse of the information of all units. Of a
        mixture they need not be positive definite: shares below zero, which would make scores smaller, are taken as
        zero.
    jackknife : bool
        Whether scores are to be those without the unit (CR3), or unbiased if the model is right (CR2).
    further : ndarray of bool, shape (r,), optional
        Columns of L that belong to other parameters than coefficients.

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
        units = leverage(np.swapaxes(factors, 1, 2) @ matrices @ factors, jackknife, further)
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


def leverage_power(curvature: Array, leverage: Array, power: float, least: float = _LEAST) -> Array:
    """``(I - L C)^-power`` for symmetric matrices C and positive semi-definite L, shape (w, d, d) each.

    Parameters
    ----------
    curvature, leverage : ndarray, shape (w, d, d)
        C may be indefinite.
    power : float
    least : float
        Eigenvalues of ``I - L C`` below this count as this.

    Returns
    -------
    ndarray, shape (w, d, d)

    Notes
    -----
    With ``L = T T'`` the power series gives ``I + T g(T' C T) T' C``, ``g(x) = ((1 - x)^-power - 1) / x``.
    """
    size = np.sqrt(np.einsum("wii->wi", leverage))
    size, unit = np.where(size > 0.0, size, 1.0), np.eye(leverage.shape[1])
    correlation = leverage / (size[:, :, None] * size[:, None, :])
    root = size[:, :, None] * np.linalg.cholesky(correlation + 1e-12 * unit)
    values, vectors = np.linalg.eigh(np.swapaxes(root, 1, 2) @ curvature @ root)
    small = np.abs(values) < 1e-8
    gain = (np.maximum(1.0 - values, least) ** -power - 1.0) / np.where(small, 1.0, values)
    turned = root @ vectors
    half = turned * np.where(small, power, gain)[:, None, :]
    return np.asarray(unit + half @ np.swapaxes(turned, 1, 2) @ curvature, dtype=np.float64)


def cluster_moves(
    gradient: Array,
    curvature: Array,
    design: Array,
    inverse: Array,
    codes: IntArray,
    power: float,
    least: float = _LEAST,
) -> Array:
    """``(I - V H_c)^-power V g_i`` for each row i of a cluster c, shape (w, k).

    Parameters
    ----------
    gradient : ndarray, shape (w, k)
        Score g_i of each row.
    curvature : ndarray, shape (w, d, d)
        Information of each row in its natural parameters.
    design : ndarray, shape (w, d, k)
        Derivatives of these by the coefficients, so that the information of a cluster is ``H_c = sum_i Z_i' C_i Z_i``.
    inverse : ndarray, shape (k, k)
        V, the inverse of the information of all rows, positive semi-definite.
    codes : ndarray of int, shape (w,)
    power : float
    least : float
        Eigenvalues of ``I - V H_c`` below this count as this.

    Returns
    -------
    ndarray, shape (w, k)

    Notes
    -----
    With ``V = R R'`` this is ``R (I - R' H_c R)^-power R' g_i``.
    """
    root = _root(inverse)
    seen, pull, out = design @ root, gradient @ root, np.empty((len(gradient), root.shape[1]))
    for rows in _by_size(codes):
        stacked = seen[rows].reshape(len(rows), rows.shape[1] * seen.shape[1], root.shape[1])  # (c, m d, k)
        bent = (curvature[rows] @ seen[rows]).reshape(stacked.shape)
        values, vectors = np.linalg.eigh(np.eye(root.shape[1]) - np.swapaxes(stacked, 1, 2) @ bent)
        gain = np.maximum(values, least)[:, None, :] ** -power
        out[rows] = pull[rows] @ ((vectors * gain) @ np.swapaxes(vectors, 1, 2))
    return np.asarray(out @ root.T, dtype=np.float64)


def _by_size(codes: IntArray) -> Iterator[IntArray]:
    """Rows of the clusters, (c, m), for clusters with the same number m of rows together, not too many at once."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(codes[order]) != 0))
    sizes = np.diff(np.append(starts, len(codes)))
    for m in np.unique(sizes):
        first = starts[sizes == m]
        for some in np.array_split(first, -(-len(first) * m // _ROWS)):
            yield order[some[:, None] + np.arange(m)]


def _root(matrix: Array) -> Array:
    """A matrix R with ``R R'`` the given positive semi-definite one, without the columns that are zero."""
    size = np.sqrt(np.diag(matrix))
    scale = np.where(size > 0.0, size, 1.0)
    values, vectors = np.linalg.eigh(matrix / np.outer(scale, scale))
    kept = values > np.finfo(float).eps
    return np.asarray(scale[:, None] * vectors[:, kept] * np.sqrt(values[kept]), dtype=np.float64)


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
