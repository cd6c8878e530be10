"""A MEMoE by dense algebra, from parameters by name: nothing of the package but its design matrices.

Everything passes complex numbers through, so that first derivatives are exact by complex steps.
"""

from dataclasses import dataclass

import numpy as np

_STEP = 1e-30


@dataclass(frozen=True)
class Expert:
    """Parameters of one expert."""

    beta: np.ndarray
    D: np.ndarray
    sigma: complex


def coefficient(named, k, column):
    own = f"expert{k}.{column}"
    return named[own] if own in named else named[f"common.{column}"]


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
    return -0.5 * (len(residual) * np.log(2 * np.pi) + size + np.log(sign) + residual @ np.linalg.solve(V, residual))


def log_joint(design, named, n_experts):
    """Log of gate probability times density of each subject under each expert, shape (N, K)."""
    columns = []
    for expert in experts(design, named, n_experts):
        values = []
        for unit in range(design.n_units):
            rows = design.codes == unit
            X, Z, y = design.expert[rows], design.random[rows], design.response[rows]
            V = Z @ expert.D @ Z.T + expert.sigma**2 * np.eye(len(y))
            values.append(log_normal(y - X @ expert.beta, V))
        columns.append(values)
    return np.array(columns).T + log_gate(design, named, n_experts)


def logliks(design, named, n_experts):
    """Log-likelihood of each subject, shape (N,)."""
    return logsumexp(log_joint(design, named, n_experts))


def as_named(layout, vector):
    return dict(zip(layout.names, vector, strict=True))


def scores(model, vector):
    """Score of each subject in the reported parameters, shape (N, P), by complex steps."""
    out = []
    for j in range(len(vector)):
        moved = np.asarray(vector, dtype=complex)
        moved[j] += 1j * _STEP
        out.append(logliks(model.design, as_named(model.layout, moved), model.n_experts).imag / _STEP)
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
            V = Z @ expert.D @ Z.T + expert.sigma**2 * np.eye(len(y))
            gain = expert.D @ Z.T @ np.linalg.inv(V)
            means.append(gain @ (y - X @ expert.beta))
            covariances.append(expert.D - gain @ Z @ expert.D)
    q, N = design.random.shape[1], design.n_units
    return (
        np.array(means).reshape(n_experts, N, q).swapaxes(0, 1),
        np.array(covariances).reshape(n_experts, N, q, q).swapaxes(0, 1),
    )
