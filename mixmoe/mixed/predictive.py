"""The distribution of each response given the earlier responses of its subject, or given the covariates alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from mixmoe.assess.residuals import Distribution, continuous
from mixmoe.gate import gate_log_probabilities
from mixmoe.kernels.linalg import logsumexp
from mixmoe.kernels.moments import LOG_2PI
from mixmoe.mixed.structure import Params

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NormalMixture:
    """A normal mixture per row.

    Attributes
    ----------
    weights, means, sd : ndarray, shape (n, K)
    """

    weights: Array
    means: Array
    sd: Array

    def place(self, y: Array) -> Distribution:
        """Where responses lie, each shape (n,)."""
        z = (y[:, None] - self.means) / self.sd
        return continuous((self.weights * ndtr(z)).sum(axis=1), (self.weights * ndtr(-z)).sum(axis=1))


def given_covariates(e: Params, X: Array, Z: Array, W: Array, codes: NDArray[np.intp]) -> NormalMixture:
    """Distribution of each response given covariates: experts by the gate, random effects integrated out.

    Parameters
    ----------
    e : Params
        On the user's scale, S = 1.
    X, Z : ndarray, shape (n, p), (n, q)
    W : ndarray, shape (N, m)
    codes : ndarray of int, shape (n,)

    Returns
    -------
    NormalMixture
    """
    loadings = np.einsum("nq,kqr->nkr", Z, e.factor[0])
    variance = (loadings**2).sum(axis=2) + e.sigma[0] ** 2
    probabilities = np.exp(gate_log_probabilities(W, e.gamma))[0].T
    return NormalMixture(probabilities[codes], X @ e.beta[0].T, np.sqrt(variance))


def given_history(e: Params, y: Array, X: Array, Z: Array, W: Array, starts: NDArray[np.intp]) -> NormalMixture:
    """Distribution of each response given the earlier rows of its subject: one step ahead, as a filter goes.

    Parameters
    ----------
    e : Params
        On the user's scale, S = 1.
    y : ndarray, shape (n,)
        Rows sorted by subject; within a subject the order of the rows is that of time.
    X, Z : ndarray, shape (n, p), (n, q)
    W : ndarray, shape (N, m)
    starts : ndarray of int, shape (N,)

    Returns
    -------
    NormalMixture

    Notes
    -----
    Per expert the random effects have a normal posterior that each row updates (recursive least squares); expert
    probabilities are updated by Bayes' rule. Under the model the resulting quantile residuals are independent.
    """
    n, q = Z.shape
    N, K = len(starts), e.beta.shape[1]
    counts = np.diff(np.append(starts, n))
    base, factor, noise = X @ e.beta[0].T, e.factor[0], e.sigma[0] ** 2
    effect = np.zeros((N, K, q))
    spread = np.broadcast_to(factor @ np.swapaxes(factor, 1, 2), (N, K, q, q)).copy()
    log_weight = gate_log_probabilities(W, e.gamma)[0].T.copy()
    out = NormalMixture(np.empty((n, K)), np.empty((n, K)), np.empty((n, K)))
    for t in range(int(counts.max())):
        who = np.flatnonzero(counts > t)
        rows = starts[who] + t
        z = Z[rows]
        reach = np.einsum("nkqr,nr->nkq", spread[who], z)
        variance = np.einsum("nq,nkq->nk", z, reach) + noise
        mean = base[rows] + np.einsum("nq,nkq->nk", z, effect[who])
        out.weights[rows] = np.exp(log_weight[who] - logsumexp(log_weight[who], axis=1)[:, None])
        out.means[rows], out.sd[rows] = mean, np.sqrt(variance)
        surprise = y[rows][:, None] - mean
        log_weight[who] -= 0.5 * (LOG_2PI + np.log(variance) + surprise**2 / variance)
        effect[who] += reach * (surprise / variance)[..., None]
        spread[who] -= reach[..., :, None] * reach[..., None, :] / variance[..., None, None]
    return out
