"""End points of ascents: which search each belongs to, how high it lies, and which are maxima of the likelihood."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.observed import Problem, evaluate, observed_information
from mixmoe.mixed.likelihood.quadrature import finer_logliks
from mixmoe.mixed.parameters import Params, Structure, free_to_working
from mixmoe.mixture.estimate import SAME
from mixmoe.mixture.gate import gate_log_probabilities
from mixmoe.numerics.optimise import ROUNDING, Climb, Control

_SIGMA_COLLAPSED = 1e-3  # fraction of the one-expert residual standard deviation
_SIGMA_OF_FEW = 0.1  # fraction of the largest, for an expert with at most this many subjects more than coefficients:
_FEW = 2


def collapsed(problem: Problem, sigma_one: float, theta: Array) -> NDArray[np.bool_]:
    """Which of the points, shape (S, P), are spurious maxima.

    The residual deviation of an expert has vanished beside that of the one-expert model, or it is far below that of
    another expert while hardly more subjects than coefficients belong to it.
    """
    params = free_to_working(problem.structure, theta)
    noise = residual_deviations(problem.structure, params)
    largest = noise.max(axis=1, keepdims=True)
    out = np.asarray((noise < _SIGMA_COLLAPSED * sigma_one).any(axis=1))
    # Subjects are counted where it may matter, and for one point, (K, N), at a time.
    for i in np.flatnonzero((noise < _SIGMA_OF_FEW * largest).any(axis=1) & ~out):
        subjects = np.exp(gate_log_probabilities(problem.W, params.gamma[[i]]))[0].sum(axis=1)
        out[i] = nearly_exact(problem.structure, noise[i], largest[i], subjects).any()
    return out


def nearly_exact(s: Structure, noise: Array, largest: Array, subjects: Array) -> NDArray[np.bool_]:
    """Whether experts with these residual deviations and numbers of subjects fit a few of them nearly exactly."""
    few = subjects <= (~s.common).sum() + _FEW
    return np.asarray(few & (noise < _SIGMA_OF_FEW * largest))


def residual_deviations(s: Structure, params: Params) -> Array:
    """Residual deviations, or what stands for them where responses have a precision, shape (S, K); else ones."""
    for extra, where in s.spans:
        if extra.precision:
            return np.asarray(np.exp(-0.5 * params.extra[:, :, where.start]))
    return params.sigma


_FINISHED = 5  # candidates that are run to full convergence, on all subjects
_COMPARED = 10  # end points whose likelihood is compared by a finer integral
_ARTEFACT_MARGIN = 100.0  # log-likelihood by which a maximum of the approximation alone may lie above the true one
_OVERSTATED = 0.1  # log-likelihood by which an approximation is too high where a maximum may be of its making


@dataclass(frozen=True, slots=True)
class Ends:
    """End points of a search, before they are run to convergence.

    Attributes
    ----------
    climb : Climb
    rank : ndarray, shape (S,)
        Log-likelihoods, minus infinity for a collapsed expert.
    returned : ndarray of bool, shape (S,)
        Moves that fell back to the point that they left, which says nothing about other ways to it.
    search : ndarray of int, shape (S,)
        Which of the independent searches each belongs to.
    """

    climb: Climb
    rank: Array
    returned: NDArray[np.bool_]
    search: NDArray[np.intp]

    @property
    def best(self) -> int:
        """Place of the best; if all have collapsed, of the highest."""
        return int(np.argmax(or_any(self.rank, self.climb.loglik)))

    @property
    def summits(self) -> Array:
        """The highest log-likelihood of each search, best first."""
        each = [self.rank[self.search == i].max() for i in np.unique(self.search)]
        return np.sort(np.array(each))[::-1]

    @property
    def agree(self) -> bool:
        """Whether two searches reached the best."""
        return bool((self.summits >= self.rank.max() - SAME).sum() > 1)


def candidates(logliks: Array, margin: float, n: int = _FINISHED) -> NDArray[np.intp]:
    """Positions, best first, of up to `n` values within `margin` of the best that differ by more than `SAME`."""
    order = np.argsort(-logliks, kind="stable")
    apart = np.ones(order.size, dtype=bool)
    with np.errstate(invalid="ignore"):  # two collapsed solutions, both of -inf, are not apart
        apart[1:] = -np.diff(logliks[order]) > SAME
        apart &= logliks[order] >= logliks[order[0]] - margin
    return order[apart][:n]


def one_search(found: Climb, rank: Array) -> Ends:
    """End points of one search."""
    return Ends(found, rank, np.zeros(rank.size, dtype=bool), np.zeros(rank.size, dtype=np.intp))


def join(a: Ends, b: Ends) -> Ends:
    """Both sets of end points as one."""
    x, y = a.climb, b.climb
    both = Climb(
        np.vstack([x.theta, y.theta]),
        np.append(x.loglik, y.loglik),
        np.vstack([x.score, y.score]),
        np.append(x.n_iter, y.n_iter),
        np.append(x.n_evaluations, y.n_evaluations),
        np.append(x.converged, y.converged),
        x.traces + y.traces,
        x.interrupted or y.interrupted,
    )
    returned, search = np.append(a.returned, b.returned), np.append(a.search, b.search)
    return Ends(both, np.append(a.rank, b.rank), returned, search)


def or_any(rank: Array, loglik: Array) -> Array:
    """Log-likelihoods of solutions that have not collapsed, or of all where all have."""
    return rank if np.isfinite(rank).any() else loglik


def without_artefacts(problem: Problem, theta: Array, rank: Array) -> Array:
    """`rank` of points, shape (S, P), with those put last that lie above the best of all by a finer integral.

    With rare events Laplace's method has maxima at huge standard deviations that the likelihood does not have, and they
    are often the highest. The finer integral is not maximised: it only decides which maximum to take. What lies higher
    because the approximation is too low at the best of all stays: it is a maximum, and no nested fit may lie above.
    """
    at = candidates(rank, _ARTEFACT_MARGIN, _COMPARED)
    fine = finer_logliks(problem, theta[at]) if at.size > 1 else None
    if fine is None:
        return rank
    real = (rank[at] - fine <= _OVERSTATED) | (fine == fine.max())
    return np.where(rank > rank[at][real].max() + SAME, -np.inf, rank)


def is_stationary(score: Array, problem: Problem, control: Control) -> bool:
    """Whether the score is zero to the tolerance, per subject."""
    return bool(np.abs(score).max(initial=0.0) <= 10 * control.tol * problem.n_subjects)


def newton_polish(problem: Problem, theta: Array, n_steps: int = 2) -> Array:
    """`theta` after Newton steps with the exact information, each kept only if it does not lower the log-likelihood.

    Where a step gains less than the log-likelihood's own rounding, the score decides.
    """
    here = evaluate(problem, theta[None])
    for _ in range(n_steps):
        information = observed_information(problem, theta)
        values, vectors = np.linalg.eigh(information)
        usable = values > 1e-8 * values.max()
        step = vectors[:, usable] @ ((vectors[:, usable].T @ here.score[0]) / values[usable])
        with np.errstate(all="ignore"):
            there = evaluate(problem, (theta + step)[None])
        gain = there.loglik[0] - here.loglik[0]
        flatter = np.abs(there.score[0]).max() < np.abs(here.score[0]).max()
        if not (gain >= 0 or (flatter and gain >= -ROUNDING * abs(here.loglik[0]))):
            break
        theta, here = theta + step, there
    return theta
