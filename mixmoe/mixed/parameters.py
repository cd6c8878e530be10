"""The parameter vector of a MEMoE: what its experts share, its names, and the maps between its four scales.

========  ==========================================================================================================
reported  what users see, shape (P,), in the order of the layout: coefficients, standard deviations, correlations
user      `Params`: the full parameters of every expert, in the units of the data
working   `Params` in working coordinates, where columns are orthogonal and the response has unit scale
free      unconstrained numbers in working coordinates, shape (S, P) for S starts: what a search moves
========  ==========================================================================================================

Each map says in its name from which scale to which: `free_to_working`, `working_to_user`, `user_to_reported` and back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import AnyArray, Array, IntArray
from mixmoe.design.design import DesignNames
from mixmoe.errors import ArgumentError
from mixmoe.mixed.likelihood.further_parameters import Extra, spans
from mixmoe.mixed.thresholds import Thresholds
from mixmoe.mixture.estimate import Parameter, ParamLayout
from mixmoe.numerics.linalg import derivative_along, jacobian, semidefinite_cholesky

CovRE = Literal["expert", "common", "proportional"]
Residual = Literal["expert", "common"]
Sigma = Literal["expert", "common", "none"]

_CORRELATED = 1e-14  # 1 - r^2 below this is a correlation of one; above it, one at an origin far from the data
_NO_WIDTH = 1e-12  # two thresholds as close as this leave no room for the category between them


@dataclass(frozen=True)
class Structure:
    """Sizes of a MEMoE and what its experts share.

    Not slotted: what follows from the attributes is worked out once and kept, since every evaluation asks for it.

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

    @cached_property
    def n_columns(self) -> int:
        """Columns of the expert design, p."""
        return self.common.size

    @cached_property
    def factor_entries(self) -> tuple[IntArray, IntArray]:
        """Rows and columns of the free entries of the covariance factor."""
        q = self.n_random
        return np.tril_indices(q) if self.correlated else (np.arange(q), np.arange(q))

    @cached_property
    def pairs(self) -> tuple[IntArray, IntArray]:
        """Rows and columns of the correlations, column by column of the lower triangle."""
        columns, rows = np.triu_indices(self.n_random, k=1)
        return (rows, columns) if self.correlated else (rows[:0], columns[:0])

    @cached_property
    def has_sigma(self) -> bool:
        """Whether there is a residual standard deviation."""
        return self.residual != "none"

    @cached_property
    def spans(self) -> tuple[tuple[Extra, slice], ...]:
        """Each group of further parameters with its place among those of one expert."""
        return tuple(spans(self.extras))

    @cached_property
    def own(self) -> NDArray[np.bool_]:
        """Expert columns that are reported with a coefficient per expert, shape (p,)."""
        return ~self.common & self._named

    @cached_property
    def shared(self) -> NDArray[np.bool_]:
        """Expert columns that are reported with one coefficient for all experts, shape (p,)."""
        return self.common & self._named

    @cached_property
    def _named(self) -> NDArray[np.bool_]:
        """Expert columns that are reported: all but an intercept behind thresholds, shape (p,)."""
        at = -1 if self.thresholds is None else self.thresholds.column
        return np.arange(self.n_columns) != at

    @cached_property
    def free(self) -> "FreeVector":
        """Where everything lies in the free vector: gate, coefficients, covariances, residuals, further parameters."""
        K, p, at = self.n_experts, self.n_columns, _Places()
        gate, beta = at.take(K - 1, self.n_gate), np.empty((K, p), dtype=np.intp)
        beta[:, self.common] = at.take(K, int(self.common.sum()), own=False)
        beta[:, ~self.common] = at.take(K, int((~self.common).sum()))
        factor = at.take(K, len(self.factor_entries[0]), own=self.cov_re == "expert")
        scale = np.full(K, -1, dtype=np.intp)
        if self.cov_re == "proportional" and factor.size:
            scale[1:] = at.take(K - 1, 1).ravel()
        log_sigma = at.take(K, int(self.has_sigma), own=self.residual == "expert").ravel()
        extra = self._further(at)
        return FreeVector(at.end, slice(0, gate.size), beta, factor, scale, log_sigma, extra)

    @cached_property
    def reported(self) -> "ReportedVector":
        """Where everything lies in the reported vector, in the order of `build_layout`."""
        K, q, at, beta = self.n_experts, self.n_random, _Places(), np.empty((self.n_experts, self.n_columns), np.intp)
        beta[:, self.own] = at.take(K, int(self.own.sum()))
        beta[:, self.shared] = at.take(K, int(self.shared.sum()), own=False)
        gate = at.take(K - 1, self.n_gate)
        n_covariances = 0 if not q else K if self.cov_re == "expert" else 1
        random = at.take(n_covariances, q + len(self.pairs[0]))
        omega = at.take(K - 1 if self.cov_re == "proportional" and q else 0, 1).ravel()
        sigma = at.take(K, int(self.has_sigma), own=self.residual == "expert").ravel()
        first = at.end
        if self.thresholds is None:
            extra = self._further(at)
            return ReportedVector(at.end, beta, gate, random, omega, sigma, extra, slice(first, at.end))
        beta[:, self.thresholds.column] = first + self.thresholds.first(K)
        end = first + len(self.thresholds.parameters(K))
        return ReportedVector(end, beta, gate, random, omega, sigma, np.empty((K, 0), np.intp), slice(first, end))

    def _further(self, at: "_Places") -> IntArray:
        """Positions of the further parameters, shape (K, d)."""
        parts = [at.take(self.n_experts, extra.size, extra.own) for extra in self.extras]
        return np.concatenate([np.empty((self.n_experts, 0), np.intp), *parts], axis=1)


