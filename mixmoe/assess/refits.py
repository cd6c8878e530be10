"""What tests of the number of experts need from a family: estimates on other responses and resamples."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixmoe.em import EMFit

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimated:
    """A maximum found for some number of experts.

    Attributes
    ----------
    experts : int
    values : ndarray
        Estimates, as the family stores them.
    loglik : float
    degenerate : bool
        Whether every maximum that was found is spurious.
    """

    experts: int
    values: Array
    loglik: float = np.nan
    degenerate: bool = False


@dataclass(frozen=True, slots=True)
class Curvature:
    """Derivatives of a log-likelihood at its maximum.

    Attributes
    ----------
    scores : ndarray, shape (N, P)
        Of each independent unit.
    information : ndarray, shape (P, P)
        Minus the second derivatives.
    """

    scores: Array
    information: Array


class Refits(Protocol):
    """A model that can be estimated again."""

    def estimated(self, fit: EMFit) -> Estimated:
        """The present fit."""
        ...

    def estimate(
        self,
        experts: int,
        n_starts: int,
        rng: np.random.Generator,
        start: Estimated | None = None,
        response: Array | None = None,
    ) -> Estimated:
        """The highest maximum from random starts and from `start`, which has as many experts or one fewer.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C.
        """
        ...

    def drawn(self, estimated: Estimated, rng: np.random.Generator) -> Array:
        """A response drawn from the model, shape (n,) in the order of the design."""
        ...

    def reclassified(self, fit: EMFit, rng: np.random.Generator) -> NDArray[np.intp]:
        """Most probable expert of every unit after a refit to a resample of the units; empty on failure."""
        ...


def refuse_tests(model: object) -> str | None:
    """Why a model cannot be tested by refits, None if it can."""
    if not hasattr(model, "estimate"):
        return f"{type(model).__name__} has no likelihood-ratio test of the number of experts; compare held-out rows"
    return model.refuse_tests() if hasattr(model, "refuse_tests") else None
