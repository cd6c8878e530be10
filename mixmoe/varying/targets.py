"""What bands can be asked for: coefficients, probabilities, means and differences, as functions of the levels."""

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.distribution import Family
from mixmoe.varying.bands import Target
from mixmoe.varying.problem import Slots
from mixmoe.varying.steps import log_softmax

Array = NDArray[np.float64]


def gate_target(slots: Slots, levels: Array, gate_row: Array) -> Target:
    """Probabilities of the experts at one row of gate covariates; (G, K)."""
    k, m = slots.n_experts, slots.n_gate_columns
    zeta = np.zeros((k, len(levels)))
    zeta[1:] = np.einsum("gkm,m->kg", levels[:, slots.gates].reshape(len(levels), k - 1, m), gate_row)
    prob = np.exp(log_softmax(zeta)).T  # (G, K)
    jacobian = np.zeros((len(levels), k, slots.n))
    for c in range(1, k):
        slope = prob * ((np.arange(k) == c) - prob[:, [c]])  # d prob_k / d zeta_c
        jacobian[:, :, slots.gate(c)] = slope[:, :, None] * gate_row
    return Target(prob, jacobian)


def expert_target(
    slots: Slots, family: Family, levels: Array, row: Array, trials: float = 1.0, offset: float = 0.0
) -> Target:
    """Expected responses of the experts at one row of covariates; (G, K)."""
    k = slots.n_experts
    eta = levels[:, slots.experts].reshape(len(levels), k, -1) @ row + offset  # (G, K)
    ones = np.full(1, trials)
    mean = family.mean(eta, ones)
    slope = family.mean_slope(eta, ones)
    jacobian = np.zeros((len(levels), k, slots.n))
    for c in range(k):
        jacobian[:, c, slots.expert(c)] = slope[:, [c]] * row
    return Target(mean, jacobian)


def marginal_target(gate: Target, experts: Target) -> Target:
    """Expected response, experts averaged by the gate; (G, 1)."""
    value = (gate.values * experts.values).sum(axis=1, keepdims=True)
    jacobian = gate.jacobian * experts.values[:, :, None] + experts.jacobian * gate.values[:, :, None]
    return Target(value, jacobian.sum(axis=1, keepdims=True))


def difference_target(slots: Slots, levels: Array) -> Target:
    """Expert coefficients of experts 2 .. K minus those of the ones before, by pair and column; (G, R)."""
    every = np.arange(slots.n)
    jacobians = []
    for b, a in pairs(slots):
        jacobian = np.zeros((slots.n_expert_columns, slots.n))
        each = np.arange(slots.n_expert_columns)
        jacobian[each, every[slots.expert(b)]] = 1.0
        jacobian[each, every[slots.expert(a)]] = -1.0
        jacobians.append(jacobian)
    stacked = np.concatenate(jacobians) if jacobians else np.zeros((0, slots.n))
    return Target(levels @ stacked.T, np.broadcast_to(stacked, (len(levels), *stacked.shape)))


def pairs(slots: Slots) -> list[tuple[int, int]]:
    """Pairs (later, earlier) of experts."""
    return [(b, a) for b in range(slots.n_experts) for a in range(b)]