class _Places:
    """Hands out consecutive positions of a vector."""

    def __init__(self) -> None:
        self.end = 0

    def take(self, rows: int, columns: int, own: bool = True) -> IntArray:
        """The next positions, shape (rows, columns): own ones of each row, or the same for all."""
        first, size = self.end, (rows if own else 1) * columns
        self.end += size
        return np.broadcast_to(np.arange(first, self.end).reshape(-1, columns) if size else 0, (rows, columns)).copy()


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
    beta: IntArray
    factor: IntArray
    scale: IntArray
    log_sigma: IntArray
    extra: IntArray


@dataclass(frozen=True, slots=True)
class ReportedVector:
    """Where everything lies in the reported vector; what experts share has one position for all.

    Attributes
    ----------
    size : int
    beta : ndarray of int, shape (K, p)
        Of an intercept behind thresholds: of the first threshold, which is minus it.
    gate : ndarray of int, shape (K - 1, m)
    random : ndarray of int, shape (number of covariances, q + number of correlations)
        Standard deviations, then correlations.
    omega : ndarray of int, shape (K - 1,) or (0,)
        Multipliers of proportional covariances of experts 2 to K.
    sigma : ndarray of int, shape (K,) or (0,)
    extra : ndarray of int, shape (K, d)
        Further parameters; empty with thresholds.
    last : slice
        All further parameters, or thresholds.
    """

    size: int
    beta: IntArray
    gate: IntArray
    random: IntArray
    omega: IntArray
    sigma: IntArray
    extra: IntArray
    last: slice


@dataclass(frozen=True, slots=True)
class Params:
    """Parameters of every expert of every start, in full.

    Attributes
    ----------
    gamma : ndarray, shape (S, K - 1, m)
    beta : ndarray, shape (S, K, p)
    factor : ndarray, shape (S, K, q, q)
        T with D = T T'; lower triangular in working coordinates.
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


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Working coordinates: a linear change of variables, invertible and the same for all experts.

    With the pooled least-squares coefficients b0 and residual scale s, the working response is (y - X b0) / s and the
    working columns are X A^-1, Z B^-1, W C^-1: orthogonal columns and a response of unit scale, so that tolerances mean
    the same for any data. Weights of rows are divided by their mean.

    Attributes
    ----------
    center : ndarray, shape (p,)
        b0.
    scale : float
        s, in units of the response.
    expert : ndarray, shape (p, p)
        A. Block triangular, so that common coefficients stay common.
    random : ndarray, shape (q, q)
        B; diagonal if the random effects are uncorrelated.
    gate : ndarray, shape (m, m)
        C.
    log_sigma : ndarray, shape (v,)
        What the first v further parameters, coefficients of the log standard deviation of errors, add to that through
        the centres of their covariates.
    weight : float
        Mean weight of the rows. Residual standard deviations are reported for rows of weight one.
    """

    center: AnyArray
    scale: float
    expert: AnyArray
    random: AnyArray
    gate: AnyArray
    log_sigma: AnyArray = field(default_factory=lambda: np.zeros(0))
    weight: float = 1.0


