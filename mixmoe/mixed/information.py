"""Covariance of the estimates of a MEMoE: observed information, sandwich, unidentified directions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag

from mixmoe._typing import Array, BoolArray
from mixmoe.inference.small_samples import (
    HEAVY,
    MANY_UNITS,
    Leverage,
    corrected_by_factors,
    corrected_scores,
    leverage,
    sandwich_moments,
)
from mixmoe.inference.uncertainty import CovType, ParamCov, delta_cov, within_clusters, without_parameters
from mixmoe.mixed.boundary import Basis, Boundary, find_boundary, gate_directions, informative_basis
from mixmoe.mixed.curvature import information
from mixmoe.mixed.likelihood.observed import (
    PredictorInformation,
    Problem,
    evaluate,
    observed_information,
    predictor_information,
    subject_scores,
    summed_products,
    unit_information,
)
from mixmoe.mixed.parameters import Coordinates, free_to_reported_jacobian, free_to_working
from mixmoe.mixture.estimate import Flag, ParamLayout
from mixmoe.mixture.gate import penalty_meat

_SINGULAR = 1e-9  # smallest eigenvalue of the scaled information that counts as information
_FLAT = 1e-4  # information of all subjects about a parameter in working coordinates: a standard error of 100 units
_NO_SCORES = 1e-8  # of the largest eigenvalue of the middle of a sandwich
_MOVED = 1e-6  # share of a direction in a parameter that counts
_UNITS_AT_ONCE = 100  # whose directions are held in memory
_MOST = 0.5  # of a variance that comes from units of large leverage
_NAMES_SHOWN = 6
_UNLIKE_INFORMATION = 4.0  # sum of squared scores in units of the information: about 1 if the model is right
_STEEP = 3.0  # fall of a log-likelihood over one standard error, in units of that of a quadratic one
_COMPARE = "Compare with_cov('bootstrap') and 'nonrobust', or use fewer experts or a smaller gate."
_PER_COEFFICIENT = 5  # subjects per coefficient of an expert below which standard errors are rough


def covariance(
    problem: Problem,
    coordinates: Coordinates,
    theta: Array,
    kind: CovType,
    layout: ParamLayout,
    clusters: NDArray[np.int64] | None = None,
    correction: bool = True,
    unconditional: bool = True,
) -> ParamCov:
    """Covariance of the reported parameters at a solution.

    Parameters
    ----------
    problem : Problem
    coordinates : Coordinates
    theta : ndarray, shape (P,)
        Maximiser in working coordinates.
    kind : {"nonrobust", "robust", "cluster"}
    layout : ParamLayout
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
    # 1. Where the solution lies on the boundary of the space, and the directions in which data say something.
    at = find_boundary(problem, coordinates, theta)
    basis = informative_basis(problem, at)
    n_units = problem.n_subjects if clusters is None else int(clusters.max()) + 1
    # 2. The information. That of single units costs P scores of all units: only where a correction needs it.
    by_unit: _Matrices | _Predictors | None = None
    if kind != "nonrobust" and correction and n_units < MANY_UNITS:
        if problem.has_many_columns:
            by_unit = _Predictors(problem, list(predictor_information(problem, at.theta)), clusters)
        else:
            by_unit = _Matrices(problem, unit_information(problem, at.theta, clusters))
    # The sum over units is the whole information, but for a penalty, which belongs to no unit.
    if problem.ridge is not None:
        whole = information(replace(problem, ridge=None), at.theta)
    elif by_unit is None or problem.penalty is not None:
        whole = observed_information(problem, at.theta)
    else:
        whole = by_unit.whole()
    if kind == "nonrobust":
        scores = None
    elif by_unit is None and clusters is None and not problem.restricted:
        # Nothing is asked of single units but the sum of their products: any rows that have it will do, and P of them
        # come from workers at once where those of all subjects would be the largest array of a fit.
        scores = _root(summed_products(problem, at.theta[None])[0])
    else:
        scores = within_clusters(subject_scores(problem, at.theta), clusters)
    seen = _Seen(coordinates, layout, kind, clusters, n_units, correction, at, basis, whole, by_unit, scores)
    # 3. Tests of functions are given the smoothing parameters, limits are not.
    given = _with_penalties(problem, seen, problem.ridge, problem.ridge)
    if problem.ridge_of_limits is None or not unconditional:
        return given
    of_limits = _with_penalties(problem, seen, problem.ridge_of_limits, problem.priors_of_limits)
    return replace(of_limits, given=given.of_bounded)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the data say at a solution, whatever the penalties of functions, and of what a covariance is wanted.

    Attributes
    ----------
    coordinates, layout, kind, clusters, n_units, correction
        See `covariance`; n_units is the number of subjects or clusters.
    at : Boundary
    basis : Basis
    information : ndarray, shape (P, P)
        Without penalties of functions.
    by_unit : _Matrices, _Predictors or None
    scores : ndarray, shape (G, P), or None
        Of the units, where a sandwich is wanted; where nothing else is asked of them, as many rows as there are
        parameters, with the same products.
    """

    coordinates: Coordinates
    layout: ParamLayout
    kind: CovType
    clusters: NDArray[np.int64] | None
    n_units: int
    correction: bool
    at: Boundary
    basis: Basis
    information: Array
    by_unit: "_Matrices | _Predictors | None"
    scores: Array | None


def _root(products: Array) -> Array:
    """Rows, shape (P, P), whose outer products sum to a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(products)
    return np.asarray(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T)


