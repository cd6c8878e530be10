"""Offsets that go with another family, or that are not the logarithm they ought to be."""

import numpy as np
from scipy.special import logsumexp

from mixmoe._typing import Array
from mixmoe.design.design import Design, offset_of
from mixmoe.errors import AssumptionWarning, warn
from mixmoe.responses.distribution import COUNTS

_CLEARLY = 10.0  # twice the log-likelihood, in units of the dispersion, by which the logarithm must be better
_FEWEST = 3  # distinct responses from which whole numbers may be counts, not a yes and a no


def warn_of_offset(design: Design, family: str) -> None:
    """Tell of counts whose offset is subtracted from them, and of an offset of counts that looks like the exposure.

    Parameters
    ----------
    design : Design
        With its response.
    family : str
        Of the responses.

    Warns
    -----
    AssumptionWarning

    Notes
    -----
    Whether an offset o > 0 is the exposure itself is judged by two Poisson models with one free parameter each, for
    means exp(a + o) and exp(a) o: the difference of their deviances is divided by the dispersion that Pearson's
    statistic of the better one shows (McCullagh & Nelder, 1989, section 6.2.4).
    """
    if "offset" not in design.aux:
        return
    y, offset = np.asarray(design.response, dtype=float), np.asarray(offset_of(design))
    name, column = str(design.names.response).strip("`"), design.recipe.aux["offset"]
    if family == "gaussian" and (y >= 0).all() and (y == np.floor(y)).all() and len(np.unique(y)) >= _FEWEST:
        warn(
            f"the responses {name!r} are whole numbers 0, 1, 2 ..., and family='gaussian' takes offset={column!r} off "
            "them as they are; counts with the logarithm of their exposure as offset need family='negbinomial' or "
            "'poisson'",
            AssumptionWarning,
        )
    if family in COUNTS and (offset > 0).all() and _deviance_saved(y, offset) > _CLEARLY:
        warn(
            f"the counts {name!r} are proportional to the offset {column!r} rather than to exp({column}): an offset "
            "of counts is the logarithm of the exposure (size factor, person-years); if this is the exposure itself, "
            "pass np.log of it",
            AssumptionWarning,
        )


def _deviance_saved(y: Array, offset: Array) -> float:
    """What means proportional to a positive offset save of the deviance of means proportional to its exponential."""
    as_it_is, logged = (o - logsumexp(o) for o in (offset, np.log(offset)))  # logarithms of shares of the total
    mean = max(y.sum(), 1.0) * np.exp(logged)
    dispersion = max(float(((y - mean) ** 2 / mean).mean()), 1.0)
    # Both means have the sum of the counts, so that only these terms of the deviances differ.
    return 2.0 * float(y @ (logged - as_it_is)) / dispersion
