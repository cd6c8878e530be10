"""Predictions of a MEMoE: expert probabilities, trajectories, and subjects given their history.

Everything here works on arrays in user coordinates; `Estimate` bundles what is known about the parameters.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from mixmoe.assess.panels import Effects
from mixmoe.gate import gate_log_probabilities
from mixmoe.kernels.linalg import logsumexp
from mixmoe.mixed.disturbances import Disturbances
from mixmoe.mixed.laplace import GlmmExperts
from mixmoe.mixed.likelihood import Problem
from mixmoe.mixed.mixtures import MixtureLaw
from mixmoe.mixed.natural import Positions
from mixmoe.mixed.structure import Params

Array = NDArray[np.float64]

_CHUNK = 20_000
_AT_END = 1e-4  # p (1 - p) at which a gate with infinite coefficients has a probability of zero or one


@dataclass(frozen=True, slots=True)
class Estimate:
    """Parameters and their covariance.

    Attributes
    ----------
    params : Params
        On the user's scale, S = 1.
    cov : ndarray, shape (P, P)
        Of the reported parameters; directions in which gate coefficients are infinite count as known.
    where : Positions
    separated : bool
        Whether there are such directions.
    """

    params: Params
    cov: Array
    where: Positions
    separated: bool = False


@dataclass(frozen=True, slots=True)
class Interval:
    """Estimates with limits.

    Attributes
    ----------
    estimate, std_error, lower, upper : ndarray
    """

    estimate: Array
    std_error: Array
    lower: Array
    upper: Array


@dataclass(frozen=True, slots=True)
class History:
    """What is known of subjects from their past, or from the gate alone.

    Attributes
    ----------
    probabilities : ndarray, shape (N, K)
        Of the experts.
    means : ndarray, shape (N, K, q)
        Of the random effects given the expert.
    covariances : ndarray, shape (N, K, q, q)
    """

    probabilities: Array
    means: Array
    covariances: Array

    def take(self, subjects: NDArray[np.intp]) -> "History":
        """The same for some of the subjects, possibly repeated."""
        return History(self.probabilities[subjects], self.means[subjects], self.covariances[subjects])


def wald(estimate: Array, std_error: Array, alpha: float) -> Interval:
    """Normal limits."""
    half = norm.isf(alpha / 2) * std_error
    return Interval(estimate, std_error, estimate - half, estimate + half)


def gate_probabilities(e: Estimate, W: Array) -> Array:
    """Expert probabilities from the gate alone, shape (N, K)."""
    return np.exp(gate_log_probabilities(W, e.params.gamma))[0].T


def gate_intervals(e: Estimate, W: Array, alpha: float) -> Interval:
    """Expert probabilities with limits by the delta method on the logit scale, each shape (N, K).

    NaN where a gate with infinite coefficients gives zero or one: the estimate has no spread there to first order.
    """
    pi = gate_probabilities(e, W)
    std_error = np.empty_like(pi)
    logit_error = np.empty_like(pi)
    V = _block(e.cov, e.where.gate.ravel())
    for k in range(pi.shape[1]):
        slopes = pi[:, [k]] * ((np.arange(1, pi.shape[1]) == k) - pi[:, 1:])  # d pi_k / d predictor_j  (N, K-1)
        gradient = (slopes[:, :, None] * W[:, None]).reshape(W.shape[0], -1)
        std_error[:, k] = _row_errors(gradient, V)
        with np.errstate(divide="ignore", invalid="ignore"):
            logit_error[:, k] = std_error[:, k] / (pi[:, k] * (1 - pi[:, k]))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        logit = np.log(pi) - np.log1p(-pi)
        half = norm.isf(alpha / 2) * logit_error
        lower, upper = 1 / (1 + np.exp(half - logit)), 1 / (1 + np.exp(-half - logit))
    certain = std_error == 0  # one expert, or a gate without parameters
    lower, upper = np.where(certain, pi, lower), np.where(certain, pi, upper)
    if e.separated:
        at_end = pi * (1 - pi) < _AT_END
        std_error, lower, upper = (np.where(at_end, np.nan, part) for part in (std_error, lower, upper))
    return Interval(pi, std_error, lower, upper)


def proportion_intervals(e: Estimate, W: Array, alpha: float) -> Interval:
    """Mean probability of each expert, shape (K,), with limits by the delta method on the logit scale."""
    pi = gate_probabilities(e, W)
    share = pi.mean(axis=0)
    gradient = np.array(
        [
            ((pi[:, [k]] * ((np.arange(1, pi.shape[1]) == k) - pi[:, 1:])).T @ W / W.shape[0]).ravel()
            for k in range(pi.shape[1])
        ]
    )
    error = _row_errors(gradient, _block(e.cov, e.where.gate.ravel()))
    with np.errstate(divide="ignore", invalid="ignore"):
        logit, half = np.log(share) - np.log1p(-share), norm.isf(alpha / 2) * error / (share * (1 - share))
    lower, upper = 1 / (1 + np.exp(half - logit)), 1 / (1 + np.exp(-half - logit))
    certain = error == 0
    if e.separated and (pi * (1 - pi) < _AT_END).all():
        error, certain = np.full_like(error, np.nan), np.zeros(error.size, dtype=bool)
        lower, upper = error, error  # all memberships are certain: nothing says how far the shares would vary
    return Interval(share, error, np.where(certain, share, lower), np.where(certain, share, upper))


def expert_means(e: Estimate, X: Array) -> Array:
    """Trajectories of the experts, shape (n, K)."""
    return X @ e.params.beta[0].T


def expert_intervals(e: Estimate, X: Array, alpha: float) -> Interval:
    """Trajectories of the experts with confidence limits, each shape (n, K)."""
    errors = [_row_errors(X, _block(e.cov, columns)) for columns in e.where.beta]
    return wald(expert_means(e, X), np.column_stack(errors), alpha)


def weighted_mean_errors(e: Estimate, X: Array, weights: Array) -> Array:
    """Standard errors of weighted means of the trajectories, shape (B, K), from weights (B, n, K)."""
    rows = np.einsum("bnk,np->bkp", weights, X)
    errors = [_row_errors(rows[:, k], _block(e.cov, columns)) for k, columns in enumerate(e.where.beta)]
    return np.column_stack(errors)


def effects_of(past: History, e: Estimate, names: tuple[str, ...]) -> Effects:
    """Predicted random effects with the covariance that the model implies for them."""
    share = past.probabilities / past.probabilities.sum(axis=0)
    doubt = np.einsum("nk,nkqr->kqr", share, past.covariances)
    factor = e.params.factor[0]
    implied = factor @ np.swapaxes(factor, 1, 2) - doubt
    return Effects(names, past.means, implied, past.probabilities.argmax(axis=1) + 1)


def marginal_intervals(e: Estimate, X: Array, W: Array, alpha: float) -> Interval:
    """Population mean ``sum_k pi_k(w) x'beta_k`` with confidence limits, each shape (n,), for rows of `X` and `W`."""
    pi, means = gate_probabilities(e, W), expert_means(e, X)
    mean = (pi * means).sum(axis=1)
    error = np.empty_like(mean)
    for start in range(0, len(mean), _CHUNK):
        rows = slice(start, start + _CHUNK)
        gradient = np.zeros((len(mean[rows]), e.cov.shape[0]))
        for k, columns in enumerate(e.where.beta):
            gradient[:, columns] += pi[rows, k][:, None] * X[rows]
        for k, columns in enumerate(e.where.gate, start=1):
            gradient[:, columns] += (pi[rows, k] * (means[rows, k] - mean[rows]))[:, None] * W[rows]
        error[rows] = _row_errors(gradient, e.cov)
    return wald(mean, error, alpha)


