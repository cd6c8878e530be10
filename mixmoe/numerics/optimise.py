"""Quasi-Newton ascents side by side, and the progress bar of long work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from mixmoe._typing import Array


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Log-likelihood, shape (S,), and its score, shape (S, P), at S parameter vectors."""

    loglik: Array
    score: Array


Objective = Callable[[Array], Evaluation]
Spurious = Callable[[Array], NDArray[np.bool_]]
Standing = Mapping[str, Any]  # where ascents stand after an iteration, as arrays and lists of numbers by name


class Keeper(Protocol):
    """What remembers the ascents of a fit, so that another run of it goes on where one was ended."""

    def recall(self, shape: tuple[int, ...]) -> tuple[Standing | None, bool]:
        """Where the next ascents, from starts of this shape, stood, None if they never began; and whether they ended.

        Raises
        ------
        ArgumentError
            If other ascents are remembered.
        """
        ...

    def keep(self, standing: Standing, ended: bool) -> None:
        """Remember where the present ascents stand."""
        ...

    def stop(self, standing: Standing | None) -> None:
        """Remember where the present ascents stood when the user ended them, and nothing after it."""
        ...


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
    promise : float
        A start ends when the quadratic model at its place promises less than this, half of score' H score.
    behind : float
        A start is given up when it would stay this far below the best even with ten times what its last two iterations
        gained.
    reached : float
        Log-likelihood of the best of earlier ascents, which starts race against too.
    halve : int
        The lower half of the starts still under way is given up every so many iterations; 0: never.
    progress : bool or None
        Show a progress bar; None: only in a terminal, and if it takes more than a few seconds.
    keeper : Keeper or None
        What remembers ascents for another run.
    """

    max_iter: int = 500
    tol: float = 1e-6
    min_gain: float = 0.0
    promise: float = 0.0
    behind: float = np.inf
    reached: float = -np.inf
    halve: int = 0
    progress: bool | None = False
    keeper: Keeper | None = None


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


ROUNDING = 1e-12  # relative, of the log-likelihood itself
_ARMIJO = 1e-4
_MAX_STEP = 0.5  # longest step in working coordinates, where one is a standard deviation; measured: fewest evaluations
_TRUSTED = 0.5  # share of the gain that the slope promises, from which on a step that was cut may be twice as long
_FIRST_LOOK = 6  # iterations before anybody is given up
_LAP = 2  # iterations between two looks at who is left behind
_HOPE = 10.0  # times the gain of the last lap is what a start may still gain; measured: no winner is lost
_MAX_HALVINGS = 15
MANY_PARAMETERS = 150  # from here on a matrix of their size is not copied, nor kept for each of many ascents


@dataclass(slots=True)
class DenseInverse:
    """Inverse informations of S ascents by BFGS.

    Attributes
    ----------
    H : ndarray, shape (S, P, P)
        Of large ones the lower triangle of the transposed is kept up alone.
    """

    H: Array

    def times(self, who: NDArray[np.intp], score: Array) -> Array:
        """Products with the scores of the ascents `who`, shape (len(who), P)."""
        if self._is_large:
            pairs = zip(who, score, strict=True)
            return np.array([blas.dsymv(1.0, self.H[i].T, one, lower=1) for i, one in pairs]).reshape(score.shape)
        return np.asarray((self.H[who] @ score[..., None])[..., 0])

    def restart(self, who: NDArray[np.intp], scale: float) -> None:
        """Multiples of the identity in the place of the inverse informations of the ascents `who`."""
        self.H[who] = scale * np.eye(self.H.shape[1])

    def stretch(self, who: NDArray[np.intp]) -> None:
        """Twice as large inverse informations for the ascents `who`."""
        self.H[who] *= 2.0

    def update(self, who: NDArray[np.intp], s: Array, y: Array) -> None:
        """After steps `s` that changed minus the scores by `y`, each (len(who), P)."""
        if not self._is_large:
            self.H[who] = bfgs_update(self.H[who], s, y)
            return
        # In place, as one symmetric product of two vectors: copies of such matrices would cost more than the update.
        for i, step, change in zip(who, s, y, strict=True):
            half = self.H[i].T  # in the order of columns, so that BLAS works on it and not on a copy
            r, Hy = 1.0 / (step @ change), blas.dsymv(1.0, half, change, lower=1)
            across = 0.5 * (1 + (change @ Hy) * r) * r * step - r * Hy
            blas.dsyr2(1.0, across, step, a=half, lower=1, overwrite_a=1)

    @property
    def _is_large(self) -> bool:
        return self.H.shape[1] > MANY_PARAMETERS


@dataclass(slots=True)
class LimitedInverse:
    """Inverse informations of S ascents by BFGS from the last steps, where P by P numbers for each were too many.

    Attributes
    ----------
    diagonal : ndarray, shape (S, P)
        Inverse information before any step.
    scale : ndarray, shape (S,)
        What it is multiplied by.
    steps, changes : ndarray, shape (M, S, P)
        Last first; zero where there are fewer.

    References
    ----------
    Nocedal & Wright (2006), Numerical Optimization, algorithm 7.4.
    """

    diagonal: Array
    scale: Array
    steps: Array
    changes: Array

    def times(self, who: NDArray[np.intp], score: Array) -> Array:
        """Products with the scores of the ascents `who`, shape (len(who), P)."""
        s, y = self.steps[:, who], self.changes[:, who]
        curve = (s * y).sum(axis=2)  # (M, len(who)); zero where there is no step, which then moves nothing
        rho = np.where(curve > 0, 1.0 / np.where(curve > 0, curve, 1.0), 0.0)
        left, shares = score.copy(), np.empty(rho.shape)
        for i in range(len(s)):
            shares[i] = rho[i] * (s[i] * left).sum(axis=1)
            left -= shares[i][:, None] * y[i]
        out = self.scale[who][:, None] * self.diagonal[who] * left
        for i in reversed(range(len(s))):
            back = rho[i] * (y[i] * out).sum(axis=1)
            out += (shares[i] - back)[:, None] * s[i]
        return out

    def restart(self, who: NDArray[np.intp], scale: float) -> None:
        """Multiples of the identity in the place of the inverse informations of the ascents `who`."""
        self.steps[:, who] = self.changes[:, who] = 0.0
        self.diagonal[who], self.scale[who] = scale, 1.0

    def stretch(self, who: NDArray[np.intp]) -> None:
        """Those of the ascents `who` larger where no step has told them."""
        self.scale[who] *= 2.0

    def update(self, who: NDArray[np.intp], s: Array, y: Array) -> None:
        """After steps `s` that changed minus the scores by `y`, each (len(who), P)."""
        for kept, new in ((self.steps, s), (self.changes, y)):
            kept[1:, who] = kept[:-1, who]
            kept[0, who] = new
        self.scale[who] = (s * y).sum(axis=1) / (self.diagonal[who] * y * y).sum(axis=1)


_REMEMBERED = 12  # steps


def inverse_information(first: Array) -> DenseInverse | LimitedInverse:
    """Inverse informations from their first approximations, shape (S, P, P), or from the diagonals of these, (S, P)."""
    if first.ndim == 3:
        return DenseInverse(first.copy())
    nothing = np.zeros((_REMEMBERED, *first.shape))
    return LimitedInverse(first.copy(), np.ones(len(first)), nothing, nothing.copy())


@dataclass(slots=True)
class _State:
    """What changes while S ascents run; shapes as in `Climb`, `H` the inverse information, `radius` (S,).

    `logarithmic` (P,): coordinates in which steps stay short. `spurious` and `judged` (S,): what is no solution however
    high, and where this has been decided for good.
    """

    theta: Array
    loglik: Array
    score: Array
    H: DenseInverse | LimitedInverse
    n_iter: NDArray[np.intp]
    n_evaluations: NDArray[np.intp]
    radius: Array
    logarithmic: NDArray[np.bool_]
    converged: NDArray[np.bool_]
    stuck: NDArray[np.bool_]
    spurious: NDArray[np.bool_]
    judged: NDArray[np.bool_]
    traces: tuple[list[float], ...]

    def standing(self) -> Standing:
        """A copy of all of it."""
        out: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        inverse = {part.name: getattr(self.H, part.name).copy() for part in fields(self.H)}
        arrays = {name: value.copy() for name, value in out.items() if isinstance(value, np.ndarray)}
        return {**arrays, "traces": [list(trace) for trace in self.traces], "inverse": inverse}

    @classmethod
    def at(cls, standing: Standing) -> Self:
        """What stood there."""
        inverse = {name: np.array(value) for name, value in standing["inverse"].items()}
        H = DenseInverse(**inverse) if len(inverse) == 1 else LimitedInverse(**inverse)
        arrays = {part.name: np.array(standing[part.name]) for part in fields(cls) if part.name not in ("H", "traces")}
        return cls(**arrays, H=H, traces=tuple(list(trace) for trace in standing["traces"]))


def _begin(
    objective: Objective, theta: Array, inverse_hessian: Array, logarithmic: Sequence[int] | NDArray[np.intp]
) -> _State:
    first = _finite(objective(theta))
    S = theta.shape[0]
    return _State(
        theta.copy(),
        first.loglik,
        first.score,
        inverse_information(inverse_hessian),
        np.zeros(S, dtype=np.intp),
        np.ones(S, dtype=np.intp),
        np.full(S, _MAX_STEP),
        np.isin(np.arange(theta.shape[1]), logarithmic),
        np.zeros(S, dtype=bool),
        ~np.isfinite(first.loglik),
        np.zeros(S, dtype=bool),
        np.zeros(S, dtype=bool),
        tuple([float(v)] for v in first.loglik),
    )


def _active(state: _State, who: NDArray[np.intp], n_units: int, control: Control) -> NDArray[np.intp]:
    """Starts that have neither converged nor come to a standstill, after those of `who` have moved."""
    score = state.score[who]
    flat = np.abs(score).max(axis=1, initial=0.0) <= control.tol * n_units
    if control.promise:
        promised = 0.5 * (score * state.H.times(who, score)).sum(axis=1)
        flat |= (promised >= 0) & (promised <= control.promise)
    state.converged[who] = flat & np.isfinite(state.loglik[who])
    return np.flatnonzero(~(state.converged | state.stuck))


def _directions(state: _State, who: NDArray[np.intp], n_units: int) -> Array:
    """Uphill directions of limited length, shape (len(who), P); a lost inverse information starts anew."""
    score = state.score[who]
    d = state.H.times(who, score)
    wrong = (d * score).sum(axis=1) <= 0
    if wrong.any():
        state.H.restart(who[wrong], 1.0 / n_units)
        d[wrong] = score[wrong] / n_units
    size = np.abs(d)
    radius = np.where(state.logarithmic, _MAX_STEP, state.radius[who][:, None])  # (len(who), P)
    return d / np.maximum(1.0, (size / radius).max(axis=1, initial=0.0))[:, None]


def _search(state: _State, objective: Objective, who: NDArray[np.intp], direction: Array) -> None:
    """Backtracking with quadratic interpolation; a start for which no step is uphill stays where it is."""
    slope = (direction * state.score[who]).sum(axis=1)
    far = np.where(state.logarithmic, 0.0, np.abs(direction)).max(axis=1, initial=0.0)
    cut = far > 0.99 * state.radius[who]
    slack = ROUNDING * np.abs(state.loglik[who])
    step = np.ones(who.size)
    pending = np.arange(who.size)
    for _ in range(_MAX_HALVINGS):
        trial = state.theta[who[pending]] + step[pending, None] * direction[pending]
        e = _finite(objective(trial))
        state.n_evaluations[who[pending]] += 1
        gain, hoped = e.loglik - state.loglik[who[pending]], step[pending] * slope[pending]
        good = gain >= _ARMIJO * hoped - slack[pending]
        # Steps grow along a slope without end, as towards infinite coefficients, and start anew where one fails.
        longer = cut[pending] & (gain > _TRUSTED * hoped)
        state.radius[who[pending]] = np.where(good, np.where(longer, 2.0, 1.0) * state.radius[who[pending]], _MAX_STEP)
        # Starts whose step is good enough move, and update their inverse information where curvature allows.
        moved = who[pending[good]]
        s, y = trial[good] - state.theta[moved], state.score[moved] - e.score[good]
        usable = (s * y).sum(axis=1) > 1e-10 * np.sqrt((s * s).sum(axis=1) * (y * y).sum(axis=1))
        state.H.update(moved[usable], s[usable], y[usable])
        state.H.stretch(moved[~usable])  # the surface bends upwards along the step: go further next time
        state.theta[moved], state.loglik[moved], state.score[moved] = trial[good], e.loglik[good], e.score[good]
        cut[:] = False  # a shortened step says nothing about longer ones
        # The others try a shorter one, by the parabola through both points.
        curve = hoped - gain
        bent = np.isfinite(curve) & (curve > 0)
        ratio = np.where(bent, 0.5 * hoped / np.where(bent, curve, 1.0), 0.1)
        step[pending] *= np.clip(ratio, 0.1, 0.5)
        pending = pending[~good]
        if not pending.size:
            return


def bfgs_update(H: Array, s: Array, y: Array) -> Array:
    """Inverse information (S, P, P) after steps `s` that changed minus the score by `y`, each (S, P)."""
    r = 1.0 / (s * y).sum(axis=1)[:, None, None]
    Hy = (H @ y[..., None])[..., 0]
    yHy = (y * Hy).sum(axis=1)[:, None, None]
    outer = s[:, :, None] * Hy[:, None]
    return H + (1 + yHy * r) * r * s[:, :, None] * s[:, None] - r * (outer + np.swapaxes(outer, 1, 2))


def _finite(e: Evaluation) -> Evaluation:
    bad = ~(np.isfinite(e.loglik) & np.isfinite(e.score).all(axis=1))
    return Evaluation(np.where(bad, -np.inf, e.loglik), np.where(bad[:, None], 0.0, e.score))


def climb(
    objective: Objective,
    theta: Array,
    inverse_hessian: Array,
    n_units: int,
    control: Control,
    spurious: Spurious | None = None,
    logarithmic: Sequence[int] | NDArray[np.intp] = (),
) -> Climb:
    """Maxima of a log-likelihood by BFGS from S starts in lockstep.

    Parameters
    ----------
    objective : callable
        From points (S, P) to `Evaluation`; called with fewer rows as starts converge.
    theta : ndarray, shape (S, P)
    inverse_hessian : ndarray, shape (S, P, P) or (S, P)
        First approximation of the inverse information, e.g. from outer products of scores; or its diagonal, from which
        on only the last steps are kept.
    n_units : int
        Independent units, which makes the tolerance scale-free.
    control : Control
    spurious : callable, optional
        Which of some points, shape (S, P), are no solutions however high they lie. With it starts race: those that are
        spurious or left behind are given up, see `Control`.
    logarithmic : sequence of int, optional
        Coordinates that are logarithms, in which no step is longer than a half: where dispersions run to infinity a
        likelihood is rounding errors long before coefficients overflow.

    Returns
    -------
    Climb

    References
    ----------
    Nocedal & Wright (2006), Numerical Optimization, section 6.1.
    """
    # Without steps, as after Ctrl-C, or without starts there is nothing to remember.
    keeper = control.keeper if control.max_iter and theta.size else None
    interrupted, last = False, None
    known, ended = (None, False) if keeper is None else keeper.recall(theta.shape)
    try:
        state = _begin(objective, theta, inverse_hessian, logarithmic) if known is None else _State.at(known)
    except KeyboardInterrupt:  # before the first evaluation there is no point to give back, so it is made again
        interrupted, state = True, _begin(objective, theta, inverse_hessian, logarithmic)
        control = replace(control, max_iter=0)
    with progress_bar(theta.shape[0], "starts", control.progress) as bar:
        try:
            who = _active(state, np.arange(theta.shape[0]), n_units, control)
            # Those that are under way have all taken as many steps; what has ended before has none to take.
            first = control.max_iter if ended else int(state.n_iter.max(initial=0))
            for lap in range(1 + first, control.max_iter + 1):
                if not who.size:
                    break
                # 1. A quasi-Newton step of each start that is under way.
                before = state.loglik[who]
                _search(state, objective, who, _directions(state, who, n_units))
                state.n_iter[who] += 1
                for i in who:
                    state.traces[i].append(float(state.loglik[i]))
                # 2. Those that gain no more have ended; in a race also the spurious, and those far behind.
                state.stuck[who] = ~(state.loglik[who] - before > control.min_gain)
                if spurious is not None and lap >= _FIRST_LOOK and lap % _LAP == 0:
                    undecided = np.flatnonzero(~state.judged)
                    state.spurious[undecided] = spurious(state.theta[undecided])
                    best = max(control.reached, np.where(state.spurious, -np.inf, state.loglik).max())
                    recent = state.loglik[who] - np.array([state.traces[i][-1 - _LAP] for i in who])
                    behind = state.loglik[who] + _HOPE * recent < best - control.behind
                    state.stuck[who] |= state.spurious[who] | behind
                    state.judged = state.stuck | state.converged
                if control.halve and lap % control.halve == 0:
                    running = who[~state.stuck[who]]
                    lower = np.argsort(-state.loglik[running], kind="stable")[(running.size + 1) // 2 :]
                    state.stuck[running[lower]] = True
                # 3. Those whose score is zero to the tolerance have converged.
                who = _active(state, who, n_units, control)
                bar.update(theta.shape[0] - who.size - bar.n)
                # 4. Where all stand is remembered: amid a step, where Ctrl-C comes, they stand nowhere.
                if keeper is not None:
                    last = state.standing()
                    keeper.keep(last, ended=False)
        except KeyboardInterrupt:
            interrupted = True
    if keeper is not None and interrupted:
        keeper.stop(last)
    elif keeper is not None and not ended:
        keeper.keep(state.standing(), ended=True)
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


def loglik_name(settings: Mapping[str, Any]) -> str:
    """What the log-likelihood of a fit with these settings is called."""
    return "REML log-likelihood" if settings.get("method") == "reml" else "Log-likelihood"
