"""Limits of the theta of negative binomial experts from the profile of their local likelihoods.

References
----------
Lawless, J. F. (1987). Negative binomial and mixed Poisson regression. Canad. J. Statist. 15, 209-225: the likelihood of
theta is far from a parabola, and without a maximum where counts are no more variable than Poisson ones.
Severini, T. A. (2000). Likelihood Methods in Statistics, section 4.4, for limits from the profile.

Notes
-----
As a function of ``1 / theta`` the likelihood is regular at zero, where the response is Poisson; as one of log theta it
is flat beyond some value. A limit lies where the signed root of the profile likelihood ratio is the factor of the band;
where it is not reached before Poisson, theta has no upper limit.

A kernel-weighted log-likelihood is no log-likelihood: with information I_i of the rows its curvature is
``sum K_i I_i``, the variance of its score ``sum K_i^2 I_i``. The likelihood ratio is divided by their ratio (that of
the kernels and responsibilities; Fan and Gijbels 1996, section 4.4), and by the factor by which the variance of the
sandwich exceeds that of the model, the median over those grid points where theta is well determined.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from mixmoe._typing import Array
from mixmoe.varying.em_steps import own_natural, posterior
from mixmoe.varying.local_likelihood import Local, state_of
from mixmoe.varying.local_maximum import LocalFit, at_points, profiled
from mixmoe.varying.problem import blocks, local_moments

FIRST_STEP = 0.3  # of log theta
GAIN, MOST_GAIN = 0.7, 1.0  # change of the root for which steps aim, and the largest
GROWTH = 3.0  # of steps, at most
MOST_STEPS = 40
REACH = 4.0  # roots up to here are followed: factors of bands end before
NEWTON_STEPS = 3  # of the other coefficients after each step
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

    def crossing(self, factor: float) -> Array:
        """Where the root is `factor`, shape (G,); NaN where it never is."""
        out = np.full(self.values.shape[1], np.nan)
        for g in np.flatnonzero(self.roots[-1] >= factor):
            out[g] = np.interp(factor, self.roots[:, g], self.values[:, g])
        return out


@dataclass(frozen=True, slots=True)
class ThetaProfile:
    """Signed roots of the profile likelihood ratio of log theta at every grid point.

    Attributes
    ----------
    level : ndarray, shape (G, K)
        Maxima; on the ceiling where the likelihood has none.
    below, above : tuple of Walk
        Of each expert.
    units : ndarray, shape (K,)
        A root is that of the limiting normal after division by this.
    """

    level: Array
    below: tuple[Walk, ...]
    above: tuple[Walk, ...]
    units: Array

    def limits(self, factor: float) -> tuple[Array, Array]:
        """Lower and upper limits of log theta where the root is `factor`, (G, K); infinite where it never is."""
        low, high = (
            np.stack([walk.crossing(factor * unit) for walk, unit in zip(walks, self.units, strict=True)], axis=-1)
            for walks in (self.below, self.above)
        )
        there = np.isfinite(np.stack([walk.roots[0] for walk in self.below], axis=-1))
        never = np.where(there, np.inf, np.nan)
        return np.where(np.isfinite(low), low, -never), np.where(np.isfinite(high), high, never)


def theta_profile(local: Local, fit: LocalFit, variance: Array) -> ThetaProfile:
    """Profiles of the local likelihoods along log theta of each expert.

    Parameters
    ----------
    local : Local
        Of a negative binomial response with varying dispersions.
    fit : LocalFit
        Its maxima, dispersions where they run.
    variance : ndarray, shape (G, K)
        Sandwich variances of log theta, NaN where it has none.

    Returns
    -------
    ThetaProfile
    """
    shares = _variance_over_curvature(local, fit)
    dispersions = np.arange(local.problem.slots.n)[local.problem.slots.dispersions]
    sides: dict[float, list[Walk]] = {-1.0: [], 1.0: []}
    units = np.ones(len(dispersions))
    for c, slot in enumerate(dispersions):
        walk = partial(_walk, local, int(slot), fit, np.sqrt(shares[:, c]))
        units[c] = np.sqrt(_excess(walk(-1.0, 1), walk(1.0, 1), variance[:, c]))
        for sign, walks in sides.items():
            walks.append(walk(sign, MOST_STEPS, REACH * max(units[c], 1.0)))
    return ThetaProfile(fit.coef[:, 0, dispersions], tuple(sides[-1.0]), tuple(sides[1.0]), units)


def _variance_over_curvature(local: Local, fit: LocalFit) -> Array:
    """``sum (K w)^2 r / sum K w r`` of each expert with its responsibilities r, shape (G, K)."""
    problem, pieces = local.problem, []
    natural = own_natural(problem, state_of(local, fit.coef))
    resp = posterior(problem.rows.with_weights(np.ones(problem.rows.n)), problem.family, natural).weighted
    for block in blocks(local.windows):
        kernel = block.kernel * problem.rows.weights[block.rows]
        squares, sums = (local_moments(block, k[None], resp.T, 1)[:, 0, 0] for k in (kernel**2, kernel))
        pieces.append(squares / np.maximum(sums, np.finfo(float).tiny))
    return np.concatenate(pieces)


def _walk(local: Local, slot: int, fit: LocalFit, unit: Array, sign: float, most: int, reach: float = REACH) -> Walk:
    """Roots in units (G,) from the maxima downwards or upwards, until all are far out or at the limit of theta."""
    problem = local.problem
    end = problem.floor if sign < 0.0 else problem.ceiling
    coef, at_top = profiled(local, slot, fit.coef, 0)
    step = np.full(len(coef), FIRST_STEP)
    values, roots = [coef[:, 0, slot].copy()], [np.where(fit.converged, 0.0, np.nan)]
    for _ in range(most):
        todo = np.flatnonzero((roots[-1] < reach) & (values[-1] != end))
        if not len(todo):
            break
        trial, moved = coef[todo], values[-1][todo] + sign * step[todo]
        trial[:, 0, slot] = np.maximum(moved, end) if sign < 0.0 else np.minimum(moved, end)
        trial, reached = profiled(at_points(local, todo), slot, trial, NEWTON_STEPS)
        # Roots of the drop grow about evenly along a profile, so that steps can aim at a constant gain.
        root = np.sqrt(2.0 * np.maximum(at_top[todo] - reached, 0.0)) / unit[todo]
        gain = np.maximum(root - roots[-1][todo], 0.0)
        taken = (gain <= MOST_GAIN) | (step[todo] <= FIRST_STEP)  # a step too far is made again, smaller
        step[todo] *= np.clip(GAIN / np.maximum(gain, np.finfo(float).tiny), 1.0 / GROWTH, GROWTH)
        values.append(values[-1].copy())
        roots.append(roots[-1].copy())
        there = todo[taken]
        # Each step starts from the maximum of the one before: the other coefficients hardly move.
        coef[there], values[-1][there] = trial[taken], trial[taken, 0, slot]
        roots[-1][there] += gain[taken]
    return Walk(np.array(values), np.array(roots))


def _excess(below: Walk, above: Walk, variance: Array) -> float:
    """Median ratio of sandwich variances (G,) to those of the curvature where theta is well determined, else 1."""
    # Where theta is badly determined a sandwich of it is none: those grid points have no say.
    known = np.flatnonzero(np.sqrt(variance) < WELL_KNOWN)
    if not len(known) or len(below.values) < 2 or len(above.values) < 2:
        return 1.0
    moves = sum((one.values[1] - one.values[0])[known] ** 2 for one in (below, above))
    curvature = sum(one.roots[1][known] ** 2 for one in (below, above)) / moves
    return float(np.nanmedian(variance[known] * curvature))
