"""Expert probabilities, trajectories and subjects given their history, as arrays and as frames.

Everything here works on arrays in user coordinates; `Estimate` bundles what is known about the parameters.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.design import Design, weights_of
from mixmoe.design.frame import places_of
from mixmoe.families import Effects
from mixmoe.inference.small_samples import Moments, degrees_of_freedom
from mixmoe.inference.uncertainty import critical, probability_errors, probability_limits
from mixmoe.mixed.error_structure import ErrorSetup, times_of
from mixmoe.mixed.likelihood.correlated import (
    ErrorModel,
)
from mixmoe.mixed.likelihood.further_parameters import spans
from mixmoe.mixed.likelihood.observed import Problem
from mixmoe.mixed.likelihood.serial import ErrorFactor, Filter, Visits, factorise
from mixmoe.mixed.parameters import Coordinates, Params, ReportedVector, user_to_working
from mixmoe.mixture.gate import gate_log_probabilities, posterior_probabilities
from mixmoe.output.predictions import Interval, MixtureLaw, known_places, warn_strangers


@dataclass(frozen=True, slots=True)
class Disturbances:
    """Errors of the rows of a design under each of K experts.

    Attributes
    ----------
    model : ErrorModel
        With E = K.
    factor : Independent, Chain or Filter
        Of the covariances of the errors, rows in the order `order`.
    order : ndarray of int, shape (n,)
        Rows of the design by subject and time.
    time : ndarray, shape (n,)
        Of the rows in that order.
    """

    model: ErrorModel
    factor: ErrorFactor
    order: NDArray[np.intp]
    time: Array

    @property
    def motion(self) -> Array:
        """Variance of the Brownian motion at each row in that order, shape (K, n); zero without one."""
        if isinstance(self.factor, Filter):
            return np.asarray(self.factor.tau[:, None] ** 2 * self.time)
        return np.zeros_like(self.factor.sd)

    def by_row(self, values: Array) -> Array:
        """Values in the order `order` on the last axis, with the rows of the design first."""
        out = np.empty(values.shape[::-1])
        out[self.order] = values.T
        return out


def disturbances(design: Design, params: Params, setup: ErrorSetup | None, ties: bool = False) -> Disturbances:
    """The errors of fitted experts on the rows of a design.

    Parameters
    ----------
    design : Design
    params : Params
        On the user's scale, S = 1.
    setup : ErrorSetup or None
        None for iid normal errors.
    ties : bool
        Whether times may repeat within a subject.

    Returns
    -------
    Disturbances
    """
    unit = 1 / np.sqrt(weights_of(design))
    if setup is None:
        order, gap = np.arange(design.n), np.ones(design.n)
        model, V, time = ErrorModel("iid", params.sigma[0], np.zeros((params.sigma.shape[1], 0)), None, None), None, gap
        sd = params.sigma[0][:, None] * unit
    else:
        times = times_of(design, setup.options, ties)
        order, gap, time = times.order, times.gap, times.time
        model, V = user_errors(params, setup), design.sigma[order][:, setup.columns].T
        sd = model.deviations(V, unit[order])
    visits = Visits(design.starts, design.counts, gap)
    return Disturbances(model, factorise(model.kind, sd, model.shape, visits), order, time)


def user_errors(params: Params, setup: ErrorSetup) -> ErrorModel:
    """Error parameters of each expert in the units of the user, E = K."""
    natural = params.extra[0].copy()
    for extra, where in spans(setup.extras):
        natural[:, where] = extra.scale.natural(natural[:, where])
    form, v = setup.form, setup.form.n_slopes
    df = None
    if form.heavy:
        df = natural[:, -1] if form.df is None else np.full(len(natural), form.df)
    return ErrorModel(form.kind, params.sigma[0], natural[:, :v], None if form.kind == "iid" else natural[:, v], df)


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
    where : ReportedVector
    separated : bool
        Whether there are such directions.
    moments : Moments or None
        Of the covariance, where limits are by t.
    shift : ndarray, shape (P,), or None
        How far the fit around which limits lie is from the parameters.
    """

    params: Params
    cov: Array
    where: ReportedVector
    separated: bool = False
    moments: Moments | None = None
    shift: Array | None = None


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
        """History of some of the subjects, each possibly repeated."""
        return History(self.probabilities[subjects], self.means[subjects], self.covariances[subjects])


def wald(
    estimate: Array, std_error: Array, alpha: float, df: Array | float = np.inf, shift: Array | float = 0.0
) -> Interval:
    """Limits by t, or normal ones where the degrees of freedom are infinite, around the estimate with a shift."""
    half, centre = critical(alpha, df) * std_error, estimate + shift
    return Interval(estimate, std_error, centre - half, centre + half)


