"""Softmax gate: expert probabilities from covariates, the step that fits them to responsibilities, and penalties.

Expert 1 is the reference: its coefficients are zero. A leading axis ``S`` runs over starts fitted side by side.
"""

import numbers
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array, BoolArray
from mixmoe.errors import ArgumentError
from mixmoe.numerics.linalg import log_softmax, logsumexp

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
    # Expert 1 is the reference: its predictor is zero and no parameter of it is estimated.
    predictor = gamma @ W.T
    first = np.zeros((gamma.shape[0], 1, W.shape[0]), dtype=gamma.dtype)
    predictor = np.concatenate([first, predictor], axis=1)
    return log_softmax(predictor, axis=1)


def posterior_probabilities(log_joint: Array, axis: int = 1) -> Array:
    """Responsibilities: the probabilities of the experts given what was observed, by Bayes' theorem.

    Parameters
    ----------
    log_joint : ndarray
        Log-probability of each expert plus log-density of what was observed under it.
    axis : int
        That of the experts.

    Returns
    -------
    ndarray, shape of `log_joint`
        They sum to one along the axis.
    """
    # From logarithms: the densities of a long series underflow, their ratios do not.
    return np.exp(log_joint - np.expand_dims(logsumexp(log_joint, axis=axis), axis))


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
    # 1. Newton's step. Beside a separated covariate the information vanishes; a ridge relative to its size keeps the
    # solve finite.
    information = gate_information(W, log_prior, weights)
    size = information.shape[1]
    ridge = 1e-8 * (weights @ (W * W).sum(axis=1)) / size
    flat = np.linalg.solve(information + ridge * np.eye(size), score.reshape(len(score), size, 1))
    direction = flat.reshape(score.shape)
    shift = np.abs(direction @ W.T).max(axis=(1, 2), initial=0.0)
    newton = gamma + direction * (_MAX_SHIFT / np.maximum(shift, _MAX_SHIFT))[:, None, None]
    # 2. The safe step: the bound (I - 11'/K)/2 x W'W does not depend on the coefficients, and is a Kronecker product:
    # two small solves.
    J = score.shape[1]
    simplex = _BOUND_SCALE * (np.eye(J) - np.ones((J, J)) / (J + 1))
    gram = (W * weights[:, None]).T @ W
    bound = gamma + np.linalg.solve(simplex, np.swapaxes(np.linalg.solve(gram, np.swapaxes(score, 1, 2)), 1, 2))

    # 3. Both are tried on all starts at once; each start takes Newton's where that ascends, the safe one elsewhere.
    def objective(coef: Array) -> Array:
        return np.einsum("skn,skn,n->s", responsibilities, gate_log_probabilities(W, coef), weights)

    better = objective(newton) >= objective(gamma)
    return np.where(better[:, None, None], newton, bound)


def gate_information(W: Array, log_prior: Array, weights: Array) -> Array:
    """Information of the weighted multinomial logit, shape (S, (K - 1) * m, (K - 1) * m)."""
    prior = np.exp(log_prior[:, 1:])
    S, J, N = prior.shape
    m = W.shape[1]
    # Per unit the information is (diag(p) - pp') x ww'.
    curvature = -prior[:, :, None] * prior[:, None] * weights
    curvature[:, np.arange(J), np.arange(J)] += prior * weights
    outer = (W[:, :, None] * W[:, None]).reshape(N, m * m)
    blocks = (curvature.reshape(S * J * J, N) @ outer).reshape(S, J, J, m, m)
    return blocks.transpose(0, 1, 3, 2, 4).reshape(S, J * m, J * m)


_NO_INFORMATION = 1e-6  # per unit, in a direction of orthonormal columns
NONE = 1e-3  # a probability below this is zero in the limit, where a direction to infinity moves it
MOVED = 1e-6  # of the largest, a change along a direction to infinity


@dataclass(frozen=True, slots=True)
class GateDirections:
    """Directions of the coefficients of a multinomial logit with orthonormal columns.

    Attributes
    ----------
    vectors : ndarray, shape (d, d)
        Orthonormal, one per column.
    infinite : ndarray of bool, shape (d,)
        Along these the columns separate the categories perfectly: the maximum lies at infinity.
    """

    vectors: Array
    infinite: BoolArray


