"""How a MEMoE is estimated: its maximum, covariances, refits with other experts, responses and subjects."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mixmoe._typing import Array
from mixmoe.arguments import checked_count, checked_rng
from mixmoe.design.beside import cluster_codes
from mixmoe.design.design import Design, offset_of
from mixmoe.errors import ArgumentError
from mixmoe.families import Curvature, Estimated, FirstOrder, Likelihood
from mixmoe.inference.uncertainty import (
    Draws,
    ParamCov,
    acceleration,
    checked_cov_type,
    within_clusters,
    without_parameters,
)
from mixmoe.mixed.ascents import Guarded, Search, permute
from mixmoe.mixed.boundary import Boundary, find_boundary
from mixmoe.mixed.curvature import first_inverse_of_functions
from mixmoe.mixed.degeneracy import CATEGORIES, far_origin, find_flags, separation_flags
from mixmoe.mixed.error_structure import ErrorSetup
from mixmoe.mixed.information import Solution, Units, covariance, few_units, resampled_covariance
from mixmoe.mixed.likelihood.hessian import observed_information
from mixmoe.mixed.likelihood.observed import (
    Problem,
    block_scores,
    evaluate,
    likelihood_blocks,
    penalty_at,
    subject_logliks,
    subject_scores,
)
from mixmoe.mixed.options import ResponseModel, build_structure, check_method
from mixmoe.mixed.parameters import (
    Coordinates,
    Params,
    Structure,
    checked_reported,
    free_to_reported,
    free_to_reported_jacobian,
    permute_reported,
    reported_to_free,
    reported_to_user,
)
from mixmoe.mixed.prediction.trajectories import Estimate, disturbances, draw_responses
from mixmoe.mixed.search import off_boundary, order_experts, search, search_carried, search_from
from mixmoe.mixed.smooth.fitting import Smoothing, checked_smoothing, effective, smooth_maximum
from mixmoe.mixed.smooth.functions import COARSE, Function, coarse_design, functions_of, geometry_of, layout_of
from mixmoe.mixed.smooth.marginal import priors_of_limits
from mixmoe.mixed.starting_values import first_inverse
from mixmoe.mixture.estimate import EMFit, Flag, ParamLayout, Starts, better, warn_flags
from mixmoe.mixture.gate import posterior_probabilities
from mixmoe.mixture.resampling import replicate
from mixmoe.numerics.optimise import Control, Evaluation, climb


def first_order(at: Solution) -> FirstOrder:
    """Scores, inverse information and derivatives of the responsibilities at a solution."""
    jacobian = at.jacobian.copy()
    jacobian[list(at.boundary.blank)] = np.nan
    scores = expert_subject_scores(at.problem, at.boundary.theta)
    return FirstOrder(at.scores, at.known[0].inverse.matrix, jacobian, scores.slopes)


@dataclass(frozen=True, slots=True)
class SubjectScores:
    """Scores of the subjects.

    Attributes
    ----------
    observed : ndarray, shape (N, P)
    slopes : ndarray, shape (N, K, P)
        Derivatives of the responsibilities.
    """

    observed: Array
    slopes: Array


def expert_subject_scores(problem: Problem, theta: Array) -> SubjectScores:
    """Scores of the subjects and derivatives ``tau_ik (s_ik - s_i)`` of their responsibilities.

    s_ik is the score of subject i were she known to belong to expert k, and s_i their responsibility-weighted mean.
    """
    K = problem.structure.n_experts
    out = SubjectScores(np.empty((problem.n_subjects, theta.size)), np.empty((problem.n_subjects, K, theta.size)))
    for block in likelihood_blocks(problem, theta[None]):
        where, tau = block.where, block.responsibilities
        out.observed[where] = block_scores(problem, theta[None], block)[0].T
        for k in range(K):
            known = np.zeros_like(tau)
            known[:, k] = 1.0
            given = block_scores(problem, theta[None], block, known)[0].T
            out.slopes[where, k] = tau[0, k][:, None] * (given - out.observed[where])
    return out


def likelihood_at(at: Solution, loglik: float) -> Likelihood:
    """The log-likelihood around a solution, in units of the response.

    Parameters
    ----------
    at : Solution
    loglik : float
        At the solution, in units of the response.

    Returns
    -------
    Likelihood
    """
    problem, coordinates, theta = at.problem, at.coordinates, at.boundary.theta
    shift = loglik - float(evaluate(problem, theta[None]).loglik[0])

    def shifted(points: Array) -> Evaluation:
        e = evaluate(problem, points)
        return Evaluation(e.loglik + shift, e.score)

    def reported(point: Array) -> Array:
        return free_to_reported(problem.structure, coordinates, point[None])[0]

    def jacobian(point: Array) -> Array:
        return np.nan_to_num(free_to_reported_jacobian(problem.structure, coordinates, point))

    return Likelihood(theta, at.known[0].inverse.matrix, shifted, reported, jacobian)


Clusters = NDArray[np.int64] | None
_CONTROL = Control(max_iter=200, tol=1e-5)
_SIGMA_FLOOR = 1e-4


def bootstrap_covariance(
    at: Solution,
    n_boot: int = 200,
    n_jobs: int = 1,
    rng: Any = None,
    progress: bool | None = None,
    clusters: Clusters = None,
) -> ParamCov:
    """Covariance of the reported parameters over resamples of the subjects, or of whole clusters of them.

    Parameters
    ----------
    at : Solution
        From which each resample is refitted.
    n_boot : int
        Resamples.
    n_jobs : int
        Worker processes (joblib), -1 for all cores; the result does not depend on it.
    rng : int, numpy.random.Generator or None
    progress : bool, optional
    clusters : ndarray of int, shape (N,), optional
        Cluster of each subject, 0..G-1.

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
    task = Resample(at.problem, at.coordinates, at.theta, clusters)
    draws = replicate(task, n_boot, checked_rng(rng), n_jobs, "bootstrap", progress)
    kept = np.array([draw for draw in draws.values if np.isfinite(draw).all()])
    if len(kept) < 2 and draws.interrupted:
        raise KeyboardInterrupt
    if len(kept) < 2:
        raise ArgumentError(f"only {len(kept)} of {n_boot} bootstrap resamples could be fitted; use another cov_type")
    note = f"{len(kept)} resamples of {'subjects' if clusters is None else 'clusters'}"
    if draws.interrupted:
        note += f", interrupted before {n_boot} were done"
    if len(kept) < len(draws.values):
        note += f", {len(draws.values) - len(kept)} more did not converge"
    known = at.known[0]
    flags = (*known.flags, *few_units(at.problem, at.boundary, Units(None, at.problem.n_subjects)))
    replicates = Draws(kept, _acceleration(at, clusters))
    found = resampled_covariance(at, kept)
    matrix = without_parameters(found.matrix, known.blank)
    return replace(found, matrix=matrix, note=note, flags=flags, draws=replicates)


