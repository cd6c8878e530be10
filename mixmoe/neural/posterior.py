"""The posterior of person effects by the linearised Laplace approximation.

For a person with outputs linearised in her effects, ``A = R'J`` (J the Jacobian, R R' the curvature of the loss) and
prior covariance ``S = diag(s)``: posterior covariance ``C = S - S A'(I + A S A')^-1 A S`` and
``M = A'(I + A S A')^-1 A``.
At the maximum of the marginal likelihood ``sum_i eta_ik^2 / s_k^2 = sum_i M_ikk`` for every variance s_k.

References
----------
Lindstrom & Bates (1990), Biometrics 46, 673-687; MacKay (1992), Neural Computation 4, 415-447.
"""

from dataclasses import dataclass

from mixmoe.neural.blocks import Tensor, torch


@dataclass(frozen=True, slots=True)
class Shrinkage:
    """What a variance update needs of each person of a block.

    Attributes
    ----------
    information : Tensor, shape (B, q)
        Diagonal of M: information of a person's rows about each effect, the other effects integrated out.
    logdet : Tensor, shape (B,)
        ``log |I + A S A'|``.
    mode : Tensor, shape (B, q), or None
        Mode of the effects under the linearised model, ``S A'(I + A S A')^-1 w``, where there is a working residual w.
    """

    information: Tensor
    logdet: Tensor
    mode: Tensor | None = None


def root_of(A: Tensor, s: Tensor) -> Tensor:
    """Lower Cholesky factor of ``I + A S A'``, shape (B, m, m)."""
    K = (A * s) @ A.transpose(-1, -2)
    K.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return torch.linalg.cholesky(K)


def shrinkage(A: Tensor, s: Tensor, working: Tensor | None = None) -> Shrinkage:
    """Diagonal of M, the log-determinant and the mode, by whichever of m x m and q x q is smaller.

    Parameters
    ----------
    A : Tensor, shape (B, m, q)
        Rows that are padding must be zero.
    s : Tensor, shape (q,)
        Prior variances.
    working : Tensor, shape (B, m), optional
        Working residual: whitened residual plus ``A eta`` at the current effects.
    """
    # Woodbury: the same numbers from m x m or q x q; with few rows per person the first is much smaller.
    if A.shape[-2] > A.shape[-1]:
        At = A.transpose(-1, -2)
        return shrinkage_from_information(At @ A, s, None if working is None else At @ working.unsqueeze(-1))
    L = root_of(A, s)
    U = torch.linalg.solve_triangular(L, A, upper=False)
    logdet = 2.0 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    if working is None:
        return Shrinkage(U.square().sum(-2), logdet)
    white = torch.linalg.solve_triangular(L, working.unsqueeze(-1), upper=False)
    return Shrinkage(U.square().sum(-2), logdet, s * (U.transpose(-1, -2) @ white).squeeze(-1))


def scaled_root(H: Tensor, s: Tensor) -> Tensor:
    """Lower Cholesky factor of ``I + S^1/2 H S^1/2``, shape (B, q, q)."""
    # With S^1/2 on both sides variances of zero are allowed: nothing is divided by them.
    root = s.sqrt()
    K = H * root * root.unsqueeze(-1)
    K.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return torch.linalg.cholesky(K)


def shrinkage_from_information(H: Tensor, s: Tensor, moment: Tensor | None = None) -> Shrinkage:
    """Shrinkage of persons from ``H = A'A``, shape (B, q, q), and ``A'w``, shape (B, q, 1)."""
    root, L = s.sqrt(), scaled_root(H, s)
    U = torch.linalg.solve_triangular(L, root.unsqueeze(-1) * H, upper=False)
    # At least zero: of an effect that the rows say nothing about rounding alone is left.
    information = (H.diagonal(dim1=-2, dim2=-1) - U.square().sum(-2)).clamp_min(0.0)
    logdet = 2.0 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    if moment is None:
        return Shrinkage(information, logdet)
    solved = torch.cholesky_solve(root.unsqueeze(-1) * moment, L)
    return Shrinkage(information, logdet, root * solved.squeeze(-1))


def posterior_covariance(H: Tensor, s: Tensor) -> Tensor:
    """``C = S^1/2 (I + S^1/2 H S^1/2)^-1 S^1/2``, shape (B, q, q); zero rows where s is zero."""
    half = torch.linalg.solve_triangular(scaled_root(H, s), torch.diag_embed(s.sqrt()).expand_as(H), upper=False)
    return half.transpose(-1, -2) @ half


def marginal_information(H: Tensor, s: Tensor) -> Tensor:
    """``M = H - H S^1/2 (I + S^1/2 H S^1/2)^-1 S^1/2 H``, shape (B, q, q)."""
    half = torch.linalg.solve_triangular(scaled_root(H, s), s.sqrt().unsqueeze(-1) * H, upper=False)
    return H - half.transpose(-1, -2) @ half


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
    # Columns that share a variance pool both sides of the ratio, not the ratios.
    if group is not None:
        n_groups = int(group.max()) + 1
        squares, effective = pool(squares, group, n_groups)[group], pool(effective, group, n_groups)[group]
    # No gradient step: the fixed point is reached in a few updates, and stays positive by itself.
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