def separated_directions(W: Array, gamma: Array, weights: Array | None = None) -> GateDirections:
    """Eigenvectors of the information of a multinomial logit at coefficients (1, K - 1, m), were categories known."""
    weights = np.ones(W.shape[0]) if weights is None else weights
    information = gate_information(W, gate_log_probabilities(W, gamma), weights)[0]
    values, vectors = np.linalg.eigh(information / weights.sum())
    return GateDirections(vectors, values < _NO_INFORMATION)


def units_without(prior: Array, W: Array, directions: Array) -> BoolArray:
    """Which experts have no part in which units because coefficients are infinite, shape (K, N).

    Parameters
    ----------
    prior : ndarray, shape (K, N)
        Probabilities of the experts.
    W : ndarray, shape (N, m)
    directions : ndarray, shape (K - 1, m, s)
        To infinity.
    """
    moves = np.einsum("nm,jmr->jnr", W, directions)  # of the log odds against expert 1
    moves = np.concatenate([np.zeros_like(moves[:1]), moves])
    top = moves[prior.argmax(axis=0), np.arange(W.shape[0])]  # of the expert that is the likeliest there
    apart = np.abs(moves - top).max(axis=2)
    return np.asarray((prior < NONE) & (apart > MOVED * np.abs(moves).max()))