def _row_errors(gradient: Array, cov: Array) -> Array:
    """Standard errors of linear functions, shape (n,); NaN where one depends on a parameter without covariance."""
    missing = np.isnan(np.diag(cov))
    used = np.where(missing[:, None] | missing, 0.0, cov)
    error = np.sqrt(np.maximum(np.einsum("np,pr,nr->n", gradient, used, gradient, optimize=True), 0.0))
    return np.where((gradient[:, missing] != 0).any(axis=1), np.nan, error)


def _block(cov: Array, columns: NDArray[np.intp]) -> Array:
    return cov[np.ix_(columns, columns)]


def posterior_history(problem: Problem, e: Params) -> History:
    """Posterior of memberships and random effects of the subjects of a problem.

    Parameters
    ----------
    problem : Problem
    e : Params
        In the coordinates of `problem`, S = 1.

    Returns
    -------
    History

    Notes
    -----
    Where the integral over the random effects is none in closed form, it is taken with enough quadrature points for
    means, variances and probabilities of a subject, however many the fit had.
    """
    experts = problem.experts.fine if isinstance(problem.experts, GlmmExperts) else problem.experts
    parts = []
    for where, block in experts.blocks(problem.structure.n_experts):
        densities = block.densities(e)
        log_joint = (gate_log_probabilities(problem.W[where], e.gamma) + densities.log_density)[0]
        probabilities = np.exp(log_joint - logsumexp(log_joint, axis=0)).T
        effects = densities.effects()
        means, covariances = effects.means[0].transpose(2, 0, 1), effects.covariances[0].transpose(3, 0, 1, 2)
        parts.append((probabilities, means, covariances))
    return History(*map(np.concatenate, zip(*parts, strict=True)))


