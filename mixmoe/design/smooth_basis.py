"""The transform ``s(x)`` of formulas: columns of a penalised spline, the unpenalised ones apart.

A spline with coefficients a has the penalty ``lambda a'Sa``. With the eigenvectors U and the positive eigenvalues d of
S the columns ``B U d^-1/2`` have coefficients b with ``a'Sa = b'b``, so that every penalty is a ridge, and what S
leaves free (constant and line) are columns of their own.

References
----------
Eilers & Marx (1996), Statistical Science 11, 89-121. Wood (2017), Generalized Additive Models, sections 5.3 and 5.4.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from formulaic.materializers.types import FactorValues
from formulaic.utils.stateful_transforms import stateful_transform
from scipy.interpolate import BSpline

from mixmoe._typing import Array
from mixmoe.errors import DesignError

STATE = "spline"  # under which formulaic keeps a term
DEGREE = 3
BASES = ("ps", "cc")
_LEAST = {"ps": 5, "cc": 4}
_BEYOND = 1e-3  # share of the range by which the outer knots of P-splines lie beyond the data, as in mgcv
_GAP = 1e-7  # singular value over the largest below which a spline has no data
_SLACK = 1e-9  # share of the range by which an index may leave it through rounding
_MOST = 200  # basis functions


@dataclass(frozen=True, slots=True)
class Spline:
    """One spline basis in the coordinates in which its penalty is a ridge.

    Attributes
    ----------
    bs : {"ps", "cc"}
        Cubic B-splines with a penalty on differences of their coefficients (where the index has gaps that leave some
        without data: with knots at its quantiles and a penalty on the m-th derivative); periodic cubic spline with a
        penalty on its second derivative.
    k : int
        Basis functions, before constraints; of a periodic spline knots, the last of which is the first again.
    m : int
        Order of the differences.
    low, high : float
        Range of the index.
    knots : ndarray
    centre : float
        Mean of the index, where its powers have their origin.
    range_space : ndarray, shape (b, r)
        Coefficients of the b basis functions in each penalised column.
    """

    bs: str
    k: int
    m: int
    low: float
    high: float
    knots: Array
    centre: float
    range_space: Array

    @property
    def n_free(self) -> int:
        """Unpenalised columns beside the constant."""
        return self.m - 1 if self.bs == "ps" else 0

    def free(self, x: Array) -> Array:
        """Unpenalised columns without the constant, shape (n, m - 1): powers of the centred index."""
        return np.asarray((x[:, None] - self.centre) ** np.arange(1, self.n_free + 1))

    def penalised(self, x: Array) -> Array:
        """Penalised columns, shape (n, r)."""
        values = _bsplines(x, self.knots) if self.bs == "ps" else _cyclic(x, self.knots)
        return np.asarray(values @ self.range_space)


@dataclass(frozen=True, slots=True)
class SmoothTerm:
    """What a term ``s(...)`` of a formula has become on the data of the fit.

    Attributes
    ----------
    spline : Spline
    levels : tuple
        Of a factor in ``by=``, one function each; empty without one.
    known : tuple
        Categories that the fit has seen.
    by : bool
        Whether functions are whole coefficients, of a number in ``by=``, and therefore not centred.
    means : ndarray, shape (number of functions, c)
        Means of the columns over the rows, which are taken off where the intercept has them.
    """

    spline: Spline
    levels: tuple[Any, ...]
    known: tuple[Any, ...]
    by: bool
    means: Array

    @property
    def n_functions(self) -> int:
        """Functions of the term."""
        return max(len(self.levels), 1)

    @property
    def n_free(self) -> int:
        """Unpenalised columns of one function."""
        return self.spline.n_free + int(self.by)

    @property
    def width(self) -> int:
        """Columns of one function."""
        return self.n_free + self.spline.range_space.shape[1]

    def columns(self, x: Array) -> Array:
        """Columns of one function before centring and multiplication, shape (n, width)."""
        constant = np.ones((x.size, int(self.by)))
        return np.hstack([constant, self.spline.free(x), self.spline.penalised(x)])

    def names(self) -> tuple[str, ...]:
        """Names of the columns of one function."""
        powers = ["line", *(f"power{j}" for j in range(2, self.spline.n_free + 1))][: self.spline.n_free]
        r = self.spline.range_space.shape[1]
        return (*["level"][: int(self.by)], *powers, *(str(j) for j in range(1, r + 1)))


@stateful_transform
def smooth(
    x: Any,
    k: int = 15,
    m: int = 2,
    by: Any = None,
    bs: str = "ps",
    ends: Any = None,
    whole: str | None = None,
    _state: dict[str, Any] = {},  # noqa: B006  # formulaic passes its own
) -> Any:
    """The columns of ``s(x, k=15, m=2, by=None, bs="ps", ends=None)`` in a formula.

    Parameters
    ----------
    x : Series
        Index.
    k : int
        Basis functions.
    m : int
        Order of the differences that are penalised: as lambda grows, a polynomial of degree m - 1 is left.
    by : Series, optional
        Number that multiplies the function, or categories, each of which has a function of its own.
    bs : {"ps", "cc"}
        P-spline; periodic cubic spline.
    ends : (float, float), optional
        Range of the spline, of a periodic one its period; by default that of the data.
    whole : str, optional
        Name of the coefficient that the function is as a whole, as under ``vary:``; categories in `by` have functions
        against the first one then, which are not centred either.
    """
    values = _numbers(x, "the index")
    by = np.full(values.size, float(by)) if np.ndim(by) == 0 and by is not None else by
    if STATE not in _state:
        _state[STATE] = _term(values, by, k, m, bs, ends, whole is not None)
    term: SmoothTerm = _state[STATE]
    _check_range(values, term.spline)
    columns: dict[str, Array] = {}
    for level, mean, chosen in zip(
        term.levels or (None,), term.means, _multipliers(by, term, values.size), strict=True
    ):
        prefix = "" if level is None else f"{level}."
        of_function = chosen[:, None] * (term.columns(values) - mean)
        columns |= {f"{prefix}{name}": of_function[:, j] for j, name in enumerate(term.names())}
    name = "{name}" if whole is None else whole.replace("{", "{{").replace("}", "}}")
    return FactorValues(
        columns, kind="numerical", column_names=tuple(columns), spans_intercept=False, format=f"{name}.{{field}}"
    )


def _numbers(x: Any, what: str) -> Array:
    if not (np.ndim(x) == 1 and pd.api.types.is_numeric_dtype(np.asarray(x).dtype)):
        raise DesignError(
            f"{what} of s(...) must be one column of numbers, got {np.ravel(x)[:1].tolist()} and so on; convert it, "
            "for example with pd.to_numeric"
        )
    return np.asarray(x, dtype=float)


def _is_factor(by: Any) -> bool:
    return by is not None and not pd.api.types.is_numeric_dtype(getattr(by, "dtype", np.asarray(by).dtype))


def _multipliers(by: Any, term: SmoothTerm, n: int) -> list[Array]:
    """What each function of a term is multiplied by, shape (n,) each."""
    if term.levels:
        given = np.asarray(by, dtype=object)
        unseen = [value for value in dict.fromkeys(given.tolist()) if value not in term.known]
        if unseen:
            raise DesignError(
                f"by= of s(...) holds {unseen[0]!r}, a category that the fit has not seen; it has functions for "
                f"{', '.join(map(repr, term.known))}; leave these rows out or refit with them"
            )
        return [(given == level).astype(float) for level in term.levels]
    return [_numbers(by, "by=") if term.by else np.ones(n)]


def _term(x: Array, by: Any, k: int, m: int, bs: str, ends: Any, whole: bool) -> SmoothTerm:
    """The term of the data of a fit."""
    levels: tuple[Any, ...] = ()
    if _is_factor(by):
        given = np.asarray(by, dtype=object)
        levels = tuple(sorted(dict.fromkeys(given.tolist()), key=str))
        parts = [x[given == level] for level in levels]
    else:
        parts = [x]
    _check_arguments(k, m, bs)
    for i, part in enumerate(parts):
        of = f" where by= is {levels[i]!r}" if levels else ""
        _check_distinct(part, k, bs, of)
    spline = _spline(x, k, m, bs, ends)
    if levels and whole:
        base, *others = levels
        known, levels, parts = levels, tuple(others), parts[1:]
        if not levels:
            raise DesignError(f"by= of s(...) holds one category, {base!r}; leave the term out")
    else:
        known = levels
    numeric = by is not None and (whole or not levels)
    term = SmoothTerm(spline, levels, known, numeric, np.zeros((len(parts), 1)))
    # Centred over its rows a function has no share in the intercept; one times a number is the whole coefficient.
    means = np.array([np.zeros(term.width) if numeric else term.columns(part).mean(axis=0) for part in parts])
    return replace(term, means=means)


def _check_arguments(k: Any, m: Any, bs: Any) -> None:
    if bs not in BASES:
        raise DesignError(f"bs= of s(...) must be 'ps' or 'cc', got {bs!r}; 'ps' is a P-spline, 'cc' a periodic spline")
    for name, value, least, most in (("k", k, _LEAST[bs], _MOST), ("m", m, 1, 3)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
            shown = repr(value) if np.ndim(value) == 0 else f"a {type(value).__name__}; write by= before a multiplier"
            raise DesignError(f"{name}= of s(...) must be a whole number from {least} to {most}, got {shown}")
    if bs == "cc" and m != 2:
        raise DesignError(
            f"m={m} is for bs='ps'; a periodic spline has the second derivative penalised, so leave m= out"
        )


def _check_distinct(x: Array, k: int, bs: str, where: str) -> None:
    distinct = np.unique(x).size
    if distinct < _LEAST[bs]:
        raise DesignError(
            f"the index of s(...) has {distinct} distinct values{where}, too few for a spline; use C(...)"
        )
    if distinct < (k if bs == "ps" else k - 1):
        raise DesignError(
            f"the index of s(...) has {distinct} distinct values{where}, fewer than k={k} basis functions need; write "
            f"k={distinct} or less"
        )


def _spline(x: Array, k: int, m: int, bs: str, ends: Any) -> Spline:
    low, high = float(x.min()), float(x.max())
    if ends is not None:
        given = np.asarray(ends, dtype=float)
        if given.shape != (2,) or not given[0] <= low < high <= given[1]:
            raise DesignError(
                f"ends= of s(...) must be two numbers around the index, {low:g} to {high:g}, got {ends!r}"
            )
        low, high = float(given[0]), float(given[1])
    if bs == "ps":
        knots = _open_knots(low, high, k)
        D = np.diff(np.eye(k), m, axis=0)
        rank, penalty = k - m, D.T @ D
        if not _supported(x, knots):
            knots = _quantile_knots(x, low, high, k)
            penalty = _bend(knots, k, m)
            if not _supported(x, knots):
                raise DesignError(f"the values of the index of s(...) lie too far apart for k={k}; use a smaller k")
    else:
        knots = _closed_knots(x, low, high, k)
        rank, penalty = k - 2, _cyclic_penalty(knots)
    values, vectors = np.linalg.eigh(penalty)
    # Smoothest first, so that the first few columns are a coarse basis.
    kept = np.arange(len(values) - rank, len(values))
    return Spline(bs, k, m, low, high, knots, float(x.mean()), vectors[:, kept] / np.sqrt(values[kept]))


def _open_knots(low: float, high: float, k: int) -> Array:
    """Equally spaced knots of k cubic B-splines over a range."""
    width = high - low
    low, high = low - _BEYOND * width, high + _BEYOND * width
    step = (high - low) / (k - DEGREE)
    return np.asarray(low + step * np.arange(-DEGREE, k + 1))


def _supported(x: Array, knots: Array) -> bool:
    """Whether the data tell all B-splines apart: gaps in the index may leave some without any row."""
    B = _bsplines(np.unique(x), knots)
    return bool(np.linalg.matrix_rank(B, tol=_GAP * np.linalg.norm(B, 2)) == B.shape[1])


def _quantile_knots(x: Array, low: float, high: float, k: int) -> Array:
    """Knots of k cubic B-splines at quantiles of the distinct values, continued beyond the range."""
    inner = np.quantile(np.unique(x), np.linspace(0, 1, k - DEGREE + 1))
    inner[0], inner[-1] = low, high
    steps = np.arange(1, DEGREE + 1)
    before, after = inner[0] - steps[::-1] * (inner[1] - inner[0]), inner[-1] + steps * (inner[-1] - inner[-2])
    return np.concatenate([before, inner, after])


def _bend(knots: Array, k: int, m: int) -> Array:
    """Integrated squared m-th derivative of B-splines over their range, in which distances of knots count.

    In units in which the mean distance of knots is one, so that it is close to the difference penalty where that is
    used.
    """
    inside = knots[DEGREE : k + 1]
    nodes, weights = np.polynomial.legendre.leggauss(DEGREE)
    half = np.diff(inside)[:, None] / 2
    u, w = (inside[:-1, None] + half * (1 + nodes)).ravel(), (half * weights).ravel()
    slopes = BSpline(knots, np.eye(k), DEGREE).derivative(m)(u)
    step = (inside[-1] - inside[0]) / (len(inside) - 1)
    return np.asarray((slopes.T * w) @ slopes * step ** (2 * m - 1))


def _closed_knots(x: Array, low: float, high: float, k: int) -> Array:
    """Knots of a periodic spline: quantiles of the distinct values and its ends, as mgcv has them."""
    return np.asarray(np.quantile(np.unique(np.append(x, [low, high])), np.linspace(0, 1, k)))


def _bsplines(x: Array, knots: Array) -> Array:
    return np.asarray(BSpline.design_matrix(x, knots, DEGREE).toarray())


def _cyclic_matrices(knots: Array) -> tuple[Array, Array]:
    """B and D with ``B gamma = D beta``: second derivatives gamma and values beta at the knots (Wood 2017, 5.3)."""
    h = np.diff(knots)
    n = h.size
    B, D = np.zeros((n, n)), np.zeros((n, n))
    for j in range(n):
        before = (j - 1) % n
        B[j, before] += h[before] / 6
        B[j, j] += (h[before] + h[j]) / 3
        B[j, (j + 1) % n] += h[j] / 6
        D[j, before] += 1 / h[before]
        D[j, j] -= 1 / h[before] + 1 / h[j]
        D[j, (j + 1) % n] += 1 / h[j]
    return B, D


def _cyclic_penalty(knots: Array) -> Array:
    B, D = _cyclic_matrices(knots)
    S = D.T @ np.linalg.solve(B, D)
    return np.asarray((S + S.T) / 2)


def _cyclic(x: Array, knots: Array) -> Array:
    """Periodic cubic spline in its values at the knots, shape (n, len(knots) - 1)."""
    B, D = _cyclic_matrices(knots)
    F = np.linalg.solve(B, D)
    h, n = np.diff(knots), len(knots) - 1
    j = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, n - 1)
    right, left = knots[j + 1] - x, x - knots[j]
    out = np.zeros((x.size, n))
    rows = np.arange(x.size)
    out[rows, j] += right / h[j]
    out[rows, (j + 1) % n] += left / h[j]
    bend_left = (right**3 / h[j] - h[j] * right) / 6
    bend_right = (left**3 / h[j] - h[j] * left) / 6
    return np.asarray(out + bend_left[:, None] * F[j] + bend_right[:, None] * F[(j + 1) % n])


def _check_range(x: Array, spline: Spline) -> None:
    slack = _SLACK * (spline.high - spline.low)
    outside = (x < spline.low - slack) | (x > spline.high + slack)
    if outside.any():
        raise DesignError(
            f"the index of s(...) is {x[outside][0]:g}, outside the range of the fit, {spline.low:g} to "
            f"{spline.high:g}, where nothing was estimated; leave such rows out, or fit with ends=(low, high)"
        )