def _with_penalties(problem: Problem, seen: _Seen, ridge: Array | None, priors: Array | None) -> ParamCov:
    """Covariance of a fit with the penalties `ridge` of functions, and how far it lies from that of the problem.

    The scores of the priors of functions are `priors`; if they are `ridge`, the covariance is that a posteriori.
    """
    at, basis, layout, theta = seen.at, seen.basis, seen.layout, seen.at.theta
    # 1. The inverse information, and what it says about the reported parameters.
    whole = seen.information if ridge is None else seen.information + ridge.T @ ridge
    known = identified(problem, seen.coordinates, at, invert_information(whole, basis), layout)
    flags = (*known.flags, *few_units(problem, at, None if seen.clusters is None else seen.n_units))
    shift = None
    if ridge is not None and problem.ridge is not None and ridge is not problem.ridge:
        # One step of Newton's method from where the penalties of the problem hold the score.
        score = (problem.ridge @ theta) @ problem.ridge - (ridge @ theta) @ ridge
        shift = known.jacobian @ known.inverse.matrix @ score
    if seen.scores is None:
        matrix = delta_cov(known.jacobian, known.inverse.matrix)
        if ridge is not None and priors is not None and priors is not ridge:
            half = known.inverse.half
            matrix = delta_cov(known.jacobian @ half, half.T @ (seen.information + priors.T @ priors) @ half)
        found = ParamCov(without_parameters(matrix, known.blank), seen.kind, flags=flags, shift=shift)
        return _with_limits(found, matrix, problem, basis, at, known)
    # 2. The middle of the sandwich: scores of the units, corrected for their leverage, and those of penalties.
    if seen.by_unit is None:
        middle = Middle(seen.scores @ known.inverse.half, known.inverse.half)
    else:
        middle = _corrected(problem, seen.scores, seen.by_unit, known, basis)
    further = _scores_of_penalty(problem, priors, theta)
    middle = replace(middle, scores=np.vstack([middle.scores, further @ middle.back]))
    # 3. What no unit has a score for has no standard error; what rests on units of heavy leverage a rough one.
    # Fewer units than parameters leave directions without any score: a variance of zero there would be a claim.
    values, vectors = np.linalg.eigh(middle.scores.T @ middle.scores)
    null = middle.back @ vectors[:, values <= _NO_SCORES * values.max(initial=0.0)]
    weights = known.jacobian @ middle.back
    lost = _touched(known.jacobian, null)
    blank = sorted({*known.blank, *lost})
    word = "subjects" if seen.clusters is None else "clusters"
    if null.shape[1]:
        flags = (
            *known.flags,
            _about_rank(middle, seen.n_units, len(further), null, [layout.names[i] for i in lost], word),
        )
    if problem.structure.n_experts > 1:
        reasons = (
            _about_heavy(middle, weights, layout, blank, word),
            _about_shape(replace(problem, ridge=ridge), theta, seen.scores, known, layout),
        )
        flags = (*flags, *(flag for flag in reasons if flag is not None))
    # 4. The sandwich in the reported parameters. The moments of CR2 assume known memberships: with several experts no t
    # distribution is claimed.
    moments, about = None, [] if seen.clusters is None else [f"{seen.n_units} clusters"]
    if middle.corrected:
        about.append("scores corrected for leverage")
    if middle.units is not None and problem.structure.n_experts == 1 and ridge is None:
        moments = sandwich_moments(weights, middle.units)
        about[-1] += " (CR2), t and F statistics with Satterthwaite's degrees of freedom"
    matrix = delta_cov(weights, middle.scores.T @ middle.scores)
    found = ParamCov(
        matrix=without_parameters(matrix, blank),
        kind=seen.kind,
        note="; ".join(about),
        corrected=seen.correction,
        flags=flags,
        moments=moments,
        shift=shift,
    )
    return _with_limits(found, matrix, problem, basis, at, known)