def relabelled(draws: Draws, at: Solution, order: list[int], clusters: Clusters) -> Draws:
    """Replicates with the old expert ``order[k]`` as the new expert k, where `at` is the relabelled solution."""
    values = np.array([permute_reported(at.problem.structure, row, order) for row in draws.values])
    return Draws(values, _acceleration(at, clusters))


def _acceleration(at: Solution, clusters: Clusters) -> Array:
    first = first_order(at)
    return acceleration(within_clusters(first.scores, clusters) @ first.inverse @ first.jacobian.T)


def resampled(n: int, clusters: Clusters, rng: np.random.Generator) -> NDArray[np.intp]:
    """Places of subjects drawn with replacement, ascending; whole clusters where there are clusters."""
    if clusters is None:
        return np.sort(rng.integers(n, size=n))
    n_clusters = int(clusters.max()) + 1
    # How often each cluster was drawn; its subjects come as often, and stay together.
    times = np.bincount(rng.integers(n_clusters, size=n_clusters), minlength=n_clusters)
    return np.repeat(np.arange(n), times[clusters])


@dataclass(frozen=True, slots=True)
class Resample:
    """Estimates from one resample; picklable."""

    problem: Problem
    coordinates: Coordinates
    theta: Array
    clusters: Clusters = None

    def __call__(self, rng: np.random.Generator) -> Array:
        """Reported parameters, shape (P,); NaN if the refit did not converge."""
        theta = self.refit(rng)
        return self._natural(self._matched(theta)) if np.isfinite(theta).all() else theta

    def refit(self, rng: np.random.Generator) -> Array:
        """Free vector, shape (P,), fitted to a resample of the subjects; NaN if that did not converge."""
        sample = self.problem.take(resampled(self.problem.n_subjects, self.clusters, rng))
        start = off_boundary(sample, self.theta)[None]
        logarithmic = np.append(sample.free.log_sigma, sample.free.extra)
        control, N = _CONTROL, sample.n_subjects
        if sample.ridge is None:
            inverse = first_inverse(sample, start)
        else:  # rounding beside large penalties: what is left to gain says whether an ascent has ended
            inverse = first_inverse_of_functions(sample, start[0])
            control = replace(control, promise=0.5 * N * control.tol**2)
        end = climb(Guarded(sample, _SIGMA_FLOOR), start, inverse, N, control, logarithmic=logarithmic)
        if end.interrupted:
            raise KeyboardInterrupt  # climb() keeps it to itself; it ends the whole bootstrap, not one resample
        if not end.converged[0]:
            return np.full(self.theta.size, np.nan)
        return end.theta[0]

    def _natural(self, theta: Array) -> Array:
        s = self.problem.structure
        return free_to_reported(s, self.coordinates, theta[None])[0]

    def _matched(self, theta: Array) -> Array:
        """The labels under which subjects belong to the experts that they had in the original fit."""
        # The shares of subjects that an old and a new expert have in common; the assignment that keeps most of them.
        together = self._memberships(self.theta).T @ self._memberships(theta)
        _, order = linear_sum_assignment(together, maximize=True)
        return permute(self.problem, theta, order.tolist())

    def _memberships(self, theta: Array) -> Array:
        """Posterior expert probabilities of all subjects, shape (N, K)."""
        return posterior_probabilities(subject_logliks(self.problem, theta))


