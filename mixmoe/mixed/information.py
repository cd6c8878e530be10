"""Covariance of the estimates of a MEMoE: observed information, sandwich, unidentified directions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag

from mixmoe._typing import Array, BoolArray
from mixmoe.inference.small_samples import (
    HEAVY,
    MANY_UNITS,
    Leverage,
    Moments,
    corrected_by_factors,
    corrected_scores,
    leverage,
    sandwich_moments,
)
from mixmoe.inference.uncertainty import CovType, ParamCov, delta_cov, within_clusters, without_parameters
from mixmoe.mixed.boundary import (
    Basis,
    Boundary,
    InverseInformation,
    find_boundary,
    gate_directions,
    informative_basis,
    invert_information,
)
from mixmoe.mixed.curvature import information
from mixmoe.mixed.likelihood.hessian import (
    PredictorInformation,
    observed_information,
    predictor_information,
    unit_information,
)
from mixmoe.mixed.likelihood.observed import Problem, evaluate, subject_scores, summed_products
from mixmoe.mixed.parameters import Coordinates, free_to_reported_jacobian, free_to_working
from mixmoe.mixture.estimate import Flag, ParamLayout
from mixmoe.mixture.gate import penalty_meat

_NO_SCORES = 1e-8  # of the largest eigenvalue of the middle of a sandwich
_MOVED = 1e-6  # share of a direction in a parameter that counts
_UNITS_AT_ONCE = 100  # whose directions are held in memory
_MOST = 0.5  # of a variance that comes from units of large leverage
_NAMES_SHOWN = 6
_UNLIKE_INFORMATION = 4.0  # sum of squared scores in units of the information: about 1 if the model is right
_STEEP = 3.0  # fall of a log-likelihood over one standard error, in units of that of a quadratic one
_COMPARE = "Compare with_cov('bootstrap') and 'nonrobust', or use fewer experts or a smaller gate."
_PER_COEFFICIENT = 5  # subjects per coefficient of an expert below which standard errors are rough


@dataclass(frozen=True)
class Solution:
    """A maximum of a MEMoE and what is known there. Not slotted: each part is worked out once, when it is asked for.

    Attributes
    ----------
    problem : Problem
    coordinates : Coordinates
    layout : ParamLayout
    params : ndarray, shape (P,)
        Reported parameters.
    theta : ndarray, shape (P,)
        The same in working coordinates.
    """

    problem: Problem
    coordinates: Coordinates
    layout: ParamLayout
    params: Array
    theta: Array

    @cached_property
    def boundary(self) -> Boundary:
        """Where the solution lies on the boundary of the space; its free vector is the one that all below is at."""
        return find_boundary(self.problem, self.coordinates, self.theta)

    @cached_property
    def basis(self) -> Basis:
        """Directions in which data say something, and those to infinity."""
        return informative_basis(self.problem, self.boundary)

    @cached_property
    def jacobian(self) -> Array:
        """Derivatives of the reported parameters in the free ones, shape (P, P); zero where they do not exist."""
        return np.nan_to_num(free_to_reported_jacobian(self.problem.structure, self.coordinates, self.boundary.theta))

    @cached_property
    def scores(self) -> Array:
        """Scores of the subjects, shape (N, P)."""
        return subject_scores(self.problem, self.boundary.theta)

    @cached_property
    def score_rows(self) -> Array:
        """Rows with the sum of outer products of the subjects' scores: these themselves, or of many subjects a root.

        P rows come from workers at once where the scores of all subjects would be the largest array of a fit.
        """
        if self.problem.n_subjects < MANY_UNITS or self.problem.restricted:
            return self.scores
        values, vectors = np.linalg.eigh(summed_products(self.problem, self.boundary.theta[None])[0])
        return np.asarray(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T)

    @property
    def penalties(self) -> "tuple[Penalties, ...]":
        """Those of functions: of the fit, and of the fit around which limits lie, where lambdas are estimated."""
        problem, of_limits = self.problem, self.problem.ridge_of_limits
        given = Penalties(problem.ridge, problem.ridge)
        return (given,) if of_limits is None else (given, Penalties(of_limits, problem.priors_of_limits))

    @cached_property
    def known(self) -> "tuple[Identified, ...]":
        """What the observed information says under each set of penalties."""
        problem, theta = self.problem, self.boundary.theta
        if problem.ridge is None:
            return (identified(self, observed_information(problem, theta)),)
        whole = information(replace(problem, ridge=None), theta)
        return tuple(identified(self, whole, penalties.ridge) for penalties in self.penalties)

    @cached_property
    def corrected(self) -> "tuple[Sides, ...]":
        """The sides of a sandwich over subjects, corrected for their leverage, under each set of penalties."""
        return corrected_sides(self)


@dataclass(frozen=True, slots=True)
class Penalties:
    """Penalties ``1/2 |R theta|^2`` of functions, and scores of the priors that they stand for.

    Attributes
    ----------
    ridge : ndarray, shape (M, P), or None
        R.
    priors : ndarray, shape (M, P), or None
        In the middle of a covariance; if they are `ridge` that covariance is the one a posteriori.
    """

    ridge: Array | None
    priors: Array | None


def covariance(
    at: Solution,
    kind: CovType,
    clusters: NDArray[np.int64] | None = None,
    correction: bool = True,
    unconditional: bool = True,
) -> ParamCov:
    """Covariance of the reported parameters at a solution.

    Parameters
    ----------
    at : Solution
    kind : {"nonrobust", "robust", "cluster"}
    clusters : ndarray of int, shape (N,), optional
        Cluster of each subject, for ``"cluster"``.
    correction : bool
        Correct a sandwich for the leverage of subjects or clusters, of which there are fewer than `MANY_UNITS`.
    unconditional : bool
        Whether estimated smoothing parameters of functions are unknown: limits then lie around a fit that is smoothed
        less, see `smooth.marginal.undersmoothed`.

    Returns
    -------
    ParamCov
        With one expert and the correction it has moments, for t and F statistics.
    """
    units = Units(clusters, at.problem.n_subjects if clusters is None else int(clusters.max()) + 1)
    # 1. The inverse information, and of a sandwich the middle. Informations of single units cost P scores of all
    # units: only where a correction needs them.
    if kind != "nonrobust" and correction and units.n < MANY_UNITS:
        sides = at.corrected if clusters is None else corrected_sides(at, clusters)
    else:
        sides = tuple(Sides(known) for known in at.known)
        if kind != "nonrobust":
            scores = at.score_rows if clusters is None else within_clusters(at.scores, clusters)
            sides = tuple(Sides(s.known, Middle(scores @ s.known.inverse.half, s.known.inverse.half)) for s in sides)
    # 2. Tests of functions are given the smoothing parameters, limits are not; flags are about limits.
    wanted = list(zip(sides, at.penalties[: 1 + unconditional], strict=False))
    *given, last = (_covariance(at, *each, kind, units, correction, each is wanted[-1]) for each in wanted)
    return replace(last, given=given[0].of_bounded) if given else last


def _covariance(
    at: Solution,
    sides: "Sides",
    penalties: Penalties,
    kind: CovType,
    units: "Units",
    correction: bool,
    judged: bool,
) -> ParamCov:
    """Covariance of a fit with some penalties of functions, and how far it lies from that of the problem.

    Which standard errors are rough is told only if it is to be `judged`.
    """
    problem, theta, known, layout = at.problem, at.boundary.theta, sides.known, at.layout
    flags, shift = (*known.flags, *few_units(problem, at.boundary, units)), None
    if penalties.ridge is not None and problem.ridge is not None and penalties.ridge is not problem.ridge:
        # One step of Newton's method from where the penalties of the problem hold the score.
        score = (problem.ridge @ theta) @ problem.ridge - (penalties.ridge @ theta) @ penalties.ridge
        shift = at.jacobian @ known.inverse.matrix @ score
    if sides.middle is None:
        matrix = delta_cov(at.jacobian, known.inverse.matrix)
        if penalties.priors is not None and penalties.priors is not penalties.ridge:
            half = known.inverse.half
            between = known.information + penalties.priors.T @ penalties.priors
            matrix = delta_cov(at.jacobian @ half, half.T @ between @ half)
        found = ParamCov(without_parameters(matrix, known.blank), kind, flags=flags, shift=shift)
        return _with_limits(found, matrix, at, known)
    # 1. The middle of the sandwich: scores of the units, after them those of penalties.
    further = _scores_of_penalty(problem, penalties.priors, theta)
    middle = replace(sides.middle, scores=np.vstack([sides.middle.scores, further @ sides.middle.back]))
    # 2. What no unit has a score for has no standard error; what rests on units of heavy leverage a rough one.
    # Fewer units than parameters leave directions without any score: a variance of zero there would be a claim.
    values, vectors = np.linalg.eigh(middle.scores.T @ middle.scores)
    null = middle.back @ vectors[:, values <= _NO_SCORES * values.max(initial=0.0)]
    weights = at.jacobian @ middle.back
    blank = known.blank
    if null.shape[1]:
        lost = _touched(at.jacobian, null)
        blank = sorted({*blank, *lost})
        flags = (*known.flags, _about_rank(middle, len(further), null, [layout.names[i] for i in lost], units))
    if judged and problem.structure.n_experts > 1:
        reasons = (
            _about_heavy(middle, weights, layout, blank, units.word),
            _about_shape(at, penalties.ridge, units, known),
        )
        flags = (*flags, *(flag for flag in reasons if flag is not None))
    # 3. The sandwich in the reported parameters. The moments of CR2 assume known memberships: with several experts no t
    # distribution is claimed.
    about = [] if units.clusters is None else [f"{units.n} clusters"]
    if middle.corrected:
        about.append("scores corrected for leverage")
    if sides.moments is not None:
        about[-1] += " (CR2), t and F statistics with Satterthwaite's degrees of freedom"
    matrix = delta_cov(weights, middle.scores.T @ middle.scores)
    found = ParamCov(
        matrix=without_parameters(matrix, blank),
        kind=kind,
        note="; ".join(about),
        corrected=correction,
        flags=flags,
        moments=sides.moments,
        shift=shift,
    )
    return _with_limits(found, matrix, at, known)


@dataclass(frozen=True, slots=True)
class Units:
    """The independent units of a covariance.

    Attributes
    ----------
    clusters : ndarray of int, shape (N,), or None
        Of each subject; None where subjects are the units.
    n : int
        Their number.
    """

    clusters: NDArray[np.int64] | None
    n: int

    @property
    def word(self) -> str:
        """What they are called."""
        return "subjects" if self.clusters is None else "clusters"


def _with_limits(found: ParamCov, whole: Array, at: Solution, known: "Identified") -> ParamCov:
    """The covariance with what probabilities have their standard errors from where gate coefficients are infinite."""
    infinite = at.basis.infinite
    of_gate = infinite[at.problem.free.gate].any(axis=0)
    if not of_gate.any():
        return found
    other = np.hstack([known.inverse.flat, infinite[:, ~of_gate]])
    finite = without_parameters(whole, sorted({*at.boundary.blank, *_touched(at.jacobian, other)}))
    return replace(found, bounded=finite, infinite=at.jacobian @ infinite[:, of_gate])


def resampled_covariance(at: Solution, draws: Array) -> ParamCov:
    """Covariance of reported parameters, shape (R, P), of R resamples around a solution.

    Where gate coefficients are infinite, how far an ascent went says nothing: what resamples move along the directions
    to infinity is left out of what functions of the probabilities have their standard errors from.
    """
    s, blank, to_working = at.problem.structure, at.boundary.blank, at.coordinates.gate
    gate, whole = gate_directions(at.problem, at.boundary.theta), np.atleast_2d(np.cov(draws, rowvar=False))
    if not gate.infinite.any():
        return ParamCov(without_parameters(whole, list(blank)), "bootstrap")
    where, J = s.reported.gate.ravel(), s.n_experts - 1
    unit = np.linalg.inv(to_working)  # a change of basis is wanted, not a solution
    # Gate coefficients of every expert change basis alike: a Kronecker product with the identity.
    to_user, to_working = np.kron(np.eye(J), unit), np.kron(np.eye(J), to_working)
    infinite = to_user @ gate.vectors[:, gate.infinite]
    directions, along = np.zeros((len(whole), infinite.shape[1])), np.eye(len(whole))
    directions[where] = infinite
    along[np.ix_(where, where)] -= infinite @ gate.vectors[:, gate.infinite].T @ to_working
    moved = where[(np.abs(infinite) > 1e-6 * np.abs(to_user).max(axis=1, keepdims=True)).any(axis=1)]
    return ParamCov(
        without_parameters(whole, sorted({*blank, *moved})),
        "bootstrap",
        bounded=without_parameters(along @ whole @ along.T, list(blank)),
        infinite=directions,
    )


def _scores_of_penalty(problem: Problem, priors: Array | None, theta: Array) -> Array:
    """Scores of units that stand for priors of gate and functions in the middle of a sandwich, shape (M, P)."""
    out = np.zeros((0, theta.size)) if priors is None else priors
    if problem.penalty is not None:
        gamma = free_to_working(problem.structure, theta[None]).gamma
        values, vectors = np.linalg.eigh(penalty_meat(problem.penalty, problem.W, gamma))
        of_gate = np.zeros((theta.size, theta.size))
        where = np.arange(theta.size)[problem.free.gate].ravel()
        of_gate[np.ix_(where, where)] = (vectors * np.sqrt(np.maximum(values, 0.0))).T
        out = np.vstack([out, of_gate])
    return out


@dataclass(frozen=True, slots=True)
class Identified:
    """What the data say about the reported parameters, with some penalties of functions.

    Attributes
    ----------
    information : ndarray, shape (P, P)
        Without these penalties.
    inverse : InverseInformation
        With them.
    blank : list of int
        Reported parameters without a valid standard error.
    flags : tuple of Flag
        About those whose likelihood is flat.
    """

    information: Array
    inverse: InverseInformation
    blank: list[int]
    flags: tuple[Flag, ...]


def identified(at: Solution, information: Array, ridge: Array | None = None) -> Identified:
    """Which reported parameters have a standard error: not those at an end of their space, infinite or flat."""
    inverse = invert_information(information if ridge is None else information + ridge.T @ ridge, at.basis)
    elsewhere = {*at.boundary.blank, *_touched(at.jacobian, inverse.infinite)}
    without = _touched(at.jacobian, inverse.flat)
    flat = [at.layout.names[i] for i in without if i not in elsewhere]
    blank = sorted({*elsewhere, *without})
    about_flat = Flag(
        "flat_likelihood",
        f"The data say nothing about {', '.join(flat)}: the log-likelihood is the same whatever the value. The "
        "printed values are those where the search happened to stop, without standard errors.",
        "Share them between experts, leave them out, or use fewer experts.",
    )
    return Identified(information, inverse, blank, (about_flat,) if flat else ())


def _touched(jacobian: Array, directions: Array) -> list[int]:
    """Reported parameters that change along some directions of the free vector, shape (P, d)."""
    size = np.linalg.norm(directions, axis=0)
    moved = np.abs(jacobian @ (directions / np.where(size > 0, size, 1.0)))
    # Relative to how far a parameter moves at all: units of parameters have no part in it.
    largest = np.abs(jacobian).max(axis=1, keepdims=True, initial=0.0)
    return [int(i) for i in np.flatnonzero((moved > _MOVED * (np.finfo(float).tiny + largest)).any(axis=1))]


@dataclass(frozen=True, slots=True)
class Middle:
    """The middle of a sandwich and what surrounds it: ``back (c'c) back'`` is the covariance of the free vector.

    Attributes
    ----------
    scores : ndarray, shape (G, r)
        c.
    back : ndarray, shape (P, r)
    units : Leverage or None
        Of the units, where the scores are corrected for it and it is kept.
    corrected : bool
        Whether they are.
    heavy : ndarray of bool, shape (G,), or None
        Units of heavy leverage.
    """

    scores: Array
    back: Array
    units: Leverage | None = None
    corrected: bool = False
    heavy: BoolArray | None = None


@dataclass(frozen=True, slots=True)
class _Matrices:
    """Informations of units as they are, shape (G, P, P)."""

    problem: Problem
    matrices: Array

    def whole(self) -> Array:
        """Sum over the units, shape (P, P)."""
        return np.asarray(self.matrices.sum(axis=0))

    def apart(self) -> "_Matrices":
        """Without what is observed between coefficients and other parameters."""
        is_coefficient = np.isin(np.arange(self.problem.free.size), self.problem.free.beta)
        return replace(self, matrices=self.matrices * np.equal.outer(is_coefficient, is_coefficient))

    def corrected(self, scores: Array, half: Array, back: Array, further: BoolArray | None = None) -> Middle:
        """The middle of a sandwich with scores corrected for leverage: by CR2 if what is `further` is told."""
        units = leverage(half.T @ self.matrices @ half, further is None, further)
        return Middle(corrected_scores(scores, half, units), back, units, True, units.heavy)


@dataclass(frozen=True, slots=True)
class _Predictors:
    """Informations of units through their linear predictors, where columns are many."""

    problem: Problem
    parts: list[PredictorInformation]
    clusters: NDArray[np.int64] | None

    def whole(self) -> Array:
        """Sum over the units, shape (P, P)."""
        return np.asarray(sum(part.whole(self.problem) for part in self.parts))

    def apart(self) -> "_Predictors":
        """Without what is observed between coefficients and other parameters, of one expert."""
        return replace(self, parts=[part.apart(part.rows.shape[1]) for part in self.parts])

    def corrected(self, scores: Array, half: Array, back: Array, further: BoolArray | None = None) -> Middle:
        """The middle of a sandwich with scores corrected for leverage, some units at a time."""
        out, heavy = np.empty((len(scores), half.shape[1])), np.zeros(len(scores), dtype=bool)
        if self.clusters is None:
            for part in self.parts:
                for at in range(0, part.subjects.size, _UNITS_AT_ONCE):
                    some = part.take(slice(at, at + _UNITS_AT_ONCE))
                    F, mine = some.along(self.problem, half), some.subjects
                    out[mine], heavy[mine] = corrected_by_factors(
                        scores[mine], F, some.matrices, half, further is None, further
                    )
            return Middle(out, back, corrected=True, heavy=heavy)
        for g in range(len(scores)):
            own = [part.take(self.clusters[part.subjects] == g) for part in self.parts]
            F = np.vstack([part.along(self.problem, half).reshape(-1, half.shape[1]) for part in own])
            C = block_diag(*(matrix for part in own for matrix in part.matrices))
            out[[g]], heavy[[g]] = corrected_by_factors(scores[[g]], F[None], C[None], half, further is None, further)
        return Middle(out, back, corrected=True, heavy=heavy)


@dataclass(frozen=True, slots=True)
class Sides:
    """What a covariance is made of: ``known.inverse`` alone, or a sandwich.

    Attributes
    ----------
    known : Identified
    middle : Middle or None
        Of a sandwich over units.
    moments : Moments or None
        Of the sandwich, if statistics are t.
    """

    known: Identified
    middle: Middle | None = None
    moments: Moments | None = None


def corrected_sides(at: Solution, clusters: NDArray[np.int64] | None = None) -> tuple[Sides, ...]:
    """Sandwich over subjects or clusters corrected for their leverage, under each set of penalties of functions.

    By CR2 for one expert, whose statistics are t, by the jackknife for more. Cross terms between the coefficients of
    one expert and its further parameters have expectation zero if errors are normal; what is observed of them is noise,
    and leverage is that without them.
    """
    problem, theta = at.problem, at.boundary.theta
    scores, by_unit = within_clusters(at.scores, clusters), _information_by_unit(problem, theta, clusters)
    # The sum over units is the whole information, but for a penalty, which belongs to no unit.
    if problem.ridge is not None:
        whole = information(replace(problem, ridge=None), theta)
    else:
        whole = by_unit.whole() if problem.penalty is None else observed_information(problem, theta)
    sides = []
    for penalties in at.penalties:
        known = identified(at, whole, penalties.ridge)
        if problem.structure.n_experts > 1 or problem.ridge is not None:
            sides.append(Sides(known, by_unit.corrected(scores, known.inverse.half, known.inverse.half)))
            continue
        apart = by_unit.apart()
        half = invert_information(apart.whole(), at.basis).half
        of_coefficients = (half[problem.free.beta.ravel()] ** 2).sum(axis=0)
        further = of_coefficients < 0.5 * (half**2).sum(axis=0)  # a column is of the one or the other
        middle = apart.corrected(scores, half, known.inverse.matrix @ np.linalg.pinv(half.T), further)
        moments = None if middle.units is None else sandwich_moments(at.jacobian @ middle.back, middle.units)
        # Leverages of all units are the largest arrays here: the moments hold what is needed of them.
        sides.append(Sides(known, replace(middle, units=None), moments))
    return tuple(sides)


def _information_by_unit(
    problem: Problem, theta: Array, clusters: NDArray[np.int64] | None
) -> "_Matrices | _Predictors":
    if problem.has_many_columns:
        return _Predictors(problem, list(predictor_information(problem, theta)), clusters)
    return _Matrices(problem, unit_information(problem, theta, clusters))


def few_units(problem: Problem, at: Boundary, units: Units) -> tuple[Flag, ...]:
    """The flag of an expert that has few subjects, or of a model that has few clusters, for its coefficients."""
    needed, K, word = problem.n_coefficients, problem.structure.n_experts, units.word
    if units.clusters is None:
        sizes = at.responsibilities.sum(axis=0)
        owners = [f" of expert {k + 1}" if K > 1 else "" for k in range(K)]
    else:  # each of them may hold all experts
        sizes, needed, owners = np.array([float(units.n)]), needed.max(keepdims=True), [""]
    scarce = [k for k, size in enumerate(sizes) if size < _PER_COEFFICIENT * needed[k]]
    if not scarce:
        return ()
    found = ", ".join(f"{sizes[k]:.3g} {word} for {needed[k]:.3g} coefficients{owners[k]}" for k in scarce)
    return (
        Flag(
            "few_subjects",
            f"There are only {found}, fewer than {_PER_COEFFICIENT} for each: standard errors are rough, most of all "
            f"those of standard deviations, correlations and effects that do not vary within {word}.",
            "Use a smaller model, or profile() for limits from the likelihood.",
        ),
    )


def _about_heavy(middle: Middle, weights: Array, layout: ParamLayout, blank: list[int], word: str) -> Flag | None:
    """Of parameters most of whose variance comes from units of heavy leverage."""
    if middle.heavy is None or not middle.heavy.any():
        return None
    variance = (middle.scores @ weights.T) ** 2  # (G, P), after the units those of penalties
    theirs = variance[: len(middle.heavy)][middle.heavy].sum(axis=0)
    resting = [int(i) for i in np.flatnonzero(theirs > _MOST * variance.sum(axis=0)) if i not in blank]
    if not resting:
        return None
    return Flag(
        "weak_identification",
        f"What is said about {_listed(layout, resting)} rests on {int(middle.heavy.sum())} of the {word}: without one "
        f"of them less than a quarter of the information would be left in some direction (leverage above {HEAVY:g}), "
        f"or none. Their standard errors are rough.",
        _COMPARE,
    )


def _about_shape(at: Solution, ridge: Array | None, units: Units, known: Identified) -> Flag | None:
    """Of parameters whose errors come from a direction in which the log-likelihood is far from quadratic.

    Where two maxima have just met, its curvature at the top says little about how it falls: the information is too
    small, and a sandwich, which has its inverse twice, far too large.
    """
    theta, half = at.boundary.theta, known.inverse.half
    scores = at.score_rows if units.clusters is None else within_clusters(at.scores, units.clusters)
    values, vectors = np.linalg.eigh(half.T @ (scores.T @ scores) @ half)
    if values[-1] < _UNLIKE_INFORMATION:
        return None
    step = half @ vectors[:, -1]
    height = evaluate(replace(at.problem, ridge=ridge), np.vstack([theta, theta + step, theta - step])).loglik
    fall = float(height[0] - height[1:].mean())
    if fall < _STEEP / 2:
        return None
    weights = at.jacobian @ half
    variance = ((scores @ half) @ weights.T) ** 2
    along = values[-1] * (weights @ vectors[:, -1]) ** 2
    resting = [int(i) for i in np.flatnonzero(along > _MOST * variance.sum(axis=0)) if i not in known.blank]
    if not resting:
        return None
    return Flag(
        "weak_identification",
        f"The log-likelihood is far from quadratic in {_listed(at.layout, resting)}: one standard error away it lies "
        f"{fall:.2g} below its maximum, where 0.5 is expected. Their standard errors are far too large.",
        _COMPARE,
    )


def _listed(layout: ParamLayout, where: Sequence[int]) -> str:
    more = f" and {len(where) - _NAMES_SHOWN} more" if len(where) > _NAMES_SHOWN else ""
    return ", ".join(layout.names[i] for i in where[:_NAMES_SHOWN]) + more


def _about_rank(middle: Middle, n_penalties: int, null: Array, names: list[str], units: Units) -> Flag:
    """Of parameters for which neither the units nor the penalties, whose scores come after theirs, have a score."""
    size = middle.scores.shape[1]
    of_penalties = f", with {n_penalties} of the penalties," if n_penalties else ""
    return Flag(
        "few_subjects",
        f"The scores of the {units.n} {units.word}{of_penalties} have rank {size - null.shape[1]} for {size} "
        f"parameters: a sandwich of them is not a covariance, and {', '.join(names)} have no standard errors.",
        "Use cov_type='nonrobust', which trusts the model, or 'bootstrap', or a smaller model.",
    )
