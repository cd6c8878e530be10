"""Covariance of the estimates of a MEMoE: observed information, sandwich, boundary and unidentified directions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag, null_space

from mixmoe._typing import Array, BoolArray
from mixmoe.inference.uncertainty import (
    HEAVY,
    MANY_UNITS,
    CovType,
    Leverage,
    ParamCov,
    corrected_by_factors,
    corrected_scores,
    delta_cov,
    leverage,
    sandwich_moments,
    within_clusters,
    without_parameters,
)
from mixmoe.mixed.curvature import information
from mixmoe.mixed.likelihood.observed import (
    PredictorInformation,
    Problem,
    evaluate,
    observed_information,
    predictor_information,
    subject_logliks,
    subject_scores,
    unit_information,
)
from mixmoe.mixed.parameters import (
    Coordinates,
    Structure,
    free_to_reported,
    free_to_reported_jacobian,
    free_to_working,
    working_to_free,
)
from mixmoe.mixture.estimate import Flag, ParamLayout
from mixmoe.mixture.gate import (
    GateDirections,
    penalty_meat,
    posterior_probabilities,
    separated_directions,
)
from mixmoe.numerics.linalg import semidefinite_cholesky

_NO_RESPONSES = 1e-3  # expected number in a category: an ascent to infinity stops at about this many
_NO_INFORMATION = 1e-5  # per row of the expert, in a direction of orthonormal columns; at p = 0.00001 or 0.99999


def gate_directions(problem: Problem, theta: Array) -> GateDirections:
    """Directions of the gate coefficients in working coordinates, and which of them lead to infinity."""
    found = separated_directions(problem.W, free_to_working(problem.structure, theta[None]).gamma)
    if problem.penalty is not None:  # the prior keeps all coefficients finite
        return replace(found, infinite=np.zeros_like(found.infinite))
    return found


@dataclass(frozen=True, slots=True)
class ExpertDirections:
    """Directions of the expert coefficients in working coordinates.

    Attributes
    ----------
    where : ndarray of int, shape (d,)
        Coefficients in the free vector.
    vectors : ndarray, shape (d, d)
        Orthonormal, one per column.
    infinite : ndarray of bool, shape (d,)
        Along these the fitted responses have no variance left: the maximum lies at infinity.
    """

    where: NDArray[np.intp]
    vectors: Array
    infinite: NDArray[np.bool_]


def expert_directions(problem: Problem, theta: Array, tau: Array) -> ExpertDirections | None:
    """Eigenvectors of the information of the expert coefficients, were memberships and random effects known.

    `tau` are the responsibilities at `theta`, shape (N, K). None for Gaussian experts, whose information does not
    depend on their coefficients.
    """
    params, P = free_to_working(problem.structure, theta[None]), theta.size
    found = problem.experts.coefficient_information(params, tau)
    if found is None:
        return None
    information, size = np.zeros((P, P)), np.zeros(P)
    for k, at in enumerate(problem.free.beta):  # shared coefficients gather what all experts say of them
        information[np.ix_(at, at)] += found.matrices[k]
        size[at] += found.sizes[k]
    used = np.unique(problem.free.beta)
    scale = np.sqrt(np.maximum(size[used], np.finfo(float).tiny))
    values, vectors = np.linalg.eigh(information[np.ix_(used, used)] / np.outer(scale, scale))
    return ExpertDirections(used, vectors, values < _NO_INFORMATION)


@dataclass(frozen=True, slots=True)
class EmptyCategories:
    """Ordered categories in which an expert has no responses.

    Attributes
    ----------
    infinite : tuple of int
        Thresholds that are infinite, by their place among the reported ones.
    closed : tuple of int
        Steps of zero width, by their place in the free vector.
    widths : tuple of int
        The same by their place among the reported thresholds, where steps are reported: zero, at an end of their space.
    meanings : tuple of str
        Each expert and category.
    """

    infinite: tuple[int, ...] = ()
    closed: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    meanings: tuple[str, ...] = ()


def empty_categories(problem: Problem, tau: Array) -> EmptyCategories:
    """What has no responses, given responsibilities of shape (N, K).

    Nothing for other responses, and where all experts share the thresholds. Experts that share the steps only have no
    such thresholds: one of them cannot move alone.
    """
    thresholds = problem.structure.thresholds
    if thresholds is None or not thresholds.own_steps:
        return EmptyCategories()
    counts = problem.experts.category_counts(tau)
    if counts is None:
        return EmptyCategories()
    labels, empty = counts.labels, counts.expected < _NO_RESPONSES  # (K, C)
    K, C = empty.shape
    infinite: list[int] = []
    closed: list[int] = []
    widths: list[int] = []
    for k, row in enumerate(empty):
        bottom, top = int(np.argmin(row)), int(np.argmin(row[::-1]))
        inner = range(bottom + 1, C - 1 - top)
        shut = [j for j in inner if row[j]]
        closed += [int(problem.free.extra[k, j - 1]) for j in shut]
        widths += [thresholds.place(k, j, K) for j in shut if thresholds.reports_steps(K)]
        outer = [*range(bottom if thresholds.own_location else 0), *range(C - 1 - top, C - 1)]
        infinite += [thresholds.place(k, j, K) for j in outer]
    meanings = [f"expert {k + 1} in {labels[j]!r}" for k, j in np.argwhere(empty)]
    return EmptyCategories(tuple(infinite), tuple(closed), tuple(widths), tuple(meanings))


_ZERO_SD = 1e-4  # in working coordinates, where the pooled residual standard deviation is one
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


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where a solution lies on the boundary of the parameter space.

    Attributes
    ----------
    theta : ndarray, shape (P,)
        The free vector with null directions set to exactly zero.
    dead : ndarray of bool, shape (P,)
        Free parameters of null directions of a covariance: the log-likelihood is even in them, so they are
        uncorrelated with all others, which are estimated as if the direction were known to be zero.
    blank : tuple of int
        Reported parameters without a valid standard error.
    singular : bool
        Whether a covariance of random effects is.
    responsibilities : ndarray, shape (N, K)
        At `theta`.
    held : ndarray, shape (P, h)
        Directions across which the free vector is taken as known, so that infinite thresholds stay where they are.
    meanings : tuple of str
        What the model becomes at the ends that further parameters have run into, with their names.
    empty : tuple of str
        Experts without responses in an ordered category.
    """

    theta: Array
    dead: NDArray[np.bool_]
    blank: tuple[int, ...]
    singular: bool
    responsibilities: Array
    held: Array
    meanings: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()