class GatePenalty(Protocol):
    """A log prior of the gate coefficients that acts like further units of known expert; complex steps pass through.

    It is the same whichever expert is the reference and however covariates are coded. The gate may be part of a
    likelihood of weighted units, as those of a window along an index are.
    """

    @property
    def described(self) -> str:
        """Description of the penalty, for a summary."""

    def value(self, W: Array, log_prior: Array, at: "Weighted | None" = None) -> Array:
        """Log prior up to a constant, shape (S,), at log probabilities (S, K, N) of a gate with design W (N, m)."""

    def units(self, W: Array, log_prior: Array, at: "Weighted | None" = None) -> Array:
        """Numbers of units of each expert that are added at the covariates of each unit, for its weight, (S, K, N)."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """Of a likelihood of weighted units: the weights, and which coefficients are estimated.

    Attributes
    ----------
    weights : ndarray, shape (N,)
    total : float
        Weight of all units of the data, of which these may be a part.
    free : ndarray of bool, shape (J m,)
        In the order of `gate_information`.
    """

    weights: Array
    total: float
    free: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class JeffreysPenalty:
    """Firth's penalty: half the log determinant of the information that the gate would have with known memberships.

    References
    ----------
    Firth (1993), Biometrika 80, 27-38. Heinze & Schemper (2002), Statistics in Medicine 21, 2409-2419. Bull, Mak &
    Greenwood (2002), Computational Statistics & Data Analysis 39, 57-74, for several categories.
    """

    @property
    def described(self) -> str:
        """Description of the penalty, for a summary."""
        return "Firth (Jeffreys prior)"

    def value(self, W: Array, log_prior: Array, at: Weighted | None = None) -> Array:
        """Half the log determinant of the information per unit, shape (S,)."""
        if log_prior.shape[1] == 1 or not W.size:
            return np.zeros(log_prior.shape[0], dtype=log_prior.dtype)
        sign, size = np.linalg.slogdet(_mean_information(W, log_prior, at))
        return 0.5 * (size + np.log(sign) if np.iscomplexobj(log_prior) else size)

    def units(self, W: Array, log_prior: Array, at: Weighted | None = None) -> Array:
        """Half a unit for each cell of a table, shape (S, K, N).

        These are ``p_k (e_k - p)' B (e_k - p) / 2 + p_k h / (2 K - 2)`` with ``B_bc = w' V_bc w`` from the blocks of
        the inverse information V, and the leverage ``h = tr(L B)``, ``L = diag(p) - p p'``. Their score is the
        derivative of `value`, ``w / 2 sum_b L_ab (B_bb - 2 sum_c B_bc p_c)`` summed over units; the second term,
        proportional to p, has none. For two experts these are h / 2 each.
        """
        prior = np.exp(log_prior)
        (S, K, N), m = prior.shape, W.shape[1]
        J = K - 1
        if J == 0 or m == 0:
            return np.zeros_like(prior)
        information = _mean_information(W, log_prior, at)
        lost = ~np.isfinite(np.linalg.slogdet(information)[1])  # so far out that `value` is minus infinity
        information[lost] = np.eye(J * m)
        inverse = np.linalg.inv(information) / (N if at is None else at.weights.sum())
        if at is not None:
            inverse = inverse * (at.free[:, None] & at.free)
        B = np.zeros((S, K, K, N), dtype=prior.dtype)
        B[:, 1:, 1:] = np.einsum("na,sbacd,nd->sbcn", W, inverse.reshape(S, J, m, J, m), W, optimize=True)
        cross = np.einsum("sbcn,scn->sbn", B, prior)
        own = np.einsum("sbbn->sbn", B) - 2 * cross + (prior * cross).sum(axis=1, keepdims=True)
        leverage = (prior * own).sum(axis=1, keepdims=True)
        return np.asarray(0.5 * prior * (own + leverage / J))


@dataclass(frozen=True, slots=True)
class PseudoUnits:
    """Some units more, spread evenly over the covariates of the data and over the experts.

    Latent GOLD's Bayes constant for latent classes: a Dirichlet prior of the expert probabilities, of the weight of
    `n` units.

    References
    ----------
    Clogg, Rubin, Schenker, Schultz & Weidman (1991), JASA 86, 68-78. Vermunt & Magidson (2016), Technical Guide for
    Latent GOLD 5.1, section 7.3.
    """

    n: float

    @property
    def described(self) -> str:
        """Description of the penalty, for a summary."""
        return f"Bayes constant {self.n:g} (Dirichlet prior)"

    def value(self, W: Array, log_prior: Array, at: Weighted | None = None) -> Array:
        """Mean log probability of an expert, times the number of units, shape (S,)."""
        K, N = log_prior.shape[1:]
        weights, total = (np.ones(N), float(N)) if at is None else (at.weights, at.total)
        return np.asarray(self.n / (K * total) * (log_prior @ weights).sum(axis=1))

    def units(self, W: Array, log_prior: Array, at: Weighted | None = None) -> Array:
        """Equal numbers everywhere, shape (S, K, N)."""
        K, N = log_prior.shape[1:]
        return np.full(log_prior.shape, self.n / (K * (N if at is None else at.total)))


def penalty_value(penalty: GatePenalty, W: Array, gamma: Array) -> Array:
    """Log prior of coefficients (S, K - 1, m) up to a constant, shape (S,)."""
    return penalty.value(W, gate_log_probabilities(W, gamma))


def penalty_score(penalty: GatePenalty, W: Array, gamma: Array) -> Array:
    """Derivatives of the log prior in the coefficients, shape (S, K - 1, m): the score of its units."""
    log_prior = gate_log_probabilities(W, gamma)
    units, prior = penalty.units(W, log_prior), np.exp(log_prior)
    return np.asarray((units - prior * units.sum(axis=1, keepdims=True))[:, 1:] @ W)


def penalty_meat(penalty: GatePenalty, W: Array, gamma: Array) -> Array:
    """Sum of outer products of the scores of the prior's units, shape (d, d) with d = (K - 1) m, for S = 1.

    A cell without a single unit of an expert adds nothing to the outer products of scores: a sandwich would take its
    log odds to be certain. What is known of them comes from the prior, whose units vary as others do.
    """
    log_prior = gate_log_probabilities(W, gamma)
    units, prior = penalty.units(W, log_prior)[0], np.exp(log_prior)[0]
    out = np.zeros((gamma[0].size, gamma[0].size))
    for k, weight in enumerate(units):
        off = (np.arange(len(prior)) == k)[1:, None] - prior[1:]  # (K - 1, N)
        scores = (off[:, None] * W.T).reshape(gamma[0].size, W.shape[0])
        out += (scores * weight) @ scores.T
    return out


def _mean_information(W: Array, log_prior: Array, at: Weighted | None) -> Array:
    """Information per unit of weight (S, J m, J m), with unit rows and columns for what is not free."""
    weights = np.ones(W.shape[0]) if at is None else at.weights
    out = gate_information(W, log_prior, weights / weights.sum())
    if at is not None:
        out = out * (at.free[:, None] & at.free) + np.diag(~at.free)
    return out


def checked_gate_penalty(value: Any) -> GatePenalty | None:
    """The penalty that ``gate_penalty=`` names.

    Raises
    ------
    ArgumentError
        If it is not None, ``"firth"`` or a number of units above zero.
    """
    if value is None:
        return None
    if isinstance(value, str) and value == "firth":
        return JeffreysPenalty()
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 < float(value) < np.inf:
        return PseudoUnits(float(value))
    raise ArgumentError(
        f"gate_penalty must be 'firth' (Jeffreys prior), a number above zero (Bayes constant: that many units more, "
        f"spread evenly over the experts; 1 is usual), or None, got {value!r}"
    )