def _with_limits(
    found: ParamCov, whole: Array, problem: Problem, basis: Basis, at: Boundary, known: "Identified"
) -> ParamCov:
    """The covariance with what probabilities have their standard errors from where gate coefficients are infinite."""
    of_gate = basis.infinite[problem.free.gate].any(axis=0)
    if not of_gate.any():
        return found
    other = np.hstack([known.inverse.flat, basis.infinite[:, ~of_gate]])
    finite = without_parameters(whole, sorted({*at.blank, *_touched(known.jacobian, other)}))
    return replace(found, bounded=finite, infinite=known.jacobian @ basis.infinite[:, of_gate])


def resampled_covariance(problem: Problem, coordinates: Coordinates, theta: Array, draws: Array) -> ParamCov:
    """Covariance of reported parameters, shape (R, P), of R resamples around a solution.

    Where gate coefficients are infinite, how far an ascent went says nothing: what resamples move along the directions
    to infinity is left out of what functions of the probabilities have their standard errors from.
    """
    at = find_boundary(problem, coordinates, theta)
    gate, whole = gate_directions(problem, at.theta), np.atleast_2d(np.cov(draws, rowvar=False))
    where = problem.structure.reported.gate.ravel()
    unit = np.linalg.inv(coordinates.gate)  # a change of basis is wanted, not a solution
    J = problem.structure.n_experts - 1
    # Gate coefficients of every expert change basis alike: a Kronecker product with the identity.
    to_user, to_working = np.kron(np.eye(J), unit), np.kron(np.eye(J), coordinates.gate)
    infinite = to_user @ gate.vectors[:, gate.infinite]
    if not gate.infinite.any():
        return ParamCov(without_parameters(whole, list(at.blank)), "bootstrap")
    directions, along = np.zeros((len(whole), infinite.shape[1])), np.eye(len(whole))
    directions[where] = infinite
    along[np.ix_(where, where)] -= infinite @ gate.vectors[:, gate.infinite].T @ to_working
    blank = {*at.blank, *where[(np.abs(infinite) > 1e-6 * np.abs(to_user).max(axis=1, keepdims=True)).any(axis=1)]}
    return ParamCov(
        without_parameters(whole, sorted(blank)),
        "bootstrap",
        bounded=without_parameters(along @ whole @ along.T, list(at.blank)),
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
    """What the data say about the reported parameters.

    Attributes
    ----------
    inverse : InverseInformation
    jacobian : ndarray, shape (P, P)
        Of the reported parameters in the free ones.
    blank : list of int
        Reported parameters without a valid standard error.
    flags : tuple of Flag
        About those whose likelihood is flat.
    """

    inverse: "InverseInformation"
    jacobian: Array
    blank: list[int]
    flags: tuple[Flag, ...]


def identified(
    problem: Problem, coordinates: Coordinates, at: Boundary, inverse: "InverseInformation", layout: ParamLayout
) -> Identified:
    """Which reported parameters have a standard error: not those at an end of their space, infinite or flat."""
    jacobian = np.nan_to_num(free_to_reported_jacobian(problem.structure, coordinates, at.theta))
    elsewhere = {*at.blank, *_touched(jacobian, inverse.infinite)}
    without = _touched(jacobian, inverse.flat)
    flat = [layout.names[i] for i in without if i not in elsewhere]
    blank = sorted({*elsewhere, *without})
    about_flat = Flag(
        "flat_likelihood",
        f"The data say nothing about {', '.join(flat)}: the log-likelihood is the same whatever the value. The "
        "printed values are those where the search happened to stop, without standard errors. Share them between "
        "experts, leave them out, or use fewer experts.",
    )
    return Identified(inverse, jacobian, blank, (about_flat,) if flat else ())


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


def _corrected(
    problem: Problem, scores: Array, by_unit: "_Matrices | _Predictors", known: Identified, basis: Basis
) -> Middle:
    """Scores corrected for leverage: by CR2 for one expert, whose statistics are t, by the jackknife for more.

    Cross terms between the coefficients of one expert and its further parameters have expectation zero if errors are
    normal; what is observed of them is noise, and leverage is that without them.
    """
    if problem.structure.n_experts > 1 or problem.ridge is not None:
        return by_unit.corrected(scores, known.inverse.half, known.inverse.half)
    apart = by_unit.apart()
    half = invert_information(apart.whole(), basis).half
    of_coefficients = (half[problem.free.beta.ravel()] ** 2).sum(axis=0)
    further = of_coefficients < 0.5 * (half**2).sum(axis=0)  # a column is of the one or the other
    return apart.corrected(scores, half, known.inverse.matrix @ np.linalg.pinv(half.T), further)


def few_units(problem: Problem, at: Boundary, n_clusters: int | None = None) -> tuple[Flag, ...]:
    """The flag of an expert that has few subjects, or of a model that has few clusters, for its coefficients."""
    n_coefficients, K = problem.n_coefficients, problem.structure.n_experts
    if n_clusters is None:
        sizes = at.responsibilities.sum(axis=0)
        word, owners = "subjects", [f" of expert {k + 1}" if K > 1 else "" for k in range(K)]
    else:  # each of them may hold all experts
        sizes, word, owners = np.array([float(n_clusters)]), "clusters", [""]
    needed = n_coefficients if n_clusters is None else n_coefficients.max(keepdims=True)
    scarce = [k for k, size in enumerate(sizes) if size < _PER_COEFFICIENT * needed[k]]
    if not scarce:
        return ()
    found = ", ".join(f"{sizes[k]:.3g} {word} for {needed[k]:.3g} coefficients{owners[k]}" for k in scarce)
    return (
        Flag(
            "few_subjects",
            f"There are only {found}, fewer than {_PER_COEFFICIENT} for each: standard errors are rough, most of all "
            f"those of standard deviations, correlations and effects that do not vary within {word}. "
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
        f"or none. Their standard errors are rough. {_COMPARE}",
    )


def _about_shape(problem: Problem, theta: Array, scores: Array, known: Identified, layout: ParamLayout) -> Flag | None:
    """Of parameters whose errors come from a direction in which the log-likelihood is far from quadratic.

    Where two maxima have just met, its curvature at the top says little about how it falls: the information is too
    small, and a sandwich, which has its inverse twice, far too large.
    """
    half = known.inverse.half
    values, vectors = np.linalg.eigh(half.T @ (scores.T @ scores) @ half)
    if values[-1] < _UNLIKE_INFORMATION:
        return None
    step = half @ vectors[:, -1]
    height = evaluate(problem, np.vstack([theta, theta + step, theta - step])).loglik
    fall = float(height[0] - height[1:].mean())
    if fall < _STEEP / 2:
        return None
    weights = known.jacobian @ half
    variance = ((scores @ half) @ weights.T) ** 2
    along = values[-1] * (weights @ vectors[:, -1]) ** 2
    resting = [int(i) for i in np.flatnonzero(along > _MOST * variance.sum(axis=0)) if i not in known.blank]
    if not resting:
        return None
    return Flag(
        "weak_identification",
        f"The log-likelihood is far from quadratic in {_listed(layout, resting)}: one standard error away it lies "
        f"{fall:.2g} below its maximum, where 0.5 is expected. Their standard errors are far too large. {_COMPARE}",
    )


def _listed(layout: ParamLayout, where: Sequence[int]) -> str:
    more = f" and {len(where) - _NAMES_SHOWN} more" if len(where) > _NAMES_SHOWN else ""
    return ", ".join(layout.names[i] for i in where[:_NAMES_SHOWN]) + more


def _about_rank(middle: Middle, n_units: int, n_penalties: int, null: Array, names: list[str], word: str) -> Flag:
    """Of parameters for which neither the units nor the penalties, whose scores come after theirs, have a score."""
    rank = middle.scores.shape[1] - null.shape[1]
    of_penalties = f", with {n_penalties} of the penalties," if n_penalties else ""
    return Flag(
        "few_subjects",
        f"The scores of the {n_units} {word}{of_penalties} have rank {rank} for {middle.scores.shape[1]} parameters: a "
        f"sandwich of them is not a covariance, and {', '.join(names)} have no standard errors. Use "
        "cov_type='nonrobust', which trusts the model, or 'bootstrap', or a smaller model.",
    )


@dataclass(frozen=True, slots=True)
class InverseInformation:
    """Generalised inverse of an information matrix.

    Attributes
    ----------
    half : ndarray, shape (P, r)
        ``half @ half.T`` is the inverse.
    flat : ndarray, shape (P, f)
        Unit vectors of directions without information, where the parameters are finite.
    infinite : ndarray, shape (P, s)
        Directions of coefficients that are infinite.
    """

    half: Array
    flat: Array
    infinite: Array

    @property
    def matrix(self) -> Array:
        """The inverse, shape (P, P), zero outside the informative directions."""
        return np.asarray(self.half @ self.half.T)

    @property
    def null(self) -> Array:
        """All directions without information, shape (P, f + s)."""
        return np.hstack([self.flat, self.infinite])


def invert_information(information: Array, basis: Basis) -> InverseInformation:
    """Inverse within the informative directions; those that turn out to carry no information are set apart.

    In working coordinates every parameter has unit scale (of the response, of log, of Fisher's z, of log odds), so that
    a standard error of a hundred units says that nothing is known.
    """
    A = basis.kept.T @ information @ basis.kept
    values, vectors = np.linalg.eigh(A)
    steep = basis.kept @ vectors[:, values > _FLAT]
    flat = basis.kept @ vectors[:, values <= _FLAT]
    A = steep.T @ information @ steep
    scale = np.sqrt(np.diag(A))
    values, vectors = np.linalg.eigh(A / np.outer(scale, scale))
    good = values > _SINGULAR
    half = steep @ (vectors[:, good] / np.sqrt(values[good]) / scale[:, None])
    degenerate = steep @ (vectors[:, ~good] / scale[:, None])
    degenerate /= np.maximum(np.linalg.norm(degenerate, axis=0), np.finfo(float).tiny)
    return InverseInformation(half, np.hstack([flat, degenerate]), basis.infinite)


def inverse_at(problem: Problem, coordinates: Coordinates, theta: Array) -> tuple[Boundary, InverseInformation]:
    """Where a solution lies on the boundary, and the inverse of the observed information there."""
    at = find_boundary(problem, coordinates, theta)
    return at, invert_information(observed_information(problem, at.theta), informative_basis(problem, at))