def find_boundary(problem: Problem, coordinates: Coordinates, theta: Array) -> Boundary:
    """Null directions of the random-effects covariances at a solution, what has run into an end, and memberships."""
    s, free = problem.structure, problem.free
    params = free_to_working(s, theta[None])
    dead = np.zeros(free.size, dtype=bool)
    factor = params.factor.copy()
    columns = s.factor_entries[1]
    singular = []
    if s.cov_re == "proportional" and s.n_random:
        factor[0], dead[free.scale[1:]] = _proportional(factor[0])
    # A multiple of one canonical factor is canonical already, and its null directions are those of all.
    for k in range(s.n_experts if s.n_random else 0):
        if s.cov_re != "proportional":
            factor[0, k] = _canonical(factor[0, k])
        null = np.diag(factor[0, k]) == 0
        if s.cov_re != "proportional" or not null.all():
            dead[free.factor[k][null[columns]]] = True
        singular.append(bool(null.any()))
    clean = working_to_free(s, replace(params, factor=factor))[0]
    of_effects = _blank(s, free_to_reported(s, coordinates, clean[None])[0], coordinates, singular)
    is_singular = bool(dead.any()) or bool(of_effects)
    tau = posterior_probabilities(subject_logliks(problem, clean))
    # What has run into an end is held at it: there the score need not vanish, and no curvature stands for an error.
    ends, empty = reached_edges(s, theta), empty_categories(problem, tau)
    dead[[*ends, *empty.closed]] = True
    further = s.reported.size - free.size  # further parameters come last, in the same order, in both vectors
    infinite, held = [s.reported.last.start + at for at in empty.infinite], np.zeros((free.size, 0))
    if infinite:
        held = free_to_reported_jacobian(s, coordinates, clean)[infinite].T
    shut = (s.reported.last.start + at for at in empty.widths)
    blank = (*of_effects, *(further + at for at in ends), *infinite, *shut)
    return Boundary(clean, dead, blank, is_singular, tau, held, tuple(ends.values()), empty.meanings)


