"""What transforms that look at all rows must know of them: records of single parts, and how they are merged."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy as np
from formulaic.utils.stateful_transforms import stateful_transform

from mixmoe._typing import Array
from mixmoe.errors import DesignError

SUMMARY = "summary"
MOST_VALUES = 5_000_000  # different values of a column that are counted, for quantiles of them


class Summary(Protocol):
    """What a transform has seen."""

    def merged(self, other: Self) -> Self:
        """What it has seen in the rows of both."""
        ...

    def state(self) -> dict[str, Any]:
        """The state of formulaic's transform after these rows."""
        ...


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and squares of ``scale(x)``, ``center(x)``, ``standardize(x)``.

    Attributes
    ----------
    n : int
    mean, squares : float
        Mean and sum of squared deviations from it.
    center, scale : bool or float
        As called.
    ddof : float
    """

    n: int
    mean: float
    squares: float
    center: bool | float
    scale: bool | float
    ddof: float

    def merged(self, other: "Spread") -> "Spread":
        """Mean and squares of both (Chan, Golub & LeVeque 1983, American Statistician 37, 242-247)."""
        n, apart = self.n + other.n, other.mean - self.mean
        squares = self.squares + other.squares + apart**2 * self.n * other.n / n
        return replace(self, n=n, mean=self.mean + apart * other.n / n, squares=squares)

    def state(self) -> dict[str, Any]:
        """Centre and scale."""
        center = (self.mean if self.center else None) if isinstance(self.center, bool) else float(self.center)
        scale = None if isinstance(self.scale, bool) else float(self.scale)
        if self.scale is True:
            off = self.mean - (0.0 if center is None else center)
            with np.errstate(all="ignore"):
                scale = float(np.sqrt((self.squares + self.n * off**2) / np.float64(self.n - self.ddof)))
        return {"ddof": self.ddof, "center": center, "scale": scale}


@dataclass(frozen=True, slots=True)
class Spline:
    """Range and, if knots are quantiles, values of the argument of ``bs(x, ...)``.

    Attributes
    ----------
    low, high : float
        Smallest and largest value, or the bounds that were given.
    values, counts : ndarray, shape (u,)
        Different values, ascending, and how often they came; empty where knots are given or there are none.
    knots : tuple of float
        Those that were given.
    n_knots : int
        How many are quantiles.
    degree : int
    """

    low: float
    high: float
    values: Array
    counts: Array
    knots: tuple[float, ...]
    n_knots: int
    degree: int

    def merged(self, other: "Spline") -> "Spline":
        """Range and values of both."""
        joined = np.concatenate([self.values, other.values])
        values, where = np.unique(joined, return_inverse=True)
        if len(values) > MOST_VALUES:
            raise DesignError(
                f"the knots of bs(..., df=) are quantiles of a column with more than {MOST_VALUES} different values, "
                "which are not counted; give the knots, as in bs(x, knots=[2, 5, 8])"
            )
        counts = np.bincount(where, np.concatenate([self.counts, other.counts]), minlength=len(values)).astype(float)
        low, high = min(self.low, other.low), max(self.high, other.high)
        return replace(self, low=low, high=high, values=values, counts=counts)

    def state(self) -> dict[str, Any]:
        """Bounds and knots."""
        inner = [self._quantile(p) for p in np.linspace(0, 1, self.n_knots + 2)[1:-1]]
        knots = [self.low, *(inner or self.knots), self.high]
        return {
            "lower_bound": self.low,
            "upper_bound": self.high,
            "knots": np.pad(knots, self.degree, mode="edge").tolist(),
        }

    def _quantile(self, p: float) -> float:
        """As `numpy.quantile` of all values: between the two order statistics around (n - 1) p."""
        ranks = np.cumsum(self.counts)
        at = (ranks[-1] - 1) * p
        j = int(np.floor(at))
        two = self.values[np.searchsorted(ranks, [j, min(j + 1, ranks[-1] - 1)], side="right")]
        return float(np.quantile(two, at - j))


@stateful_transform
def _scale(data: Any, center: Any = True, scale: Any = True, ddof: float = 1, _state: Any = None) -> Any:
    values = _one_column(data, "scale")
    mean = float(values.mean()) if len(values) else 0.0
    _state[SUMMARY] = Spread(len(values), mean, float(((values - mean) ** 2).sum()), center, scale, ddof)
    return values


@stateful_transform
def _center(data: Any, _state: Any = None) -> Any:
    return _scale(data, scale=False, _state=_state)


@stateful_transform
def _standardize(x: Any, center: Any = True, rescale: Any = True, ddof: float = 0, _state: Any = None) -> Any:
    return _scale(x, center=center, scale=rescale, ddof=ddof, _state=_state)


@stateful_transform
def _bs(
    x: Any,
    df: int | None = None,
    knots: Any = None,
    degree: int = 3,
    include_intercept: bool = False,
    lower_bound: float | None = None,
    upper_bound: float | None = None,
    extrapolation: str = "raise",
    _state: Any = None,
) -> Any:
    values = _one_column(x, "bs")
    known = values[~np.isnan(values)]
    low = float(known.min(initial=np.inf)) if lower_bound is None else float(lower_bound)
    high = float(known.max(initial=-np.inf)) if upper_bound is None else float(upper_bound)
    n_knots = 0 if not df else df - degree - int(include_intercept)
    if n_knots < 0:
        raise ValueError(f"bs(..., df={df}) needs a df of at least {degree + int(include_intercept)}")
    if extrapolation in ("clip", "na", "zero"):  # then knots are quantiles of what lies within the bounds
        known = known[(known >= low) & (known <= high)]
    counted, counts = np.unique(known, return_counts=True) if n_knots else (np.empty(0), np.empty(0))
    given = tuple(float(knot) for knot in (() if knots is None else knots))
    _state[SUMMARY] = Spline(low, high, counted, counts.astype(float), given, n_knots, degree)
    return values


def _one_column(data: Any, name: str) -> Array:
    values = np.asarray(data, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"{name}(...) of {values.shape[1]} columns at once; write it for each column by itself")
    return values


COLLECTORS: Mapping[str, Any] = MappingProxyType(
    {"scale": _scale, "center": _center, "standardize": _standardize, "bs": _bs}
)


def summaries_of(states: Mapping[str, Mapping[str, Any]]) -> dict[str, Summary]:
    """The records among the states of transforms, by the code of their calls."""
    return {code: state[SUMMARY] for code, state in states.items() if SUMMARY in state}


def merge(known: Mapping[str, Summary], further: Mapping[str, Summary]) -> dict[str, Summary]:
    """Records of further rows merged into those that are known."""
    return {code: known[code].merged(one) if code in known else one for code, one in further.items()}
