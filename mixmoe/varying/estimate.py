"""Label-consistent EM for all grid points together, accelerated, from several starts.

References
----------
Huang, M., Li, R. and Wang, S. (2013). Nonparametric mixture of regression models. JASA 108, 929-941.
Walker, H. F. and Ni, P. (2011). Anderson acceleration for fixed-point iterations. SIAM J. Numer. Anal. 49, 1715-1735.

Notes
-----
Deviations from Huang, Li and Wang: local-linear instead of local-constant fits, covariates in experts and gate, other
families than the normal, and Anderson acceleration of the fixed-point iteration.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe.varying.constant import DISTINCT, constant_mixtures, widen
from mixmoe.varying.labels import exchanges
from mixmoe.varying.problem import Problem
from mixmoe.varying.steps import (
    Natural,
    Posterior,
    dispersion_step,
    expert_step,
    gate_step,
    global_step,
    limit_dispersion,
    own_natural,
    posterior,
)

Array = NDArray[np.float64]

MEMORY = 8  # differences kept by the acceleration
SLACK = 1e-3  # an accelerated step may lower the log-likelihood by this fraction of its size per row, no more
GROWTH = 1.0  # an accelerated point whose residual grew by more than this factor is replaced by the plain step
SHORT_RUN = 4  # iterations given to each candidate start before the best is kept
CROSSING_GAIN = 3.0  # log-likelihood that a start with crossing experts must gain over those from constant mixtures
STALLED = 3  # iterations without a gain after which a run for a criterion ends
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
        Log-likelihoods of the starts after their short runs, best first.
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
        out[:, :, slots.dispersions] += dispersion_step(problem, coef, resp, own_natural(problem, out))
    if slots.n_experts > 1 and not const[slots.gates].all():
        out[:, :, slots.gates] += gate_step(problem, coef, resp)
    if const.any():
        current = natural if const.all() else own_natural(problem, out)
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
    return _State(coef, image, float(post.loglik), relative_change(problem, coef, image))


def relative_change(problem: Problem, before: Array, after: Array) -> float:
    """Largest change of a level or slope relative to the scale of its function."""
    return float((np.abs(after - before).max(axis=(0, 1)) / problem.scale).max())


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
    slack = SLACK * problem.rows.weights.sum()
    trace, accepted, iteration = [state.loglik], state, 0
    least = control.gain * problem.rows.weights.sum()
    while iteration < control.max_iter and state.change >= control.tolerance and not _stalled(trace, least):
        iteration += 1
        proposal = accelerator.propose(state.coef.ravel(), state.image.ravel()).reshape(start.shape)
        state = _evaluate(problem, limit_dispersion(problem, proposal))
        if state.change > GROWTH * accepted.change or not state.loglik > accepted.loglik - slack:
            accelerator.reset()
            state = _evaluate(problem, fallback)
        accepted, fallback = state, state.image
        trace.append(state.loglik)
    image, change = state.image, state.change
    final = posterior(problem.rows, problem.family, own_natural(problem, image))
    converged = bool(change < control.tolerance)
    return Run(image, float(final.loglik), np.array(trace), converged, change, np.array([float(final.loglik)]))


def _stalled(trace: list[float], least: float) -> bool:
    """Whether each of the last few iterations changed the log-likelihood by less than `least`."""
    recent = np.abs(np.diff(trace[-STALLED - 1 :]))
    return len(recent) == STALLED and bool((recent < least).all())


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
    plain = short_runs(problem, [widen(problem, one) for one in candidates if one.constant], control)
    bent = short_runs(problem, [widen(problem, one) for one in candidates if not one.constant], control)
    bent += short_runs(problem, exchanges(problem, max(plain + bent, key=lambda r: r.loglik).coef), control)
    better = [r for r in bent if r.loglik > plain[0].loglik + CROSSING_GAIN]
    runs = sorted([*plain, *better], key=lambda r: -r.loglik)
    logliks = np.array([r.loglik for r in runs])
    rivals = [r for r in runs[1:] if DISTINCT < runs[0].loglik - r.loglik < RIVAL * problem.rows.n][:1]
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