def free_to_working(s: Structure, theta: Array) -> Params:
    """Full parameters in working coordinates from free vectors, shape (S, P); passes complex steps through."""
    free, S, q = s.free, theta.shape[0], s.n_random
    rows, columns = s.factor_entries
    omega = np.where(free.scale >= 0, theta[:, free.scale], 1.0)
    factor = np.zeros((S, s.n_experts, q, q), dtype=theta.dtype)
    factor[:, :, rows, columns] = theta[:, free.factor] * omega[:, :, None]
    sigma = np.exp(theta[:, free.log_sigma]) if s.has_sigma else np.ones((S, s.n_experts))
    gamma = theta[:, free.gate].reshape(S, s.n_experts - 1, s.n_gate)
    return Params(gamma, theta[:, free.beta], factor, sigma, theta[:, free.extra])


def working_to_free(s: Structure, working: Params) -> Array:
    """Free vectors, shape (S, P), from full parameters in working coordinates that obey the structure."""
    free = s.free
    S = working.beta.shape[0]
    theta = np.empty((S, free.size))
    theta[:, free.gate] = working.gamma.reshape(S, -1)
    theta[:, free.beta] = working.beta
    rows, columns = s.factor_entries
    entries = working.factor[:, :, rows, columns]
    if s.cov_re == "proportional" and entries.shape[2]:
        size = np.sqrt((entries**2).sum(axis=2))
        omega = size / np.maximum(size[:, :1], np.finfo(float).tiny)
        theta[:, free.scale[1:]] = omega[:, 1:]
        entries = np.broadcast_to(entries[:, :1], entries.shape)
    theta[:, free.factor] = entries
    if s.has_sigma:
        theta[:, free.log_sigma] = np.log(working.sigma)
    theta[:, free.extra] = working.extra
    return theta