def prior_history(e: Estimate, W: Array) -> History:
    """What the gate alone says about subjects: random effects have mean zero and covariance D_k."""
    pi = gate_probabilities(e, W)
    N, K = pi.shape
    factor = e.params.factor[0]
    q = factor.shape[-1]
    D = factor @ np.swapaxes(factor, 1, 2)
    return History(pi, np.zeros((N, K, q)), np.broadcast_to(D, (N, K, q, q)).copy())


def subject_intervals(
    e: Estimate, X: Array, Z: Array, past: History, codes: NDArray[np.intp], alpha: float, noise: bool
) -> Interval:
    """Subject trajectories: mixtures over experts of ``x'beta_k + z'b_k``, with equal-tailed limits, each shape (n,).

    Parameters
    ----------
    e : Estimate
    X : ndarray, shape (n, p)
    Z : ndarray, shape (n, q)
    past : History
    codes : ndarray of int, shape (n,)
        Subject of each row, as a row of `past`.
    alpha : float
    noise : bool
        Whether the limits are for a new observation (with residual error) or for the subject's mean.

    Returns
    -------
    Interval
        Limits carry the uncertainty of membership, random effects and, with `noise`, residual error; the estimates of
        the parameters are taken as given.
    """
    means = expert_means(e, X) + np.einsum("nq,nkq->nk", Z, past.means[codes])
    variances = np.einsum("nq,nkqr,nr->nk", Z, past.covariances[codes], Z, optimize=True)
    if noise:
        variances = variances + e.params.sigma[0] ** 2
    sd = np.sqrt(np.maximum(variances, 0.0))
    return mixture_intervals(MixtureLaw(past.probabilities[codes], means, sd), alpha)


def mixture_intervals(law: MixtureLaw, alpha: float) -> Interval:
    """Means, standard deviations and equal-tailed limits, each shape (n,)."""
    return Interval(law.mean, law.deviation, law.quantile(alpha / 2), law.quantile(1 - alpha / 2))


def draw_responses(e: Estimate, X: Array, Z: Array, W: Array, errors: Disturbances, rng: np.random.Generator) -> Array:
    """One response per row, shape (n,), drawn from the fitted mixture; membership and random effects per subject.

    Parameters
    ----------
    e : Estimate
    X, Z : ndarray, shape (n, p), (n, q)
        Rows sorted by subject.
    W : ndarray, shape (N, m)
    errors : Disturbances
    rng : numpy.random.Generator

    Returns
    -------
    ndarray, shape (n,)
    """
    cumulative = gate_probabilities(e, W).cumsum(axis=1)
    member = (rng.random((W.shape[0], 1)) > cumulative[:, :-1]).sum(axis=1)
    factor = e.params.factor[0]
    effects = np.einsum("nqr,nr->nq", factor[member], rng.normal(size=(W.shape[0], factor.shape[-1])))
    n, rows = X.shape[0], errors.factor.visits.codes
    own = np.arange(n), member[rows]
    noise = errors.by_row(errors.factor.colour(rng.normal(size=(1, 1, n)))[:, 0])[own]
    away = (Z * effects[rows]).sum(axis=1) + noise
    if errors.model.df is not None:
        df = errors.model.df[member]
        away *= np.sqrt(df / rng.chisquare(df))[rows]
    return np.asarray(expert_means(e, X)[own] + away)
