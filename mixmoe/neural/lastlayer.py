"""Exact marginal likelihood of a network whose last layer is a linear mixed model.

Given the features H of the last hidden layer, ``y_i = H_i beta + Z_i b_i + e_i`` with Z some columns of H and
``b_i ~ N(0, sigma^2 L L')``. With ``W = I + L'Z'ZL`` everything is in terms of cross-products per person; beta and
sigma are profiled out.

References
----------
Bates, Maechler, Bolker & Walker (2015), Journal of Statistical Software 67(1), equations 30-42 (maximum likelihood).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.neural._torch import Tensor, torch
from mixmoe.neural.network import TensorSpec


@dataclass(frozen=True, slots=True)
class Moments:
    """Cross-products of features and response.

    Attributes
    ----------
    ZZ : Tensor, shape (N, q, q)
    ZX : Tensor, shape (N, q, p)
    Zy : Tensor, shape (N, q)
    XX : Tensor, shape (p, p)
    Xy : Tensor, shape (p,)
    yy : Tensor, shape ()
    n : int
    """

    ZZ: Tensor
    ZX: Tensor
    Zy: Tensor
    XX: Tensor
    Xy: Tensor
    yy: Tensor
    n: int


@dataclass(frozen=True, slots=True)
class Profile:
    """Likelihood profiled over beta and sigma.

    Attributes
    ----------
    deviance : Tensor, shape ()
        Minus twice the marginal log-likelihood.
    beta : Tensor, shape (p,)
    sigma2 : Tensor, shape ()
    root : Tensor, shape (N, r, r)
        Lower Cholesky factor of W.
    information : Tensor, shape (p, p)
        ``sigma^2 X'V^-1 X``.
    """

    deviance: Tensor
    beta: Tensor
    sigma2: Tensor
    root: Tensor
    information: Tensor


def cross_products(features: Tensor, y: Tensor, mask: Tensor, columns: Tensor) -> Moments:
    """Moments of one block.

    Parameters
    ----------
    features : Tensor, shape (B, T, p)
        With a column of ones for the bias.
    y, mask : Tensor, shape (B, T)
    columns : Tensor of int, shape (q,)
        Columns of the features that are personal.
    """
    X = features * mask.unsqueeze(-1)
    Z = X[:, :, columns]
    flat = X.reshape(-1, X.shape[-1])
    XZ = X.transpose(1, 2) @ Z
    response = (y * mask).unsqueeze(-1)
    return Moments(
        XZ[:, columns],
        XZ.transpose(1, 2),
        (Z.transpose(1, 2) @ response).squeeze(-1),
        flat.T @ flat,
        flat.T @ response.reshape(-1),
        response.square().sum(),
        int(mask.sum()),
    )


def join(parts: list[Moments]) -> Moments:
    """Moments of several blocks, persons one after the other."""
    return Moments(
        torch.cat([m.ZZ for m in parts]),
        torch.cat([m.ZX for m in parts]),
        torch.cat([m.Zy for m in parts]),
        torch.stack([m.XX for m in parts]).sum(0),
        torch.stack([m.Xy for m in parts]).sum(0),
        torch.stack([m.yy for m in parts]).sum(),
        sum(m.n for m in parts),
    )


def factor_of(ZZ: Tensor, L: Tensor) -> Tensor:
    """Lower Cholesky factor of ``I + L'Z'ZL``, shape (N, r, r)."""
    W = L.T @ ZZ @ L
    return torch.linalg.cholesky(W + torch.eye(L.shape[1], dtype=L.dtype, device=L.device))


def jittered(information: Tensor) -> Tensor:
    """A cross-product matrix that can be factored although features may be collinear."""
    size = information.diagonal().mean().clamp_min(1e-12)
    return information + 1e-10 * size * torch.eye(len(information), dtype=information.dtype, device=information.device)


def profile(m: Moments, L: Tensor, log_sigma: Tensor | None = None) -> Profile:
    """Marginal likelihood at L, the best beta put in, and the best sigma unless it is given.

    Parameters
    ----------
    m : Moments
    L : Tensor, shape (q, r)
        ``Cov(b_i) = sigma^2 L L'``.
    log_sigma : Tensor, shape (), optional
    """
    root = factor_of(m.ZZ, L)
    right = torch.cat([m.ZX, m.Zy.unsqueeze(-1)], dim=-1)
    U = torch.linalg.solve_triangular(root, L.T @ right, upper=False)  # (N, r, p + 1)
    Ux, uy = U[..., :-1].reshape(-1, m.ZX.shape[-1]), U[..., -1].reshape(-1)
    information = m.XX - Ux.T @ Ux
    chol = torch.linalg.cholesky(jittered(information))
    moment = m.Xy - Ux.T @ uy
    beta = torch.cholesky_solve(moment.unsqueeze(-1), chol).squeeze(-1)
    rss = m.yy - uy.square().sum() - (2.0 * moment - information @ beta) @ beta
    logdet = 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum()
    sigma2 = rss / m.n if log_sigma is None else (2.0 * log_sigma).exp()
    deviance = m.n * (math.log(2.0 * math.pi) + sigma2.log()) + logdet + rss / sigma2
    return Profile(deviance, beta, sigma2, root, information)


def person_effects(m: Moments, L: Tensor, fit: Profile) -> Tensor:
    """Posterior means of ``L^-1 b_i``, shape (N, r)."""
    residual = m.Zy - m.ZX @ fit.beta
    return torch.cholesky_solve((residual @ L).unsqueeze(-1), fit.root).squeeze(-1)


def factor_from(entries: Tensor, q: int, cov: str | int, group: Tensor) -> Tensor:
    """Factor L from its free entries.

    Parameters
    ----------
    entries : Tensor, shape (k,)
        Lower triangle by rows (``"full"``), its first r columns (rank r), or the diagonal.
    q : int
    cov : str or int
    group : Tensor of int, shape (q,)
        Entry of the diagonal that each effect has (``"diagonal"``, ``"tensor"``).
    """
    if cov in ("diagonal", "tensor"):
        return torch.diag(entries[group])
    r = q if cov == "full" else int(cov)
    rows, columns = torch.tril_indices(q, r, device=entries.device)
    return torch.zeros(q, r, dtype=entries.dtype, device=entries.device).index_put((rows, columns), entries)


def start_entries(q: int, cov: str | int, n_groups: int, size: float = 0.7) -> NDArray[np.float64]:
    """Start of the free entries: a diagonal factor."""
    if cov in ("diagonal", "tensor"):
        return np.full(n_groups, size)
    rows, columns = np.tril_indices(q, 0, q if cov == "full" else int(cov))
    return np.where(rows == columns, size, 0.0)


def feature_columns(tensors: tuple[TensorSpec, ...], width: int) -> list[int]:
    """Columns of (features, 1) that the given tensors of the last layer multiply."""
    columns: list[int] = []
    for spec in tensors:
        columns += list(range(width)) if spec.name.endswith(".weight") else [width]
    return columns
