"""End points of ascents: which search each belongs to, how high it lies, and which are maxima of the likelihood."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.observed import Problem
from mixmoe.mixed.likelihood.quadrature import finer_logliks
from mixmoe.mixture.estimate import SAME
from mixmoe.numerics.optimise import Climb

_FINISHED = 5  # candidates that are run to full convergence, on all subjects
_COMPARED = 10  # end points whose likelihood is compared by a finer integral
_ARTEFACT_MARGIN = 100.0  # log-likelihood by which a maximum of the approximation alone may lie above the true one
_TIE = 0.5  # log-likelihood by a finer integral up to which maxima are ranked by the likelihood itself


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
    """`rank` of points, shape (S, P), with those put last that a finer integral finds below the best of all.

    With rare events Laplace's method has maxima at huge standard deviations that the likelihood does not have, and they
    are often the highest. The finer integral is not maximised: it only decides which maximum to take, and where two are
    equals but for the error of the approximation, the likelihood that is reported does.
    """
    at = candidates(rank, _ARTEFACT_MARGIN, _COMPARED)
    fine = finer_logliks(problem, theta[at]) if at.size > 1 else None
    if fine is None:
        return rank
    best = rank[at][fine >= fine.max() - _TIE].max()
    return np.where(rank > best + SAME, -np.inf, rank)
