"""Records of a fit that every family returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Flag:
    """Something about a fit that a reader must know.

    Attributes
    ----------
    code : str
        ``"boundary"``, ``"separated_gate"``, ``"degenerate"``, ``"not_converged"``, ``"not_replicated"``,
        ``"interrupted"`` ...
    message : str
        One sentence with the value and what to do.
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Starts:
    """What the starting values led to.

    Attributes
    ----------
    n_starts : int
        Starts tried.
    logliks : ndarray, shape (n_finished,)
        Log-likelihoods of the distinct end points that were run to full convergence, best first.
    n_replicated : int
        How many starts led to the best one.
    """

    n_starts: int
    logliks: Array
    n_replicated: int


@dataclass(frozen=True, slots=True)
class EMFit:
    """Estimate of a mixture.

    Attributes
    ----------
    params : ndarray, shape (P,)
        Estimates on the reported scale, in the order of the layout.
    loglik : float
        Observed-data log-likelihood at `params`.
    trace : ndarray, shape (n_iter,)
        Log-likelihood after each iteration of the start that won.
    n_iter, n_evaluations : int
        Iterations and likelihood evaluations of the start that won.
    converged : bool
        Whether the score is zero to the tolerance.
    responsibilities : ndarray, shape (N, K)
        Posterior expert probabilities per independent unit.
    starts : Starts
    flags : tuple of Flag
    """

    params: Array
    loglik: float
    trace: Array
    n_iter: int
    n_evaluations: int
    converged: bool
    responsibilities: Array
    starts: Starts
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Log-likelihood, shape (S,), and its score, shape (S, P), at S parameter vectors."""

    loglik: Array
    score: Array


Objective = Callable[[Array], Evaluation]


@dataclass(frozen=True, slots=True)
class Control:
    """Limits and tolerances of the optimiser.

    Attributes
    ----------
    max_iter : int
        Quasi-Newton iterations per start.
    tol : float
        Converged when the largest entry of the score per unit of observation is below this, in working coordinates.
    min_gain : float
        A start ends when an iteration gains less than this in log-likelihood.
    progress : bool or None
        Show a progress bar; None: only in a terminal, and if it takes more than a few seconds.
    """

    max_iter: int = 500
    tol: float = 1e-6
    min_gain: float = 0.0
    progress: bool | None = False


@dataclass(frozen=True, slots=True)
class Climb:
    """End points of S ascents run side by side.

    Attributes
    ----------
    theta : ndarray, shape (S, P)
    loglik : ndarray, shape (S,)
    score : ndarray, shape (S, P)
    n_iter, n_evaluations : ndarray of int, shape (S,)
    converged : ndarray of bool, shape (S,)
    traces : tuple of list of float
        Log-likelihood after each iteration, per start.
    interrupted : bool
        The user pressed Ctrl-C; the best points so far are kept.
    """

    theta: Array
    loglik: Array
    score: Array
    n_iter: NDArray[np.intp]
    n_evaluations: NDArray[np.intp]
    converged: NDArray[np.bool_]
    traces: tuple[list[float], ...]
    interrupted: bool = False


def progress_bar(total: int, label: str, show: bool | None) -> Any:
    """A tqdm bar; with `show` None it appears only in a terminal, and after three seconds; with True at once."""
    from tqdm import tqdm

    return tqdm(
        total=total, desc=label, delay=0 if show else 3, leave=False, disable=None if show is None else not show
    )


_ARMIJO = 1e-4
_MAX_STEP = 0.5  # longest step in working coordinates, where one is a standard deviation; measured: fewest evaluations
_MAX_HALVINGS = 30


class _Ascent:
    """State of `climb`: points, inverse Hessians and directions of all starts."""

    def __init__(
        self, objective: Objective, theta: Array, inverse_hessian: Array, n_units: int, control: Control
    ) -> None:
        S = theta.shape[0]
        self.objective, self.n_units, self.control = objective, n_units, control
        self.theta, self.H = theta.copy(), inverse_hessian.copy()
        first = _finite(objective(theta))
        self.loglik, self.score = first.loglik, first.score
        self.n_iter, self.n_evaluations = np.zeros(S, dtype=np.intp), np.ones(S, dtype=np.intp)
        self.converged = np.zeros(S, dtype=bool)
        self.stuck = ~np.isfinite(first.loglik)
        self.traces: tuple[list[float], ...] = tuple([float(v)] for v in first.loglik)
        self.check(np.arange(S))

    def check(self, who: NDArray[np.intp]) -> None:
        flat = np.abs(self.score[who]).max(axis=1, initial=0.0) <= self.control.tol * self.n_units
        self.converged[who] = flat & np.isfinite(self.loglik[who])

    def active(self) -> NDArray[np.intp]:
        return np.flatnonzero(~(self.converged | self.stuck))

    def iterate(self) -> None:
        """One quasi-Newton step of every start that has not ended."""
        who = self.active()
        direction = self.directions(who)
        slope = (direction * self.score[who]).sum(axis=1)
        before = self.loglik[who]
        self.search(who, direction, slope)
        self.n_iter[who] += 1
        for i in who:
            self.traces[i].append(float(self.loglik[i]))
        self.stuck[who] = ~(self.loglik[who] - before > self.control.min_gain)
        self.check(who)

    def directions(self, who: NDArray[np.intp]) -> Array:
        d = (self.H[who] @ self.score[who][..., None])[..., 0]
        wrong = (d * self.score[who]).sum(axis=1) <= 0
        if wrong.any():
            lost = who[wrong]
            self.H[lost] = np.eye(d.shape[1]) / self.n_units
            d[wrong] = self.score[lost] / self.n_units
        longest = np.abs(d).max(axis=1, keepdims=True)
        return d * np.minimum(1.0, _MAX_STEP / np.maximum(longest, _MAX_STEP))

    def search(self, who: NDArray[np.intp], direction: Array, slope: Array) -> None:
        """Backtracking with quadratic interpolation; a start for which no step is uphill stays where it is."""
        step = np.ones(who.size)
        pending = np.ones(who.size, dtype=bool)
        slack = 1e-12 * np.abs(self.loglik[who])  # rounding of the log-likelihood itself
        for _ in range(_MAX_HALVINGS):
            now = np.flatnonzero(pending)
            trial = self.theta[who[now]] + step[now, None] * direction[now]
            e = _finite(self.objective(trial))
            self.n_evaluations[who[now]] += 1
            gain = e.loglik - self.loglik[who[now]]
            good = gain >= _ARMIJO * step[now] * slope[now] - slack[now]
            self.accept(who[now[good]], trial[good], Evaluation(e.loglik[good], e.score[good]))
            pending[now[good]] = False
            if not pending.any():
                return
            bad = now[~good]
            curve = slope[bad] * step[bad] - gain[~good]
            ratio = np.where(np.isfinite(curve) & (curve > 0), 0.5 * slope[bad] * step[bad] / curve, 0.1)
            step[bad] *= np.clip(ratio, 0.1, 0.5)

    def accept(self, who: NDArray[np.intp], theta: Array, e: Evaluation) -> None:
        """Move, and update the inverse Hessians by BFGS where curvature allows."""
        s, y = theta - self.theta[who], self.score[who] - e.score
        sy = (s * y).sum(axis=1)
        Hy = (self.H[who] @ y[..., None])[..., 0]
        yHy = (y * Hy).sum(axis=1)
        usable = sy > 1e-10 * np.sqrt((s * s).sum(axis=1) * (y * y).sum(axis=1))
        if usable.any():
            w, s, Hy = who[usable], s[usable], Hy[usable]
            r = 1.0 / sy[usable, None, None]
            outer = s[:, :, None] * Hy[:, None]
            gain = (1 + yHy[usable, None, None] * r) * r
            self.H[w] += gain * s[:, :, None] * s[:, None] - r * (outer + np.swapaxes(outer, 1, 2))
        self.H[who[~usable]] *= 2.0  # the surface bends upwards along the step: go further next time
        self.theta[who], self.loglik[who], self.score[who] = theta, e.loglik, e.score


def _finite(e: Evaluation) -> Evaluation:
    bad = ~(np.isfinite(e.loglik) & np.isfinite(e.score).all(axis=1))
    return Evaluation(np.where(bad, -np.inf, e.loglik), np.where(bad[:, None], 0.0, e.score))


def climb(
    objective: Objective,
    theta: Array,
    inverse_hessian: Array,
    n_units: int,
    control: Control,
) -> Climb:
    """Maxima of a log-likelihood by BFGS from S starts in lockstep.

    Parameters
    ----------
    objective : callable
        From points (S, P) to `Evaluation`; called with fewer rows as starts converge.
    theta : ndarray, shape (S, P)
    inverse_hessian : ndarray, shape (S, P, P)
        First approximation of the inverse information, e.g. from outer products of scores.
    n_units : int
        Independent units, which makes the tolerance scale-free.
    control : Control

    Returns
    -------
    Climb

    References
    ----------
    Nocedal & Wright (2006), Numerical Optimization, section 6.1.
    """
    state = _Ascent(objective, theta, inverse_hessian, n_units, control)
    interrupted = False
    with progress_bar(theta.shape[0], "starts", control.progress) as bar:
        try:
            for _ in range(control.max_iter):
                active = state.active().size
                bar.update(theta.shape[0] - active - bar.n)
                if not active:
                    break
                state.iterate()
        except KeyboardInterrupt:
            interrupted = True
    return Climb(
        state.theta,
        state.loglik,
        state.score,
        state.n_iter,
        state.n_evaluations,
        state.converged,
        state.traces,
        interrupted,
    )