def reached_edges(s: Structure, theta: Array) -> dict[int, str]:
    """Free parameters, shape (P,), that have run into an end of their space, and what the model becomes there."""
    found: dict[int, str] = {}
    for extra, where in s.spans:
        names = [p.name for p in extra.parameters(s.n_experts)]
        places = dict.fromkeys(s.free.extra[:, where].ravel().tolist())
        for at, name in zip(places, names, strict=True):
            for edge in extra.edges:
                if edge.reached(theta[at]):
                    found[at] = f"{name}: {edge.meaning}"
    return found


def _proportional(factor: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Multiples of one canonical factor, (K, q, q), and which of experts 2..K have none, (K - 1,).

    The largest multiple decides on null directions: that of expert 1, which the others are multiples of, may be tiny.
    """
    size = np.linalg.norm(factor, axis=(1, 2))
    top = int(size.argmax())
    none = size <= _ZERO_SD
    # Expert 1 is the unit of the multiples and the largest decides on null directions: neither can be missing.
    none[[0, top]] = False
    scaled = np.where(none, 0.0, size) / max(size[top], np.finfo(float).tiny)
    return _canonical(factor[top]) * scaled[:, None, None], none[1:]


def _canonical(T: Array) -> Array:
    """Random-effects covariance of an expert, its null directions as zero columns."""
    if (np.abs(np.diag(T)) > _ZERO_SD).all():
        return T
    # A tiny pivot is a zero of D: the tolerance is squared, since pivots are variances.
    return semidefinite_cholesky(T @ T.T, tol=_ZERO_SD**2, floor=_ZERO_SD**2)


def _blank(s: Structure, reported: Array, coordinates: Coordinates, singular: list[bool]) -> list[int]:
    """Zero standard deviations, all correlations of a singular covariance, and multiples that are none."""
    q, at, blank = s.n_random, s.reported, []
    smallest = _ZERO_SD * coordinates.scale / np.abs(np.diag(coordinates.random))
    for positions, is_singular in zip(at.random, singular, strict=False):
        blank += positions[:q][reported[positions[:q]] <= smallest].tolist()
        # Of a singular covariance some correlation is -1 or 1, or one with a zero: none has a standard error.
        blank += positions[q:].tolist() if is_singular else []
    omega = reported[at.omega]
    return blank + at.omega[~((omega > _ZERO_SD) & (omega < 1 / _ZERO_SD))].tolist()


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
    scores = None if kind == "nonrobust" else within_clusters(subject_scores(problem, at.theta), clusters)
    seen = _Seen(coordinates, layout, kind, clusters, n_units, correction, at, basis, whole, by_unit, scores)
    # 3. Tests of functions are given the smoothing parameters, limits are not.
    given = _with_penalties(problem, seen, problem.ridge)
    if problem.ridge_of_limits is None or not unconditional:
        return given
    return replace(_with_penalties(problem, seen, problem.ridge_of_limits), given=given.of_bounded)


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
        Of the units, where a sandwich is wanted.
    """

    coordinates: Coordinates
    layout: ParamLayout
    kind: CovType
    clusters: NDArray[np.int64] | None
    n_units: int
    correction: bool
    at: Boundary
    basis: "Basis"
    information: Array
    by_unit: "_Matrices | _Predictors | None"
    scores: Array | None


def _with_penalties(problem: Problem, seen: _Seen, ridge: Array | None) -> ParamCov:
    """Covariance of a fit with the penalties `ridge` of functions, and how far it lies from that of the problem."""
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
        found = ParamCov(without_parameters(matrix, known.blank), seen.kind, flags=flags, shift=shift)
        return _with_limits(found, matrix, problem, basis, at, known)
    # 2. The middle of the sandwich: scores of the units, corrected for their leverage, and those of penalties.
    if seen.by_unit is None:
        middle = Middle(seen.scores @ known.inverse.half, known.inverse.half)
    else:
        middle = _corrected(problem, seen.scores, seen.by_unit, known, basis)
    priors = _scores_of_penalty(problem, ridge, theta)
    middle = replace(middle, scores=np.vstack([middle.scores, priors @ middle.back]))
    # 3. What no unit has a score for has no standard error; what rests on units of heavy leverage a rough one.
    weights, null = known.jacobian @ middle.back, middle.null
    lost = _touched(known.jacobian, null)
    blank = sorted({*known.blank, *lost})
    word = "subjects" if seen.clusters is None else "clusters"
    if null.shape[1]:
        flags = (*known.flags, _about_rank(middle, null, [layout.names[i] for i in lost], word))
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
    found: ParamCov, whole: Array, problem: Problem, basis: "Basis", at: Boundary, known: "Identified"
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


def _scores_of_penalty(problem: Problem, ridge: Array | None, theta: Array) -> Array:
    """Scores of units that stand for priors of gate and functions in the middle of a sandwich, shape (M, P)."""
    out = np.zeros((0, theta.size)) if ridge is None else ridge
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

    @property
    def null(self) -> Array:
        """Directions of the free vector, shape (P, d), in which no unit has a score: nothing tells a variance."""
        # Fewer units than parameters leave directions without any score: a variance of zero there would be a claim.
        values, vectors = np.linalg.eigh(self.scores.T @ self.scores)
        return self.back @ vectors[:, values <= _NO_SCORES * values.max(initial=0.0)]


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
        units = leverage(self.matrices, half, further is None, further)
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
    problem: Problem, scores: Array, by_unit: "_Matrices | _Predictors", known: Identified, basis: "Basis"
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


def _about_rank(middle: Middle, null: Array, names: list[str], word: str) -> Flag:
    n, rank = len(middle.scores), middle.scores.shape[1] - null.shape[1]
    return Flag(
        "few_subjects",
        f"The scores of the {n} {word} have rank {rank} for {middle.scores.shape[1]} parameters: a sandwich of them is "
        f"not a covariance, and {', '.join(names)} have no standard errors. Use cov_type='nonrobust', which trusts the "
        "model, or 'bootstrap', or a smaller model.",
    )


@dataclass(frozen=True, slots=True)
class Basis:
    """Orthonormal directions of the free vector.

    Attributes
    ----------
    kept : ndarray, shape (P, r)
        Directions in which the parameters are estimated.
    infinite : ndarray, shape (P, s)
        Directions of coefficients that are infinite.
    """

    kept: Array
    infinite: Array


def informative_basis(problem: Problem, at: Boundary) -> Basis:
    """The free vector without null directions of covariances and infinite directions of gate and experts."""
    directions = np.eye(at.theta.size)
    gate = gate_directions(problem, at.theta)
    directions[problem.free.gate, problem.free.gate] = gate.vectors
    infinite = np.zeros(at.theta.size, dtype=bool)
    infinite[problem.free.gate] = gate.infinite
    experts = expert_directions(problem, at.theta, at.responsibilities)
    if experts is not None:
        directions[np.ix_(experts.where, experts.where)] = experts.vectors
        infinite[experts.where] = experts.infinite
    kept = directions[:, ~(infinite | at.dead)]
    if at.held.shape[1]:
        kept = kept @ null_space(at.held.T @ kept)
    return Basis(kept, directions[:, infinite])


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
