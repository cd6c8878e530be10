"""Observed-data likelihood of a mixture of networks with random effects, exact, with its derivatives by torch.

Per subject i and expert k, given the network, ``y_i ~ N(f_k(x_i), Z_i D_k Z_i' + sigma_k^2 I)``. With D = T T',
Lambda = T / sigma, W = I + Lambda' Z'Z Lambda, r = y - f and u = Lambda' Z'r (Bates et al. 2015, section 3)::

    log|V|  = n log sigma^2 + log|W|
    r'V^-1r = (r'r - u'W^-1u) / sigma^2

so that only q x q matrices are factorised; the log-likelihood is the sum over subjects of ``log sum_k pi_k(w_i) N_ik``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixmoe._typing import Array
from mixmoe.neural.blocks import Tensor, to_array, torch
from mixmoe.neural.mixture.network_parameters import Body, Scales, Structure
from mixmoe.neural.network import activate
from mixmoe.numerics.optimise import Evaluation

CHUNK = 64  # subjects whose derivatives are computed at once
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True, slots=True)
class Rows:
    """Standardised rows of a design as tensors, sorted by subject.

    Attributes
    ----------
    y : Tensor, shape (n,), or None
        None for rows to predict.
    X, inputs, Z : Tensor, shape (n, p), (n, d), (n, q)
    W, gate_inputs : Tensor, shape (N, m), (N, e)
    codes : Tensor of int, shape (n,)
    """

    y: Tensor  # or None
    X: Tensor
    inputs: Tensor
    Z: Tensor
    W: Tensor
    gate_inputs: Tensor
    codes: Tensor

    @property
    def n_units(self) -> int:
        """Number of subjects."""
        return int(self.W.shape[0])


@dataclass(frozen=True, slots=True)
class Problem:
    """A model with its data.

    Attributes
    ----------
    structure : Structure
    scales : Scales
    rows : Rows
    activation : str
    precision : float
        Of the normal prior of the weights of networks with hidden layers, on the standardised scale.
    """

    structure: Structure
    scales: Scales
    rows: Rows
    activation: str
    precision: float


def features(body: Body, activation: str, weights: Tensor, inputs: Tensor) -> Tensor:
    """Outputs of the last hidden layer, shape (n, h)."""
    h, end = inputs, 0
    for a, b in body.layers:
        weight, bias = weights[end : end + a * b].reshape(b, a), weights[end + a * b : end + (a + 1) * b]
        h, end = activate(activation, h @ weight.T + bias), end + (a + 1) * b
    return h


def expert_means(problem: Problem, rows: Rows, theta: Tensor) -> Tensor:
    """Standardised means of the experts at random effects of zero, shape (n, K)."""
    s, at = problem.structure, problem.structure.places
    means = rows.X @ theta[at["beta"]].T
    if s.body is None:
        return means
    shown = [features(s.body, problem.activation, theta[places], rows.inputs) for places in _distinct(at["body"])]
    heads = [shown[k % len(shown)] @ theta[at["head"][k]] for k in range(s.n_experts)]
    return means + torch.stack(heads, dim=1)


def _distinct(places: Any) -> Any:
    return places[:1] if len(places) > 1 and (places[0] == places[1]).all() else places


def log_gate(problem: Problem, rows: Rows, theta: Tensor) -> Tensor:
    """Log-probabilities of the experts by the gate, shape (N, K)."""
    s, at = problem.structure, problem.structure.places
    if s.n_experts == 1:
        return torch.zeros((rows.n_units, 1), dtype=theta.dtype)
    eta = rows.W @ theta[at["gamma"]].T
    if s.gate_body is not None:
        shown = features(s.gate_body, problem.activation, theta[at["gate_body"]], rows.gate_inputs)
        eta = eta + shown @ theta[at["gate_head"]].T
    return torch.log_softmax(torch.cat([torch.zeros_like(eta[:, :1]), eta], dim=1), dim=1)


def log_joint(problem: Problem, theta: Tensor) -> Tensor:
    """Log-probability of each expert plus log-density of each subject's standardised responses under it, (N, K)."""
    s, rows, N = problem.structure, problem.rows, problem.rows.n_units
    at, q = s.places, len(s.random)
    r = rows.y[:, None] - expert_means(problem, rows, theta)
    log_sigma = theta[at["sigma"]]
    moments = torch.cat([(r * r)[:, None], rows.Z[:, :, None] * r[:, None]], dim=1)  # r'r and Z'r, before sums
    sums = torch.zeros((N, 1 + q, s.n_experts), dtype=theta.dtype).index_add(0, rows.codes, moments)
    counts = torch.bincount(rows.codes, minlength=N).to(theta.dtype)
    distance, log_size = sums[:, 0], torch.zeros_like(sums[:, 0])
    if q:
        entries = tuple(torch.as_tensor(e) for e in s.entries)
        empty = torch.zeros((q, q), dtype=theta.dtype)
        scaled = [
            empty.index_put(entries, theta[p] * torch.exp(-v)) for p, v in zip(at["factor"], log_sigma, strict=True)
        ]
        L = torch.stack(scaled)  # (K, q, q)
        outer = rows.Z[:, :, None] * rows.Z[:, None]
        ZZ = torch.zeros((N, q, q), dtype=theta.dtype).index_add(0, rows.codes, outer)
        W = torch.eye(q, dtype=theta.dtype) + L.transpose(1, 2) @ ZZ[:, None] @ L  # (N, K, q, q)
        root = torch.linalg.cholesky(W)
        u = L.transpose(1, 2) @ sums[:, 1:].transpose(1, 2)[..., None]
        white = torch.linalg.solve_triangular(root, u, upper=False)[..., 0]
        distance = distance - (white**2).sum(-1)
        log_size = 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    density = -0.5 * (counts[:, None] * (LOG_2PI + 2.0 * log_sigma) + log_size + distance * torch.exp(-2.0 * log_sigma))
    return density + log_gate(problem, rows, theta)


