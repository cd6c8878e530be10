"""What a user may say about the errors of a MEMoE, and the experts that follow from it."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice, checked_positive
from mixmoe.design.design import Design, offset_of, weights_of
from mixmoe.design.frame import shown
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.mixed.likelihood.columns import columns_of
from mixmoe.mixed.likelihood.correlated import ErrorForm, RowExperts, SerialRows
from mixmoe.mixed.likelihood.further_parameters import Correlation, Edge, Extra, Positive, Unbounded
from mixmoe.mixed.likelihood.serial import ErrorKind, Visits
from mixmoe.mixed.parameters import (
    Coordinates,
    Residual,
)
from mixmoe.numerics.linalg import apply_inverse

ErrorsBy = Literal["expert", "common"]
ErrorsDist = Literal["normal", "t"]
_WHOLE = 1e-8  # how far from a whole number a time of ar1 may lie
_HIGHEST = float(np.arctanh(0.9999))  # a correlation that data hardly tell from one
_NO_DECAY, _ALL_DECAY = 1e-4, 15.0  # exponents of the correlation over the median and over the shortest gap
_NO_MOTION = 1e-3  # standard deviation of a Brownian motion over the whole time, that of the response being one
_FAR = 100.0  # standard deviations between zero and the mean of a covariate of the standard deviation
_NORMAL = 1e3  # degrees of freedom that data hardly tell from infinitely many


@dataclass(frozen=True, slots=True)
class ErrorOptions:
    """Arguments about errors.

    Attributes
    ----------
    kind : {"iid", "ar1", "car1", "bm"}
    time : str or None
        Column of the times.
    by : {"expert", "common"}
        Whether the parameters of correlation and tails are shared.
    dist : {"normal", "t"}
    df : float or None
        Fixed degrees of freedom of t errors; None to estimate them.
    """

    kind: ErrorKind
    time: str | None
    by: ErrorsBy
    dist: ErrorsDist
    df: float | None

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `MEMoE` that give these options; none if they are the usual ones."""
        if self.plain and self.time is None:
            return {}
        return {
            "errors": self.kind,
            "time": self.time,
            "errors_by": None if self.plain else self.by,
            "errors_dist": self.dist,
            "errors_df": self.df,
        }

    @property
    def described(self) -> str:
        """One line for the header of a summary."""
        kind = {
            "iid": "independent",
            "ar1": f"AR(1) over {self.time or 'rows in the order of the data (no time=)'}",
            "car1": f"continuous AR(1) over {self.time}",
            "bm": f"Brownian motion over {self.time} and measurement error",
        }[self.kind]
        tails = "normal" if self.dist == "normal" else f"t, df {'estimated' if self.df is None else f'{self.df:g}'}"
        return f"{kind}, {tails}"

    @property
    def plain(self) -> bool:
        """Whether errors are iid and normal, but for covariates of their standard deviation."""
        return self.kind == "iid" and self.dist == "normal"


def checked_errors(errors: Any, time: Any, by: Any, dist: Any, df: Any, residual: Residual) -> ErrorOptions:
    """The options about errors.

    Parameters
    ----------
    errors, time, by, dist, df
        As given to `MEMoE`.
    residual : {"expert", "common"}
        What `by` follows where it is None.

    Returns
    -------
    ErrorOptions

    Raises
    ------
    ArgumentError
        If one is outside its allowed values, or has no use together with the others.
    """
    checked_choice(errors, "errors", get_args(ErrorKind))
    checked_choice(dist, "errors_dist", get_args(ErrorsDist))
    if by is not None:
        checked_choice(by, "errors_by", get_args(ErrorsBy))
    if time is None and errors in ("car1", "bm"):
        raise ArgumentError(f"errors={errors!r} needs time=, the column of the times, such as time='year'")
    if df is not None and dist != "t":
        raise ArgumentError(f"errors_df={shown(df)} is for errors_dist='t', got errors_dist={dist!r}")
    if by is not None and errors == "iid" and dist == "normal":
        raise ArgumentError(
            f"errors_by={by!r} has no use: independent normal errors have no parameters beside their standard "
            "deviation, which residual= shares; leave it out, or choose errors= or errors_dist="
        )
    freedom = None if df is None else checked_positive(df, "errors_df")
    return ErrorOptions(errors, time, residual if by is None else by, dist, freedom)


@dataclass(frozen=True, slots=True)
class TimeUnits:
    """The times of the rows and their scale.

    Attributes
    ----------
    order : ndarray of int, shape (n,)
        Rows of the design by subject and time.
    time : ndarray, shape (n,)
        Of the rows in that order.
    gap : ndarray, shape (n,)
        Since the row before; of first rows since time zero.
    unit : float
        Median gap.
    shortest : float
        Shortest gap within a subject.
    longest : float
        Latest time.
    """

    order: NDArray[np.intp]
    time: Array
    gap: Array
    unit: float
    shortest: float
    longest: float


