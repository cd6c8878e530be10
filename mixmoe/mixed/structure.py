"""Which parameters experts share: maps between a free vector and one full set of parameters per expert."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mixmoe.mixed.extras import Extra, n_extra, spans
from mixmoe.mixed.ordinal import Thresholds

Array = NDArray[np.float64]
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
