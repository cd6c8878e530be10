"""Label-consistent EM for all grid points together, around the means of the covariates, from several starts.

Notes
-----
Deviations from Huang, Li and Wang: local-linear instead of local-constant fits, covariates in experts and gate, other
families than the normal, and Anderson acceleration of the fixed-point iteration.

References
----------
Huang, M., Li, R. and Wang, S. (2013). Nonparametric mixture of regression models. JASA 108, 929-941.
Walker, H. F. and Ni, P. (2011). Anderson acceleration for fixed-point iterations. SIAM J. Numer. Anal. 49, 1715-1735.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from mixmoe._typing import Array, IntArray
from mixmoe.arguments import checked_choice, checked_positive
from mixmoe.design.frame import shown
from mixmoe.errors import ArgumentError
from mixmoe.mixture.estimate import Flag
from mixmoe.responses.distribution import Family
from mixmoe.responses.exponential import StudentT
from mixmoe.responses.zero_inflated import ZeroInflated
from mixmoe.varying.em_steps import (
    Natural,
    Posterior,
    dispersion_step,
    expert_step,
    gate_step,
    global_step,
    limit_dispersion,
    own_natural,
    posterior,
    row_logliks,
)
from mixmoe.varying.problem import THETA_FLOOR, THETA_OVER_MEAN, Problem, Slots, centred, place_columns, with_rows
from mixmoe.varying.starts import DISTINCT, constant_mixtures, double_expert, every_few, exchanges, widen
from mixmoe.varying.windows import interpolated

MEMORY = 8  # differences kept by the acceleration
SLACK = 1e-3  # an accelerated step may lower the log-likelihood by this fraction of its size per row, no more
GROWTH = 1.0  # an accelerated point whose residual grew by more than this factor is replaced by the plain step
SHORT_RUN = 4  # iterations given to each candidate start before the best is kept
CROSSING_GAIN = 3.0  # log-likelihood that a start with crossing experts must gain over those from constant mixtures
STALLED = 3  # iterations without a gain after which a run for a criterion ends
SCREENED = 50_000  # rows on which starts are compared, at most
RIVAL = 0.02  # a start this far behind per row after its short run is still run to the end


@dataclass(frozen=True, slots=True)
class Control:
    """Settings of the EM.

    Attributes
    ----------
    tolerance : float
        Largest change of a coefficient function, relative to its scale, in one plain EM step.
    max_iter : int
    n_starts : int
    gain : float
        A run also ends where the log-likelihood has changed by less than this per row in each of the last few
        iterations: for fits that only serve a criterion, in which a function that runs off where all counts are zero
        changes for long without any effect. Zero for never.
    """

    tolerance: float = 1e-6
    max_iter: int = 500
    n_starts: int = 10
    gain: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """Where an EM run ended.

    Attributes
    ----------
    coef : ndarray, shape (G, 2, L)
        Level and slope per bandwidth of every function at every grid point.
    loglik : float
        Log-likelihood of the data at `coef`, each row at its own index value.
    trace : ndarray, shape (n_iter,)
    converged : bool
    change : float
        The change that the last EM step made.
    candidates : ndarray, shape (starts,)
        Log-likelihoods of the starts after their short runs, best first; of very many rows from some of them.
    lost : ndarray of bool, shape (G,), or None
        Grid points without a local maximum nearby, where the functions are those of the joint EM; None where local
        maxima were not asked for.
    """

    coef: Array
    loglik: float
    trace: Array
    converged: bool
    change: float
    candidates: Array
    lost: NDArray[np.bool_] | None = None


def em_step(problem: Problem, coef: Array, natural: Natural, post: Posterior) -> Array:
    """Coefficients after one M-step from given responsibilities.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)
    natural : Natural
        Predictors at `coef`.
    post : Posterior
        Responsibilities at `coef`.

    Returns
    -------
    ndarray, shape (G, 2, L)
    """
    slots, const, resp = problem.slots, problem.const, post.weighted
    out = coef.copy()
    if not const[slots.experts].all():
        out[:, :, slots.experts] += expert_step(problem, coef, resp)
    if slots.has_dispersion and not const[slots.dispersions].all():
        # At the new expert functions, as in ECM: residuals around the old ones are too large.
        out[:, :, slots.dispersions] += dispersion_step(problem, coef, resp, own_natural(problem, out))
    if slots.n_experts > 1 and not const[slots.gates].all():
        out[:, :, slots.gates] += gate_step(problem, coef, resp)
    if const.any():
        current = natural if const.all() else own_natural(problem, out)
        # Constants last, with the functions that were just moved as their offset.
        out[:, 0] += global_step(problem.rows, problem.family, slots, const, current, resp, problem.scale)
    return limit_dispersion(problem, out)


@dataclass(frozen=True, slots=True)
class _State:
    """A point of the iteration, its image under one EM step, and how far apart they are."""

    coef: Array
    image: Array
    loglik: float
    change: float


def _evaluate(problem: Problem, coef: Array) -> _State:
    natural = own_natural(problem, coef)
    post = posterior(problem.rows, problem.family, natural)
    image = em_step(problem, coef, natural, post)
    change = float((np.abs(image - coef).max(axis=(0, 1)) / problem.scale).max())
    return _State(coef, image, float(post.loglik), change)


class Anderson:
    """Anderson acceleration of a fixed-point iteration: proposes the next point from the last few residuals.

    Parameters
    ----------
    scale : ndarray, shape (d,)
        Coordinates are compared in these units.
    memory : int
    """

    def __init__(self, scale: Array, memory: int = MEMORY) -> None:
        self._scale, self._memory = scale, memory
        self._points: list[Array] = []
        self._residuals: list[Array] = []

    def reset(self) -> None:
        """Forget what was seen."""
        self._points, self._residuals = [], []

    def propose(self, point: Array, image: Array) -> Array:
        """The next point, given a point and its image under the map."""
        self._points.append(image)
        self._residuals.append((image - point) / self._scale)
        del self._points[: -self._memory - 1], self._residuals[: -self._memory - 1]
        if len(self._points) < 2:
            return image
        steps = np.diff(np.array(self._residuals), axis=0)
        # Least squares with a cutoff: near the end residuals are nearly collinear, and exact weights would be noise.
        gamma = np.linalg.lstsq(steps.T, self._residuals[-1], rcond=1e-10)[0]
        out: Array = image - gamma @ np.diff(np.array(self._points), axis=0)
        return out


def run_em(problem: Problem, start: Array, control: Control) -> Run:
    """EM from one start until the functions stop changing.

    Parameters
    ----------
    problem : Problem
    start : ndarray, shape (G, 2, L)
    control : Control

    Returns
    -------
    Run
    """
    state = _evaluate(problem, start)
    fallback, accelerator = state.image, Anderson(np.broadcast_to(problem.scale, start.shape).ravel())
    # The label-consistent EM ascends the sum of the local likelihoods only nearly: a small fall is no failure.
    slack = SLACK * problem.rows.weights.sum()
    trace, accepted, iteration = [state.loglik], state, 0
    least = control.gain * problem.rows.weights.sum()
    while iteration < control.max_iter and state.change >= control.tolerance:
        recent = np.abs(np.diff(trace[-STALLED - 1 :]))
        if len(recent) == STALLED and (recent < least).all():
            break
        iteration += 1
        proposal = accelerator.propose(state.coef.ravel(), state.image.ravel()).reshape(start.shape)
        state = _evaluate(problem, limit_dispersion(problem, proposal))
        if state.change > GROWTH * accepted.change or not state.loglik > accepted.loglik - slack:
            # An extrapolation that went wrong: the plain EM step from the last good point, with an empty memory.
            accelerator.reset()
            state = _evaluate(problem, fallback)
        accepted, fallback = state, state.image
        trace.append(state.loglik)
    image, change = state.image, state.change
    # The image of the last point is reported, one EM step further; its likelihood is that of what is reported.
    final = posterior(problem.rows, problem.family, own_natural(problem, image))
    converged = bool(change < control.tolerance)
    return Run(image, float(final.loglik), np.array(trace), converged, change, np.array([float(final.loglik)]))


def fit_functions(problem: Problem, control: Control, rng: np.random.Generator, start: Array | None = None) -> Run:
    """The best of several EM runs.

    Parameters
    ----------
    problem : Problem
    control : Control
    rng : numpy.random.Generator
    start : ndarray, shape (G, 2, L), optional
        Warm start; no other start is tried then.

    Returns
    -------
    Run
    """
    if start is not None:
        return run_em(problem, start, control)
    candidates = constant_mixtures(problem, control.n_starts, rng)
    if problem.const.all():
        runs = [run_em(problem, widen(problem, one), control) for one in candidates[:3]]
        return best_run(runs)
    if len(candidates) == 1:
        return run_em(problem, widen(problem, candidates[0]), control)
    # Starts are screened by a few iterations, which need not see very many rows: most lead to the same few solutions.
    some = with_rows(problem, every_few(problem.rows, SCREENED)) if problem.rows.n > SCREENED else problem
    plain = short_runs(some, [widen(problem, one) for one in candidates if one.constant], control)
    bent = short_runs(some, [widen(problem, one) for one in candidates if not one.constant], control)
    bent += short_runs(some, exchanges(problem, max(plain + bent, key=lambda r: r.loglik).coef), control)
    # A solution whose experts cross must beat those that do not by more than chance: crossing gains a little anywhere.
    better = [r for r in bent if r.loglik > plain[0].loglik + CROSSING_GAIN]
    runs = sorted([*plain, *better], key=lambda r: -r.loglik)
    logliks = np.array([r.loglik for r in runs]) * (problem.rows.n / some.rows.n)
    # After few iterations a close second may still come out first: it is run to the end as well.
    rivals = [r for r in runs[1:] if DISTINCT < runs[0].loglik - r.loglik < RIVAL * some.rows.n][:1]
    best = best_run([run_em(problem, r.coef, control) for r in [runs[0], *rivals]])
    return replace(best, candidates=logliks)


def short_runs(problem: Problem, starts: list[Array], control: Control) -> list[Run]:
    """A few iterations from each start, best first."""
    short = replace(control, max_iter=SHORT_RUN)
    return sorted((run_em(problem, one, short) for one in starts), key=lambda r: -r.loglik)


def best_run(runs: list[Run]) -> Run:
    """The run with the highest log-likelihood, with those of all."""
    best = max(runs, key=lambda r: r.loglik)
    return replace(best, candidates=np.sort([r.loglik for r in runs])[::-1])


def run_around_means(problem: Problem, start: Array, control: Control) -> Run:
    """EM from one start in the centred problem, its functions as those of the original one.

    Parameters
    ----------
    problem : Problem
    start : ndarray, shape (G, 2, L)
    control : Control

    Returns
    -------
    Run
    """
    inner, centring = centred(problem)
    run = run_em(inner, centring.inwards(inner.slots, start), control)
    return replace(run, coef=centring.outwards(inner.slots, run.coef))


SPLITS = 3  # of each expert of the smaller fit
SOFT = 0.1  # share of a row that stays on the other side of a split


def fit_carried(problem: Problem, control: Control, rng: np.random.Generator, smaller: Array) -> Run:
    """The best of EM runs from splits of a smaller fit and from that fit itself.

    Parameters
    ----------
    problem : Problem
        With K experts.
    control : Control
    rng : numpy.random.Generator
    smaller : ndarray, shape (G, 2, L')
        Fit with K - 1 experts on the grid and bandwidth of `problem`; the log-likelihood of the result is not below it.

    Returns
    -------
    Run
    """
    slots = problem.slots
    few = Slots(slots.n_experts - 1, slots.n_expert_columns, slots.n_gate_columns, slots.has_dispersion)
    doubled = [double_expert(problem, few, smaller, c) for c in range(few.n_experts)]
    split = [split_rows(problem, doubled[c], c, rng) for c in range(few.n_experts) for _ in range(SPLITS)]
    short = short_runs(problem, split, control)
    nested = run_em(problem, doubled[0], control)
    best = best_run([nested, run_em(problem, short[0].coef, control)])
    return replace(best, candidates=np.sort([nested.loglik, *(one.loglik for one in short)])[::-1])


def split_rows(problem: Problem, doubled: Array, c: int, rng: np.random.Generator) -> Array:
    """State after an M-step in which the rows of expert c are shared out by a cut across a random direction."""
    rows, natural = problem.rows, own_natural(problem, doubled)
    post = posterior(rows, problem.family, natural)
    residual = problem.family.start_predictor(rows.outcome) - natural.eta[c]
    features = np.column_stack([residual[:, None] * rows.design, place_columns(rows), rows.gate])
    spread = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0)
    position = features @ rng.normal(size=features.shape[1])
    both = post.weighted[c] + post.weighted[-1]
    inside = both > 0.5 * rows.weights
    cut = np.quantile(position[inside] if inside.any() else position, rng.uniform(0.2, 0.8))
    side = np.where(position > cut, 1.0 - SOFT, SOFT)
    shared = post.weighted.copy()
    shared[-1], shared[c] = both * side, both * (1.0 - side)
    return em_step(problem, doubled, natural, Posterior(shared, post.loglik))


def on_grid(problem: Problem, old: Problem, coef: Array) -> Array:
    """A state (G, 2, L) of another problem on the grid and with the bandwidths of this one.

    Levels are interpolated; slopes are per bandwidth, so that they change with it.
    """
    slots, grid = old.slots, problem.windows.grid
    out = np.empty((len(grid), 2, slots.n))
    for s in range(slots.n):
        gate = slots.gates.start <= s < slots.gates.stop
        mine, his = ((one.gate_windows if gate else one.windows).bandwidth for one in (problem, old))
        for part, factor in ((0, 1.0), (1, mine / his if np.isfinite(his) else 0.0)):
            out[:, part, s] = factor * interpolated(grid, old.windows.grid, coef[:, part, s], old.rows.period)
    return out


REFIT = Control(tolerance=1e-4, max_iter=100)  # of warm-started refits to draws


def draw_responses(problem: Problem, coef: Array, rng: np.random.Generator) -> Array:
    """One response for each sorted row: expert from the gate, response from the expert."""
    natural = own_natural(problem, coef)
    rank = np.argsort(np.argsort(-np.exp(natural.log_gate).mean(axis=1), kind="stable"))  # labels change no draw
    noisy = natural.log_gate + rng.gumbel(size=natural.log_gate.shape)[rank]
    chosen = noisy.argmax(axis=0)
    each = np.arange(problem.rows.n)
    eta, delta = natural.eta[chosen, each], natural.delta[chosen, each]
    return problem.family.draw(rng, eta, delta, problem.rows.outcome.trials)


def with_draw(problem: Problem, coef: Array, rng: np.random.Generator) -> Problem:
    """The problem with a response drawn from given functions, covariates and index as they are."""
    y = draw_responses(problem, coef, rng)
    rows = problem.rows.with_response(y, problem.family.constant(y, problem.rows.outcome.trials))
    return replace(problem, rows=rows)


def with_cluster_draw(problem: Problem, clusters: IntArray, rng: np.random.Generator) -> Problem:
    """The problem with clusters drawn with replacement, as weights of their rows."""
    n = int(clusters.max()) + 1
    counts = rng.multinomial(n, np.full(n, 1.0 / n)).astype(float)
    return replace(problem, rows=problem.rows.with_weights(problem.rows.weights * counts[clusters]))


START = 5.0  # where the search begins, and what the search of a bandwidth takes
FEWEST, NORMAL = 0.5, 1e3  # degrees of freedom: Cauchy has one; data hardly tell a thousand from infinitely many
SETTLED = 1e-4  # relative change of the number
ROUNDS = 40


@dataclass(frozen=True, slots=True)
class Shaped:
    """A run and the problem with the number that belongs to it."""

    problem: Problem
    run: Run


def shape_of(family: Family) -> float | None:
    """The number of a family that has one, None of others."""
    if isinstance(family, StudentT):
        return family.df
    has_theta = isinstance(family, ZeroInflated) and family.base.has_dispersion
    return float(np.exp(family.log_theta)) if isinstance(family, ZeroInflated) and has_theta else None


def _reshaped(family: Family, value: float) -> Family:
    if isinstance(family, ZeroInflated):
        return replace(family, log_theta=float(np.log(value)))
    return StudentT(df=value)


def with_shape(problem: Problem, value: float) -> Problem:
    """The problem with another number."""
    family, outcome = _reshaped(problem.family, value), problem.rows.outcome
    rows = problem.rows.with_response(outcome.y, family.constant(outcome.y, outcome.trials))
    return replace(problem, family=family, rows=rows)


def _limits(problem: Problem) -> tuple[float, float]:
    """Smallest and largest number that is sought."""
    if isinstance(problem.family, StudentT):
        return FEWEST, NORMAL
    return THETA_FLOOR, THETA_OVER_MEAN * max(1.0, float(problem.rows.outcome.y.mean()))


def best_shape(problem: Problem, coef: Array, first: float) -> float:
    """The number with the highest likelihood given the functions up to a common shift of all dispersions.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)
    first : float
        Where the search begins.
    """
    natural, rows = own_natural(problem, coef), problem.rows

    def deviance(at: Array) -> float:
        family = _reshaped(problem.family, float(np.exp(at[0])))
        outcome = replace(rows.outcome, constant=family.constant(rows.outcome.y, rows.outcome.trials))
        moved = replace(natural, delta=natural.delta + at[1])
        return -float(row_logliks(outcome, family, moved) @ rows.weights) / rows.n

    bounds = [tuple(np.log(_limits(problem))), (-2.0, 2.0)]
    found = minimize(deviance, [np.log(first), 0.0], method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14})
    return float(np.exp(found.x[0]))


def fit_shape(problem: Problem, fitted: Callable[[Problem, Array | None], Run]) -> Shaped:
    """Functions and the number in turn.

    Parameters
    ----------
    problem : Problem
        Of a family that has one.
    fitted : callable
        The run of a problem, from a state (G, 2, L) or from starts.

    Returns
    -------
    Shaped
    """
    before, problem = START, with_shape(problem, START)
    run = fitted(problem, None)
    for _ in range(ROUNDS):
        value = best_shape(problem, run.coef, before)
        problem, settled = with_shape(problem, value), abs(np.log(value / before)) < SETTLED
        run, before = fitted(problem, run.coef), value
        if settled:
            break
    return Shaped(problem, run)


def checked_tails(errors_dist: Any, errors_df: Any, family: str) -> StudentT | None:
    """The distribution of t errors, None for normal ones.

    Raises
    ------
    ArgumentError
        If the family is not normal, or degrees of freedom are no positive number or have no use.
    """
    checked_choice(errors_dist, "errors_dist", ("normal", "t"))
    if errors_dist == "normal":
        if errors_df is not None:
            raise ArgumentError(f"errors_df={shown(errors_df)} is for errors_dist='t', got errors_dist='normal'")
        return None
    if family != "gaussian":
        raise ArgumentError(f"errors_dist='t' is for family='gaussian', got family={family!r}; leave it out")
    return StudentT(df=START if errors_df is None else checked_positive(errors_df, "errors_df"))


def shape_flag(problem: Problem) -> Flag | None:
    """A flag if the number that was estimated is the largest that is sought."""
    value = shape_of(problem.family)
    if value is None or value < 0.999 * _limits(problem)[1]:
        return None
    if not isinstance(problem.family, StudentT):
        return Flag(
            "boundary",
            f"theta is at its largest value {value:.3g}: counts that are no certain zeros are no more variable than "
            "Poisson",
            "family='zipoisson' does.",
        )
    return Flag(
        "boundary",
        f"The degrees of freedom of the errors are at their largest value {NORMAL:g}: the errors are normal",
        "errors_dist='normal' does.",
    )