def log_prior(problem: Problem, theta: Tensor) -> Tensor:
    """Log prior of the weights up to its constant.

    Heads of the gate have it around their mean over the experts, so that it is the same whichever is the reference.
    """
    s = problem.structure
    total = (theta[s.penalised] ** 2).sum()
    if s.places["gate_head"].size:
        heads = theta[s.places["gate_head"]]
        full = torch.cat([torch.zeros_like(heads[:1]), heads])
        total = total + ((full - full.mean(0)) ** 2).sum()
    return -0.5 * problem.precision * total


def logliks(problem: Problem, theta: Tensor) -> Tensor:
    """Log-likelihood of the standardised responses of each subject, shape (N,)."""
    return torch.logsumexp(log_joint(problem, theta), dim=1)


def penalised(problem: Problem, theta: Tensor) -> Tensor:
    """What is maximised."""
    return logliks(problem, theta).sum() + log_prior(problem, theta)


def evaluate(problem: Problem, points: Array) -> Evaluation:
    """Penalised log-likelihood, shape (S,), and score, shape (S, P), at points (S, P)."""
    both = torch.func.vmap(torch.func.grad_and_value(lambda theta: penalised(problem, theta)))
    score, value = both(torch.as_tensor(points))
    return Evaluation(to_array(value), to_array(score))


def information(problem: Problem, theta: Array) -> Array:
    """Minus the second derivatives of the penalised log-likelihood, shape (P, P)."""
    score = torch.func.grad(lambda point: penalised(problem, point))
    found = -to_array(torch.func.jacrev(score)(torch.as_tensor(theta)))
    return np.asarray(0.5 * (found + found.T))


def unit_scores(problem: Problem, theta: Array) -> Array:
    """Score of each subject, without the prior, shape (N, P)."""
    made = torch.func.jacrev(lambda point: logliks(problem, point), chunk_size=CHUNK)
    return np.asarray(to_array(made(torch.as_tensor(theta))))


def responsibilities(problem: Problem, theta: Array) -> Array:
    """Posterior probabilities of the experts, shape (N, K)."""
    return np.asarray(to_array(torch.softmax(log_joint(problem, torch.as_tensor(theta)), dim=1)))


def responsibility_slopes(problem: Problem, theta: Array) -> Array:
    """Derivatives of the posterior probabilities, shape (N, K, P)."""
    made = torch.func.jacrev(lambda point: torch.softmax(log_joint(problem, point), dim=1), chunk_size=CHUNK)
    return np.asarray(to_array(made(torch.as_tensor(theta))))
