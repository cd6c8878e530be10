"""Bootstrap of a MEMoE over subjects, warm-started and parallel."""

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixmoe.arguments import checked_count, checked_rng
from mixmoe.em import Control, climb
from mixmoe.errors import ArgumentError
from mixmoe.inference.covariance import ParamCov, without_parameters
from mixmoe.inference.resample import replicate
from mixmoe.mixed.coordinates import Coordinates
from mixmoe.mixed.covariance import find_boundary
from mixmoe.mixed.estimate import Guarded, off_boundary, permute
from mixmoe.mixed.likelihood import Problem
from mixmoe.mixed.natural import to_natural
from mixmoe.mixed.starts import inverse_outer_product
from mixmoe.mixed.structure import expand

Array = NDArray[np.float64]

_CONTROL = Control(max_iter=200, tol=1e-5)
_SIGMA_FLOOR = 1e-4


def bootstrap_covariance(
    problem: Problem,
    coordinates: Coordinates,
    theta: Array,
    n_boot: int = 200,
    n_jobs: int = 1,
    rng: Any = None,
    progress: bool | None = None,
) -> ParamCov:
    """Covariance of the reported parameters over resamples of the subjects.

    Parameters
    ----------
    problem : Problem
    coordinates : Coordinates
    theta : ndarray, shape (P,)
        Estimate from which each resample is refitted.
    n_boot : int
        Resamples.
    n_jobs : int
        Worker processes (joblib), -1 for all cores; the result does not depend on it.
    rng : int, numpy.random.Generator or None
    progress : bool, optional

    Returns
    -------
    ParamCov
        After Ctrl-C from the resamples that were ready; its note counts them and those that failed.

    Raises
    ------
    ArgumentError
        If fewer than two resamples could be fitted.
    KeyboardInterrupt
        After Ctrl-C before two were ready.
    """
    n_boot = checked_count(n_boot, "n_boot", least=2)
    if n_jobs != -1:
        checked_count(n_jobs, "n_jobs")
    task = Resample(problem, coordinates, theta)
    draws = replicate(task, n_boot, checked_rng(rng), n_jobs, "bootstrap", progress)
    kept = np.array([draw for draw in draws.values if np.isfinite(draw).all()])
    if len(kept) < 2 and draws.interrupted:
        raise KeyboardInterrupt
    if len(kept) < 2:
        raise ArgumentError(f"only {len(kept)} of {n_boot} bootstrap resamples could be fitted; use another cov_type")
    note = f"{len(kept)} resamples of subjects"
    if draws.interrupted:
        note += f", interrupted before {n_boot} were done"
    if len(kept) < len(draws.values):
        note += f", {len(draws.values) - len(kept)} more did not converge"
    blank = list(find_boundary(problem, coordinates, theta).blank)
    return ParamCov(without_parameters(np.atleast_2d(np.cov(kept, rowvar=False)), blank), "bootstrap", note)


@dataclass(frozen=True, slots=True)
class Resample:
    """Estimates from one resample; picklable."""

    problem: Problem
    coordinates: Coordinates
    theta: Array

    def __call__(self, rng: np.random.Generator) -> Array:
        """Reported parameters, shape (P,); NaN if the refit did not converge."""
        theta = self.refit(rng)
        return self._natural(self._matched(theta)) if np.isfinite(theta).all() else theta

    def refit(self, rng: np.random.Generator) -> Array:
        """Free vector, shape (P,), fitted to a resample of the subjects; NaN if that did not converge."""
        N = self.problem.n_subjects
        sample = self.problem.take(np.sort(rng.integers(N, size=N)))
        start = off_boundary(sample, self.theta)[None]
        logarithmic = np.append(sample.free.log_sigma, sample.free.extra)
        inverse = inverse_outer_product(sample, start)
        end = climb(Guarded(sample, _SIGMA_FLOOR), start, inverse, N, _CONTROL, logarithmic=logarithmic)
        if end.interrupted:
            raise KeyboardInterrupt  # climb() keeps it to itself; it ends the whole bootstrap, not one resample
        if not end.converged[0]:
            return np.full(self.theta.size, np.nan)
        return end.theta[0]

    def _natural(self, theta: Array) -> Array:
        s = self.problem.structure
        return to_natural(s, self.coordinates.to_user(expand(s, self.problem.free, theta[None])))[0]

    def _matched(self, theta: Array) -> Array:
        """The labels under which the estimate is closest to the original one."""
        K = self.problem.structure.n_experts
        if K > 6:
            return theta  # 7! relabellings and more; the warm start keeps the labels
        s, free = self.problem.structure, self.problem.free
        target = expand(s, free, self.theta[None]).beta
        options = [permute(self.problem, theta, order) for order in permutations(range(K))]
        distance = [float(((expand(s, free, o[None]).beta - target) ** 2).sum()) for o in options]
        return options[int(np.argmin(distance))]
