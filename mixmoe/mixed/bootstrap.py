"""Bootstrap of a MEMoE over subjects, warm-started and parallel."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mixmoe.arguments import checked_count, checked_rng
from mixmoe.em import Control, climb
from mixmoe.errors import ArgumentError
from mixmoe.inference.covariance import Draws, ParamCov, without_parameters
from mixmoe.inference.intervals import acceleration
from mixmoe.inference.resample import replicate
from mixmoe.kernels.linalg import logsumexp
from mixmoe.layout import ParamLayout
from mixmoe.mixed.coordinates import Coordinates
from mixmoe.mixed.covariance import (
    few_units,
    find_boundary,
    identified,
    informative_basis,
    invert_information,
    resampled_covariance,
)
from mixmoe.mixed.estimate import Guarded, off_boundary, permute
from mixmoe.mixed.likelihood import Problem, observed_information, subject_logliks
from mixmoe.mixed.natural import permute_natural, to_natural
from mixmoe.mixed.sensitivity import first_order
from mixmoe.mixed.starts import inverse_outer_product
from mixmoe.mixed.structure import expand

Array = NDArray[np.float64]

_CONTROL = Control(max_iter=200, tol=1e-5)
_SIGMA_FLOOR = 1e-4


def bootstrap_covariance(
    problem: Problem,
    coordinates: Coordinates,
    theta: Array,
    layout: ParamLayout,
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
    layout : ParamLayout
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
    at = find_boundary(problem, coordinates, theta)
    inverse = invert_information(observed_information(problem, at.theta), informative_basis(problem, at))
    known = identified(problem, coordinates, at, inverse, layout)
    flags = (*known.flags, *few_units(problem, at))
    replicates = Draws(kept, _acceleration(problem, coordinates, theta))
    found = resampled_covariance(problem, coordinates, theta, kept)
    matrix = without_parameters(found.matrix, known.blank)
    return replace(found, matrix=matrix, note=note, flags=flags, draws=replicates)


def relabelled(draws: Draws, problem: Problem, coordinates: Coordinates, theta: Array, order: list[int]) -> Draws:
    """Replicates with the old expert ``order[k]`` as the new expert k, where `theta` is the relabelled solution."""
    values = np.array([permute_natural(problem.structure, row, order) for row in draws.values])
    return Draws(values, _acceleration(problem, coordinates, theta))


def _acceleration(problem: Problem, coordinates: Coordinates, theta: Array) -> Array:
    first = first_order(problem, coordinates, theta)
    return acceleration(first.scores @ first.inverse @ first.jacobian.T)


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
        """The labels under which subjects belong to the experts that they had in the original fit."""
        together = self._memberships(self.theta).T @ self._memberships(theta)
        _, order = linear_sum_assignment(together, maximize=True)
        return permute(self.problem, theta, order.tolist())

    def _memberships(self, theta: Array) -> Array:
        """Posterior expert probabilities of all subjects, shape (N, K)."""
        joint = subject_logliks(self.problem, theta)
        return np.asarray(np.exp(joint - logsumexp(joint, axis=1)[:, None]))
