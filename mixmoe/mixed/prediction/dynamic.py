"""Responses given the earlier ones of their subject.

Predictive distributions, and predictions where errors are correlated.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from mixmoe._typing import Array
from mixmoe.design.design import Design, offset_of, weights_of
from mixmoe.mixed.error_structure import ErrorSetup
from mixmoe.mixed.likelihood.columns import Columns
from mixmoe.mixed.likelihood.correlated import (
    RowPosterior,
    SerialRows,
    row_covariances,
    row_errors,
    row_means,
    row_posterior,
)
from mixmoe.mixed.likelihood.serial import factorise, integer_power
from mixmoe.mixed.parameters import Params
from mixmoe.mixed.prediction.trajectories import Disturbances, Estimate, disturbances, expert_means
from mixmoe.mixture.gate import gate_log_probabilities, posterior_probabilities
from mixmoe.output.predictions import MixtureLaw


@dataclass(frozen=True, slots=True)
class Past:
    """Subjects seen before, in the units of the user.

    Attributes
    ----------
    rows : SerialRows
    errors : Disturbances
    posterior : RowPosterior
        With E = K.
    """

    rows: SerialRows
    errors: Disturbances
    posterior: RowPosterior


@dataclass(frozen=True, slots=True)
class Ahead:
    """What errors and random effects are at rows ahead, given the past, each shape (K, rows).

    Attributes
    ----------
    means : ndarray
        Of z'b + e.
    known : ndarray
        Squared scale of the subject's mean.
    noise : ndarray
        What a new observation adds to that.
    df : ndarray or None
    """

    means: Array
    known: Array
    noise: Array
    df: Array | None


def normalized_residuals(design: Design, e: Params, responsibilities: Array, setup: ErrorSetup | None) -> Array:
    """Conditional residuals whitened by the covariance of the errors, averaged over experts, shape (n,).

    Given the expert these are ``L^-1 (y - X beta - Z b)`` with R = L L' (Pinheiro & Bates 2000, section 5.3).
    """
    past = past_of(design, e, setup)
    left = row_errors(past.rows, past.posterior)
    white = past.errors.by_row(past.errors.factor.whiten(left[:, None])[:, 0])
    return np.asarray((responsibilities[design.codes] * white).sum(axis=1))


def past_of(design: Design, e: Params, setup: ErrorSetup | None) -> Past:
    """The rows of a design with response, and what they say about its subjects."""
    errors = disturbances(design, e, setup)
    at = errors.order
    V = np.zeros((0, design.n)) if setup is None else design.sigma[at][:, setup.columns].T
    y, unit = np.asarray(design.response) - offset_of(design), 1 / np.sqrt(weights_of(design))
    rows = SerialRows(y[at], Columns(design.expert[at].T), design.random[at].T, V, errors.factor.visits, unit[at])
    return Past(rows, errors, row_posterior(rows, e.beta[0], e.factor[0], errors.model))


def errors_ahead(
    design: Design, past: Past, where: NDArray[np.intp], params: Params, setup: ErrorSetup, own: bool
) -> Disturbances:
    """The errors of rows to predict, their times on the clock of the past.

    Parameters
    ----------
    design : Design
    past : Past
    where : ndarray of int, shape (N,)
        Place of each subject of `design` in `past`; -1 for subjects without one.
    params : Params
    setup : ErrorSetup
    own : bool
        Whether the rows are those of the past themselves.

    Returns
    -------
    Disturbances

    Notes
    -----
    Where visits are counted because no times are known, the rows of a subject come after those of her past.
    """
    errors = disturbances(design, params, setup, ties=True)
    if own or setup.options.time is not None:
        return errors
    before = np.where(where >= 0, past.rows.visits.counts[where], 0)
    return replace(errors, time=errors.time + before[design.codes[errors.order]])


def subject_law(
    e: Estimate,
    design: Design,
    errors: Disturbances,
    past: Past,
    where: NDArray[np.intp],
    probabilities: Array,
    noise: bool,
) -> MixtureLaw:
    """Distribution of the course of each subject, or with `noise` of a response, at the rows of a design.

    Parameters
    ----------
    e : Estimate
    design : Design
    errors : Disturbances
        Of its rows, by `errors_ahead`.
    past : Past
    where : ndarray of int, shape (N,)
        Place of each subject of `design` in `past`; -1 for subjects without one.
    probabilities : ndarray, shape (N, K)
        Of the experts, given the past where there is one.
    noise : bool

    Returns
    -------
    MixtureLaw

    Notes
    -----
    The course at time t is ``x'beta + z'b + E[e(t) | past, b]``: random effects and what the past says about the error
    at t. It is continuous in t. Autoregressive errors hold no measurement error, so that the response at an observed
    time is known, and course and response then are what was observed. A Brownian motion is part of the course, the
    measurement error beside it is not.
    """
    seen = where[design.codes[errors.order]]
    n, K = design.n, len(past.posterior.T)
    df = None if errors.model.df is None else np.empty((K, n))
    out = Ahead(np.empty((K, n)), np.empty((K, n)), np.empty((K, n)), df)
    for rows, part in ((seen < 0, None), (seen >= 0, past)):
        at = np.flatnonzero(rows)
        if at.size:
            ahead = _new(errors, design, e.params, at) if part is None else _follow(errors, design, past, at, seen[at])
            out.means[:, at], out.known[:, at], out.noise[:, at] = ahead.means, ahead.known, ahead.noise
            if out.df is not None:
                out.df[:, at] = ahead.df
    means = expert_means(e, design.expert) + errors.by_row(out.means)
    sd = np.sqrt(np.maximum(errors.by_row(out.known + out.noise if noise else out.known), 0.0))
    return MixtureLaw(probabilities[design.codes], means, sd, None if out.df is None else errors.by_row(out.df))


def _new(errors: Disturbances, design: Design, e: Params, at: NDArray[np.intp]) -> Ahead:
    """Rows of subjects without a past."""
    loadings = np.einsum("nq,kqr->knr", design.random[errors.order[at]], e.factor[0])
    known = (loadings**2).sum(axis=2) + errors.motion[:, at]
    df = None if errors.model.df is None else np.repeat(errors.model.df[:, None], at.size, axis=1)
    return Ahead(np.zeros_like(known), known, errors.factor.sd[:, at] ** 2, df)


def _follow(errors: Disturbances, design: Design, past: Past, at: NDArray[np.intp], who: NDArray[np.intp]) -> Ahead:
    """Rows of subjects of `past`, each with a copy of the rows of its subject."""
    visits = past.rows.visits.chosen(who)
    index = past.rows.visits.rows_of(who)
    sd = past.errors.factor.sd[:, index]
    link = _covariances(errors, past, at, visits.counts, index)
    factor = factorise(errors.model.kind, sd, errors.model.shape, visits)
    solved = factor.solved(factor.whiten(link[:, None]))[:, 0]
    left = row_errors(past.rows, past.posterior)[:, index]
    Z = design.random[errors.order[at]].T - visits.per_subject(solved[:, None] * past.rows.Z[:, index])
    b = row_means(past.posterior)[..., who]
    cov = row_covariances(past.posterior)[..., who]
    explained = visits.per_subject(solved * link)
    means = (design.random[errors.order[at]].T * b).sum(axis=1) + visits.per_subject(solved * left)
    known = (Z * _times(cov, Z)).sum(axis=1)
    noise = errors.factor.sd[:, at] ** 2
    if errors.model.kind == "bm":
        known = known + errors.motion[:, at] - explained
    else:
        noise = noise - explained
    df = past.errors.model.df
    if df is None:
        return Ahead(means, known, noise, None)
    # The t that the normal distribution becomes when the past shows how far from the centre a subject lies.
    freedom = df[:, None] + past.rows.visits.counts[who].astype(float)
    factor = (df[:, None] + past.posterior.distance[:, who]) / freedom
    return Ahead(means, known * factor, noise * factor, freedom)


def _times(cov: Array, Z: Array) -> Array:
    return np.einsum("kabn,kbn->kan", cov, Z)


def _covariances(
    errors: Disturbances, past: Past, at: NDArray[np.intp], counts: NDArray[np.intp], index: NDArray[np.intp]
) -> Array:
    """Covariance of the error of each row ahead with those of the past of its subject, shape (K, pairs)."""
    sd, shape, kind = past.errors.factor.sd[:, index], errors.model.shape, errors.model.kind
    if shape is None:
        return np.zeros_like(sd)
    now, then = np.repeat(errors.time[at], counts), past.errors.time[index]
    if kind == "bm":
        return np.asarray(shape[:, None] ** 2 * np.minimum(now, then))
    lag = np.abs(now - then)
    correlation = np.exp(-shape[:, None] * lag) if kind == "car1" else integer_power(shape, lag)
    return np.asarray(np.repeat(errors.factor.sd[:, at], counts, axis=1) * sd * correlation)


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
    weights = posterior_probabilities(log_weight)
    return _Seen(weights, z, np.sqrt(scale), log_density, freedom)