def derivatives_in_free(s: Structure, theta: Array, gate: Array, experts: Array) -> Array:
    """Derivatives in the free vector from those in each expert's working parameters (chain rule).

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
    free, p, q = s.free, s.n_columns, s.n_random
    rows, columns = s.factor_entries
    out = np.zeros((theta.shape[0], free.size, *gate.shape[2:]), dtype=experts.dtype)
    out[:, free.gate] = gate
    trailing = (1,) * (experts.ndim - 3)
    for k in range(s.n_experts):
        out[:, free.beta[k]] += experts[:, k, :p]
        in_factor = experts[:, k, p + rows * q + columns]
        if free.scale[k] < 0:
            out[:, free.factor[k]] += in_factor
        else:  # T_k = omega_k T: a product rule
            base, omega = theta[:, free.factor[k]], theta[:, free.scale[k]]
            out[:, free.factor[k]] += in_factor * omega.reshape(-1, 1, *trailing)
            out[:, free.scale[k]] += (in_factor * base.reshape(*base.shape, *trailing)).sum(axis=1)
        if s.has_sigma:
            out[:, free.log_sigma[k]] += experts[:, k, p + q * q]
        out[:, free.extra[k]] += experts[:, k, p + q * q + 1 :]
    return out


def working_to_user(c: Coordinates, working: Params) -> Params:
    """Parameters in the units of the data, factors not triangular; passes complex steps through."""
    # One matrix for all right-hand sides: beside a stack of them, solve() would factorise it for each.
    S, K, p = working.beta.shape
    beta: AnyArray = np.linalg.solve(c.expert, working.beta.reshape(S * K, p).T).T.reshape(S, K, p)
    beta = c.scale * beta + c.center
    factor: AnyArray = c.scale * np.linalg.solve(c.random, working.factor)
    J, m = working.gamma.shape[1:]
    gamma: AnyArray = np.linalg.solve(c.gate, working.gamma.reshape(S * J, m).T).T.reshape(S, J, m)
    moved = np.exp(working.extra[..., : c.log_sigma.size] @ c.log_sigma) / np.sqrt(c.weight)
    return Params(gamma, beta, factor, c.scale * working.sigma / moved, working.extra)


def user_to_working(c: Coordinates, user: Params) -> Params:
    """Parameters in working coordinates from those in the units of the data."""
    beta = (user.beta - c.center) @ c.expert.T / c.scale
    factor = np.zeros_like(user.factor)
    for at in np.ndindex(user.factor.shape[:2]):
        moved = c.random @ user.factor[at] / c.scale
        # Working factors are lower triangular, with a unique sign: two fits of one model are one vector.
        factor[at] = semidefinite_cholesky(moved @ moved.T)
    # Residual standard deviations over those at zero covariates and weight one, shape (S, K).
    moved = np.exp(user.extra[..., : c.log_sigma.size] @ c.log_sigma) / np.sqrt(c.weight)
    return Params(user.gamma @ c.gate.T, beta, factor, user.sigma / c.scale * moved, user.extra)


def user_to_reported(s: Structure, user: Params) -> Array:
    """Reported parameters, shape (S, P), from full parameters in the units of the data; complex steps pass through."""
    at, S, (rows, columns) = s.reported, len(user.beta), s.pairs
    out = np.empty((S, at.size), dtype=user.beta.dtype)
    out[:, at.gate] = user.gamma
    for k in reversed(range(s.n_experts)):  # expert 1 last: what all share is read off it
        out[:, at.beta[k]] = user.beta[:, k]
        if s.has_sigma:
            out[:, at.sigma[k]] = user.sigma[:, k]
        for extra, where in s.spans if s.thresholds is None else ():
            out[:, at.extra[k, where]] = extra.scale.natural(user.extra[:, k, where])
    D = user.factor @ np.swapaxes(user.factor, 2, 3)
    sd = np.sqrt(np.einsum("skaa->ska", D))
    with np.errstate(divide="ignore", invalid="ignore"):  # a correlation of a zero standard deviation is 0 / 0: NaN
        for k, positions in enumerate(at.random):
            out[:, positions[: s.n_random]] = sd[:, k]
            out[:, positions[s.n_random :]] = D[:, k, rows, columns] / (sd[:, k, rows] * sd[:, k, columns])
        if at.omega.size:
            total = np.einsum("skaa->sk", D)
            out[:, at.omega] = np.sqrt(total[:, 1:] / total[:, :1])
    if s.thresholds is not None:
        # Where random effects and other covariates are zero: minus the intercept, and that plus sums of the steps.
        first = -user.beta[:, :, s.thresholds.column, None]
        cuts = np.cumsum(np.concatenate([first, np.exp(user.extra)], axis=2), axis=2)
        out[:, at.last] = s.thresholds.reported(cuts)
    return out


def reported_to_user(s: Structure, reported: Array) -> Params:
    """Full parameters in the units of the data, S = 1, from reported ones, shape (P,)."""
    at, K, q, (rows, columns) = s.reported, s.n_experts, s.n_random, s.pairs
    beta, factor = reported[at.beta], np.zeros((1, K, q, q))
    for k, positions in enumerate(at.random):
        sd, R = reported[positions[:q]], np.eye(q)
        R[rows, columns] = R[columns, rows] = np.nan_to_num(reported[positions[q:]])
        factor[0, k if s.cov_re == "expert" else slice(None)] = sd[:, None] * semidefinite_cholesky(R, _CORRELATED)
    if at.omega.size:
        factor[0, 1:] *= reported[at.omega][:, None, None]
    sigma = reported[at.sigma] if s.has_sigma else np.ones(K)
    if s.thresholds is None:
        extra = reported[at.extra]
        for group, where in s.spans:
            extra[:, where] = group.scale.free(extra[:, where])
    else:
        cuts = s.thresholds.by_expert(reported[at.last], K)
        beta[:, s.thresholds.column] = -cuts[:, 0]
        extra = np.log(np.maximum(np.diff(cuts, axis=1), _NO_WIDTH))
    return Params(reported[at.gate][None], beta[None], factor, sigma[None], extra[None])


def reported_to_free(s: Structure, c: Coordinates, reported: Array) -> Array:
    """The free vector, shape (P,), of reported parameters, shape (P,)."""
    return working_to_free(s, user_to_working(c, reported_to_user(s, reported)))[0]


def free_to_reported(s: Structure, c: Coordinates, theta: Array) -> Array:
    """Reported parameters, shape (S, P), of free vectors, shape (S, P); passes complex steps through."""
    return user_to_reported(s, working_to_user(c, free_to_working(s, theta)))


def free_to_reported_jacobian(s: Structure, c: Coordinates, theta: Array) -> Array:
    """Derivatives of the reported parameters in the free ones, shape (P, P), exact by complex steps; NaN as these."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return derivative_along(lambda rows: free_to_reported(s, c, rows), theta, np.eye(theta.size)).T


