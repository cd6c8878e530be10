"""Limits that follow the shape of the local likelihoods: of the theta of negative binomial experts, and of the gate.

For theta the adjusted profile is followed; for a coefficient of the gate, which is a log odds, the signed root with
known experts.

References
----------
Cox, D. R. and Reid, N. (1987). Parameter orthogonality and approximate conditional inference. JRSS B 49, 1-39.
Lawless, J. F. (1987). Negative binomial and mixed Poisson regression. Canad. J. Statist. 15, 209-225: the likelihood of
theta is far from a parabola, and without a maximum where counts are no more variable than Poisson ones.
Severini, T. A. (2000). Likelihood Methods in Statistics, section 4.4, for limits from the profile.

Notes
-----
As a function of ``1 / theta`` the likelihood is regular at zero, where the response is Poisson; as one of log theta it
is flat beyond some value. A limit lies where the signed root of the profile likelihood ratio is the factor of the band;
where it is not reached before Poisson, theta has no upper limit.

Fitted means follow the counts, so that what is left of their variance is too small and theta too large, in a window of
few rows by a good part of its standard error. Theta is orthogonal to the means; the profile is lowered by half the log
determinant of their information (Cox and Reid 1987): that about the mean of the expert, with its responsibilities at
the fit. With those along the profile a theta that makes an expert vanish would take all information with it, and be
preferred for that. Where it is open which rows belong to the expert, the fit follows them less: the adjustment is
multiplied by the share of that information which is left when membership is not known (Louis 1982). Unshared it moved
the estimates of two overlapping experts too far in simulations, and without it estimates of separate ones not enough.

A kernel-weighted log-likelihood is no log-likelihood: with information I_i of the rows its curvature is
``sum K_i I_i``, the variance of its score ``sum K_i^2 I_i``. The likelihood ratio is divided by their ratio (that of
the kernels and responsibilities; Fan and Gijbels 1996, section 4.4), and so is the profile before it is adjusted: the
score of the profile is off by the covariance of the means, of which the inverse curvature is too much by the same
ratio. Roots are divided besides by the factor by which the variance of the sandwich exceeds that of the model, the
median over those grid points where theta is well determined.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from mixmoe._typing import Array, IntArray
from mixmoe.mixture.gate import Weighted, gate_information
from mixmoe.numerics.linalg import log_softmax
from mixmoe.numerics.optimise import progress_bar
from mixmoe.varying.bands import MOST_ROWS, BandSet, LevelProcess
from mixmoe.varying.em_steps import PEAK, own_natural, posterior
from mixmoe.varying.local_likelihood import Local, natural_predictors, positive_definite, state_of
from mixmoe.varying.local_maximum import LocalFit, at_points, carried, profiled
from mixmoe.varying.problem import Problem, outer_rows
from mixmoe.varying.windows import blocks, epanechnikov, hankel, local_moments, wrapped

FIRST_STEP = 0.3  # of log theta
GAIN, MOST_GAIN = 0.7, 1.0  # change of the root for which steps aim, and the largest
GROWTH = 3.0  # of steps, at most
MOST_STEPS = 40
REACH = 4.0  # roots up to here are followed: factors of bands end before
SURPLUS = 0.1  # by which a root may exceed that of the grid point beside it, whose window holds nearly the same rows
WELL_KNOWN = 0.5  # standard error of log theta below which its sandwich is believed


@dataclass(frozen=True, slots=True)
class Walk:
    """Values of log theta from the maximum outwards, and roots there.

    Attributes
    ----------
    values : ndarray, shape (S, G)
        A point that has arrived, or whose step went too far, stays where it is.
    roots : ndarray, shape (S, G)
        Never falling; NaN where the local likelihood has no maximum.
    """

    values: Array
    roots: Array

    def crossing(self, factor: Array) -> Array:
        """Where the root is `factor`, shape (G,); NaN where it never is."""
        out = np.full(self.values.shape[1], np.nan)
        for g in np.flatnonzero(self.roots[-1] >= factor):
            out[g] = np.interp(factor[g], self.roots[:, g], self.values[:, g])
        return out


@dataclass(frozen=True, slots=True)
class ThetaProfile:
    """Signed roots of the adjusted profile likelihood ratio of log theta at every grid point.

    Attributes
    ----------
    level : ndarray, shape (G, K)
        Maxima of the adjusted profiles; on the ceiling where one has none.
    below, above : tuple of Walk
        Of each expert.
    units : ndarray, shape (K,)
        A root is that of the limiting normal after division by this.
    """

    level: Array
    below: tuple[Walk, ...]
    above: tuple[Walk, ...]
    units: Array

    def limits(self, factor: Array) -> tuple[Array, Array]:
        """Lower and upper limits of log theta where the root is `factor`, (G, K) each; infinite where it never is."""
        scaled = (factor * self.units).T
        low, high = (
            np.stack([walk.crossing(each) for walk, each in zip(walks, scaled, strict=True)], axis=-1)
            for walks in (self.below, self.above)
        )
        there = np.isfinite(np.stack([walk.roots[0] for walk in self.below], axis=-1))
        never = np.where(there, np.inf, np.nan)
        return np.where(np.isfinite(low), low, -never), np.where(np.isfinite(high), high, never)


def theta_profile(process: LevelProcess, progress: bool | None = None) -> ThetaProfile | None:
    """Profiles of the local likelihoods along log theta of each expert.

    Parameters
    ----------
    process : LevelProcess
        Levels with their covariance, and the maxima behind them, dispersions where they run.
    progress : bool, optional

    Returns
    -------
    ThetaProfile or None
        None unless the response is negative binomial with varying dispersions.
    """
    local, fit = process.fits.local, process.fits.bounded.free
    problem, dispersions = local.problem, local.problem.slots.dispersions
    if problem.family.name != "negbinomial" or problem.const[dispersions].any():
        return None
    variance = np.einsum("glgl->gl", process.covariance)[:, dispersions]  # NaN where it has none
    natural = own_natural(problem, state_of(local, fit.coef))
    resp = posterior(problem.rows.with_weights(np.ones(problem.rows.n)), problem.family, natural).weighted
    levels, units, sides = np.empty(variance.shape), np.ones(len(resp)), []
    score, information = problem.family.scoring(problem.rows.outcome, natural.eta, natural.delta)
    with progress_bar(len(resp), "limits of theta", progress) as bar:
        for c in range(len(resp)):
            known = resp[c] * information[c]
            left = known - resp[c] * (1.0 - resp[c]) * score[c] ** 2
            profile = _Profile(local, c, resp[c], np.stack([known, left]))
            units[c] = np.sqrt(_excess(_path(profile, fit, 0.0), variance[:, c]))
            # Roots are divided by their unit, so that the path must go on for as much longer.
            levels[:, c], *walks = _roots(_raised(profile, _path(profile, fit, REACH * max(units[c], 1.0))))
            sides.append(walks)
            bar.update()
    below, above = zip(*sides, strict=True)
    return ThetaProfile(levels, below, above, units)


@dataclass(frozen=True, slots=True)
class _Profile:
    """What is followed along log theta of one expert.

    Attributes
    ----------
    local : Local
    expert : int
        From 0.
    resp : ndarray, shape (n,)
        Its responsibilities at the fit.
    known : ndarray, shape (2, n)
        Information of each row about its predictor there, and what of it is left with unknown membership.
    """

    local: Local
    expert: int
    resp: Array
    known: Array

    @property
    def slot(self) -> int:
        """Place of log theta among the functions."""
        return self.local.problem.slots.dispersions.start + self.expert

    def at(self, points: NDArray[np.intp], coef: Array) -> tuple[Array, Array]:
        """Coefficients with log theta as it is and the rest maximised, and the adjusted profile, at some grid points.

        Parameters
        ----------
        points : ndarray of int, shape (g,)
            Possibly repeated.
        coef : ndarray, shape (g, D, L)
        """
        some = at_points(self.local, points)
        moved, loglik = profiled(some, self.slot, coef)
        squares, share, spread = (np.concatenate(part) for part in zip(*self._of_means(some, moved), strict=True))
        return moved, loglik / squares - 0.5 * share * spread

    def _of_means(self, local: Local, coef: Array) -> Iterator[tuple[Array, Array, Array]]:
        """Kernel ratio, share of the information about the mean that is left, and its log determinant, block by block.

        The ratio is ``sum (K w)^2 r / sum K w r``; the share is what unknown membership leaves.
        """
        problem, degree, c = local.problem, local.free.shape[0] - 1, self.expert
        vary = np.flatnonzero(~problem.const[problem.slots.expert(c)])
        products, size = outer_rows(problem.rows.design[:, vary]), len(vary)
        rows, tiny = np.column_stack([self.resp, *self.known]), np.finfo(float).tiny
        for block in blocks(local.windows):
            kernel = block.kernel * problem.rows.weights[block.rows]
            pairs = natural_predictors(local, block, coef[block.first : block.last])
            each = problem.family.scoring(problem.rows.outcome.take(block.rows), pairs.eta, pairs.delta)[1][c]
            moments = local_moments(block, (kernel * self.resp[block.rows] * each)[None], products, 2 * degree + 1)
            matrix = hankel(moments.reshape(len(moments), 2 * degree + 1, size, size), degree)
            sums = local_moments(block, np.stack([kernel**2, kernel]), rows, 1)[:, 0]  # (g, 2, 3)
            squares = sums[:, 0, 0] / np.maximum(sums[:, 1, 0], tiny)
            share = np.clip(sums[:, 1, 2] / np.maximum(sums[:, 1, 1], tiny), 0.0, 1.0)
            yield squares, share, np.linalg.slogdet(matrix)[1]


@dataclass(frozen=True, slots=True)
class _Path:
    """Adjusted profiles along log theta.

    Attributes
    ----------
    values, heights : ndarray, shape (S, G)
        Values of log theta, ascending, and the adjusted profile there; NaN where the local likelihood has no maximum.
    coef : ndarray, shape (S, G, D, L)
        The maxima along the path.
    start : int
        Where the maxima of the likelihood lie.
    """

    values: Array
    heights: Array
    coef: Array
    start: int

    @property
    def roots(self) -> Array:
        """Of the drop from the highest point, shape (S, G)."""
        return np.sqrt(2.0 * np.maximum(self.heights.max(axis=0) - self.heights, 0.0))


def _path(profile: _Profile, fit: LocalFit, reach: float) -> _Path:
    """The adjusted profile from the maxima of the likelihood downwards and upwards, until its root is above `reach`."""
    down, up = (_walk(profile, fit, sign, reach) for sign in (-1.0, 1.0))
    values, heights, coef = (np.concatenate([a[:0:-1], b]) for a, b in zip(down, up, strict=True))
    return _Path(values, heights, coef, len(down[0]) - 1)


def _raised(profile: _Profile, path: _Path) -> _Path:
    """The path with maxima carried from each grid point to the next wherever that raises the profile.

    At a value of theta far from its own the likelihood of the other coefficients has several maxima: rows between two
    experts may be counted to either. A walk stays with the one that it came from, and its profile falls too fast, so
    that limits are too near. Windows beside each other hold nearly the same rows, and have nearly the same profile:
    where the root at one point exceeds that at the other, the maxima of the other are tried, in both directions along
    the index. What would lie higher than the maximum of the fit is none of its experts, and is not taken.
    """
    path, slot = _Path(path.values, path.heights.copy(), path.coef.copy(), path.start), profile.slot
    grid, tops = profile.local.windows.grid, path.heights.max(axis=0)
    for order in (range(1, len(grid)), range(len(grid) - 2, -1, -1)):
        for g in order:
            beside = g - 1 if order.step > 0 else g + 1
            roots = path.roots
            if np.isnan(roots[:, [g, beside]]).any():
                continue
            theirs = np.interp(path.values[:, g], path.values[:, beside], roots[:, beside])
            rungs = np.flatnonzero((roots[:, g] > theirs + SURPLUS) & (np.arange(len(roots)) != path.start))
            if not len(rungs):
                continue
            away = np.abs(path.values[:, beside] - path.values[rungs, g, None])
            trial = carried(
                profile.local, path.coef[away.argmin(axis=1), beside], np.full(len(rungs), grid[g] - grid[beside])
            )
            trial[:, 0, slot] = path.values[rungs, g]
            trial, reached = profile.at(np.full(len(rungs), g), trial)
            better = (reached > path.heights[rungs, g]) & (reached <= tops[g])
            path.heights[rungs[better], g], path.coef[rungs[better], g] = reached[better], trial[better]
    return path


def _walk(profile: _Profile, fit: LocalFit, sign: float, reach: float) -> tuple[Array, Array, Array]:
    """Values of log theta, heights of the adjusted profile and maxima, until all are far down or at a limit."""
    problem, slot = profile.local.problem, profile.slot
    end = problem.floor if sign < 0.0 else problem.ceiling
    coef, height = profile.at(np.arange(len(fit.coef)), fit.coef)
    top, step = np.where(fit.converged, height, np.nan), np.full(len(coef), FIRST_STEP)
    values, heights, turned = [coef[:, 0, slot].copy()], [top.copy()], np.zeros(len(coef), dtype=bool)
    maxima = [coef.copy()]
    for _ in range(MOST_STEPS):
        root = np.sqrt(2.0 * (top - heights[-1]))
        todo = np.flatnonzero((root <= reach) & (values[-1] != end) & ~turned)
        if not len(todo):
            break
        trial, moved = coef[todo], values[-1][todo] + sign * step[todo]
        trial[:, 0, slot] = np.maximum(moved, end) if sign < 0.0 else np.minimum(moved, end)
        trial, reached = profile.at(todo, trial)
        # Roots of the drop grow about evenly along a profile, so that steps can aim at a constant gain.
        gain = np.abs(np.sqrt(2.0 * np.maximum(top[todo] - reached, 0.0)) - root[todo])
        taken = (gain <= MOST_GAIN) | (step[todo] <= FIRST_STEP)  # a step too far is made again, smaller
        step[todo] *= np.clip(GAIN / np.maximum(gain, np.finfo(float).tiny), 1.0 / GROWTH, GROWTH)
        # Where a small theta makes the expert vanish, the likelihood is flat and the adjusted profile rises for ever.
        turned[todo] = taken & (reached > heights[-1][todo]) & (root[todo] > GAIN)
        taken &= ~turned[todo]
        values.append(values[-1].copy())
        heights.append(heights[-1].copy())
        there = todo[taken]
        # Each step starts from the maximum of the one before: the other coefficients hardly move.
        coef[there], values[-1][there], heights[-1][there] = trial[taken], trial[taken, 0, slot], reached[taken]
        top[there] = np.maximum(top[there], reached[taken])
        maxima.append(coef.copy())
    return np.array(values), np.array(heights), np.array(maxima)


def _roots(path: _Path) -> tuple[Array, Walk, Walk]:
    """Maxima of the adjusted profiles (G,), and the roots of the drop from there downwards and upwards."""
    n_grid = path.values.shape[1]
    level = path.values[path.start].copy()
    below, above = ([np.full(path.values.shape, np.nan) for _ in range(2)] for _ in range(2))
    for g in range(n_grid):
        heights, values = path.heights[:, g], path.values[:, g]
        if np.isnan(heights).any():
            below[0][:, g] = above[0][:, g] = level[g]
            continue
        level[g], top = _peak(values, heights)
        root = np.sqrt(2.0 * np.maximum(top - heights, 0.0))
        for (out, roots), side, sign in ((below, values <= level[g], -1), (above, values >= level[g], 1)):
            kept = np.flatnonzero(side)[::sign]
            out[:, g] = np.append(level[g], values[kept])[np.minimum(np.arange(len(values)), len(kept))]
            climbed = np.maximum.accumulate(np.append(0.0, root[kept]))
            roots[:, g] = climbed[np.minimum(np.arange(len(values)), len(kept))]
    return level, Walk(*below), Walk(*above)


def _peak(values: Array, heights: Array) -> tuple[float, float]:
    """Place and height of the maximum of a curve, by the parabola through its highest points; ends stay as they are."""
    distinct = np.append(True, np.diff(values) > 0.0)
    x, y = values[distinct], heights[distinct]
    best = int(y.argmax())
    if best in (0, len(x) - 1):
        return float(x[best]), float(y[best])
    bend, slope, height = np.polyfit(x[best - 1 : best + 2] - x[best], y[best - 1 : best + 2], 2)
    return float(x[best] - 0.5 * slope / bend), float(height - 0.25 * slope**2 / bend)


def _excess(path: _Path, variance: Array) -> float:
    """Median ratio of sandwich variances (G,) to those of the curvature where theta is well determined, else 1."""
    # Where theta is badly determined a sandwich of it is none: those grid points have no say.
    known = np.flatnonzero(np.sqrt(variance) < WELL_KNOWN)
    if not len(known) or not 0 < path.start < len(path.values) - 1:
        return 1.0
    near = slice(path.start - 1, path.start + 2)
    x, y = path.values[near][:, known], path.heights[near][:, known]
    slopes = np.diff(y, axis=0) / np.diff(x, axis=0)
    curvature = -2.0 * np.diff(slopes, axis=0)[0] / (x[2] - x[0])
    return float(np.nanmedian(variance[known] * curvature))


GATE_REACH = 2.0  # how far the curvature is followed, as a multiple of the largest factor
SHIFTS = 17  # values at which it is taken, the estimate in the middle
FINE = 201


def with_gate_limits(problem: Problem, levels: Array, bands: BandSet, shown: IntArray) -> BandSet:
    """Bands of the coefficient functions with the limits of the gate from the signed root.

    Parameters
    ----------
    problem : Problem
    levels : ndarray, shape (G, L)
        Where the bands are centred.
    bands : BandSet
    shown : ndarray of int, shape (R,)
        Function of each band.

    Returns
    -------
    BandSet
        The same with more than `MOST_ROWS` rows, where it makes no difference.
    """
    gates = problem.slots.gates
    where = np.flatnonzero((shown >= gates.start) & (shown < gates.stop))
    if not len(where) or problem.rows.n > MOST_ROWS:
        return bands
    simultaneous, pointwise = bands.simultaneous.copy(), bands.pointwise.copy()
    for g in range(len(levels)):
        for r in where:
            most = simultaneous[:, g, r].max()
            if np.isfinite(bands.se[g, r] * most):
                shifts = np.linspace(-GATE_REACH * most, GATE_REACH * most, SHIFTS)
                shape = curvature(problem, levels[g], g, int(shown[r]), bands.se[g, r] * shifts)
                simultaneous[:, g, r] = distances(shifts, shape, simultaneous[0, g, r])
                pointwise[:, g, r] = distances(shifts, shape, pointwise[0, g, r])
    return replace(bands, simultaneous=simultaneous, pointwise=pointwise)


def curvature(problem: Problem, levels: Array, g: int, slot: int, shifts: Array) -> Array:
    """Curvature of the log-likelihood along one gate coefficient, over that at the estimate.

    Parameters
    ----------
    problem : Problem
    levels : ndarray, shape (L,)
        At the grid point.
    g : int
        Grid point.
    slot : int
        The coefficient.
    shifts : ndarray, shape (S,)
        Distances from the estimate, the one in the middle zero.

    Returns
    -------
    ndarray, shape (S,)
        Ones where the gate is not identified with known experts.
    """
    slots, windows = problem.slots, problem.gate_windows
    rows = windows.parts[g]
    x, k, m = problem.rows.gate[rows], slots.n_experts, slots.n_gate_columns
    t = wrapped(windows.index[rows] - windows.grid[g], windows.period) / windows.widths[g]
    kernel = epanechnikov(t) * problem.rows.weights[rows]
    zeta = np.zeros((len(shifts), k, len(x)))
    zeta[:, 1:] = levels[slots.gates].reshape(k - 1, m) @ x.T
    expert, column = divmod(slot - slots.gates.start, m)
    zeta[:, 1 + expert] += shifts[:, None] * x[:, column]
    penalty = problem.rows.penalty
    if penalty is not None:  # its units at the estimate count as rows do
        free = ~problem.const[slots.gates]
        at = Weighted(kernel / PEAK, float(problem.rows.weights.sum()), free)
        added = penalty.units(x, log_softmax(zeta[len(shifts) // 2], axis=0)[None], at)[0]
        kernel = kernel * (1.0 + added.sum(axis=0))
    vary = np.flatnonzero(~problem.const[slots.gates])
    flat = gate_information(x, log_softmax(zeta, axis=1), kernel)[:, vary[:, None], vary]
    if not positive_definite(flat).all():
        return np.ones(len(shifts))
    own = int(np.flatnonzero(vary == slot - slots.gates.start)[0])
    out = 1.0 / np.linalg.inv(flat)[:, own, own]
    return np.asarray(out / out[len(out) // 2], dtype=np.float64)


def distances(shifts: Array, shape: Array, factor: float) -> Array:
    """How far below and above the estimate the signed root is `factor`, in standard errors, shape (2,).

    Parameters
    ----------
    shifts : ndarray, shape (S,)
        In standard errors.
    shape : ndarray, shape (S,)
        Curvature there over that at the estimate.
    factor : float
    """
    spline = CubicSpline(shifts, shape)
    first, second = spline.antiderivative(1), spline.antiderivative(2)
    at = np.linspace(0.0, shifts[-1], FINE)
    out = np.empty(2)
    for side, sign in enumerate((-1.0, 1.0)):
        twice = 2.0 * (second(sign * at) - second(0.0) - first(0.0) * sign * at)
        root = np.maximum.accumulate(np.sqrt(np.maximum(twice, 0.0)))
        slope = (root[-1] - root[-2]) / (at[-1] - at[-2])
        beyond = at[-1] + (factor - root[-1]) / slope if factor > root[-1] and slope > 0.0 else np.inf
        out[side] = np.interp(factor, root, at) if factor <= root[-1] else beyond
    return out
