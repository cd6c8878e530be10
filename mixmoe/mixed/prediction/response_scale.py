"""Predictions of GLMM experts on the scale of the response, random effects averaged over their distribution.

In the population the random part of a linear predictor is normal whatever the number of random effects, so that every
average is a one-dimensional Gauss-Hermite sum. Given a history it is not, see the module `linear_predictor`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from mixmoe._typing import Array, IntArray
from mixmoe.check.residuals import placed
from mixmoe.families import Distribution
from mixmoe.inference.small_samples import Moments, degrees_of_freedom
from mixmoe.inference.uncertainty import critical
from mixmoe.mixed.likelihood.glmm import GlmmExperts
from mixmoe.mixed.likelihood.modes import Response
from mixmoe.mixed.likelihood.observed import Problem
from mixmoe.mixed.parameters import Params, Structure, reported_to_user
from mixmoe.mixed.prediction.linear_predictor import Course, Seen, Table, course, remember
from mixmoe.mixed.prediction.trajectories import posterior_history
from mixmoe.mixture.gate import gate_log_probabilities
from mixmoe.output.predictions import Interval, Wanted, by_expert, mean_columns, named_columns
from mixmoe.responses.distribution import Outcome

_NODES = 31
_MOST_PASSES = 100
_CLOSE = 1e-10  # relative size of a last step
_LARGEST = 1e15
_LEAST_TAIL = 1e-16
_HALVINGS = 50  # of the range of an expectation or a probability
_STEP = 1e-5  # of the central differences behind the delta method
_CHUNK = 20_000
_STEEP = 0.45  # a fall of a probability from one point to the next, at which the trapezoidal rule loses its accuracy
_LEAST_MASS = 1e-7  # of a point where that matters
_DENSER = 4
_MOST_POINTS = 1_500


@dataclass(frozen=True, slots=True)
class Covariates:
    """Rows to predict.

    Attributes
    ----------
    X : ndarray, shape (n, p)
    Z : ndarray, shape (n, q)
    W : ndarray, shape (n, m)
        Gate columns, row by row.
    offset, trials : ndarray, shape (n,)
    """

    X: Array
    Z: Array
    W: Array
    offset: Array
    trials: Array

    def take(self, rows: slice | NDArray[np.intp]) -> "Covariates":
        """Some of the rows."""
        return Covariates(self.X[rows], self.Z[rows], self.W[rows], self.offset[rows], self.trials[rows])


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """Estimates of a mixture of GLMMs.

    Attributes
    ----------
    response : Response
    structure : Structure
    vector : ndarray, shape (P,)
        Reported parameters.
    cov : ndarray, shape (P, P)
        Of the reported parameters; zero where a variance or a share of zeros is on its boundary, or a threshold
        infinite, and taken as known.
    params : Params
        On the user's scale, S = 1.
    moments : Moments or None
        Of the covariance, where limits are by t.
    shift : ndarray, shape (P,), or None
        How far the fit around which limits lie is from the vector.
    """

    response: Response
    structure: Structure
    vector: Array
    cov: Array
    params: Params
    moments: Moments | None = None
    shift: Array | None = None

    @property
    def extra(self) -> Array:
        """Unconstrained further parameters of each expert, shape (K, d)."""
        return self.params.extra[0]

    def mean(self, eta: Array, trials: Array) -> Array:
        """Expected response at linear predictors, shape (K, n)."""
        return self.response.mean(eta, self.extra, trials)

    def moved(self, vector: Array) -> "LinkEstimate":
        """Estimate with other parameters."""
        return replace(self, vector=vector, params=reported_to_user(self.structure, vector))


Quantity = Callable[[LinkEstimate, Covariates], Array]
LimitsOf = Callable[[Array, Array, Array], tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class Predictors:
    """Normal linear predictors.

    Attributes
    ----------
    mean, sd : ndarray, shape (K, n)
    """

    mean: Array
    sd: Array


def predictors(e: LinkEstimate, at: Covariates) -> Predictors:
    """Linear predictors in the population: random effects have mean zero and covariance D_k."""
    loadings = np.einsum("nq,kqr->knr", at.Z, e.params.factor[0])
    return Predictors(e.params.beta[0] @ at.X.T + at.offset, np.sqrt((loadings**2).sum(axis=2)))


def given_past(e: LinkEstimate, at: Covariates, seen: Seen) -> Course:
    """Linear predictors of subjects given what is known of each, by expert."""
    return course(e.params.beta[0] @ at.X.T + at.offset, seen, e.response, e.extra)


def averaged(what: Callable[[Array], Array], where: Predictors) -> Array:
    """Expectation of a function of the linear predictor, shape (K, n)."""
    if not where.sd.any():
        return what(where.mean)
    points, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    return sum(
        (w * what(where.mean + x * where.sd) for x, w in zip(points, weights, strict=True)),
        start=np.zeros_like(where.mean),
    )


def expert_response_means(e: LinkEstimate, at: Covariates) -> Array:
    """Expected response of each expert in the population, shape (n, K)."""
    return averaged(lambda eta: e.mean(eta, at.trials), predictors(e, at)).T


def population_means(e: LinkEstimate, at: Covariates) -> Array:
    """Expected response in the population, shape (n, 1)."""
    probabilities = np.exp(gate_log_probabilities(at.W, e.params.gamma))[0].T
    return (probabilities * expert_response_means(e, at)).sum(axis=1, keepdims=True)


def mean_intervals(
    of: Quantity, e: LinkEstimate, at: Covariates, alpha: float, limits: LimitsOf | None = None
) -> Interval:
    """Expected responses, shape (n, J), with limits by the delta method on the scale of the link.

    Parameters
    ----------
    of : callable
        `expert_response_means` or `population_means`, or another quantity.
    e : LinkEstimate
    at : Covariates
    alpha : float
    limits : callable, optional
        Limits of the quantity, as `Response.limits` gives those of an expected response.

    Returns
    -------
    Interval
    """
    mean = of(e, at)
    error, df, centre = np.empty_like(mean), np.empty_like(mean), mean.copy()
    for first in range(0, len(mean), _CHUNK):
        rows = slice(first, first + _CHUNK)
        slopes = gradient_of(of, e, at.take(rows))
        error[rows], df[rows] = delta_errors(slopes, e.cov), delta_df(slopes, e)
        if e.shift is not None:
            centre[rows] += np.tensordot(e.shift, slopes, 1)
    limits = e.response.limits if limits is None else limits
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lower, upper = limits(centre, critical(alpha, df) * error, at.trials[:, None])
    return Interval(mean, error, lower, upper)


def estimated(
    of: Quantity, e: LinkEstimate, at: Covariates, wanted: Wanted, limits: LimitsOf | None = None
) -> Interval | Array:
    """A quantity of the population, shape (n, J), as in `mean_intervals` where limits are wanted."""
    return mean_intervals(of, e, at, wanted.alpha, limits) if wanted.confidence else of(e, at)


def gradient_of(of: Quantity, e: LinkEstimate, at: Covariates) -> Array:
    """Derivatives of a quantity of shape (n, J) in the reported parameters, shape (P, n, J), by central differences.

    Zero for parameters that are taken as known, from which a step would lead out of their space.
    """
    slopes = []
    for j, value in enumerate(e.vector):
        step = np.zeros_like(e.vector)
        step[j] = _STEP * max(1.0, abs(value)) if np.isfinite(value) and e.cov[j, j] != 0.0 else 0.0
        up, down = of(e.moved(e.vector + step), at), of(e.moved(e.vector - step), at)
        slopes.append((up - down) / (2 * step[j]) if step[j] else np.zeros_like(up))
    return np.array(slopes)


def delta_df(gradient: Array, e: LinkEstimate) -> Array:
    """Degrees of freedom of a quantity of shape (n, J) from its derivatives; parameters taken as known have no part."""
    held = np.where((np.diag(e.cov) == 0)[:, None, None], 0.0, gradient)
    return degrees_of_freedom(e.moments, held.reshape(len(held), -1).T).reshape(held.shape[1:])


def delta_errors(gradient: Array, cov: Array) -> Array:
    """Standard errors of a quantity of shape (n, J) from its derivatives; NaN where one has no covariance."""
    unknown = np.isnan(np.diag(cov))
    used = np.where(unknown[:, None] | unknown, 0.0, cov)
    variance = np.einsum("pnj,pr,rnj->nj", gradient, used, gradient, optimize=True)
    error = np.sqrt(np.maximum(variance, 0.0))
    return np.where((gradient[unknown] != 0).any(axis=0), np.nan, error)


def subject_means(e: LinkEstimate, at: Covariates, seen: Seen, wanted: Wanted) -> Interval | Array:
    """Expected responses of subjects given their past, shape (n,), with equal-tailed limits if wanted.

    Parameters
    ----------
    e : LinkEstimate
    at : Covariates
    seen : Seen
        With the same rows.
    wanted : Wanted

    Returns
    -------
    Interval or ndarray
        Limits carry the uncertainty of membership and random effects and, with noise, the variation of the response.
    """
    where, weights = given_past(e, at, seen), seen.probabilities.T
    mean = (weights * where.averaged(lambda eta: e.mean(eta, at.trials))).sum(axis=0)
    if not wanted.limits:
        return np.asarray(mean)

    def squared(eta: Array) -> Array:
        """Squared distance of an expectation, or with noise of a response, from the mean over experts and effects."""
        away = (e.mean(eta, at.trials) - mean) ** 2
        return away + e.response.variance(eta, e.extra, at.trials) if wanted.noise else away

    inside = where.averaged(squared)
    spread = np.sqrt((weights * inside).sum(axis=0))
    levels = (wanted.alpha / 2, 1 - wanted.alpha / 2)
    if wanted.noise:
        lower, upper = (response_quantile(e, where, weights, at.trials, level) for level in levels)
        return Interval(mean, spread, lower, upper)
    table = where.table()
    lower, upper = (mean_quantile(e, table, weights, at.trials, level) for level in levels)
    return Interval(mean, spread, lower, upper)


def subject_expert_means(e: LinkEstimate, at: Covariates, seen: Seen) -> Array:
    """Expected response of subjects given their past and the expert, shape (K, n)."""
    return given_past(e, at, seen).averaged(lambda eta: e.mean(eta, at.trials))


def subject_predictors(e: LinkEstimate, at: Covariates, seen: Seen, wanted: Wanted) -> Interval | Array:
    """Linear predictors of subjects given their past, shape (n,), with equal-tailed limits if wanted."""
    where, weights = given_past(e, at, seen), seen.probabilities.T
    mean = (weights * where.averaged(lambda eta: eta)).sum(axis=0)
    if not wanted.limits:
        return np.asarray(mean)
    spread = np.sqrt((weights * where.averaged(lambda eta: (eta - mean) ** 2)).sum(axis=0))
    table = where.table()
    levels = (wanted.alpha / 2, 1 - wanted.alpha / 2)
    lower, upper = (predictor_quantile(table, weights, level) for level in levels)
    return Interval(mean, spread, lower, upper)


def predictor_quantile(table: Table, weights: Array, level: float) -> Array:
    """Quantiles of the linear predictor over experts and random effects, shape (n,)."""

    def below(eta: Array) -> Array:
        return np.asarray((weights * table.below(eta)).sum(axis=0))

    return bisected(below, level, table.first.min(axis=0), table.last.max(axis=0))


def mean_quantile(e: LinkEstimate, table: Table, weights: Array, trials: Array, level: float) -> Array:
    """Quantiles of a subject's expected response, which varies with expert and random effects, shape (n,)."""
    scores = e.response.support
    if scores is None:
        # At its predictor an expert expects what the first one does at one that lies a constant away, which is zero
        # unless the experts differ in the zeros that they add to counts.
        first = e.extra[:1]
        apart = e.response.predictor(e.response.mean(np.zeros((1, len(trials))), first, trials), e.extra, trials)
        eta = predictor_quantile(replace(table, first=table.first - apart), weights, level)
        return np.asarray(e.response.mean(eta[None], first, trials)[0])

    def below(mean: Array) -> Array:
        return np.asarray((weights * table.below(e.response.predictor(mean, e.extra, trials))).sum(axis=0))

    return bisected(below, level, np.full(len(trials), scores[0]), np.full(len(trials), scores[-1]))


