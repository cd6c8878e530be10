"""Softmax gate: expert probabilities from covariates, and the step that fits them to responsibilities.

Expert 1 is the reference: its coefficients are zero. A leading axis ``S`` runs over starts fitted side by side.
"""

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.linalg import logsumexp

Array = NDArray[np.float64]

_MAX_SHIFT = 4.0  # largest change of a linear predictor in one step; beyond it the quadratic model is worthless
_BOUND_SCALE = 0.5  # Bohning (1992): the information of a multinomial logit is at most (I - 11'/K)/2 times X'X


def gate_log_probabilities(W: Array, gamma: Array) -> Array:
    """Log-probabilities of the experts.

    Parameters
    ----------
    W : ndarray, shape (N, m)
        Gate design.
    gamma : ndarray, shape (S, K - 1, m)
        Coefficients of experts 2..K.

    Returns
    -------
    ndarray, shape (S, K, N)
    """
    predictor = gamma @ W.T
    first = np.zeros((gamma.shape[0], 1, W.shape[0]), dtype=gamma.dtype)
    predictor = np.concatenate([first, predictor], axis=1)
    return predictor - logsumexp(predictor, axis=1)[:, None]


def gate_scores(log_prior: Array, responsibilities: Array) -> Array:
    """Derivatives of each unit's log-likelihood in its linear predictors of experts 2..K, shape (S, K - 1, N)."""
    return (responsibilities - np.exp(log_prior))[:, 1:]


def gate_step(W: Array, responsibilities: Array, gamma: Array, weights: Array | None = None) -> Array:
    """One ascent step of the weighted multinomial logit with the responsibilities as outcome.

    A Newton step, shortened to a change of the predictors of at most 4; where it would not raise the log-likelihood,
    the step of the lower-bound algorithm, which always does.

    Parameters
    ----------
    W : ndarray, shape (N, m)
    responsibilities : ndarray, shape (S, K, N)
    gamma : ndarray, shape (S, K - 1, m)
    weights : ndarray, shape (N,), optional
        Observation weights.

    Returns
    -------
    ndarray, shape (S, K - 1, m)

    References
    ----------
    Bohning (1992), Annals of the Institute of Statistical Mathematics 44, 197-200.
    """
    if gamma.size == 0:
        return gamma
    weights = np.ones(W.shape[0]) if weights is None else weights
    log_prior = gate_log_probabilities(W, gamma)
    score = (gate_scores(log_prior, responsibilities) * weights) @ W  # (S, K-1, m)
    newton = gamma + _newton_direction(W, log_prior, score, weights)
    bound = gamma + _bound_direction(W, score, weights)

    def objective(coef: Array) -> Array:
        return np.einsum("skn,skn,n->s", responsibilities, gate_log_probabilities(W, coef), weights)

    better = objective(newton) >= objective(gamma)
    return np.where(better[:, None, None], newton, bound)


def gate_information(W: Array, log_prior: Array, weights: Array) -> Array:
    """Information of the weighted multinomial logit, shape (S, (K - 1) * m, (K - 1) * m)."""
    prior = np.exp(log_prior[:, 1:])
    S, J, N = prior.shape
    m = W.shape[1]
    curvature = -prior[:, :, None] * prior[:, None] * weights
    curvature[:, np.arange(J), np.arange(J)] += prior * weights
    outer = (W[:, :, None] * W[:, None]).reshape(N, m * m)
    blocks = (curvature.reshape(S * J * J, N) @ outer).reshape(S, J, J, m, m)
    return blocks.transpose(0, 1, 3, 2, 4).reshape(S, J * m, J * m)


def _newton_direction(W: Array, log_prior: Array, score: Array, weights: Array) -> Array:
    information = gate_information(W, log_prior, weights)
    size = information.shape[1]
    ridge = 1e-8 * (weights @ (W * W).sum(axis=1)) / size
    flat = np.linalg.solve(information + ridge * np.eye(size), score.reshape(len(score), size, 1))
    direction = flat.reshape(score.shape)
    shift = np.abs(direction @ W.T).max(axis=(1, 2), initial=0.0)
    return direction * np.minimum(1.0, _MAX_SHIFT / np.maximum(shift, _MAX_SHIFT))[:, None, None]


def _bound_direction(W: Array, score: Array, weights: Array) -> Array:
    J = score.shape[1]
    simplex = _BOUND_SCALE * (np.eye(J) - np.ones((J, J)) / (J + 1))
    gram = (W * weights[:, None]).T @ W
    return np.linalg.solve(simplex, np.swapaxes(np.linalg.solve(gram, np.swapaxes(score, 1, 2)), 1, 2))
