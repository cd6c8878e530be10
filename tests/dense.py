"""A MEMoE by dense algebra, from parameters by name: nothing of the package but its design matrices.

Everything passes complex numbers through, so that first derivatives are exact by complex steps.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import loggamma

_STEP = 1e-30


@dataclass(frozen=True)
class Expert:
    """Parameters of one expert."""

    beta: np.ndarray
    D: np.ndarray
    sigma: complex
    slopes: np.ndarray
    rho: complex | None = None
    phi: complex | None = None
    sd_bm: complex | None = None
    df: complex | None = None


def coefficient(named, k, column):
    own = f"expert{k}.{column}"
    return named[own] if own in named else named[f"common.{column}"]


def either(named, own, shared):
    return named[own] if own in named else named.get(shared)


def error_covariance(expert, V, time):
    """R of subjects with n rows each, shape (..., n, n)."""
    sd = expert.sigma * np.exp(V @ expert.slopes)
    before, after = time[..., :, None], time[..., None, :]
    lag = np.abs(before - after)
    R = np.eye(time.shape[-1])
    if expert.rho is not None:
        R = expert.rho**lag
    if expert.phi is not None:
        R = np.exp(-expert.phi * lag)
    R = sd[..., :, None] * sd[..., None, :] * R
    return R if expert.sd_bm is None else R + expert.sd_bm**2 * np.minimum(before, after)


def times(design):
    """Times of the rows, or their number within the subject."""
    return design.aux["time"] if "time" in design.aux else np.arange(design.n) - design.starts[design.codes]


def covariance(named, k, names):
    """D of expert k, whatever experts share."""
    mark = str(k) if any(name.startswith(f"sd{k}(") for name in named) else ""
    q = len(names.random)
    sd = np.array([named[f"sd{mark}({column}|{names.group})"] for column in names.random])
    D = np.diag(sd * sd)
    for j in range(q):
        for i in range(j):
            name = f"corr{mark}({names.random[i]},{names.random[j]}|{names.group})"
            if name in named:
                D[i, j] = D[j, i] = named[name] * sd[i] * sd[j]
    omega = named.get(f"omega{k}", 1.0)
    return omega * omega * D.reshape(q, q)


def experts(design, named, n_experts):
    names = design.names
    return [
        Expert(
            np.array([coefficient(named, k, column) for column in names.expert]),
            covariance(named, k, names),
            named[f"sigma{k}"] if f"sigma{k}" in named else named["sigma"],
            np.array([either(named, f"sigma{k}.{column}", f"sigma.{column}") for column in names.sigma]),
            *(either(named, f"{name}{k}", name) for name in ("rho", "phi", "sd_bm", "df")),
        )
        for k in range(1, n_experts + 1)
    ]


def log_gate(design, named, n_experts):
    """Log-probabilities, shape (N, K)."""
    columns = design.names.gate
    predictor = [np.zeros(design.n_units)]
    for k in range(2, n_experts + 1):
        predictor.append(design.gate @ np.array([named[f"gate{k}.{column}"] for column in columns]))
    predictor = np.column_stack(predictor)
    return predictor - logsumexp(predictor)[:, None]


def logsumexp(a):
    peak = a.real.max(axis=1)
    return np.log(np.exp(a - peak[:, None]).sum(axis=1)) + peak


def log_normal(residual, V):
    sign, size = np.linalg.slogdet(V)
    distance = (residual * np.linalg.solve(V, residual[..., None])[..., 0]).sum(axis=-1)
    return -0.5 * (residual.shape[-1] * np.log(2 * np.pi) + size + np.log(sign) + distance)


def log_t(residual, V, df):
    """Multivariate t with scale matrix V."""
    n = residual.shape[-1]
    sign, size = np.linalg.slogdet(V)
    distance = (residual * np.linalg.solve(V, residual[..., None])[..., 0]).sum(axis=-1)
    constant = loggamma((df + n) / 2) - loggamma(df / 2) - n / 2 * np.log(df * np.pi)
    return constant - 0.5 * (size + np.log(sign)) - (df + n) / 2 * np.log(1 + distance / df)


def log_joint(design, named, n_experts, df=None):
    """Log of gate probability times density of each subject under each expert, shape (N, K)."""
    out = log_gate(design, named, n_experts).astype(np.result_type(*map(np.asarray, named.values())))
    time, sizes = times(design), np.bincount(design.codes)
    for n in np.unique(sizes):  # subjects with as many rows at once, each by its own dense covariance
        units = np.flatnonzero(sizes == n)
        rows = np.array([np.flatnonzero(design.codes == unit) for unit in units])
        X, Z, y = design.expert[rows], design.random[rows], design.response[rows]
        for k, expert in enumerate(experts(design, named, n_experts)):
            V = Z @ expert.D @ np.swapaxes(Z, 1, 2) + error_covariance(expert, design.sigma[rows], time[rows])
            freedom = expert.df if df is None else df
            r = y - X @ expert.beta
            out[units, k] += log_normal(r, V) if freedom is None else log_t(r, V, freedom)
    return out


def logliks(design, named, n_experts, df=None):
    """Log-likelihood of each subject, shape (N,); `df` fixes degrees of freedom."""
    return logsumexp(log_joint(design, named, n_experts, df))


def as_named(layout, vector):
    return dict(zip(layout.names, vector, strict=True))


def scores(model, vector, df=None):
    """Score of each subject in the reported parameters, shape (N, P), by complex steps."""
    out = []
    for j in range(len(vector)):
        moved = np.asarray(vector, dtype=complex)
        moved[j] += 1j * _STEP
        out.append(logliks(model.design, as_named(model.layout, moved), model.n_experts, df).imag / _STEP)
    return np.array(out).T


def hessian(model, vector, step=1e-4):
    """Hessian in the reported parameters, by fourth-order differences of exact scores, shape (P, P)."""
    vector = np.asarray(vector, dtype=float)
    out = []
    for j in range(len(vector)):
        h = np.zeros(len(vector))
        h[j] = step * max(abs(vector[j]), 0.1)
        one, two = (
            scores(model, vector + i * h).sum(axis=0) - scores(model, vector - i * h).sum(axis=0) for i in (1, 2)
        )
        out.append((8 * one - two) / (12 * h[j]))
    H = np.array(out)
    return (H + H.T) / 2


def blups(design, named, n_experts):
    """Posterior means (N, K, q) and covariances (N, K, q, q) of the random effects given the expert."""
    means, covariances = [], []
    for expert in experts(design, named, n_experts):
        for unit in range(design.n_units):
            rows = design.codes == unit
            X, Z, y = design.expert[rows], design.random[rows], design.response[rows]
            V = Z @ expert.D @ Z.T + error_covariance(expert, design.sigma[rows], times(design)[rows])
            gain = expert.D @ Z.T @ np.linalg.inv(V)
            means.append(gain @ (y - X @ expert.beta))
            covariances.append(expert.D - gain @ Z @ expert.D)
    q, N = design.random.shape[1], design.n_units
    return (
        np.array(means).reshape(n_experts, N, q).swapaxes(0, 1),
        np.array(covariances).reshape(n_experts, N, q, q).swapaxes(0, 1),
    )