def bisected(below: Callable[[Array], Array], level: float, low: Array, high: Array) -> Array:
    """Where an increasing function between `low` and `high` reaches `level`, shape (n,)."""
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        under = below(middle) < level
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    return 0.5 * (low + high)


def distribution_function(
    e: LinkEstimate, where: Course, weights: Array, trials: Array, y: Array, above: bool = False
) -> Array:
    """``P(Y <= y)``, or ``P(Y > y)`` with `above`, of the mixture over experts and random effects, shape (n,).

    As a function of the predictor, the probability falls from one to zero, for large counts, many trials or a high
    precision within a small part of a step; there the points are made denser.
    """
    values = (e.response.sf if above else e.response.cdf)(y, where.points, e.extra, trials)
    below = np.asarray((weights * (where.mass * values).sum(axis=0)).sum(axis=0))
    fall = np.abs(np.diff(values, axis=0)) > _STEEP
    steep = np.flatnonzero((fall & (where.mass[1:] > _LEAST_MASS)).any(axis=(0, 1)))
    if steep.size and len(where.mass) < _MOST_POINTS:
        dense = where.take(steep).finer(_DENSER)
        below[steep] = distribution_function(e, dense, weights[:, steep], trials[steep], y[steep], above)
    return below


def place(e: LinkEstimate, where: Course, weights: Array, out: Outcome) -> Distribution:
    """Where responses lie in their distribution."""

    def cdf(y: Array) -> Array:
        return distribution_function(e, where, weights, out.trials, y)

    def sf(y: Array) -> Array:
        return distribution_function(e, where, weights, out.trials, y, above=True)

    return placed(cdf, sf, out.y, e.response.discrete)


