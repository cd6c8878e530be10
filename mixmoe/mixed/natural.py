"""The reported parameters: coefficients, standard deviations, correlations, with their names."""

import numpy as np
from numpy.typing import NDArray

from mixmoe.design import DesignNames
from mixmoe.kernels.linalg import semidefinite_cholesky
from mixmoe.layout import Parameter, ParamLayout
from mixmoe.mixed.structure import Params, Structure

Array = NDArray[np.float64]


def build_layout(s: Structure, names: DesignNames) -> ParamLayout:
    """Names in the order of `to_natural`: experts, common, gate, random effects, residuals."""
    parameters = [*_coefficients(s, names), *_random(s, names), *_residual(s)]
    return ParamLayout(tuple(parameters))


def _coefficients(s: Structure, names: DesignNames) -> list[Parameter]:
    own = [name for name, common in zip(names.expert, s.common, strict=True) if not common]
    shared = [name for name, common in zip(names.expert, s.common, strict=True) if common]
    experts = range(1, s.n_experts + 1)
    return [
        *(Parameter(f"expert{k}.{name}", "expert", name, k) for k in experts for name in own),
        *(Parameter(f"common.{name}", "common", name) for name in shared),
        *(Parameter(f"gate{k}.{name}", "gate", name, k) for k in experts[1:] for name in names.gate),
    ]


def _random(s: Structure, names: DesignNames) -> list[Parameter]:
    if not s.n_random:
        return []
    out: list[Parameter] = []
    for k in range(1, s.n_experts + 1) if s.cov_re == "expert" else [None]:
        mark = "" if k is None else str(k)
        out += [
            Parameter(f"sd{mark}({name}|{names.group})", "random", f"sd({name})", k, tested=False)
            for name in names.random
        ]
        out += [
            Parameter(
                f"corr{mark}({names.random[i]},{names.random[j]}|{names.group})",
                "random",
                f"corr({names.random[i]},{names.random[j]})",
                k,
            )
            for j, i in _pairs(s)
        ]
    if s.cov_re == "proportional":
        out += [
            Parameter(f"omega{k}", "random", f"omega{k} (times the standard deviations of expert 1)", None, tested=False)
            for k in range(2, s.n_experts + 1)
        ]
    return out


def _residual(s: Structure) -> list[Parameter]:
    if s.residual == "common":
        return [Parameter("sigma", "residual", "sigma", None, tested=False)]
    return [Parameter(f"sigma{k}", "residual", f"sigma{k}", k, tested=False) for k in range(1, s.n_experts + 1)]


def _pairs(s: Structure) -> list[tuple[int, int]]:
    """(row, column) of the correlations."""
    if not s.correlated:
        return []
    return [(i, j) for j in range(s.n_random) for i in range(j + 1, s.n_random)]


def n_covariances(s: Structure) -> int:
    """Distinct covariance matrices that are reported."""
    if not s.n_random:
        return 0
    return s.n_experts if s.cov_re == "expert" else 1


def to_natural(s: Structure, params: Params) -> Array:
    """Reported parameters, shape (S, P), from full parameters on the user's scale; passes complex steps through."""
    S = params.beta.shape[0]
    pieces = [
        params.beta[:, :, ~s.common].reshape(S, -1),
        params.beta[:, 0, s.common],
        params.gamma.reshape(S, -1),
    ]
    D = params.factor @ np.swapaxes(params.factor, 2, 3)
    for k in range(n_covariances(s)):
        sd = np.sqrt(np.einsum("saa->sa", D[:, k]))
        pieces.append(sd)
        with np.errstate(divide="ignore", invalid="ignore"):
            pieces += [(D[:, k, i, j] / (sd[:, i] * sd[:, j]))[:, None] for i, j in _pairs(s)]
    if s.cov_re == "proportional" and s.n_random:
        total = np.einsum("skaa->sk", D)
        with np.errstate(divide="ignore", invalid="ignore"):
            pieces.append(np.sqrt(total[:, 1:] / total[:, :1]))
    pieces.append(params.sigma if s.residual == "expert" else params.sigma[:, :1])
    return np.concatenate(pieces, axis=1)


def from_natural(s: Structure, vector: Array) -> Params:
    """Full parameters on the user's scale, S = 1, from reported ones, shape (P,)."""
    K, p, m, q = s.n_experts, s.n_columns, s.n_gate, s.n_random
    n_own, n_pairs = int((~s.common).sum()), len(_pairs(s))
    sizes = [K * n_own, p - n_own, (K - 1) * m, n_covariances(s) * (q + n_pairs)]
    sizes.append(K - 1 if s.cov_re == "proportional" and q else 0)
    own, shared, gate, random, omega, sigma = np.split(vector, np.cumsum(sizes))
    beta = np.empty((1, K, p))
    beta[0][:, ~s.common] = own.reshape(K, n_own)
    beta[0][:, s.common] = shared
    factor = np.zeros((1, K, q, q))
    for k, block in enumerate(random.reshape(n_covariances(s), -1)):
        factor[0, k if s.cov_re == "expert" else slice(None)] = _factor(s, block)
    if omega.size:
        factor[0, 1:] *= omega[:, None, None]
    return Params(gate.reshape(1, K - 1, m), beta, factor, np.broadcast_to(sigma, (1, K)).copy())


def _factor(s: Structure, block: Array) -> Array:
    sd, correlations = block[: s.n_random], np.nan_to_num(block[s.n_random :])
    R = np.eye(s.n_random)
    for value, (i, j) in zip(correlations, _pairs(s), strict=True):
        R[i, j] = R[j, i] = value
    return semidefinite_cholesky(R * np.outer(sd, sd))
