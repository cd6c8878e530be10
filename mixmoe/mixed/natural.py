"""The reported parameters: coefficients, standard deviations, correlations, with their names."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.design import DesignNames
from mixmoe.kernels.linalg import semidefinite_cholesky
from mixmoe.layout import Parameter, ParamLayout
from mixmoe.mixed.extras import by_expert, flatten, free_extras, natural_extras, outside
from mixmoe.mixed.ordinal import Thresholds
from mixmoe.mixed.structure import Params, Structure

Array = NDArray[np.float64]

_COMPLEX_STEP = 1e-30
_CORRELATED = 1e-14  # 1 - r^2 below this is a correlation of one; above it, one at an origin far from the data
_NO_WIDTH = 1e-12  # two thresholds as close as this leave no room for the category between them


def build_layout(s: Structure, names: DesignNames) -> ParamLayout:
    """Names in the order of `to_natural`: experts, common, gate, random effects, residuals, further parameters."""
    further = [parameter for extra in s.extras for parameter in extra.parameters(s.n_experts)]
    if s.thresholds is not None:
        further = s.thresholds.parameters(s.n_experts)
    return ParamLayout((*_coefficients(s, names), *_random(s, names), *_residual(s), *further))


def _coefficients(s: Structure, names: DesignNames) -> list[Parameter]:
    columns = np.array(names.expert, dtype=object)
    own, shared = columns[s.own].tolist(), columns[s.shared].tolist()
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
        Of an intercept behind thresholds: of the first threshold, which is minus it.
    gate : ndarray of int, shape (K - 1, m)
    """

    beta: NDArray[np.intp]
    gate: NDArray[np.intp]


def positions(s: Structure) -> Positions:
    """Positions of the coefficients in the vector of `to_natural`."""
    n_own, n_shared = int(s.own.sum()), int(s.shared.sum())
    beta = np.empty((s.n_experts, s.n_columns), dtype=np.intp)
    beta[:, s.own] = np.arange(s.n_experts * n_own).reshape(s.n_experts, n_own)
    beta[:, s.shared] = s.n_experts * n_own + np.arange(n_shared)
    at = n_coefficients(s)
    gate = np.arange(at - (s.n_experts - 1) * s.n_gate, at).reshape(s.n_experts - 1, s.n_gate)
    if s.thresholds is not None:
        beta[:, s.thresholds.column] = at + _n_random(s) + s.thresholds.first(s.n_experts)
    return Positions(beta, gate)


def n_coefficients(s: Structure) -> int:
    """Coefficients of experts and gate that are reported."""
    return s.n_experts * int(s.own.sum()) + int(s.shared.sum()) + (s.n_experts - 1) * s.n_gate


def _n_random(s: Structure) -> int:
    """Parameters of the random effects that are reported."""
    n_omega = s.n_experts - 1 if s.cov_re == "proportional" and s.n_random else 0
    return n_covariances(s) * (s.n_random + len(_pairs(s))) + n_omega


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
        params.beta[:, :, s.own].reshape(S, -1),
        params.beta[:, 0, s.shared],
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
    if s.thresholds is None:
        pieces.append(natural_extras(s.extras, params.extra))
    else:
        pieces.append(s.thresholds.reported(_cuts(s.thresholds, params)))
    return np.concatenate(pieces, axis=1)


def _cuts(thresholds: Thresholds, params: Params) -> Array:
    """Thresholds of every expert where random effects and other covariates are zero, shape (S, K, C - 1)."""
    steps = np.exp(params.extra)
    first = -params.beta[:, :, thresholds.column, None]
    return np.cumsum(np.concatenate([first, steps], axis=2), axis=2)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The reported vector cut into its parts.

    Attributes
    ----------
    own : ndarray, shape (K, p_own)
    shared : ndarray, shape (p_common,)
        Both without an intercept behind thresholds.
    gamma : ndarray, shape (K - 1, m)
    random : ndarray, shape (n_covariances, q + number of correlations)
        Standard deviations, then correlations.
    omega : ndarray, shape (K,) or (0,)
        Multipliers of proportional covariances, the first one 1.
    sigma : ndarray, shape (K,), (1,) or (0,)
    extra : ndarray, shape (D,)
        Further parameters, in the order of the layout; thresholds.
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
    n_own, n_shared = int(s.own.sum()), int(s.shared.sum())
    width = q + len(_pairs(s))
    n_omega = _n_random(s) - n_covariances(s) * width
    sizes = [K * n_own, n_shared, (K - 1) * s.n_gate, n_covariances(s) * width, n_omega, n_sigmas(s)]
    own, shared, gamma, random, omega, sigma, extra = np.split(vector, np.cumsum(sizes))
    full = np.concatenate([np.ones(1), omega]) if n_omega else omega
    random = random.reshape(n_covariances(s), width)
    return Pieces(own.reshape(K, n_own), shared, gamma.reshape(K - 1, s.n_gate), random, full, sigma, extra)


def outside_space(s: Structure, vector: Array) -> str | None:
    """What is wrong with the further parameters of a reported vector, shape (P,), if anything is."""
    values = split_natural(s, vector).extra
    if s.thresholds is not None:
        return s.thresholds.wrong(values, s.n_experts)
    return outside(s.extras, values, s.n_experts)


def from_natural(s: Structure, vector: Array) -> Params:
    """Full parameters on the user's scale, S = 1, from reported ones, shape (P,)."""
    K, q = s.n_experts, s.n_random
    pieces = split_natural(s, vector)
    beta = np.empty((1, K, s.n_columns))
    beta[0][:, s.own] = pieces.own
    beta[0][:, s.shared] = pieces.shared
    factor = np.zeros((1, K, q, q))
    for k, block in enumerate(pieces.random):
        factor[0, k if s.cov_re == "expert" else slice(None)] = _factor(s, block)
    if pieces.omega.size:
        factor[0] *= pieces.omega[:, None, None]
    sigma = np.broadcast_to(pieces.sigma if s.has_sigma else np.ones(1), (1, K)).copy()
    if s.thresholds is None:
        extra = free_extras(s.extras, pieces.extra, K)
    else:
        cuts = s.thresholds.by_expert(pieces.extra, K)
        beta[0][:, s.thresholds.column] = -cuts[:, 0]
        extra = np.log(np.maximum(np.diff(cuts, axis=1), _NO_WIDTH))
    return Params(pieces.gamma[None], beta, factor, sigma, extra[None])


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
    if s.thresholds is None:
        extra = flatten(s.extras, by_expert(s.extras, old.extra, s.n_experts)[order])
    else:
        extra = s.thresholds.reported(s.thresholds.by_expert(old.extra, s.n_experts)[None, order])[0]
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
    return sd[:, None] * semidefinite_cholesky(R, tol=_CORRELATED)