def response_quantile(e: LinkEstimate, where: Course, weights: Array, trials: Array, level: float) -> Array:
    """Smallest response whose distribution function reaches `level`, shape (n,)."""

    def excess(y: Array, rows: IntArray) -> Array:
        at = distribution_function(e, where.take(rows), weights[:, rows], trials[rows], y)
        return ndtri(np.clip(at, _LEAST_TAIL, 1.0 - _LEAST_TAIL)) - ndtri(level)

    n = len(trials)
    if e.response.support is not None:
        ranks = range(len(e.response.support) - 1)
        short = [excess(np.full(n, float(j)), np.arange(n)) < 0 for j in ranks]
        return e.response.support[np.sum(short, axis=0)]
    return crossed(excess, n, e.response.discrete)


def crossed(excess: Callable[[Array, IntArray], Array], n: int, whole: bool) -> Array:
    """Where increasing functions on (-1, inf) reach zero, shape (n,), by Ridders' method.

    Parameters
    ----------
    excess : callable
        Of values and of which of the n functions are meant.
    n : int
    whole : bool
        Whether they are steps at whole numbers; then the first of these at which zero is reached.

    Returns
    -------
    ndarray, shape (n,)

    References
    ----------
    Ridders (1979), IEEE Transactions on Circuits and Systems 26, 979-980.
    """
    every = np.arange(n)
    low, high = np.full(n, -1.0), np.ones(n)
    below, above = excess(low, every), excess(high, every)
    while (short := (above < 0) & (high < _LARGEST)).any():
        low, below = np.where(short, high, low), np.where(short, above, below)
        high = np.where(short, 2.0 * high, high)
        above[short] = excess(high[short], every[short])
    best = np.full(n, np.nan)
    for _ in range(_MOST_PASSES):
        left = np.flatnonzero((high - low > 1.0) if whole else (high - low > _CLOSE * (1.0 + np.abs(high))))
        if not left.size:
            break
        a, b, before = low[left], high[left], best[left]
        middle = np.floor(0.5 * (a + b)) if whole else 0.5 * (a + b)
        half = excess(middle, left)
        root = np.sqrt(half * half - below[left] * above[left])
        x = np.clip(middle - (middle - a) * half / np.where(root > 0.0, root, 1.0), a, b)
        x = np.floor(x) if whole else x
        for point, value in ((middle, half), (x, excess(x, left))):
            up, down = (value < 0) & (point > low[left]), (value >= 0) & (point < high[left])
            low[left[up]], below[left[up]] = point[up], value[up]
            high[left[down]], above[left[down]] = point[down], value[down]
        best[left] = x
        if not whole:
            still = np.abs(x - before) <= _CLOSE * (1.0 + np.abs(x))
            low[left[still]] = high[left[still]] = x[still]
    return high if whole else best