def gate_probabilities(e: Estimate, W: Array) -> Array:
    """Expert probabilities from the gate alone, shape (N, K)."""
    return np.exp(gate_log_probabilities(W, e.params.gamma))[0].T


def gate_intervals(e: Estimate, W: Array, alpha: float) -> Interval:
    """Expert probabilities with limits by the delta method on the logit scale, each shape (N, K).

    NaN where a gate with infinite coefficients gives zero or one: the estimate has no spread there to first order.
    """
    pi = gate_probabilities(e, W)
    std_error, shift = np.empty_like(pi), np.zeros_like(pi)
    gate = e.where.gate.ravel()
    V = _block(e.cov, gate)
    for k in range(pi.shape[1]):
        slopes = pi[:, [k]] * ((np.arange(1, pi.shape[1]) == k) - pi[:, 1:])  # d pi_k / d predictor_j  (N, K-1)
        gradient = (slopes[:, :, None] * W[:, None]).reshape(W.shape[0], -1)
        std_error[:, k] = _row_errors(gradient, V)
        if e.shift is not None:
            moved, slope = gradient @ e.shift[gate], pi[:, k] * (1 - pi[:, k])
            shift[:, k] = np.divide(moved, slope, where=slope > _AT_END, out=shift[:, k])
    if e.separated:
        std_error[pi * (1 - pi) < _AT_END] = np.nan
    limits = probability_limits(pi, std_error, alpha, shift)
    return Interval(pi, probability_errors(std_error), limits.lower, limits.upper)


def proportion_intervals(e: Estimate, W: Array, alpha: float) -> Interval:
    """Mean probability of each expert, shape (K,), with limits by the delta method on the logit scale.

    NaN for an expert whose probability a gate with infinite coefficients puts at zero or one for all units.
    """
    pi = gate_probabilities(e, W)
    share = pi.mean(axis=0)
    gradient = np.array(
        [
            ((pi[:, [k]] * ((np.arange(1, pi.shape[1]) == k) - pi[:, 1:])).T @ W / W.shape[0]).ravel()
            for k in range(pi.shape[1])
        ]
    )
    error = _row_errors(gradient, _block(e.cov, e.where.gate.ravel()))
    if e.separated:  # all memberships are certain: nothing says how far the share would vary
        error[(pi * (1 - pi) < _AT_END).all(axis=0)] = np.nan
    limits = probability_limits(share, error, alpha)
    return Interval(share, probability_errors(error), limits.lower, limits.upper)


def expert_means(e: Estimate, X: Array) -> Array:
    """Trajectories of the experts, shape (n, K)."""
    return X @ e.params.beta[0].T


def expert_intervals(e: Estimate, X: Array, alpha: float) -> Interval:
    """Trajectories of the experts with confidence limits, each shape (n, K)."""
    errors = [_row_errors(X, _block(e.cov, columns)) for columns in e.where.beta]
    df: float | Array = np.inf
    if e.moments is not None:  # of one expert, whose trajectory changes with its coefficients alone
        gradient = np.zeros((len(X), e.cov.shape[0]))
        gradient[:, e.where.beta[0]] = X
        df = degrees_of_freedom(e.moments, gradient)[:, None]
    shift = 0.0 if e.shift is None else X @ e.shift[e.where.beta].T
    return wald(expert_means(e, X), np.column_stack(errors), alpha, df, shift)


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


def population_means(e: Estimate, X: Array, W: Array) -> Array:
    """Population mean ``sum_k pi_k(w) x'beta_k``, shape (n,), for rows of `X` and `W`."""
    return np.asarray((gate_probabilities(e, W) * expert_means(e, X)).sum(axis=1))


def population_intervals(e: Estimate, X: Array, W: Array, alpha: float) -> Interval:
    """`population_means` with confidence limits, each shape (n,)."""
    if len(e.where.beta) == 1:
        alone = expert_intervals(e, X, alpha)
        return Interval(*(part[:, 0] for part in (alone.estimate, alone.std_error, alone.lower, alone.upper)))
    mean = population_means(e, X, W)
    error, shift = np.empty_like(mean), np.zeros_like(mean)
    for start in range(0, len(mean), _CHUNK):
        rows = slice(start, start + _CHUNK)
        gradient = population_gradient(e, X[rows], W[rows])
        error[rows] = _row_errors(gradient, e.cov)
        if e.shift is not None:
            shift[rows] = gradient @ e.shift
    return wald(mean, error, alpha, shift=shift)