def times_of(design: Design, options: ErrorOptions, ties: bool = False) -> TimeUnits:
    """Times of the rows of a design, checked.

    Parameters
    ----------
    design : Design
    options : ErrorOptions
    ties : bool
        Whether times may repeat within a subject, as they may where rows are only predicted.

    Raises
    ------
    DesignError
        If they are no numbers, repeat within a subject, or do not suit the kind of the errors.
    """
    time = _times(design, options)
    order = np.lexsort((time, design.codes))
    sorted_time = time[order]
    gap = np.diff(sorted_time, prepend=0.0)
    gap[design.starts] = sorted_time[design.starts]
    within = np.ones(design.n, dtype=bool)
    within[design.starts] = False
    if options.kind != "iid":
        _check_times(design, options, time, order[within & (gap <= 0) & (not ties)])
    inside = gap[within & (gap > 0)]
    unit = float(np.median(inside)) if inside.size and options.kind in ("car1", "bm") else 1.0
    shortest = float(inside.min(initial=np.inf))
    return TimeUnits(order, sorted_time, gap, unit, shortest, float(sorted_time.max()))


def _times(design: Design, options: ErrorOptions) -> Array:
    if options.time is None:
        return np.arange(design.n, dtype=float) - design.starts[design.codes]
    if "time" not in design.aux:
        raise DesignError(
            f"errors={options.kind!r} needs the column {options.time!r} of time= also here; add it to the data"
        )
    values = design.aux["time"]
    if values.dtype == object:
        raise DesignError(
            f"the column {options.time!r} of time= must hold numbers, got {shown(values[0])} in row "
            f"{shown(design.rows[0])}; convert it, for example dates to years since a start"
        )
    return np.asarray(values, dtype=float)


def _check_times(design: Design, options: ErrorOptions, time: Array, repeated: NDArray[np.intp]) -> None:
    column = options.time
    if repeated.size:
        i = _first(design, repeated)
        raise DesignError(
            f"the column {column!r} of time= is {time[i]:g} twice for subject "
            f"{shown(design.labels[design.codes[i]])}, the second time in row {shown(design.rows[i])}; "
            f"errors={options.kind!r} needs distinct times within each subject, so average such rows or "
            "correct the times"
        )
    uneven = np.flatnonzero(np.abs(time - np.round(time)) > _WHOLE)
    if options.kind == "ar1" and uneven.size:
        i = _first(design, uneven)
        raise DesignError(
            f"the column {column!r} of time= is {time[i]:g} in row {shown(design.rows[i])}; errors='ar1' needs whole "
            "numbers that count visits: use errors='car1' for times in between, or number the visits"
        )
    negative = np.flatnonzero(time < 0)
    if options.kind == "bm" and negative.size:
        i = _first(design, negative)
        raise DesignError(
            f"the column {column!r} of time= is {time[i]:g} in row {shown(design.rows[i])}; the Brownian motion of "
            "errors='bm' starts at time zero, so shift the times to start there"
        )


def _first(design: Design, rows: NDArray[np.intp]) -> int:
    """The row that comes first in the user's frame, of those in a mask."""
    return int(rows[np.argmin(design.position[rows])])


@dataclass(frozen=True, slots=True)
class ErrorSetup:
    """The errors of a model on the data it is fitted to.

    Attributes
    ----------
    options : ErrorOptions
    form : ErrorForm
    extras : tuple of Extra
    time_unit : float
    columns : ndarray of int, shape (v,)
        Covariates of the log standard deviation, those with own coefficients first.
    center, units : ndarray, shape (v,)
        What is subtracted from these covariates, and what they are divided by.
    """

    options: ErrorOptions
    form: ErrorForm
    extras: tuple[Extra, ...]
    time_unit: float
    columns: NDArray[np.intp]
    center: Array
    units: Array

    @property
    def shift(self) -> Array:
        """What each unconstrained coefficient adds to log sigma in working coordinates, shape (v,)."""
        return self.center / self.units

    def experts(self, design: Design, c: Coordinates) -> RowExperts:
        """The experts on the rows of a design."""
        times = times_of(design, self.options)
        X, Z = columns_of(design.expert, c.expert), apply_inverse(design.random, c.random)
        y = np.zeros(design.n) if design.response is None else np.asarray(design.response)
        y = (y - offset_of(design) - design.expert @ c.center) / c.scale
        unit = 1 / np.sqrt(weights_of(design) / c.weight)
        V = (design.sigma[:, self.columns] - self.center) / self.units
        at, visits = times.order, Visits(design.starts, design.counts, times.gap / self.time_unit)
        return RowExperts(SerialRows(y[at], X.at(at), Z[at].T.copy(), V[at].T.copy(), visits, unit[at]), self.form)


