"""Values of penalised functions with pointwise limits and simultaneous bands; their tables and curves.

Given smoothing parameters the coefficients have, a posteriori, the covariance of the fit (Nychka 1988; Marra & Wood
2012), from which follow standard errors and, for the whole range, the distribution of the largest deviation. Limits lie
around a fit that is smoothed less where smoothing parameters are estimated, see `marginal.undersmoothed`.

References
----------
Marra & Wood (2012), Scandinavian Journal of Statistics 39, 53-74. Ruppert, Wand & Carroll (2003), Semiparametric
Regression, section 6.5.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri

from mixmoe._typing import Array, IntArray
from mixmoe.inference.uncertainty import multiplier_critical
from mixmoe.mixed.smooth.fitting import Smoothing
from mixmoe.mixed.smooth.functions import Function
from mixmoe.output.records import Cell, Curve, Table, told_apart, value_format

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
        Limits from centres and half widths; the scale of a link keeps those of an expected response within its range.
    """

    coefficient: str
    block: str
    term: str
    expert: int | None
    index: str
    at: Array
    values: Array
    slopes: Array
    where: IntArray
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


@dataclass(frozen=True, slots=True)
class Around:
    """What limits are from.

    Attributes
    ----------
    cov : ndarray, shape (P, P)
        Covariance of the reported parameters.
    shift : ndarray, shape (P,), or None
        How far the fit that has it lies from the estimates.
    """

    cov: Array
    shift: Array | None


def band(f: Course, around: Around, alpha: float, draws: int, rng: np.random.Generator) -> Band:
    """Limits of one function."""
    covariance = f.slopes @ around.cov[np.ix_(f.where, f.where)] @ f.slopes.T
    error = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    centre = f.values if around.shift is None else f.values + f.slopes @ around.shift[f.where]
    # Studentised deviations are the same on every scale, so that one critical value serves all kinds of limits.
    critical = multiplier_critical(covariance, alpha, draws, rng)
    pointwise = f.limits(centre, float(ndtri(1 - alpha / 2)) * error)
    return Band(f.values, error, *pointwise, *f.limits(centre, critical * error))


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
    functions: Sequence[Course], around: Around, alpha: float, draws: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Bands of several functions, tidy: a column per index, empty in the rows of functions of another."""
    frames = []
    for f in functions:
        found = band(f, around, alpha, draws, rng)
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


_SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)  # places along the range of an index


def function_tables(
    smoothing: Smoothing, bands: pd.DataFrame, p_values: Sequence[float], alpha: float
) -> tuple[Table, Table]:
    """Degrees of freedom, smoothing parameter, test of constancy and range of each function; values with bands.

    Parameters
    ----------
    smoothing : Smoothing
    bands : DataFrame
        Of the coefficients, see `bands.band_frame`.
    p_values : sequence of float
        Of tests that each function is constant.
    alpha : float
    """
    names = tuple(f.name for f in smoothing.functions)
    rows: list[tuple[Cell, ...]] = []
    labels: list[str] = []
    values: list[tuple[Cell, ...]] = []
    indices = list(dict.fromkeys(f.index for f in smoothing.functions))
    for f, lam, edf, p in zip(smoothing.functions, smoothing.lambdas, smoothing.edf, p_values, strict=True):
        part = bands[bands["coefficient"] == f.name]
        estimate, low, high = (part[c].to_numpy() for c in ("estimate", "band_low", "band_high"))
        show = value_format(float(np.abs(estimate).max()))
        at = [round(q * (len(part) - 1)) for q in _SHOWN]
        rows.append(
            (float(edf), float(lam), None if np.isnan(p) else float(p), show(estimate.min()), show(estimate.max()))
        )
        labels += [f.name, "  lower", "  upper"]
        values += [tuple(show(v[i]) if np.isfinite(v[i]) else "" for i in at) for v in (estimate, low, high)]
    heads = _heads(bands, indices)
    about = Table(
        key="functions",
        title="Functions",
        columns=("edf", "lambda", "P const.", "Minimum", "Maximum"),
        index=names,
        cells=tuple(rows),
        formats=(".2f", ".4g", "p", "num", "num"),
        notes=(
            "P const.: Wood's test that the function is constant; edf: effective degrees of freedom. Functions without "
            "by= are centred over the rows.",
        ),
    )
    return about, Table(
        key="function_values",
        title=f"Functions with {100 * (1.0 - alpha):g} % simultaneous bands over the whole range of the index",
        columns=heads,
        index=tuple(labels),
        cells=tuple(values),
        formats=tuple("num" for _ in heads),
    )


def _heads(bands: pd.DataFrame, indices: list[str]) -> tuple[str, ...]:
    """Heads of the columns of values: places of the one index, or shares of the range of several."""
    if len(indices) > 1:
        return tuple(f"{100 * q:g} %" for q in _SHOWN)
    u = bands[indices[0]].to_numpy()
    places = u.min() + np.array(_SHOWN) * np.ptp(u)
    return tuple(f"{indices[0]}={v}" for v in told_apart(places.tolist(), 3))


def function_curves(bands: pd.DataFrame, alpha: float, derivative: int, centred: Collection[str]) -> tuple[Curve, ...]:
    """Curves of a frame of bands: a panel per term, with the experts in it; terms in `centred` have no level."""
    indices = [str(name) for name in bands.columns if name not in (*LABELS, *VALUES)]
    curves = []
    for name, part in bands.groupby("coefficient", sort=False):
        index = next(i for i in indices if part[i].notna().all())
        expert = None if pd.isna(part["expert"].iloc[0]) else int(part["expert"].iloc[0])
        block, term = part["block"].iloc[0], str(part["term"].iloc[0])
        value = {c: part[c].to_numpy(dtype=float) for c in (index, *VALUES)}
        of_gate = block == "gate"
        panel = str(name) if block == "difference" else f"gate: {term}" if of_gate else term
        panel = f"derivative of {panel}" if derivative else panel
        # Curves of experts that lie apart cross where each has its mean taken off.
        about = ", centred over the rows" if term in centred and not derivative else ""
        curves.append(
            Curve(
                panel=panel,
                label="" if expert is None else f"expert {expert}",
                x=value[index],
                y=value["estimate"],
                lower=value["conf_low"],
                upper=value["conf_high"],
                band_lower=value["band_low"],
                band_upper=value["band_high"],
                expert=expert,
                xlabel=index,
                ylabel=("log odds" if of_gate else "value") + about,
                limits=f"{100 * (1.0 - alpha):g} % pointwise",
                bands=f"{100 * (1.0 - alpha):g} % simultaneous",
            )
        )
    return tuple(curves)
