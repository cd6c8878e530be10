"""Whether responses of one kind leave the likelihood a maximum at all."""

from dataclasses import dataclass

import numpy as np

from mixmoe._typing import Array
from mixmoe.errors import DesignError

COUNTS = ("poisson", "negbinomial", "zipoisson", "zinegbinomial")
_EXACT = 1e-10  # of the size of what is explained: residuals below this are rounding


@dataclass(frozen=True, slots=True)
class Observed:
    """A response as the likelihood sees it, all of shape (n,).

    Attributes
    ----------
    name : str
        Of its column.
    y, trials, offset : ndarray
    """

    name: str
    y: Array
    trials: Array
    offset: Array


def check_varies(name: str, y: Array) -> None:
    """Refuse numbers, shape (n,), that a constant reproduces, for models that have one.

    Raises
    ------
    DesignError
    """
    check_maximum("gaussian", Observed(name, y, np.ones(y.size), np.zeros(y.size)), np.ones((y.size, 1)))


def check_maximum(family: str, observed: Observed, X: Array) -> None:
    """Refuse responses for which one expert's likelihood has no maximum, whatever its covariates.

    A response that does not vary is no such reason by itself: one success of varying trials, or one event in varying
    exposures, is as good as any.

    Parameters
    ----------
    family : str
    observed : Observed
    X : ndarray, shape (n, p)
        Columns of the expert.

    Raises
    ------
    DesignError

    Notes
    -----
    Where all responses lie at one end of their range (no successes, no failures, no events), the log-likelihood rises
    along every direction in which all predictors move there; with a constant among the columns there is one (Albert &
    Anderson 1984). Responses with a free dispersion (normal, gamma, beta) must not be fitted exactly, on the scale of
    the link: their density then has no bound.

    References
    ----------
    Albert & Anderson (1984), Biometrika 71, 1-10.
    """
    what, y = f"the response {observed.name!r}", observed.y
    if not y.size:
        return
    level = _fitted_exactly(X, np.ones(y.size))
    if level and family in ("binomial", *COUNTS) and (y == 0).all():
        kind = "successes" if family == "binomial" else "events"
        raise DesignError(
            f"{what} is 0 in all {y.size} rows; it must vary: without any {kind} the likelihood rises without end as "
            "the intercept falls"
        )
    if level and family == "binomial" and (y == observed.trials).all():
        raise DesignError(
            f"{what} is the number of trials in all {y.size} rows; it must vary: without any failures the likelihood "
            "rises without end with the intercept"
        )
    constant = (y == y[0]).all() and (observed.offset == observed.offset[0]).all()
    if family == "gaussian":
        if level and constant:  # other exact fits are found where the residual deviation is computed
            raise DesignError(f"{what} is {y[0]:g} in all {y.size} rows; it must vary")
        return
    if family not in ("gamma", "beta"):
        return
    linked = np.log(y) - (np.log1p(-y) if family == "beta" else 0.0)
    if _fitted_exactly(X, linked - observed.offset):
        raise DesignError(
            f"the expert columns reproduce {what} exactly in all {y.size} rows; it must vary around them: without "
            "residuals the likelihood has no bound, so remove covariates that are functions of the response"
        )


def _fitted_exactly(X: Array, target: Array) -> bool:
    """Whether the columns X, shape (n, p), reproduce a target, shape (n,)."""
    size = np.sqrt((X * X).sum(axis=0))
    unit = X / np.where(size > 0.0, size, 1.0)
    left = target - unit @ np.linalg.lstsq(unit, target, rcond=None)[0]
    return bool(np.abs(left).max() <= _EXACT * np.abs(target).max())
