"""Records of a fit that every family returns."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Flag:
    """Something about a fit that a reader must know.

    Attributes
    ----------
    code : str
        ``"boundary"``, ``"separated_gate"``, ``"degenerate"``, ``"not_converged"``, ``"not_replicated"``, ``"interrupted"`` ...
    message : str
        One sentence with the value and what to do.
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Starts:
    """What the starting values led to.

    Attributes
    ----------
    n_starts : int
        Starts tried.
    logliks : ndarray, shape (n_finished,)
        Log-likelihoods of the starts that were run to convergence, best first.
    n_replicated : int
        How many of these reached the best value.
    """

    n_starts: int
    logliks: Array
    n_replicated: int


@dataclass(frozen=True, slots=True)
class EMFit:
    """Estimate of a mixture.

    Attributes
    ----------
    params : ndarray, shape (P,)
        Estimates on the reported scale, in the order of the layout.
    loglik : float
        Observed-data log-likelihood at `params`.
    trace : ndarray, shape (n_iter,)
        Log-likelihood after each iteration of the start that won.
    n_iter, n_evaluations : int
        Iterations and likelihood evaluations of the start that won.
    converged : bool
        Whether the score is zero to the tolerance.
    responsibilities : ndarray, shape (N, K)
        Posterior expert probabilities per independent unit.
    starts : Starts
    flags : tuple of Flag
    """

    params: Array
    loglik: float
    trace: Array
    n_iter: int
    n_evaluations: int
    converged: bool
    responsibilities: Array
    starts: Starts
    flags: tuple[Flag, ...] = ()
