"""The parameter vector of a MEMoE: which parameters experts share, how they are reported, their names."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.design import DesignNames
from mixmoe.mixed.further_parameters import (
    Extra,
    by_expert,
    flatten,
    free_extras,
    n_extra,
    natural_extras,
    outside,
    spans,
)
from mixmoe.mixed.thresholds import Thresholds
from mixmoe.mixture.estimate import Parameter, ParamLayout
from mixmoe.numerics.complex_step import jacobian
from mixmoe.numerics.linalg import semidefinite_cholesky

Index = NDArray[np.intp]
CovRE = Literal["expert", "common", "proportional"]
Residual = Literal["expert", "common"]
Sigma = Literal["expert", "common", "none"]


@dataclass(frozen=True, slots=True)
class Structure:
    """Sizes of a MEMoE and what its experts share.

    Attributes
    ----------
    n_experts : int
    n_gate : int
        Columns of the gate design, m.
    common : ndarray of bool, shape (p,)
        Expert columns with one coefficient for all experts.
    n_random : int
        Columns of the random-effects design, q.
    correlated : bool
        Full (True) or diagonal covariance of the random effects.
    cov_re : {"expert", "common", "proportional"}
        Own covariance D_k, one D, or D_k = omega_k^2 D with omega_1 = 1.
    residual : {"expert", "common", "none"}
        Own residual standard deviation, one for all, or none, where the likelihood has no such parameter.
    extras : tuple of Extra
        Further parameters.
    thresholds : Thresholds or None
        Of ordinal responses: how intercept and steps are reported.
    """

    n_experts: int
    n_gate: int
    common: NDArray[np.bool_]
    n_random: int
    correlated: bool
    cov_re: CovRE
    residual: Sigma
    extras: tuple[Extra, ...] = ()
    thresholds: Thresholds | None = None

    @property
    def n_columns(self) -> int:
        """Columns of the expert design, p."""
        return self.common.size

    @property
    def factor_entries(self) -> tuple[Index, Index]:
        """Rows and columns of the free entries of the covariance factor."""
        q = self.n_random
        return np.tril_indices(q) if self.correlated else (np.arange(q), np.arange(q))

    @property
    def own(self) -> NDArray[np.bool_]:
        """Expert columns that are reported with a coefficient per expert, shape (p,)."""
        return ~self.common & self._reported

    @property
    def shared(self) -> NDArray[np.bool_]:
        """Expert columns that are reported with one coefficient for all experts, shape (p,)."""
        return self.common & self._reported

    @property
    def _reported(self) -> NDArray[np.bool_]:
        """All but an intercept behind thresholds."""
        at = -1 if self.thresholds is None else self.thresholds.column
        return np.arange(self.n_columns) != at

    @property
    def has_sigma(self) -> bool:
        """Whether there is a residual standard deviation."""
        return self.residual != "none"


@dataclass(frozen=True, slots=True)
class FreeVector:
    """Where everything lies in the free vector.

    Attributes
    ----------
    size : int
    gate : slice
    beta : ndarray of int, shape (K, p)
    factor : ndarray of int, shape (K, t)
    scale : ndarray of int, shape (K,)
        Multiplier of the factor per expert; -1 where it is one.
    log_sigma : ndarray of int, shape (K,)
        Empty if there is no residual standard deviation.
    extra : ndarray of int, shape (K, d)
    """

    size: int
    gate: slice
    beta: Index
    factor: Index
    scale: Index
    log_sigma: Index
    extra: Index


def build_free_vector(s: Structure) -> FreeVector:
    """Positions of gate, common, expert, covariance, residual and further parameters, in this order."""
    K, p, t = s.n_experts, s.n_columns, len(s.factor_entries[0])
    at = (K - 1) * s.n_gate
    gate = slice(0, at)
    beta = np.empty((K, p), dtype=np.intp)
    n_common = int(s.common.sum())
    beta[:, s.common] = at + np.arange(n_common)
    at += n_common
    beta[:, ~s.common] = at + np.arange(K * (p - n_common)).reshape(K, -1)
    at += K * (p - n_common)
    own_factor = s.cov_re == "expert"
    factor = at + (np.arange(K * t).reshape(K, t) if own_factor else np.tile(np.arange(t), (K, 1)))
    at += K * t if own_factor else t
    scale = np.full(K, -1, dtype=np.intp)
    if s.cov_re == "proportional" and t:
        scale[1:] = at + np.arange(K - 1)
        at += K - 1
    n_sigma = {"expert": K, "common": 1, "none": 0}[s.residual]
    log_sigma = at + np.arange(K if s.has_sigma else 0, dtype=np.intp) % max(n_sigma, 1)
    extra = _extra_positions(s, at + n_sigma)
    end = int(extra.max(initial=at + n_sigma - 1)) + 1
    return FreeVector(end, gate, beta, factor, scale, log_sigma, extra)


def _extra_positions(s: Structure, at: int) -> Index:
    """Positions of the further parameters, shape (K, d), the first of them `at`."""
    out = np.empty((s.n_experts, n_extra(s.extras)), dtype=np.intp)
    for extra, where in spans(s.extras):
        n = s.n_experts if extra.own else 1
        out[:, where] = at + np.arange(n * extra.size).reshape(n, extra.size)
        at += n * extra.size
    return out


@dataclass(frozen=True, slots=True)
class Params:
    """Parameters of every expert of every start, in full.

    Attributes
    ----------
    gamma : ndarray, shape (S, K - 1, m)
    beta : ndarray, shape (S, K, p)
    factor : ndarray, shape (S, K, q, q)
        Lower T with D = T T'.
    sigma : ndarray, shape (S, K)
        One where there is no such parameter.
    extra : ndarray, shape (S, K, d)
        Further parameters, unconstrained.
    """

    gamma: Array
    beta: Array
    factor: Array
    sigma: Array
    extra: Array


def expand(s: Structure, free: FreeVector, theta: Array) -> Params:
    """Full parameters from free vectors, shape (S, P)."""
    S, q = theta.shape[0], s.n_random
    gamma = theta[:, free.gate].reshape(S, s.n_experts - 1, s.n_gate)
    factor = np.zeros((S, s.n_experts, q, q), dtype=theta.dtype)
    rows, columns = s.factor_entries
    factor[:, :, rows, columns] = theta[:, free.factor] * scales(free, theta)[:, :, None]
    sigma = np.exp(theta[:, free.log_sigma]) if s.has_sigma else np.ones((S, s.n_experts))
    return Params(gamma, theta[:, free.beta], factor, sigma, theta[:, free.extra])


def scales(free: FreeVector, theta: Array) -> Array:
    """Multipliers omega of the covariance factors, shape (S, K)."""
    return np.where(free.scale >= 0, theta[:, free.scale], 1.0)


def contract(s: Structure, params: Params) -> Array:
    """Free vectors, shape (S, P), from full parameters that obey the structure."""
    free = build_free_vector(s)
    S = params.beta.shape[0]
    theta = np.empty((S, free.size))
    theta[:, free.gate] = params.gamma.reshape(S, -1)
    theta[:, free.beta] = params.beta
    rows, columns = s.factor_entries
    entries = params.factor[:, :, rows, columns]
    if s.cov_re == "proportional" and entries.shape[2]:
        size = np.sqrt((entries**2).sum(axis=2))
        omega = size / np.maximum(size[:, :1], np.finfo(float).tiny)
        theta[:, free.scale[1:]] = omega[:, 1:]
        entries = np.broadcast_to(entries[:, :1], entries.shape)
    theta[:, free.factor] = entries
    if s.has_sigma:
        theta[:, free.log_sigma] = np.log(params.sigma)
    theta[:, free.extra] = params.extra
    return theta


def pull_back(s: Structure, free: FreeVector, theta: Array, gate: Array, experts: Array) -> Array:
    """Derivatives in the free vector from those in each expert's full parameters (chain rule).

    Parameters
    ----------
    theta : ndarray, shape (S, P)
    gate : ndarray, shape (S, (K - 1) * m, ...)
    experts : ndarray, shape (S, K, p + q * q + 1 + d, ...)
        In beta, all entries of T, log sigma (unused if there is none) and unconstrained further parameters.

    Returns
    -------
    ndarray, shape (S, P, ...)
    """
    p, q = s.n_columns, s.n_random
    rows, columns = s.factor_entries
    out = np.zeros((theta.shape[0], free.size, *gate.shape[2:]), dtype=experts.dtype)
    out[:, free.gate] = gate
    omega = scales(free, theta)
    trailing = (1,) * (experts.ndim - 3)
    for k in range(s.n_experts):
        out[:, free.beta[k]] += experts[:, k, :p]
        in_factor = experts[:, k, p + rows * q + columns]
        out[:, free.factor[k]] += in_factor * omega[:, k].reshape(-1, 1, *trailing)
        if free.scale[k] >= 0:
            base = theta[:, free.factor[k]]
            out[:, free.scale[k]] += (in_factor * base.reshape(*base.shape, *trailing)).sum(axis=1)
        if s.has_sigma:
            out[:, free.log_sigma[k]] += experts[:, k, p + q * q]
        out[:, free.extra[k]] += experts[:, k, p + q * q + 1 :]
    return out


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
    # Differences to expert 1 become those to the new first expert: the reference changes with the labels.
    full = np.vstack([np.zeros((1, s.n_gate)), old.gamma])[order]
    random, omega = old.random, old.omega
    if s.cov_re == "expert":
        random = old.random[order] if len(random) else random
    elif omega.size:
        random = random.copy()
        # The reported covariance is that of expert 1: it takes the size of the expert that comes first.
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
    # NaN marks a correlation without value; it must not spoil the derivatives of the others.
    here = np.nan_to_num(vector)
    return jacobian(lambda moved: permute_natural(s, moved, order), here)


def _factor(s: Structure, block: Array) -> Array:
    sd, correlations = block[: s.n_random], np.nan_to_num(block[s.n_random :])
    R = np.eye(s.n_random)
    for value, (i, j) in zip(correlations, _pairs(s), strict=True):
        R[i, j] = R[j, i] = value
    return sd[:, None] * semidefinite_cholesky(R, tol=_CORRELATED)
