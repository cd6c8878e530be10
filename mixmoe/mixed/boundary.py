"""Where a solution of a MEMoE lies on the boundary of the parameter space; information in the other directions."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.observed import Problem, subject_logliks
from mixmoe.mixed.parameters import (
    Coordinates,
    Structure,
    free_to_reported,
    free_to_reported_jacobian,
    free_to_working,
    working_to_free,
)
from mixmoe.mixture.gate import GateDirections, posterior_probabilities, separated_directions
from mixmoe.numerics.linalg import semidefinite_cholesky

_NO_RESPONSES = 1e-3  # expected number in a category: an ascent to infinity stops at about this many
_NO_INFORMATION = 1e-5  # per row of the expert, in a direction of orthonormal columns; at p = 0.00001 or 0.99999
_SINGULAR = 1e-9  # smallest eigenvalue of the scaled information that counts as information
_FLAT = 1e-4  # information of all subjects about a parameter in working coordinates: a standard error of 100 units
_ZERO_SD = 1e-4  # in working coordinates, where the pooled residual standard deviation is one


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
    # No standard error have zero deviations, all correlations of a singular covariance (some is -1 or 1, or one with a
    # zero), and multiples that are none.
    reported, q, of_effects = free_to_reported(s, coordinates, clean[None])[0], s.n_random, list[int]()
    smallest = _ZERO_SD * coordinates.scale / np.abs(np.diag(coordinates.random))
    for positions, is_singular in zip(s.reported.random, singular, strict=False):
        of_effects += positions[:q][reported[positions[:q]] <= smallest].tolist()
        of_effects += positions[q:].tolist() if is_singular else []
    omega = reported[s.reported.omega]
    of_effects += s.reported.omega[~((omega > _ZERO_SD) & (omega < 1 / _ZERO_SD))].tolist()
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
