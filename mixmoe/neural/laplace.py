"""Posterior of person effects by the linearised Laplace approximation: kernels on padded batches.

For a person with outputs linearised in her effects, ``A = R'J`` (J the Jacobian, R R' the curvature of the loss)
and prior
covariance ``S = diag(s)``: posterior covariance ``C = S - S A'(I + A S A')^-1 A S`` and ``M = A'(I + A S A')^-1 A``.
At the maximum of the marginal likelihood ``sum_i eta_ik^2 / s_k^2 = sum_i M_ikk`` for every variance s_k.

References
----------
Lindstrom & Bates (1990), Biometrics 46, 673-687; MacKay (1992), Neural Computation 4, 415-447.
"""

from dataclasses import dataclass

from mixmoe.neural._torch import Tensor, torch


@dataclass(frozen=True, slots=True)
class Shrinkage:
    """What a variance update needs of each person of a block.

    Attributes
    ----------
    information : Tensor, shape (B, q)
        Diagonal of M: information of a person's rows about each effect, the other effects integrated out.
    logdet : Tensor, shape (B,)
        ``log |I + A S A'|``.
    """

    information: Tensor
    logdet: Tensor


def root_of(A: Tensor, s: Tensor) -> Tensor:
    """Lower Cholesky factor of ``I + A S A'``, shape (B, m, m)."""
    K = (A * s) @ A.transpose(-1, -2)
    K.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return torch.linalg.cholesky(K)


def shrinkage(A: Tensor, s: Tensor) -> Shrinkage:
    """Diagonal of M and the log-determinant, by whichever of m x m and q x q is smaller.

    Parameters
    ----------
    A : Tensor, shape (B, m, q)
        Rows that are padding must be zero.
    s : Tensor, shape (q,)
        Prior variances.
    """
    if A.shape[-2] > A.shape[-1]:
        return shrinkage_from_information(A.transpose(-1, -2) @ A, s)
    L = root_of(A, s)
    U = torch.linalg.solve_triangular(L, A, upper=False)
    logdet = 2.0 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return Shrinkage(U.square().sum(-2), logdet)


def shrinkage_from_information(H: Tensor, s: Tensor) -> Shrinkage:
    """The same from ``H = A'A``, shape (B, q, q)."""
    root = s.sqrt()
    K = H * root * root.unsqueeze(-1)
    K.diagonal(dim1=-2, dim2=-1).add_(1.0)
    L = torch.linalg.cholesky(K)
    U = torch.linalg.solve_triangular(L, root.unsqueeze(-1) * H, upper=False)
    information = H.diagonal(dim1=-2, dim2=-1) - U.square().sum(-2)
    return Shrinkage(information.clamp_min(0.0), 2.0 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1))


def posterior_covariance(H: Tensor, s: Tensor) -> Tensor:
    """``C = S^1/2 (I + S^1/2 H S^1/2)^-1 S^1/2``, shape (B, q, q); zero rows where s is zero."""
    root = s.sqrt()
    K = H * root * root.unsqueeze(-1)
    K.diagonal(dim1=-2, dim2=-1).add_(1.0)
    L = torch.linalg.cholesky(K)
    half = torch.linalg.solve_triangular(L, torch.diag_embed(root).expand_as(H), upper=False)
    return half.transpose(-1, -2) @ half


def marginal_information(H: Tensor, s: Tensor) -> Tensor:
    """``M = H - H S^1/2 (I + S^1/2 H S^1/2)^-1 S^1/2 H``, shape (B, q, q)."""
    root = s.sqrt()
    K = H * root * root.unsqueeze(-1)
    K.diagonal(dim1=-2, dim2=-1).add_(1.0)
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(K), root.unsqueeze(-1) * H, upper=False)
    return H - half.transpose(-1, -2) @ half


def posterior_mode(A: Tensor, working: Tensor, s: Tensor) -> Tensor:
    """Mode of the effects under the linearised model: ``S A'(I + A S A')^-1 w``, by the smaller of m x m and q x q.

    Parameters
    ----------
    A : Tensor, shape (B, m, q)
    working : Tensor, shape (B, m)
        Working residual: whitened residual plus ``A eta`` at the current effects.
    s : Tensor, shape (q,)

    Returns
    -------
    Tensor, shape (B, q)
    """
    if A.shape[-2] > A.shape[-1]:
        weighted = A.transpose(-1, -2) @ working.unsqueeze(-1)
        return (posterior_covariance(A.transpose(-1, -2) @ A, s) @ weighted).squeeze(-1)
    solved = torch.cholesky_solve(working.unsqueeze(-1), root_of(A, s))
    return s * (A.transpose(-1, -2) @ solved).squeeze(-1)


def pool(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Sums of the columns of each group, shape (n_groups,)."""
    return torch.zeros(n_groups, dtype=values.dtype, device=values.device).index_add_(0, group, values)


def update_variances(s: Tensor, squares: Tensor, information: Tensor, group: Tensor | None = None) -> Tensor:
    """MacKay's fixed-point step ``s_k <- sum_i eta_ik^2 / sum_i (1 - C_ikk / s_k)``.

    Parameters
    ----------
    s : Tensor, shape (q,)
    squares : Tensor, shape (q,)
        ``sum_i eta_ik^2``.
    information : Tensor, shape (q,)
        ``sum_i M_ikk``; note ``1 - C_kk / s_k = s_k M_kk``.
    group : Tensor of int, shape (q,), optional
        Columns that share a variance.
    """
    effective = s * information
    if group is not None:
        n_groups = int(group.max()) + 1
        squares, effective = pool(squares, group, n_groups)[group], pool(effective, group, n_groups)[group]
    return squares / effective.clamp_min(1e-12)


def variance_information(M: Tensor, group: Tensor) -> Tensor:
    """Expected information of the variances, pooled over the columns that share one.

    Parameters
    ----------
    M : Tensor, shape (B, q, q)
    group : Tensor of int, shape (q,)

    Returns
    -------
    Tensor, shape (G, G)
        ``1/2 sum_i tr(V^-1 dV/ds_k V^-1 dV/ds_l) = 1/2 sum_i M_ikl^2``.
    """
    total = 0.5 * M.square().sum(0)
    member = torch.nn.functional.one_hot(group).to(M.dtype)
    return member.T @ total @ member