def draw(e: LinkEstimate, at: Covariates, W: Array, starts: NDArray[np.intp], rng: np.random.Generator) -> Array:
    """One response per row, shape (n,); membership and random effects per subject.

    Parameters
    ----------
    e : LinkEstimate
    at : Covariates
        Rows sorted by subject.
    W : ndarray, shape (N, m)
        Gate columns of the subjects.
    starts : ndarray of int, shape (N,)
    rng : numpy.random.Generator
    """
    n = len(at.X)
    cumulative = np.exp(gate_log_probabilities(W, e.params.gamma))[0].T.cumsum(axis=1)
    member = (rng.random((len(W), 1)) > cumulative[:, :-1]).sum(axis=1)
    factor = e.params.factor[0]
    effects = np.einsum("nqr,nr->nq", factor[member], rng.normal(size=(len(W), factor.shape[-1])))
    rows = np.repeat(np.arange(len(W)), np.diff(np.append(starts, n)))
    fixed = (e.params.beta[0] @ at.X.T + at.offset)[member[rows], np.arange(n)]
    eta = fixed + (at.Z * effects[rows]).sum(axis=1)
    return e.response.draw(rng, eta[:, None], e.extra[member[rows]], at.trials[:, None])[:, 0]


@dataclass(frozen=True, slots=True)
class Shown:
    """What `predict` shows on one scale, as columns of a frame.

    Attributes
    ----------
    experts, population : callable
        From estimate, covariates and what is wanted.
    subjects : callable
        From estimate, covariates, what is known of their subjects, and what is wanted.
    """

    experts: Callable[[LinkEstimate, Covariates, Wanted], dict[str, Array]]
    population: Callable[[LinkEstimate, Covariates, Wanted], dict[str, Array]]
    subjects: Callable[[LinkEstimate, Covariates, Seen, Wanted], dict[str, Array]]


