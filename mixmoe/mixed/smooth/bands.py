"""Values of penalised functions with pointwise limits and simultaneous bands.

Given smoothing parameters the coefficients have, a posteriori, the covariance of the fit (Nychka 1988; Marra & Wood
2012), from which follow standard errors and, for the whole range, the distribution of the largest deviation.

References
----------
Marra & Wood (2012), Scandinavian Journal of Statistics 39, 53-74. Ruppert, Wand & Carroll (2003), Semiparametric
Regression, section 6.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri

from mixmoe._typing import Array
from mixmoe.inference.simultaneous import multiplier_critical
from mixmoe.mixed.smooth.functions import Function, Index

POINTS = 101
SUBJECTS = ("coefficients", "differences", "experts", "mean")
AT_COVARIATES = ("experts", "mean")
LABELS = ("coefficient", "block", "expert", "term")
VALUES = ("estimate", "std_error", "conf_low", "conf_high", "band_low", "band_high")  # beside labels and index
_STEP = 1e-5  # of derivatives, share of the range


def symmetric(values: Array, half: Array) -> tuple[Array, Array]:
    """Limits at the same distance on both sides."""
    return values - half, values + half


@dataclass(frozen=True, slots=True)
class Course:
    """A function on a grid, and how it moves with the reported parameters.

    Attributes
    ----------
    coefficient, block, term : str
    expert : int or None
    index : str
    at : ndarray, shape (G,)
    values : ndarray, shape (G,)
    slopes : ndarray, shape (G, c)
        Derivatives of the values in some of the reported parameters.
    where : ndarray of int, shape (c,)
        Those parameters.
    limits : callable
        Limits from values and half widths; the scale of a link keeps those of an expected response within its range.
    """

    coefficient: str
    block: str
    term: str
    expert: int | None
    index: str
    at: Array
    values: Array
    slopes: Array
    where: Index
    limits: Callable[[Array, Array], tuple[Array, Array]] = symmetric


@dataclass(frozen=True, slots=True)
class Band:
    """Values of a function with limits, each shape (G,)."""

    estimate: Array
    std_error: Array
    conf_low: Array
    conf_high: Array
    band_low: Array
    band_high: Array


def band(f: Course, cov: Array, alpha: float, draws: int, rng: np.random.Generator) -> Band:
    """Limits of one function from the covariance of the reported parameters, shape (P, P)."""
    covariance = f.slopes @ cov[np.ix_(f.where, f.where)] @ f.slopes.T
    error = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    # Studentised deviations are the same on every scale, so that one critical value serves all kinds of limits.
    critical = multiplier_critical(covariance, alpha, draws, rng)
    pointwise = f.limits(f.values, float(ndtri(1 - alpha / 2)) * error)
    return Band(f.values, error, *pointwise, *f.limits(f.values, critical * error))


def grid_of(f: Function, points: int = POINTS) -> Array:
    """Equally spaced index values over the range of a function, shape (G,)."""
    spline = f.columns.term.spline
    return np.linspace(spline.low, spline.high, points)


def coefficient(f: Function, params: Array, derivative: int = 0) -> Course:
    """The function itself, or its derivative."""
    u = grid_of(f)
    rows = _rows(f, u, derivative)
    return Course(f.name, _block(f), f.columns.name, f.expert, f.index, u, rows @ params[f.where], rows, f.where)


def difference(first: Function, second: Function, params: Array, derivative: int = 0) -> Course:
    """The function of one expert minus that of another, or the derivative of this."""
    u = grid_of(first)
    rows = np.hstack([_rows(second, u, derivative), -_rows(first, u, derivative)])
    where = np.concatenate([second.where, first.where])
    name = f"{second.name} - {first.name}"
    return Course(name, "difference", first.columns.name, None, first.index, u, rows @ params[where], rows, where)


def _rows(f: Function, u: Array, derivative: int) -> Array:
    """Columns of a function, or their derivatives, which are one-sided at the ends, shape (G, c)."""
    if not derivative:
        return f.basis(u)
    spline = f.columns.term.spline
    h = _STEP * (spline.high - spline.low)
    left, right = np.maximum(u - h, spline.low), np.minimum(u + h, spline.high)
    return np.asarray((f.basis(right) - f.basis(left)) / (right - left)[:, None])


def pairs(functions: Sequence[Function]) -> list[tuple[Function, Function]]:
    """The functions of one term in two experts."""
    own = [f for f in functions if f.columns.section == "expert" and f.expert is not None]
    return [(a, b) for i, a in enumerate(own) for b in own[i + 1 :] if a.columns.name == b.columns.name]


def _block(f: Function) -> str:
    return "gate" if f.columns.section == "gate" else "common" if f.expert is None else "expert"


def band_frame(
    functions: Sequence[Course], cov: Array, alpha: float, draws: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Bands of several functions, tidy: a column per index, empty in the rows of functions of another."""
    frames = []
    for f in functions:
        found = band(f, cov, alpha, draws, rng)
        frames.append(
            pd.DataFrame(
                {
                    "coefficient": f.coefficient,
                    "block": f.block,
                    "expert": pd.array([f.expert] * f.at.size, dtype="Int64"),
                    "term": f.term,
                    f.index: f.at,
                    "estimate": found.estimate,
                    "std_error": found.std_error,
                    "conf_low": found.conf_low,
                    "conf_high": found.conf_high,
                    "band_low": found.band_low,
                    "band_high": found.band_high,
                }
            )
        )
    whole = pd.concat(frames, ignore_index=True)
    index = list(dict.fromkeys(f.index for f in functions))
    return whole[[*LABELS, *index, *VALUES]]