def population_gradient(e: Estimate, X: Array, W: Array) -> Array:
    """Derivatives of `population_means` in the reported parameters, shape (n, P)."""
    pi, means = gate_probabilities(e, W), expert_means(e, X)
    away = means - (pi * means).sum(axis=1, keepdims=True)
    gradient = np.zeros((len(X), e.cov.shape[0]))
    for k, columns in enumerate(e.where.beta):
        gradient[:, columns] += pi[:, [k]] * X
    for k, columns in enumerate(e.where.gate, start=1):
        gradient[:, columns] += (pi[:, k] * away[:, k])[:, None] * W
    return gradient


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
    parts = []
    for where, block in problem.experts.fine.blocks(problem.structure.n_experts):
        densities = block.densities(e)
        log_joint = (gate_log_probabilities(problem.W[where], e.gamma) + densities.log_density)[0]
        probabilities = posterior_probabilities(log_joint, axis=0).T
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


def subject_mixture(
    e: Estimate, X: Array, Z: Array, past: History, codes: NDArray[np.intp], noise: Array | None = None
) -> MixtureLaw:
    """Distribution of subject trajectories: mixtures over experts of ``x'beta_k + z'b_k``.

    Parameters
    ----------
    e : Estimate
    X : ndarray, shape (n, p)
    Z : ndarray, shape (n, q)
    past : History
    codes : ndarray of int, shape (n,)
        Subject of each row, as a row of `past`.
    noise : ndarray, shape (n,), optional
        Of a new observation: its residual variance over that of the expert, one over its weight. By default the
        distribution is that of the subject's mean.

    Returns
    -------
    MixtureLaw
        It carries the uncertainty of membership, random effects and, with `noise`, residual error; the estimates of the
        parameters are taken as given.
    """
    means = expert_means(e, X) + np.einsum("nq,nkq->nk", Z, past.means[codes])
    variances = np.einsum("nq,nkqr,nr->nk", Z, past.covariances[codes], Z, optimize=True)
    if noise is not None:
        variances = variances + e.params.sigma[0] ** 2 * noise[:, None]
    return MixtureLaw(past.probabilities[codes], means, np.sqrt(np.maximum(variances, 0.0)))


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


class _Model(Protocol):
    @property
    def coordinates(self) -> Coordinates: ...
    def problem_of(self, design: Design) -> Any: ...


def past_of_subjects(model: _Model, e: Estimate, known: Design, wanted: Design) -> History:
    """What the rows of `known` say about the subjects of `wanted`; subjects without rows there keep what the gate says.

    Parameters
    ----------
    model : MEMoE
    e : Estimate
    known : Design
        With response.
    wanted : Design

    Returns
    -------
    History
        One entry per subject of `wanted`.
    """
    history = prior_history(e, wanted.gate)
    where = places(known, wanted)
    found = where >= 0
    if not found.any():
        return history
    problem = model.problem_of(known)
    past = posterior_history(problem, user_to_working(model.coordinates, e.params))
    past = _in_user_units(past, model.coordinates).take(where[found])
    history.probabilities[found] = past.probabilities
    history.means[found] = past.means
    history.covariances[found] = past.covariances
    return history


def places(known: Design, wanted: Design) -> NDArray[np.intp]:
    """Place of each subject of `wanted` among those of `known`, shape (N,); -1 where it is not there."""
    if wanted.names.group is None and known is not wanted:
        return np.full(wanted.n_units, -1)  # rows without a subject are strangers, whatever their labels
    return places_of(wanted.labels, known.labels)


def named_by_row(design: Design) -> Design:
    """The design of rows without subjects where each row is a subject, named by its place in the data."""
    names = replace(design.names, group="row")
    return replace(design, labels=design.position.astype(object), names=names)


def check_subjects(known: Design, wanted: Design, *, given: bool) -> None:
    """Refuse subjects that are known under a name of another type, and say so of those who are not known.

    Parameters
    ----------
    known, wanted : Design
    given : bool
        Whether `known` is a history that the user passed, not the data of the fit.

    Raises
    ------
    DesignError

    Warns
    -----
    MixmoeWarning
    """
    if wanted.names.group is None and known is not wanted:
        if known.names.group is not None:
            warn_strangers("the gate", np.zeros(wanted.n_units, dtype=bool), given)
        return
    found = known_places(wanted.labels, known.labels, str(known.names.group))
    warn_strangers("the gate", found >= 0, given)


def _in_user_units(past: History, c: Coordinates) -> History:
    back = np.linalg.inv(c.random) * c.scale  # a change of basis is wanted, not a solution
    covariances = np.einsum("ab,nkbc,dc->nkad", back, past.covariances, back, optimize=True)
    return History(past.probabilities, past.means @ back.T, covariances)