def checked_reported(s: Structure, layout: ParamLayout, given: Any) -> Array:
    """Reported parameters, shape (P,), from what a user gives.

    Parameters
    ----------
    s : Structure
    layout : ParamLayout
    given : Series, mapping, ndarray of shape (P,), or results with `params`

    Raises
    ------
    ArgumentError
        If a parameter is missing or outside its space, or the length is wrong.
    """
    names, values = layout.names, getattr(given, "params", given)
    if isinstance(values, pd.Series | Mapping):
        missing = [name for name in names if name not in values]
        if missing:
            raise ArgumentError(f"start has no value for {missing[0]!r}; give all of {', '.join(names)}")
        values = [values[name] for name in names]
    try:
        reported = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"start must hold numbers or be another fit, got {given!r}") from error
    if reported.shape != (len(names),):
        raise ArgumentError(f"start must have {len(names)} values, one per parameter, got shape {reported.shape}")
    at, q, inside = s.reported, s.n_random, np.isfinite(reported)
    correlations, omega = at.random[:, q:].ravel(), reported[at.omega]
    # NaN is the correlation with a random effect of zero variance.
    inside[correlations] = ~(np.abs(reported[correlations]) > 1)
    inside[at.random[:, :q]] &= reported[at.random[:, :q]] >= 0
    inside[at.omega] &= omega >= 0
    inside[at.sigma] &= reported[at.sigma] > 0
    if not inside.all():
        raise ArgumentError(
            f"start has {names[inside.argmin()]} = {reported[inside.argmin()]}; values must be finite, standard "
            "deviations of random effects at least zero, of residuals above zero, correlations between -1 and 1"
        )
    if s.thresholds is not None and (wrong := s.thresholds.wrong(reported[at.last], s.n_experts)) is not None:
        raise ArgumentError(f"start has {wrong}")
    for extra, where in s.spans if s.thresholds is None else ():
        for row in reported[at.extra[:, where]]:
            if not extra.scale.allows(row):
                values = ", ".join(f"{v:g}" for v in row)
                raise ArgumentError(f"start has {extra.name} = {values}; it must be {extra.scale.domain}")
    return reported


def permute_reported(s: Structure, reported: Array, order: list[int]) -> Array:
    """The reported vector, shape (P,), with the old expert ``order[k]`` as the new expert k; complex-safe."""
    at, out = s.reported, reported.copy()
    out[at.beta] = reported[at.beta[order]]
    # Differences to expert 1 become those to the new first expert: the reference changes with the labels.
    full = np.vstack([np.zeros((1, s.n_gate)), reported[at.gate]])[order]
    out[at.gate] = full[1:] - full[0]
    if s.cov_re == "expert" and len(at.random):
        out[at.random] = reported[at.random[order]]
    elif at.omega.size:
        omega = np.append(1.0, reported[at.omega])[order]
        # The reported covariance is that of expert 1: it takes the size of the expert that comes first.
        out[at.random[:, : s.n_random]] *= omega[0]
        out[at.omega] = omega[1:] / omega[0]
    if s.has_sigma:
        out[at.sigma] = reported[at.sigma[order]]
    if s.thresholds is None:
        out[at.extra] = reported[at.extra[order]]
    else:
        out[at.last] = s.thresholds.reported(s.thresholds.by_expert(reported[at.last], s.n_experts)[None, order])[0]
    return out


def permute_reported_jacobian(s: Structure, reported: Array, order: list[int]) -> Array:
    """Derivatives of `permute_reported`, shape (P, P), exact by complex steps."""
    # NaN marks a correlation without value; it must not spoil the derivatives of the others.
    return jacobian(lambda moved: permute_reported(s, moved, order), np.nan_to_num(reported))


def build_layout(s: Structure, names: DesignNames) -> ParamLayout:
    """Names of the reported parameters: experts, common, gate, random effects, residuals, further parameters."""
    columns, experts = np.array(names.expert, dtype=object), range(1, s.n_experts + 1)
    out = [Parameter(f"expert{k}.{name}", "expert", name, k) for k in experts for name in columns[s.own]]
    out += [Parameter(f"common.{name}", "common", name) for name in columns[s.shared]]
    out += [Parameter(f"gate{k}.{name}", "gate", name, k) for k in experts[1:] for name in names.gate]
    for i in range(len(s.reported.random)):
        k, mark = (i + 1, str(i + 1)) if s.cov_re == "expert" else (None, "")
        for name in names.random:
            out.append(Parameter(f"sd{mark}({name}|{names.group})", "random", f"sd({name})", k, tested=False))
        for row, column in zip(*s.pairs, strict=True):
            pair = f"{names.random[column]},{names.random[row]}"
            out.append(Parameter(f"corr{mark}({pair}|{names.group})", "random", f"corr({pair})", k))
    if s.reported.omega.size:
        ratio = "(ratio of sd to expert 1)"
        out += [Parameter(f"omega{k}", "random", f"omega{k} {ratio}", None, tested=False) for k in experts[1:]]
    if s.has_sigma:
        for k in experts if s.residual == "expert" else [None]:
            out.append(Parameter(f"sigma{k or ''}", "residual", "sigma", k, tested=False))
    if s.thresholds is not None:
        return ParamLayout((*out, *s.thresholds.parameters(s.n_experts)))
    return ParamLayout((*out, *(parameter for extra in s.extras for parameter in extra.parameters(s.n_experts))))
