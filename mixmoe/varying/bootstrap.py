"""Parametric and cluster bootstrap with warm-started refits."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from mixmoe._typing import Array
from mixmoe.mixture.resampling import run_all
from mixmoe.varying.bands import fit_levels
from mixmoe.varying.fitted import FittedVCMoE
from mixmoe.varying.joint_em import REFIT, centred, run_em, with_cluster_draw, with_draw
from mixmoe.varying.problem import Problem, Slots

IntArray = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class BootstrapBands:
    """Spread of bootstrap replicates of R functions.

    Attributes
    ----------
    se : ndarray, shape (G, R)
    critical : ndarray, shape (R,)
        Quantile of the largest studentised deviation over the grid.
    pointwise : float
    """

    se: Array
    critical: Array
    pointwise: float


def bootstrap_bands(
    model: FittedVCMoE,
    clusters: IntArray | None,
    target: Callable[[Array], Array],
    bias: str,
    alpha: float,
    n_boot: int,
    rng: np.random.Generator,
    n_jobs: int,
    progress: bool | None,
    derivative: int = 0,
) -> BootstrapBands:
    """Standard errors and critical values from refits.

    Parameters
    ----------
    model : FittedVCMoE
    clusters : ndarray of int, shape (n,), or None
        Independent units, None for rows.
    target : callable
        Levels (G, L) to functions (G, R).
    bias : str
        As in `level_process`.
    alpha : float
        One minus the level of the bands.
    n_boot : int
    rng : numpy.random.Generator
    n_jobs : int
    progress : bool, optional
    derivative : {0, 1}
        As in `level_process`, and of what `target` takes.

    Returns
    -------
    BootstrapBands

    Notes
    -----
    Without clusters the response is drawn from the fitted mixture; with clusters these are drawn with replacement.
    Every refit starts at the fit, so that its experts carry the same labels; replicates whose experts end up closer to
    another order are left out.
    """
    seeds = rng.integers(0, 2**63 - 1, n_boot)
    tasks = [(model.problem, model.coef, clusters, bias, derivative, model.searched, int(seed)) for seed in seeds]
    found = [one for one in run_all(_replicate, tasks, n_jobs, progress, "bootstrap") if one is not None]
    draws = np.array([target(levels) for levels in found])  # (B, G, R)
    se = draws.std(axis=0, ddof=1)
    centre = draws.mean(axis=0) if clusters is not None else target(model.values(derivative))
    deviation = np.abs((draws - centre) / np.where(se > 0.0, se, 1.0))
    critical = np.quantile(deviation.max(axis=1), 1.0 - alpha, axis=0)
    return BootstrapBands(se, critical, float(ndtri(1.0 - alpha / 2.0)))


def _replicate(
    problem: Problem, coef: Array, clusters: IntArray | None, bias: str, derivative: int, searched: bool, seed: int
) -> Array | None:
    """Levels or derivatives (G, L) of one replicate, None if its labels changed."""
    rng = np.random.default_rng(seed)
    drawn = with_draw(problem, coef, rng) if clusters is None else with_cluster_draw(problem, clusters, rng)
    inner, centring = centred(drawn)
    start = centring.inwards(inner.slots, coef)
    run = run_em(inner, start, REFIT)
    if not same_labels(inner.slots, start, run.coef, inner.scale):
        return None
    fits = fit_levels(inner, run.coef, bias, derivative, searched, clusters is None)
    return centring.outwards(inner.slots, fits.values(derivative))


def same_labels(slots: Slots, before: Array, after: Array, scale: Array) -> bool:
    """Whether each expert is still closest to itself, over the whole grid."""
    k = slots.n_experts
    shape = (len(before), k, -1)
    old, new = (c[:, 0, slots.experts] / scale[slots.experts] for c in (before, after))
    distance = ((old.reshape(shape)[:, :, None] - new.reshape(shape)[:, None]) ** 2).sum(axis=(0, 3))
    return bool((distance.argmin(axis=1) == np.arange(k)).all())
