"""The distribution of each response given the earlier responses of its subject, or given the covariates alone."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from mixmoe.gate import gate_log_probabilities
from mixmoe.kernels.linalg import logsumexp
from mixmoe.mixed.disturbances import Disturbances
from mixmoe.mixed.mixtures import MixtureLaw
from mixmoe.mixed.structure import Params

Array = NDArray[np.float64]


def given_covariates(
    e: Params, X: Array, Z: Array, W: Array, codes: NDArray[np.intp], errors: Disturbances
) -> MixtureLaw:
    """Distribution of each response given covariates: experts by the gate, random effects integrated out.

    Parameters
    ----------
    e : Params
        On the user's scale, S = 1.
    X, Z : ndarray, shape (n, p), (n, q)
    W : ndarray, shape (N, m)
    codes : ndarray of int, shape (n,)
    errors : Disturbances

    Returns
    -------
    MixtureLaw
    """
    loadings = np.einsum("nq,kqr->nkr", Z, e.factor[0])
    variance = (loadings**2).sum(axis=2) + errors.by_row(errors.factor.sd**2 + errors.motion)
    probabilities = np.exp(gate_log_probabilities(W, e.gamma))[0].T
    df = None if errors.model.df is None else np.broadcast_to(errors.model.df, variance.shape)
    return MixtureLaw(probabilities[codes], X @ e.beta[0].T, np.sqrt(variance), df)


def given_history(e: Params, y: Array, X: Array, Z: Array, W: Array, errors: Disturbances) -> MixtureLaw:
    """Distribution of each response given the earlier rows of its subject: one step ahead, as a filter goes.

    Parameters
    ----------
    e : Params
        On the user's scale, S = 1.
    y : ndarray, shape (n,)
        Rows sorted by subject; within a subject earlier rows are those of earlier times, or where no times are known
        those that come first.
    X, Z : ndarray, shape (n, p), (n, q)
    W : ndarray, shape (N, m)
    errors : Disturbances

    Returns
    -------
    MixtureLaw

    Notes
    -----
    Per expert, errors are whitened; then the random effects have a normal posterior that each row updates (recursive
    least squares), and expert probabilities are updated by Bayes' rule. Under the model the resulting quantile
    residuals are independent.
    """
    order = errors.order
    residual = (y[order] - e.beta[0] @ X[order].T)[:, None]
    white = errors.factor.whiten(residual)[:, 0]
    state = _begin(e, W)
    white_Z = errors.factor.whiten(Z[order].T[None])
    shape = (y.size, len(white))
    law = MixtureLaw(np.empty(shape), np.empty(shape), np.empty(shape), np.empty(shape))
    for before, layer in enumerate(errors.factor.visits.layers()):
        rows, who = order[layer.rows], errors.factor.visits.codes[layer.rows]
        step = _Step(white[:, layer.rows].T, white_Z[..., layer.rows].transpose(2, 0, 1), before)
        unit = errors.factor.conditional[:, layer.rows].T
        seen = _advance(state, who, step, errors.model.df)
        state.log_weight[who] += seen.log_density - np.log(unit)
        law.weights[rows], law.sd[rows] = seen.weights, seen.scale * unit
        law.means[rows] = y[rows][:, None] - seen.z * law.sd[rows]
        if law.df is not None and seen.df is not None:
            law.df[rows] = seen.df
    return law if errors.model.df is not None else replace(law, df=None)


@dataclass(frozen=True, slots=True)
class _State:
    """What is known of each subject so far; updated in place.

    Attributes
    ----------
    effect : ndarray, shape (N, K, q)
    spread : ndarray, shape (N, K, q, q)
    log_weight : ndarray, shape (N, K)
    distance : ndarray, shape (N, K)
        Squared distance of the responses so far.
    """

    effect: Array
    spread: Array
    log_weight: Array
    distance: Array


@dataclass(frozen=True, slots=True)
class _Step:
    """The next row of some subjects: whitened residual (n, K) and columns (n, K, q), and how many came before."""

    residual: Array
    Z: Array
    before: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """The next row of some subjects before it updates what is known, each shape (n, K)."""

    weights: Array
    z: Array
    scale: Array
    log_density: Array
    df: Array | None


def _begin(e: Params, W: Array) -> _State:
    factor = e.factor[0]
    N, (K, q, _) = len(W), factor.shape
    spread = np.broadcast_to(factor @ np.swapaxes(factor, 1, 2), (N, K, q, q)).copy()
    return _State(np.zeros((N, K, q)), spread, gate_log_probabilities(W, e.gamma)[0].T.copy(), np.zeros((N, K)))


def _advance(state: _State, who: NDArray[np.intp], step: _Step, df: Array | None) -> _Seen:
    """Place the next rows of the subjects `who`, then update the random effects by them."""
    log_weight = state.log_weight[who]
    reach = np.einsum("nkqr,nkr->nkq", state.spread[who], step.Z)
    variance = np.einsum("nkq,nkq->nk", step.Z, reach) + 1.0
    surprise = step.residual - np.einsum("nkq,nkq->nk", step.Z, state.effect[who])
    freedom = None if df is None else np.broadcast_to(df + step.before, variance.shape)
    scale = variance if df is None else variance * (df + state.distance[who]) / freedom
    z = surprise / np.sqrt(scale)
    log_density = (norm.logpdf(z) if freedom is None else t.logpdf(z, freedom)) - 0.5 * np.log(scale)
    state.distance[who] += surprise**2 / variance
    state.effect[who] += reach * (surprise / variance)[..., None]
    state.spread[who] -= reach[..., :, None] * reach[..., None, :] / variance[..., None, None]
    weights = np.exp(log_weight - logsumexp(log_weight, axis=1)[:, None])
    return _Seen(weights, z, np.sqrt(scale), log_density, freedom)
