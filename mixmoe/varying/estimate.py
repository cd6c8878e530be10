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

from mixmoe.varying.constant import constant_mixtures, widen
from mixmoe.varying.problem import Problem
from mixmoe.varying.steps import (
    Natural,
    Posterior,
    dispersion_step,
    expert_step,
    gate_step,
    global_step,
    own_natural,
    posterior,
)

Array = NDArray[np.float64]

MEMORY = 8  # differences kept by the acceleration
SLACK = 1e-3  # an accelerated step may lower the log-likelihood by this fraction of its size per row, no more
SHORT_RUN = 10  # iterations given to each candidate start before the best is kept


@dataclass(frozen=True, slots=True)
class Control:
    """Settings of the EM.

    Attributes
    ----------
    tolerance : float
        Largest change of a coefficient function, relative to its scale, in one plain EM step.
    max_iter : int
    n_starts : int
    """

    tolerance: float = 1e-6
    max_iter: int = 500
    n_starts: int = 10


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
    """

    coef: Array
    loglik: float
    trace: Array
    converged: bool
    change: float
    candidates: Array


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


def limit_dispersion(problem: Problem, coef: Array) -> Array:
    """The state with its log dispersions held within their limits, in place."""
    if problem.slots.has_dispersion:
        level = coef[:, 0, problem.slots.dispersions]
        outside = (level < problem.floor) | (level > problem.ceiling)
        np.clip(level, problem.floor, problem.ceiling, out=level)
        coef[:, 1, problem.slots.dispersions][outside] = 0.0
    return coef


def relative_change(problem: Problem, before: Array, after: Array, share: Array) -> float:
    """Largest change of a function relative to its scale, where its expert has rows.

    Parameters
    ----------
    problem : Problem
    before, after : ndarray, shape (G, 2, L)
    share : ndarray, shape (L,)
        How much of the rows carry each function.

    Returns
    -------
    float
    """
    return float((np.abs(after - before).max(axis=(0, 1)) / problem.scale * share).max())


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
    coef, share = start, np.ones(problem.slots.n)
    natural = own_natural(problem, coef)
    post = posterior(problem.rows, problem.family, natural)
    accelerator = Anderson(np.broadcast_to(problem.scale, coef.shape).ravel())
    slack = SLACK * problem.rows.weights.sum()
    trace, change, best_change = [float(post.loglik)], np.inf, np.inf
    for _ in range(control.max_iter):
        image = em_step(problem, coef, natural, post)
        change = relative_change(problem, coef, image, share)
        if change < control.tolerance:
            break
        if change > 10.0 * best_change:
            accelerator.reset()
        best_change = min(change, best_change)
        proposal = limit_dispersion(problem, accelerator.propose(coef.ravel(), image.ravel()).reshape(coef.shape))
        natural_new = own_natural(problem, proposal)
        post_new = posterior(problem.rows, problem.family, natural_new)
        if not post_new.loglik > post.loglik - slack:
            accelerator.reset()
            proposal, natural_new = image, own_natural(problem, image)
            post_new = posterior(problem.rows, problem.family, natural_new)
            best_change = np.inf
        coef, natural, post = proposal, natural_new, post_new
        trace.append(float(post.loglik))
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
        return _best(runs)
    if len(candidates) == 1:
        return run_em(problem, widen(problem, candidates[0]), control)
    short = replace(control, max_iter=SHORT_RUN)
    runs = sorted((run_em(problem, widen(problem, one), short) for one in candidates), key=lambda r: -r.loglik)
    logliks = np.array([r.loglik for r in runs])
    close = [r for r in runs[:2] if runs[0].loglik - r.loglik < 0.02 * problem.rows.n]
    best = _best([run_em(problem, r.coef, control) for r in close])
    return replace(best, candidates=logliks)


def _best(runs: list[Run]) -> Run:
    best = max(runs, key=lambda r: r.loglik)
    return replace(best, candidates=np.sort([r.loglik for r in runs])[::-1])