_DEFAULT = Control()
_REFIT = Control(max_iter=200, tol=1e-4)  # of tests that refit many times; log-likelihoods to about 0.1


class Estimation:
    """How a MEMoE is estimated, and what tests of the number of experts ask of it, see `mixmoe.families.HasExperts`."""

    n_experts: int
    design: Design
    settings: Mapping[str, Any]
    structure: Structure
    layout: ParamLayout
    coordinates: Coordinates
    problem: Problem
    errors: ErrorSetup | None
    response: ResponseModel
    smoothing: Smoothing | None
    functions: tuple[Function, ...]
    given_smoothing: Array
    kept: Solution | None
    log_scale: float

    def maximum(
        self, n_starts: int, rng: np.random.Generator, start: Estimated | None = None, control: Control = _DEFAULT
    ) -> EMFit:
        """The estimate alone, without warnings and covariance.

        Parameters
        ----------
        n_starts : int
            Random starts.
        rng : numpy.random.Generator
        start : Estimated, optional
            With as many experts, or one fewer.
        control : Control

        Returns
        -------
        EMFit
        """
        if self.functions:
            return smooth_maximum(self, n_starts, rng, start, control)
        fits = []
        if start is not None and start.experts < self.n_experts:
            smaller = self.with_experts(start.experts).working(start.values)
            fits.append(self.record(search_carried(self.problem, smaller, control, rng)))
        elif start is not None:
            theta = off_boundary(self.problem, self.working(start.values))
            fits.append(self.record(search_from(self.problem, theta[None], control)))
        if n_starts and not (fits and any(flag.code == "interrupted" for flag in fits[0].flags)):
            fits.append(self.record(search(self.problem, n_starts, control, rng)))
        return reduce(better, fits)

    def record(self, found: Search) -> EMFit:
        """The outcome of a search as an estimate, experts by decreasing mean gate probability.

        Experts with functions stay where they are: their smoothing parameters go by their place.
        """
        theta = found.theta if self.smoothing is not None else order_experts(self.problem, found.theta)
        boundary = find_boundary(self.problem, self.coordinates, theta)
        params = self.natural(boundary.theta)
        far = far_origin(self.problem, self.coordinates, found, self.working(params), self.design.names)
        penalty = penalty_at(self.problem, theta)
        return EMFit(
            params=params,
            loglik=found.loglik - penalty - self.log_scale,
            penalty=penalty,
            trace=found.trace - self.log_scale,
            n_iter=found.n_iter,
            n_evaluations=found.n_evaluations,
            converged=found.converged,
            responsibilities=boundary.responsibilities,
            starts=Starts(
                found.n_starts, found.logliks - self.log_scale, found.n_replicated, found.ends - self.log_scale
            ),
            flags=(
                *find_flags(self.problem, found, theta, boundary),
                *self._separation(boundary),
                *far,
            ),
        )

    def _separation(self, at: Boundary) -> tuple[Flag, ...]:
        """Flags of infinite coefficients at a solution."""
        return separation_flags(self.design, self.problem, self.coordinates, at)

    def covariance(self, fit: EMFit, kind: str, **options: Any) -> ParamCov:
        """Covariance of the estimates of `fit`.

        Parameters
        ----------
        fit : EMFit
        kind : {"nonrobust", "robust", "cluster", "bootstrap"}
        **options
            ``correction=False`` leaves a sandwich without the correction for the leverage of subjects or clusters;
            ``unconditional=False`` takes estimated smoothing parameters of functions as known;
            ``cluster=`` names a column that the fit uses or gives the cluster of each row of the data, by default the
            clusters of the model; ``n_boot=``, ``n_jobs=``, ``rng=``, ``progress=`` for the bootstrap.

        Returns
        -------
        ParamCov
        """
        allowed = {
            "nonrobust": ("unconditional",),
            "robust": ("correction", "unconditional"),
            "cluster": ("cluster", "correction", "unconditional"),
            "bootstrap": ("n_boot", "n_jobs", "rng", "progress"),
        }
        known = checked_cov_type(kind)
        names = allowed[known]
        for name in options:
            if name not in names:
                raise ArgumentError(f"cov_type={kind!r} has no option {name!r}; it has {names}")
        if "unconditional" in options and not self.functions:
            raise ArgumentError("unconditional= is for formulas with functions s(...), and there are none")
        for name in ("correction", "unconditional"):
            if not isinstance(options.get(name, True), bool | np.bool_):
                raise ArgumentError(f"{name}= must be True or False, got {options[name]!r}")
        at = self.solution(fit)
        if known == "bootstrap":
            cov = bootstrap_covariance(at, **options, clusters=self.clusters)
        else:
            clusters = self.clusters_of(options.get("cluster")) if known == "cluster" else None
            how = (bool(options.get(name, True)) for name in ("correction", "unconditional"))
            cov = covariance(at, known, clusters, *how)
        if any(flag.code == "degenerate" for flag in fit.flags):
            cov = replace(cov, flags=())  # that its standard errors mean nothing has been said: no reasons besides
        warn_flags(cov.flags, CATEGORIES)
        return cov

    def loglike(self, params: Any) -> float:
        """Log-likelihood at reported parameters, by name or in the order of the layout; the restricted one of REML."""
        without_priors = replace(self.problem, penalty=None, ridge=None)
        return float(evaluate(without_priors, self._free(params)[None]).loglik[0] - self.log_scale)

    def score(self, params: Any) -> Array:
        """Derivative of the log-likelihood in the reported parameters, shape (P,); NaN where it does not exist."""
        theta = self._free(params)
        jacobian = free_to_reported_jacobian(self.problem.structure, self.coordinates, theta)
        if not np.isfinite(jacobian).all():
            return np.full(theta.size, np.nan)
        return np.linalg.lstsq(jacobian.T, evaluate(self.problem, theta[None]).score[0], rcond=None)[0]

    def largest_score(self, params: Any) -> float:
        """Largest entry of the score per subject, in working coordinates, where it is comparable across data."""
        score = evaluate(self.problem, self._free(params)[None]).score
        return float(np.abs(score).max()) / self.problem.n_subjects

    def vector(self, params: Any) -> Array:
        """Reported parameters as an array, shape (P,), from an array, a mapping by name, or results of another fit."""
        return checked_reported(self.structure, self.layout, params)

    def _free(self, params: Any) -> Array:
        """Free vector, shape (P,), of what `vector` takes."""
        return reported_to_free(self.structure, self.coordinates, checked_reported(self.structure, self.layout, params))

    def working(self, params: Array) -> Array:
        """Free vector in working coordinates, shape (P,), of reported parameters."""
        return reported_to_free(self.structure, self.coordinates, np.asarray(params, dtype=float))

    def user(self, params: Array) -> Params:
        """Full parameters on the user's scale, with S = 1, of reported ones."""
        return reported_to_user(self.structure, np.asarray(params, dtype=float))

    def natural(self, theta: Array) -> Array:
        """Reported parameters, shape (P,), of a free vector."""
        return free_to_reported(self.structure, self.coordinates, theta[None])[0]

    def estimated(self, fit: EMFit) -> Estimated:
        """A fit as tests of the number of experts need it."""
        degenerate = any(flag.code == "degenerate" for flag in fit.flags)
        return Estimated(fit.responsibilities.shape[1], fit.params, fit.loglik, degenerate)

    def estimate(
        self,
        experts: int,
        n_starts: int,
        rng: np.random.Generator,
        start: Estimated | None = None,
        response: Array | None = None,
    ) -> Estimated:
        """The maximum for any number of experts and another response, see `mixmoe.families.HasExperts`."""
        model = self if experts == self.n_experts else self.with_experts(experts)
        fit = (model if response is None else model.with_response(response)).maximum(n_starts, rng, start, _REFIT)
        if any(flag.code == "interrupted" for flag in fit.flags):
            raise KeyboardInterrupt  # climb() keeps it to itself; it ends the whole test, not one fit
        return model.estimated(fit)

    def draw(self, fit: EMFit, rng: np.random.Generator) -> Array:
        """A response drawn from the model at the estimates `fit`, shape (n,) in the order of the design."""
        d, blank = self.design, np.full((fit.params.size, fit.params.size), np.nan)
        if not self.response.gaussian:
            drawn: Array = self.results(fit, ParamCov(blank, "nonrobust"))._draw(rng)
            return drawn
        known = Estimate(self.user(fit.params), blank, self.structure.reported)
        errors = disturbances(d, known.params, self.errors)
        return offset_of(d) + draw_responses(known, d.expert, d.random, d.gate, errors, rng)

    def drawn(self, estimated: Estimated, rng: np.random.Generator) -> Array:
        """A response drawn from the model at some estimates, shape (n,) in the order of the design."""
        k, blank = estimated.experts, np.zeros(0)
        even = np.full((self.design.n_units, k), 1.0 / k)
        fit = EMFit(estimated.values, estimated.loglik, blank, 0, 0, True, even, Starts(0, blank, 0))
        return self.with_experts(k).draw(fit, rng)

    def reclassified(self, fit: EMFit, rng: np.random.Generator) -> NDArray[np.intp]:
        """Most probable expert of every subject after a refit to a resample of the subjects; empty on failure."""
        theta = Resample(self.problem, self.coordinates, self.working(fit.params), self.clusters).refit(rng)
        if not np.isfinite(theta).all():
            return np.zeros(0, dtype=np.intp)
        return subject_logliks(self.problem, theta).argmax(axis=1)

    @property
    def clusters(self) -> Clusters:
        """Cluster of each subject as codes 0..G-1, shape (N,); None where subjects are independent."""
        return self.clusters_of(None) if "cluster" in self.design.aux else None

    def clusters_of(self, given: Any) -> NDArray[np.int64]:
        """Cluster of each subject, shape (N,), by a column or values of the rows; by those of the model if None."""
        return cluster_codes(self.design, given)

    def refuse_tests(self) -> str | None:
        """Why the number of experts cannot be tested, None if it can."""
        if self.functions:
            return (
                "with penalised functions the fits do not maximise the likelihood, and how a ratio of penalised "
                "likelihoods is distributed under fewer experts is not known; compare bic, which counts effective "
                "degrees of freedom"
            )
        if self.clusters is None:
            return None
        return (
            "subjects of a cluster are not independent, and the model draws them as if they were; compare criteria or "
            "held-out log-likelihoods, mm.select(..., folds=5), whose folds hold whole clusters"
        )

    def curvature(self, estimated: Estimated) -> Curvature:
        """Scores of the subjects and information, in working coordinates."""
        model = self.with_experts(estimated.experts)
        theta = model.working(estimated.values)
        return Curvature(subject_scores(model.problem, theta), observed_information(model.problem, theta))

    def coarse(self, penalised: int = COARSE) -> Self:
        """The model with a few columns for each of its functions, without penalties; see `coarse_columns`."""
        other = copy(self)
        other.design, other.settings = coarse_design(self.design, penalised), {**self.settings, "smoothing": None}
        other.kept = None
        other._arrange(build_structure(other.design, self.n_experts, self.structure.cov_re, self.response))
        other.layout = layout_of(other.design, other.structure)
        return other

    def solution(self, fit: EMFit) -> Solution:
        """What is known at a fit: what the model keeps, if it is `bound` to that fit."""
        if self.kept is not None and self.kept.params is fit.params:
            return self.kept
        return Solution(self.problem, self.coordinates, self.layout, fit.params, self.working(fit.params))

    def bound(self, fit: EMFit) -> Self:
        """The model with the penalties of a fit, that keeps what is known at it for all that is asked of the fit."""
        model = self
        if fit.smoothing.size and self.smoothing is None:
            model = self.at(fit.smoothing, self.working(fit.params))
        if model.kept is not None and model.kept.params is fit.params:
            return model
        other = copy(model)
        other.kept = model.solution(fit)
        return other

    def at(self, lambdas: Array, theta: Array) -> Self:
        """The model with its functions penalised by smoothing parameters, at an estimate of the free vector."""
        other = copy(self)
        other.kept = None
        geometry = geometry_of(self.functions, self.problem.free, self.structure, self.coordinates)
        other.smoothing = effective(self, geometry, lambdas, theta)
        estimated, of_limits = np.isnan(self.given_smoothing).any(), other.smoothing.of_limits
        other.problem = replace(
            self.problem,
            ridge=geometry.root(lambdas),
            effective=other.smoothing.of_experts,
            ridge_of_limits=geometry.root(of_limits) if estimated else None,
            priors_of_limits=priors_of_limits(geometry, lambdas, of_limits) if estimated else None,
        )
        return other

    def with_experts(self, experts: int) -> Self:
        """The model with another number of experts on the same data."""
        check_method(self.settings["method"], experts, self.response.name, self.settings.get("errors_dist"))
        other = copy(self)
        other.n_experts, other.settings = experts, {**self.settings, "experts": experts}
        other.structure = replace(self.structure, n_experts=experts)
        other.layout, other.smoothing, other.kept = layout_of(self.design, other.structure), None, None
        other.functions = functions_of(self.design, other.structure)
        other.given_smoothing = checked_smoothing(self.settings["smoothing"], other.functions)
        p = self.problem
        other.problem = Problem(other.structure, p.experts, p.W, p.penalty, p.restricted)
        return other

    def with_response(self, response: Array) -> Self:
        """The model with another response, shape (n,) in the order of the design."""
        other = copy(self)
        other.design, other.smoothing, other.kept = replace(self.design, response=response), None, None
        other._arrange(other.structure)
        return other

    def _arrange(self, structure: Structure) -> None:
        """Structure, layout, coordinates and likelihood of the present design."""
        raise NotImplementedError

    def results(self, fit: EMFit, cov: ParamCov) -> Any:
        """Results of a fit."""
        raise NotImplementedError
