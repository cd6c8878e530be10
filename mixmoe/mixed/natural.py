"""The reported parameters: coefficients, standard deviations, correlations, with their names."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.design import DesignNames
from mixmoe.kernels.linalg import semidefinite_cholesky
from mixmoe.layout import Parameter, ParamLayout
from mixmoe.mixed.extras import by_expert, flatten, free_extras, natural_extras
from mixmoe.mixed.structure import Params, Structure

Array = NDArray[np.float64]

_COMPLEX_STEP = 1e-30


def build_layout(s: Structure, names: DesignNames) -> ParamLayout:
    """Names in the order of `to_natural`: experts, common, gate, random effects, residuals, further parameters."""
    further = [parameter for extra in s.extras for parameter in extra.parameters(s.n_experts)]
    return ParamLayout((*_coefficients(s, names), *_random(s, names), *_residual(s), *further))


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
            Parameter(f"omega{k}", "random", f"omega{k} (ratio of sd to expert 1)", None, tested=False)
            for k in range(2, s.n_experts + 1)
        ]
    return out


def _residual(s: Structure) -> list[Parameter]:
    if not s.has_sigma:
        return []
    if s.residual == "common":
        return [Parameter("sigma", "residual", "sigma", None, tested=False)]
    return [Parameter(f"sigma{k}", "residual", "sigma", k, tested=False) for k in range(1, s.n_experts + 1)]


def _pairs(s: Structure) -> list[tuple[int, int]]:
    """(row, column) of the correlations."""
    if not s.correlated:
        return []
    return [(i, j) for j in range(s.n_random) for i in range(j + 1, s.n_random)]


@dataclass(frozen=True, slots=True)
class Positions:
    """Where coefficients lie among the reported parameters.

    Attributes
    ----------
    beta : ndarray of int, shape (K, p)
    gate : ndarray of int, shape (K - 1, m)
    """

    beta: NDArray[np.intp]
    gate: NDArray[np.intp]


def positions(s: Structure) -> Positions:
    """Positions of the coefficients in the vector of `to_natural`."""
    n_own, n_shared = int((~s.common).sum()), int(s.common.sum())
    beta = np.empty((s.n_experts, s.n_columns), dtype=np.intp)
    beta[:, ~s.common] = np.arange(s.n_experts * n_own).reshape(s.n_experts, n_own)
    beta[:, s.common] = s.n_experts * n_own + np.arange(n_shared)
    first = s.n_experts * n_own + n_shared
    gate = first + np.arange((s.n_experts - 1) * s.n_gate).reshape(s.n_experts - 1, s.n_gate)
    return Positions(beta, gate)


def n_covariances(s: Structure) -> int:
    """Distinct covariance matrices that are reported."""
    if not s.n_random:
        return 0
    return s.n_experts if s.cov_re == "expert" else 1


def n_sigmas(s: Structure) -> int:
    """Residual standard deviations that are reported."""
    return {"expert": s.n_experts, "common": 1, "none": 0}[s.residual]


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
    pieces.append(params.sigma[:, : n_sigmas(s)])
    pieces.append(natural_extras(s.extras, params.extra))
    return np.concatenate(pieces, axis=1)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The reported vector cut into its parts.

    Attributes
    ----------
    own : ndarray, shape (K, p_own)
    shared : ndarray, shape (p_common,)
    gamma : ndarray, shape (K - 1, m)
    random : ndarray, shape (n_covariances, q + number of correlations)
        Standard deviations, then correlations.
    omega : ndarray, shape (K,) or (0,)
        Multipliers of proportional covariances, the first one 1.
    sigma : ndarray, shape (K,), (1,) or (0,)
    extra : ndarray, shape (D,)
        Further parameters, in the order of the layout.
    """

    own: Array
    shared: Array
    gamma: Array
    random: Array
    omega: Array
    sigma: Array
    extra: Array


def split_natural(s: Structure, vector: Array) -> Pieces:
    """Parts of a reported vector, shape (P,)."""
    K, q = s.n_experts, s.n_random
    n_own = int((~s.common).sum())
    width = q + len(_pairs(s))
    n_omega = K - 1 if s.cov_re == "proportional" and q else 0
    sizes = [K * n_own, s.n_columns - n_own, (K - 1) * s.n_gate, n_covariances(s) * width, n_omega, n_sigmas(s)]
    own, shared, gamma, random, omega, sigma, extra = np.split(vector, np.cumsum(sizes))
    full = np.concatenate([np.ones(1), omega]) if n_omega else omega
    random = random.reshape(n_covariances(s), width)
    return Pieces(own.reshape(K, n_own), shared, gamma.reshape(K - 1, s.n_gate), random, full, sigma, extra)


def from_natural(s: Structure, vector: Array) -> Params:
    """Full parameters on the user's scale, S = 1, from reported ones, shape (P,)."""
    K, q = s.n_experts, s.n_random
    pieces = split_natural(s, vector)
    beta = np.empty((1, K, s.n_columns))
    beta[0][:, ~s.common] = pieces.own
    beta[0][:, s.common] = pieces.shared
    factor = np.zeros((1, K, q, q))
    for k, block in enumerate(pieces.random):
        factor[0, k if s.cov_re == "expert" else slice(None)] = _factor(s, block)
    if pieces.omega.size:
        factor[0] *= pieces.omega[:, None, None]
    sigma = np.broadcast_to(pieces.sigma if s.has_sigma else np.ones(1), (1, K)).copy()
    return Params(pieces.gamma[None], beta, factor, sigma, free_extras(s.extras, pieces.extra, K)[None])


def permute_natural(s: Structure, vector: Array, order: list[int]) -> Array:
    """The reported vector, shape (P,), with the old expert ``order[k]`` as the new expert k; complex-safe."""
    old = split_natural(s, vector)
    full = np.vstack([np.zeros((1, s.n_gate)), old.gamma])[order]
    random, omega = old.random, old.omega
    if s.cov_re == "expert":
        random = old.random[order] if len(random) else random
    elif omega.size:
        random = random.copy()
        random[:, : s.n_random] *= omega[order[0]]
        omega = omega[order] / omega[order[0]]
    sigma = old.sigma[order] if s.residual == "expert" else old.sigma
    extra = flatten(s.extras, by_expert(s.extras, old.extra, s.n_experts)[order])
    parts = (old.own[order], old.shared, full[1:] - full[0], random, omega[1:], sigma, extra)
    return np.concatenate([part.ravel() for part in parts])


def permute_jacobian(s: Structure, vector: Array, order: list[int]) -> Array:
    """Derivatives of `permute_natural`, shape (P, P), exact by complex steps."""
    here = np.nan_to_num(vector)
    moved = [permute_natural(s, here + 1j * h, order).imag for h in _COMPLEX_STEP * np.eye(vector.size)]
    return np.column_stack(moved) / _COMPLEX_STEP


def _factor(s: Structure, block: Array) -> Array:
    sd, correlations = block[: s.n_random], np.nan_to_num(block[s.n_random :])
    R = np.eye(s.n_random)
    for value, (i, j) in zip(correlations, _pairs(s), strict=True):
        R[i, j] = R[j, i] = value
    return semidefinite_cholesky(R * np.outer(sd, sd))