def build_errors(design: Design, options: ErrorOptions, residual: Residual, response_unit: float) -> ErrorSetup:
    """The errors of a model.

    Parameters
    ----------
    design : Design
        Of the fit.
    options : ErrorOptions
    residual : {"expert", "common"}
    response_unit : float
        Unit of the working response.

    Returns
    -------
    ErrorSetup

    Raises
    ------
    DesignError
        If there are no subjects with two rows whose errors could be correlated, or times do not suit.
    """
    _check_serial(design, options)
    times = times_of(design, options)
    own = np.flatnonzero(~design.sigma_common)
    columns = np.append(own, np.flatnonzero(design.sigma_common))
    V = design.sigma[:, columns]
    spread = V.std(axis=0)
    units = np.where(spread > 0, spread, 1.0)
    center = V.mean(axis=0)
    _check_near_zero(design, columns, center, units)
    if residual == "common":
        center[: own.size] = 0.0  # else one standard deviation where covariates are zero would not stay one
    names = tuple(design.names.sigma[j] for j in columns)
    extras = (
        _slope_extra(names[: own.size], units[: own.size], own=True),
        _slope_extra(names[own.size :], units[own.size :], own=False),
        *_serial_extras(options, times, response_unit),
        *_tail_extras(options),
    )
    used = tuple(extra for extra in extras if extra.size)
    form = ErrorForm(options.kind, columns.size, options.dist == "t", options.df)
    return ErrorSetup(options, form, used, times.unit, columns, center, units)


def _check_near_zero(design: Design, columns: NDArray[np.intp], center: Array, units: Array) -> None:
    """Raise if the standard deviation where covariates are zero would be a wild extrapolation."""
    far = np.flatnonzero(np.abs(center) > _FAR * units)
    if far.size:
        j = far[0]
        name = design.names.sigma[columns[j]]
        raise DesignError(
            f"the column {name!r} of sigma: has mean {center[j]:.5g} and standard deviation {units[j]:.3g}, so that "
            "zero, where the residual standard deviation is reported, is out of reach; "
            f"shift it, as in I({name} - {center[j]:.4g})"
        )


def _check_serial(design: Design, options: ErrorOptions) -> None:
    """Raise unless the data can tell a serial correlation."""
    if options.kind == "iid":
        return
    if design.names.group is None:
        raise DesignError(
            f"errors={options.kind!r} correlates the rows of a subject, but the formula names no subjects; "
            "add | re: (0 | id) with the column of the subjects"
        )
    if design.n == design.n_units:
        raise DesignError(
            f"each of the {design.n} subjects has one row, where errors={options.kind!r} cannot be told from "
            "errors='iid'; use that"
        )


def _slope_extra(names: tuple[str, ...], units: Array, own: bool) -> Extra:
    scale = Unbounded(tuple((1 / units).tolist()))
    return Extra("sigma", names, scale, (0.0,) * len(names), own, tested=True, coefficients=True)


def _serial_extras(options: ErrorOptions, times: TimeUnits, response_unit: float) -> tuple[Extra, ...]:
    own = options.by == "expert"
    if options.kind == "ar1":
        meaning = "the errors of a subject are all the same, or alternate, as random effects would"
        edges = (Edge(_HIGHEST, True, meaning), Edge(-_HIGHEST, False, meaning))
        return (Extra("rho", ("",), Correlation(), (0.3,), own, tested=True, edges=edges),)
    if options.kind == "car1":
        high = float(np.log(_ALL_DECAY * times.unit / times.shortest))
        constant = "the errors of a subject are all the same, as a random intercept would be"
        edges = (
            Edge(high, True, "there is no serial correlation left"),
            Edge(float(np.log(_NO_DECAY)), False, constant),
        )
        return (Extra("phi", ("",), Positive(1 / times.unit), (0.2,), own, edges=edges),)
    if options.kind == "bm":
        low = float(np.log(_NO_MOTION * np.sqrt(times.unit / times.longest)))
        still = (Edge(low, False, "there is no Brownian motion left"),)
        unit = response_unit / float(np.sqrt(times.unit))
        return (Extra("sd_bm", ("",), Positive(unit), (float(np.log(0.3)),), own, edges=still),)
    return ()


def _tail_extras(options: ErrorOptions) -> tuple[Extra, ...]:
    if options.dist != "t" or options.df is not None:
        return ()
    edges = (Edge(float(np.log(_NORMAL)), True, "the errors are normal"),)
    return (Extra("df", ("",), Positive(), (float(np.log(10.0)),), options.by == "expert", edges=edges),)