def _expert_columns(e: LinkEstimate, at: Covariates, wanted: Wanted) -> dict[str, Array]:
    return by_expert("expert", estimated(expert_response_means, e, at, wanted))


def _population_columns(e: LinkEstimate, at: Covariates, wanted: Wanted) -> dict[str, Array]:
    return named_columns(("mean",), estimated(population_means, e, at, wanted))


def _subject_columns(e: LinkEstimate, at: Covariates, seen: Seen, wanted: Wanted) -> dict[str, Array]:
    return mean_columns(subject_means(e, at, seen, wanted))


MEANS = Shown(_expert_columns, _population_columns, _subject_columns)


def one_step_ahead(problem: "Problem[GlmmExperts]", working: Params, prior: Array) -> Iterator[tuple[IntArray, Seen]]:
    """Each row of a problem with what the earlier rows of its subject say; within a subject their order is time.

    Parameters
    ----------
    problem : Problem
    working : Params
        In the coordinates of the problem, S = 1.
    prior : ndarray, shape (N, K)
        Expert probabilities of each subject before her first row.

    Yields
    ------
    rows : ndarray of int
        Rows that have equally many before them.
    seen : Seen
        With these rows.
    """
    rows, factor = problem.experts.rows, working.factor[0]
    for t in range(int(rows.counts.max())):
        who = np.flatnonzero(rows.counts > t)
        here = rows.starts[who] + t
        Z = rows.Z[:, here].T
        if t == 0:
            yield here, Seen(None, factor, Z, np.full(len(who), -1), prior[who])
            continue
        experts = GlmmExperts(rows.take(who).first(t), problem.experts.response, problem.experts.nodes)
        past = posterior_history(Problem(problem.structure, experts, problem.W[who]), working)
        yield here, Seen(remember(experts, working), factor, Z, np.arange(len(who)), past.probabilities)


def conditional_variance(e: LinkEstimate, weights: Array, mean: Array, trials: Array) -> Array:
    """Variance of responses around their fitted values, averaged over experts, shape (n,)."""
    eta = e.response.predictor(mean, e.extra, trials)
    return (weights * e.response.variance(eta, e.extra, trials)).sum(axis=0)


def mean_deviance(e: LinkEstimate, weights: Array, mean: Array, out: Outcome) -> Array:
    """Deviance of each response at its fitted value, averaged over experts, shape (n,)."""
    return (weights * e.response.deviance(out, mean, e.extra)).sum(axis=0)
