"""Covariance of the estimates of a MEMoE: observed information, sandwich, boundary and unidentified directions."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space

from mixmoe.errors import DegeneracyWarning, warn
from mixmoe.gate import gate_information, gate_log_probabilities, penalty_meat
from mixmoe.inference.covariance import CovType, ParamCov, delta_cov, meat, sandwich, without_parameters
from mixmoe.kernels.linalg import semidefinite_cholesky
from mixmoe.mixed.coordinates import Coordinates
from mixmoe.mixed.extras import spans
from mixmoe.mixed.likelihood import Problem, observed_information, subject_scores
from mixmoe.mixed.natural import n_coefficients, n_covariances, positions, to_natural
from mixmoe.mixed.separation import empty_categories, expert_directions
from mixmoe.mixed.structure import FreeVector, Structure, contract, expand

Array = NDArray[np.float64]

_ZERO_SD = 1e-4  # in working coordinates, where the pooled residual standard deviation is one
_NO_GATE_INFORMATION = 1e-6  # per subject, in a direction of orthonormal gate columns
_SINGULAR = 1e-9  # smallest eigenvalue of the scaled information that counts as information
_COMPLEX_STEP = 1e-30


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
    held: Array
    meanings: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()


def find_boundary(problem: Problem, coordinates: Coordinates, theta: Array) -> Boundary:
    """Null directions of the random-effects covariances at a solution."""
    s, free = problem.structure, problem.free
    params = expand(s, free, theta[None])
    dead = np.zeros(free.size, dtype=bool)
    factor = params.factor.copy()
    columns = s.factor_entries[1]
    singular = []
    if s.cov_re == "proportional" and s.n_random:
        factor[0], dead[free.scale[1:]] = _proportional(factor[0])
    for k in range(s.n_experts if s.n_random else 0):
        if s.cov_re != "proportional":
            factor[0, k] = _canonical(factor[0, k])
        null = np.diag(factor[0, k]) == 0
        if s.cov_re != "proportional" or not null.all():
            dead[free.factor[k][null[columns]]] = True
        singular.append(bool(null.any()))
    clean = contract(s, replace(params, factor=factor))[0]
    natural = to_natural(s, coordinates.to_user(expand(s, free, clean[None])))[0]
    of_effects = _blank(s, natural, coordinates, singular)
    is_singular = bool(dead.any()) or bool(of_effects)
    ends, empty = reached_edges(s, free, theta), empty_categories(problem, theta)
    dead[[*ends, *empty.closed]] = True
    first = natural.size - free.size  # further parameters come last, in the same order, in both vectors
    n_cuts = 0 if s.thresholds is None else len(s.thresholds.parameters(s.n_experts))
    infinite = [natural.size - n_cuts + at for at in empty.infinite]
    held = natural_jacobian(problem, coordinates, clean)[infinite].T if infinite else np.zeros((free.size, 0))
    blank = (*of_effects, *(first + at for at in ends), *infinite)
    return Boundary(clean, dead, blank, is_singular, held, tuple(ends.values()), empty.meanings)


def reached_edges(s: Structure, free: FreeVector, theta: Array) -> dict[int, str]:
    """Free parameters, shape (P,), that have run into an end of their space, and what the model becomes there."""
    found: dict[int, str] = {}
    for extra, where in spans(s.extras):
        names = [p.name for p in extra.parameters(s.n_experts)]
        places = dict.fromkeys(free.extra[:, where].ravel().tolist())
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
    none[[0, top]] = False
    scaled = np.where(none, 0.0, size) / max(size[top], np.finfo(float).tiny)
    return _canonical(factor[top]) * scaled[:, None, None], none[1:]


def _canonical(T: Array) -> Array:
    """The same covariance with null directions as zero columns."""
    if (np.abs(np.diag(T)) > _ZERO_SD).all():
        return T
    return semidefinite_cholesky(T @ T.T, tol=_ZERO_SD**2, floor=_ZERO_SD**2)


def _blank(s: Structure, natural: Array, coordinates: Coordinates, singular: list[bool]) -> tuple[int, ...]:
    """Zero standard deviations, and all correlations of a singular covariance."""
    q = s.n_random
    n_pairs = q * (q - 1) // 2 if s.correlated else 0
    at = n_coefficients(s)
    blank: list[int] = []
    for k in range(n_covariances(s)):
        sd = natural[at : at + q]
        smallest = _ZERO_SD * coordinates.scale / np.abs(np.diag(coordinates.random))
        blank += [at + int(j) for j in np.flatnonzero(sd <= smallest)]
        if singular[k]:
            blank += range(at + q, at + q + n_pairs)
        at += q + n_pairs
    if s.cov_re == "proportional" and q:
        blank += [at + j for j in range(s.n_experts - 1) if not _ZERO_SD < natural[at + j] < 1 / _ZERO_SD]
    return tuple(blank)


def natural_jacobian(problem: Problem, coordinates: Coordinates, theta: Array) -> Array:
    """Derivatives of the reported parameters in the free ones, shape (P, P), exact by complex steps."""
    moved = theta + 1j * _COMPLEX_STEP * np.eye(theta.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        natural = to_natural(problem.structure, coordinates.to_user(expand(problem.structure, problem.free, moved)))
    return natural.imag.T / _COMPLEX_STEP


def covariance(
    problem: Problem,
    coordinates: Coordinates,
    theta: Array,
    kind: CovType,
    clusters: NDArray[np.int64] | None = None,
    correction: bool = False,
) -> ParamCov:
    """Covariance of the reported parameters at a solution.

    Parameters
    ----------
    problem : Problem
    coordinates : Coordinates
    theta : ndarray, shape (P,)
        Maximiser in working coordinates.
    kind : {"nonrobust", "robust", "cluster"}
    clusters : ndarray of int, shape (N,), optional
        Cluster of each subject, for ``"cluster"``.
    correction : bool
        Small-sample factor G / (G - 1).

    Returns
    -------
    ParamCov
    """
    at = find_boundary(problem, coordinates, theta)
    basis = informative_basis(problem, at)
    inverse = invert_information(observed_information(problem, at.theta), basis)
    matrix = inverse.matrix
    if kind != "nonrobust":
        middle = meat(subject_scores(problem, at.theta), clusters, correction)
        matrix = sandwich(matrix, middle + _meat_of_penalty(problem, at.theta))
    jacobian = np.nan_to_num(natural_jacobian(problem, coordinates, at.theta))
    blank = sorted({*at.blank, *_unknown(jacobian, inverse.null)})
    note = "" if clusters is None else _about_clusters(int(clusters.max()) + 1, theta.size)
    if correction:
        note = "; ".join(filter(None, [note, "small-sample factor G / (G - 1)"]))
    whole = delta_cov(jacobian, matrix)
    of_gate = basis.infinite[problem.free.gate].any(axis=0)
    other = np.hstack([inverse.null[:, : -basis.infinite.shape[1] or None], basis.infinite[:, ~of_gate]])
    found = ParamCov(without_parameters(whole, blank), kind, note)
    if not of_gate.any():
        return found
    finite = without_parameters(whole, sorted({*at.blank, *_unknown(jacobian, other)}))
    return replace(found, bounded=finite, infinite=jacobian @ basis.infinite[:, of_gate])


def resampled_covariance(problem: Problem, coordinates: Coordinates, theta: Array, draws: Array) -> ParamCov:
    """Covariance of reported parameters, shape (R, P), of R resamples around a solution.

    Where gate coefficients are infinite, how far an ascent went says nothing: what resamples move along the directions
    to infinity is left out of what functions of the probabilities have their standard errors from.
    """
    at = find_boundary(problem, coordinates, theta)
    gate, whole = gate_directions(problem, at.theta), np.atleast_2d(np.cov(draws, rowvar=False))
    where = positions(problem.structure).gate.ravel()
    unit = np.linalg.inv(coordinates.gate)  # a change of basis is wanted, not a solution
    J = problem.structure.n_experts - 1
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


def _unknown(jacobian: Array, directions: Array) -> list[int]:
    """Reported parameters that change along some directions, shape (P, d), by their derivatives, shape (P, P)."""
    size = np.abs(jacobian).max(axis=1, keepdims=True, initial=0)
    moved = np.abs(jacobian @ directions) > 1e-6 * (1e-300 + size)
    return np.flatnonzero(moved.any(axis=1)).tolist()


def _meat_of_penalty(problem: Problem, theta: Array) -> Array:
    """What the prior of the gate adds to the middle of a sandwich, shape (P, P)."""
    out = np.zeros((theta.size, theta.size))
    if problem.penalty is not None:
        gamma = expand(problem.structure, problem.free, theta[None]).gamma
        out[problem.free.gate, problem.free.gate] = penalty_meat(problem.penalty, problem.W, gamma)
    return out


def _about_clusters(n_clusters: int, n_params: int) -> str:
    note = f"{n_clusters} clusters"
    if n_clusters <= n_params:
        note += f", not more than the {n_params} parameters: these standard errors are too small"
        remedy = "use a smaller model or more clusters, or cov_type='robust' if subjects are independent"
        warn(f"There are only {note}; {remedy}.", DegeneracyWarning)
    return note


@dataclass(frozen=True, slots=True)
class GateDirections:
    """Directions of the gate coefficients in working coordinates.

    Attributes
    ----------
    vectors : ndarray, shape (d, d)
        Orthonormal, one per column.
    infinite : ndarray of bool, shape (d,)
        Along these the gate separates the experts perfectly: the maximum lies at infinity.
    """

    vectors: Array
    infinite: NDArray[np.bool_]


def gate_directions(problem: Problem, theta: Array) -> GateDirections:
    """Eigenvectors of the information of the gate, were the memberships known."""
    gamma = expand(problem.structure, problem.free, theta[None]).gamma
    weights = np.ones(problem.n_subjects)
    information = gate_information(problem.W, gate_log_probabilities(problem.W, gamma), weights)[0]
    values, vectors = np.linalg.eigh(information / problem.n_subjects)
    if problem.penalty is not None:  # the prior keeps all coefficients finite
        return GateDirections(vectors, np.zeros(values.size, dtype=bool))
    return GateDirections(vectors, values < _NO_GATE_INFORMATION)


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
    experts = expert_directions(problem, at.theta)
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
    matrix : ndarray, shape (P, P)
        Zero outside the informative directions.
    null : ndarray, shape (P, d)
        Directions without information.
    """

    matrix: Array
    null: Array


def invert_information(information: Array, basis: Basis) -> InverseInformation:
    """Inverse within the informative directions; those that turn out to carry no information are set apart."""
    A = basis.kept.T @ information @ basis.kept
    scale = np.sqrt(np.maximum(np.abs(np.diag(A)), np.finfo(float).tiny))
    values, vectors = np.linalg.eigh(A / np.outer(scale, scale))
    good = values > _SINGULAR
    half = basis.kept @ (vectors[:, good] / np.sqrt(values[good]) / scale[:, None])
    flat = basis.kept @ (vectors[:, ~good] / scale[:, None])
    flat /= np.maximum(np.linalg.norm(flat, axis=0), np.finfo(float).tiny)
    return InverseInformation(half @ half.T, np.hstack([flat, basis.infinite]))
