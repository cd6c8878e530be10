"""Complete rows of the columns in use, sorted by subject."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.design.expressions import Lag
from mixmoe.design.frame import FrameView, exact, is_numeric, missing, plain, shown, unhashable, units_of, with_gaps
from mixmoe.errors import DesignError, DroppedRowsWarning, warn


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows left out because of missing values.

    Attributes
    ----------
    n_rows : int
    by_column : tuple of (str, int)
        Columns or terms with missing values, and in how many rows; a row can be missing in several.
    imputable : frozenset of str
        Columns to impute, which would keep rows: those that are missing in rows that have a response and labels.
    """

    n_rows: int = 0
    by_column: tuple[tuple[str, int], ...] = ()
    imputable: frozenset[str] = field(default=frozenset(), compare=False)  # of the warning alone, in no file

    def __add__(self, other: "Dropped") -> "Dropped":
        counts = dict(self.by_column)
        for name, count in other.by_column:
            counts[name] = counts.get(name, 0) + count
        return Dropped(self.n_rows + other.n_rows, tuple(counts.items()), self.imputable | other.imputable)

    def __str__(self) -> str:
        return ", ".join(f"{name}: {count}" for name, count in self.by_column)


@dataclass(frozen=True, slots=True)
class Need:
    """A column that is needed.

    Attributes
    ----------
    name : str
    where : str
        What uses it, as messages say it.
    complete : bool
        Whether rows where it is missing are left out.
    term : bool
        Whether anything is computed from it; false for columns of labels.
    gaps : bool
        Whether its values are levels that are kept where they are missing.
    response : bool
        Whether the response is computed from it.
    """

    name: str
    where: str
    complete: bool = True
    term: bool = True
    gaps: bool = False
    response: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """Complete rows, sorted by unit and, if given, by sequence and order.

    Attributes
    ----------
    columns : mapping of str to Series, length n
        With a range index; as terms are computed from them.
    keys : mapping of str to Series, length n
        The columns that name subjects, sequences, clusters and order, as they are.
    codes : ndarray of int, shape (n,)
        Unit of each row, non-decreasing.
    labels : ndarray of object, shape (N,)
        Labels of the units.
    position : ndarray of int, shape (n,)
        Place of each row in the user's frame.
    sequence : ndarray of int, shape (n,), or None
        Sequence of each row, non-decreasing.
    dropped : Dropped
    lags : tuple of Lag
        Those that `columns` holds.
    """

    columns: Mapping[str, pd.Series]
    keys: Mapping[str, pd.Series]
    codes: IntArray
    labels: NDArray[np.object_]
    position: IntArray
    sequence: IntArray | None
    dropped: Dropped
    lags: tuple[Lag, ...] = ()

    @property
    def n(self) -> int:
        """Number of complete rows that count."""
        return len(self.codes)

    @property
    def starts(self) -> IntArray:
        """First row of each unit, shape (N,)."""
        return starts_of(self.codes)


@dataclass(frozen=True, slots=True)
class Keys:
    """Columns by which rows are arranged.

    Attributes
    ----------
    group, within, order, cluster : str or None
        Column of the subjects, of the sequences within a subject, of the order within a sequence, and of clusters of
        rows.
    further : tuple of str
        Columns of further groupings, by which nothing is arranged.
    time : str or None
        Column by which rows follow one another for lags, where `order` says nothing.
    """

    group: str | None = None
    within: str | None = None
    order: str | None = None
    cluster: str | None = None
    further: tuple[str, ...] = ()
    time: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that there are."""
        all_names = (self.group, self.within, self.order, self.cluster, *self.further)
        return tuple(name for name in all_names if name is not None)


@dataclass(frozen=True, slots=True)
class Lagged:
    """Columns that are needed some rows back.

    Attributes
    ----------
    lags : tuple of Lag
    alone : bool
        Whether each row is a subject of its own, without another before it.
    complete : bool
        Whether rows that have nothing before them are left out.
    """

    lags: tuple[Lag, ...] = ()
    alone: bool = False
    complete: bool = True


NO_LAGS = Lagged()


class NothingLeftError(DesignError):
    """No row of the data is complete, or none counts.

    Parameters
    ----------
    message : str
    dropped : Dropped
        Why not.
    """

    def __init__(self, message: str, dropped: Dropped) -> None:
        self.dropped = dropped
        super().__init__(message)


def earliest(mask: NDArray[np.bool_], rows: Rows) -> int:
    """The row in `mask` that comes first in the user's frame, as messages name it."""
    found = np.flatnonzero(mask)
    return int(found[rows.position[found].argmin()])


def starts_of(codes: IntArray) -> IntArray:
    """First place of each value of a non-decreasing array."""
    if len(codes) == 0:
        return np.zeros(0, dtype=np.intp)
    return np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1]).astype(np.intp)


def collect_rows(
    frame: FrameView, needs: Sequence[Need], keys: Keys, lagged: Lagged = NO_LAGS, weights: str | None = None
) -> Rows:
    """Rows of `frame` that are complete in the columns needed and count, sorted.

    Parameters
    ----------
    frame : FrameView
    needs : sequence of Need
    keys : Keys
    lagged : Lagged
    weights : str, optional
        Column of the weights; a row of weight zero does not count.

    Raises
    ------
    DesignError
        If no row is complete, a weight is impossible, or two rows of a sequence share their place.
    """
    raw = {need.name: frame.column(need.name) for need in needs}
    absent = {need.name: missing(raw[need.name]) for need in needs if need.complete}
    before = _before(frame, lagged, keys)
    absent |= {name: missing(values) for name, values in before.items() if lagged.complete}
    keep = ~np.logical_or.reduce([np.zeros(frame.n_rows, dtype=bool), *absent.values()])
    counts = tuple((name, int(np.count_nonzero(rows))) for name, rows in absent.items())
    fixed = {need.name for need in needs if need.complete and (need.response or not need.term)}
    lost = np.logical_or.reduce([np.zeros(frame.n_rows, dtype=bool), *(absent[name] for name in fixed)])
    imputable = {need.name for need in needs if need.complete} - fixed
    dropped = Dropped(
        int(np.count_nonzero(~keep)),
        tuple((name, count) for name, count in counts if count),
        frozenset(name for name in imputable if (absent[name] & ~lost).any()),
    )
    if not keep.any():
        raise NothingLeftError(
            f"all {frame.n_rows} rows have a missing value ({dropped}); nothing is left to analyse, so leave out the "
            "columns that are missing or fill them in",
            dropped,
        )
    # Judged among complete rows alone: the weight of a row that is left out anyway does not matter.
    if weights is not None:
        keep = keep & _counted(frame, weights, keep, dropped)
    everything = bool(keep.all())
    kept = raw if everything else {name: _taken(values, keep) for name, values in raw.items()}
    columns = {need.name: (with_gaps if need.gaps else plain)(kept[need.name]) for need in needs if need.term}
    columns |= {name: plain(_taken(values, keep)) for name, values in before.items()}
    position = np.arange(frame.n_rows) if everything else np.flatnonzero(keep)
    labels = {name: _labels(kept[name], position, frame) for name in keys.names if name in kept}
    return replace(_sorted(columns, labels, position, keys, dropped, frame), lags=lagged.lags)


def check_weights(weights: Array, labels: pd.Index, judged: NDArray[np.bool_], ahead: bool = False) -> None:
    """Refuse impossible weights.

    Parameters
    ----------
    weights : ndarray, shape (n,)
    labels : Index, length n
        Of the rows, for messages.
    judged : ndarray of bool, shape (n,)
        Rows whose weights matter.
    ahead : bool
        Whether the rows are to be predicted. Then zero is an error of infinite variance, not a row that does not count.

    Raises
    ------
    DesignError
        Names the first row.
    """
    wrong = judged & ~(np.isfinite(weights) & (weights > 0.0 if ahead else weights >= 0.0))
    if not wrong.any():
        return
    i = int(wrong.argmax())
    got = f"got {'a missing value' if np.isnan(weights[i]) else f'{weights[i]:g}'} in row {shown(labels[i])}"
    if ahead:
        raise DesignError(
            f"weights must be above zero in rows to predict, {got}, where the variance of a response is not finite; "
            "correct it or drop the row"
        )
    raise DesignError(
        f"weights must be finite and not negative, {got}; correct it, or make it zero for a row that shall not count"
    )


def _counted(frame: FrameView, name: str, keep: NDArray[np.bool_], dropped: Dropped) -> NDArray[np.bool_]:
    """Rows whose weight is above zero, shape (n,), after checking the weights of the rows in `keep`."""
    values = plain(frame.column(name))
    if not is_numeric(values):
        i = int(keep.argmax())
        raise DesignError(
            f"column {name!r} (weights) must hold numbers, got {shown(values.iloc[i])} in row "
            f"{shown(frame.labels[i])}; convert it, for example with pd.to_numeric"
        )
    weights = values.to_numpy(dtype=float)
    check_weights(weights, frame.labels, keep)
    counts = weights > 0.0
    if not (counts & keep).any():
        raise NothingLeftError(
            f"weights must be positive in some rows, got {np.count_nonzero(keep)} zeros; leave weights out", dropped
        )
    return counts


@dataclass(frozen=True, slots=True)
class _Course:
    """All rows of the data in the order in which they follow one another.

    Attributes
    ----------
    order : ndarray of int, shape (n,)
        Places of the rows in the user's frame.
    block : ndarray of int, shape (n,)
        Subject, sequence or cluster of each of them; none looks back into another.
    """

    order: IntArray
    block: IntArray


def _before(frame: FrameView, lagged: Lagged, keys: Keys) -> dict[str, pd.Series]:
    """The lagged columns by name, in the order of the frame."""
    if not lagged.lags:
        return {}
    course = _course(frame, keys, lagged.alone)
    return {lag.name: _lagged(frame, lag, course) for lag in lagged.lags}


def _course(frame: FrameView, keys: Keys, alone: bool) -> _Course:
    """The course of the rows, incomplete ones included, by subject and sequence, or by cluster, or as they stand."""
    places = np.arange(frame.n_rows)
    if alone:
        return _Course(places, places)
    names = [name for name in (keys.group or keys.cluster, keys.within) if name is not None and name in frame]
    last = [name for name in (keys.order or keys.time,) if name is not None]
    for name in (*names, *last):
        _check_place(frame, name)
    for name in last:
        refuse_order_of_texts(frame.column(name), f"{name!r}, by which lag() arranges the rows,", frame.labels)
    outer, by = ([_codes_of(frame.column(name)) for name in some] for some in (names, last))
    order = np.lexsort([places, *by, *reversed(outer)]).astype(np.intp)
    block = np.zeros(frame.n_rows, dtype=np.intp)
    for codes in outer:
        # Pairs of codes as one number, made dense again so that a third column cannot overflow it; missing is code 0.
        block = np.unique(block * (int(codes.max(initial=0)) + 2) + codes + 1, return_inverse=True)[1]
    return _Course(order, block[order])


def refuse_order_of_texts(values: pd.Series, what: str, labels: pd.Index) -> None:
    """Refuse texts, whose order is that of their letters, '10' before '2', for the order of rows.

    Parameters
    ----------
    values : Series, length n
    what : str
        The column, for the message.
    labels : Index, length n
        Of the rows.

    Raises
    ------
    DesignError
        Names the first row.
    """
    listed = isinstance(values.dtype, pd.CategoricalDtype)
    kind = pd.api.types.infer_dtype(values.cat.categories if listed else values)
    if (listed and values.cat.ordered) or not (kind == "string" or kind.startswith("mixed")):
        return
    i = next(i for i, value in enumerate(values) if isinstance(value, str))
    raise DesignError(
        f"{what} is {shown(values.iloc[i])} in row {shown(labels[i])}, a text, and the order of texts is that of their "
        "letters, '10' before '2'; convert it with pd.to_numeric or pd.to_datetime, or make it an ordered category, as "
        "in pd.Categorical(values, categories=[...], ordered=True)"
    )


def _check_place(frame: FrameView, name: str) -> None:
    """Refuse rows whose place is missing: they may lie between any two others, whose lags are then unknown.

    Raises
    ------
    DesignError
    """
    absent = np.flatnonzero(missing(frame.column(name)))
    if absent.size:
        raise DesignError(
            f"{name!r} is missing in {absent.size} of {frame.n_rows} rows, first in row "
            f"{shown(frame.labels[absent[0]])}, so that it is unknown which row comes before which, as lag() needs to "
            f"know; fill it in, or leave these rows out of the data, as in data.dropna(subset=[{name!r}])"
        )


def _codes_of(values: pd.Series) -> IntArray:
    """Codes of the values of a column, equal where these are; -1 where it is missing."""
    absent = missing(values)
    codes = np.full(len(values), -1, dtype=np.intp)
    if not absent.all():
        codes[~absent] = units_of(exact(_taken(values, ~absent))).codes
    return codes


def _lagged(frame: FrameView, lag: Lag, course: _Course) -> pd.Series:
    """A column some rows back, in the order of the frame; missing where a subject has no such row."""
    if lag.name in frame:  # of a design, whose rows before were left out
        return plain(frame.column(lag.name))
    values = frame.column(lag.column)
    before = np.full(frame.n_rows, -1, dtype=np.intp)
    here = np.arange(frame.n_rows)
    there = here - lag.k
    inside = (there >= 0) & (there < frame.n_rows)
    same = inside.copy()
    same[inside] = course.block[here[inside]] == course.block[there[inside]]
    before[course.order[same]] = course.order[there[same]]
    return plain(values.reindex(before).reset_index(drop=True))


def _labels(values: pd.Series, position: IntArray, frame: FrameView) -> pd.Series:
    """A column of labels, exact, refused if it holds lists or the like."""
    wrong = unhashable(values)
    if wrong is not None:
        value = values.iloc[wrong]
        raise DesignError(
            f"column {values.name!r} holds {value!r}, of type {type(value).__name__}, in row "
            f"{shown(frame.labels[position[wrong]])}; labels are single values, such as numbers or texts; make one "
            f"text of it, as in data[{values.name!r}].astype(str)"
        )
    return exact(values)


def _taken(values: pd.Series, rows: NDArray[Any]) -> pd.Series:
    array = values.array[rows]
    return pd.Series(array, index=pd.RangeIndex(len(array)), name=values.name, copy=False)


def _sorted(
    columns: Mapping[str, pd.Series],
    named: Mapping[str, pd.Series],
    position: IntArray,
    keys: Keys,
    dropped: Dropped,
    frame: FrameView,
) -> Rows:
    """The rows by unit, sequence and order; as they stand where that is their order already."""
    if keys.group is None:
        labels = np.asarray(frame.labels.take(position), dtype=object)
        return Rows(columns, named, np.arange(len(position)), labels, position, None, dropped)
    units = units_of(named[keys.group])
    codes = units.codes
    inner = () if keys.order is None else (units_of(named[keys.order]).codes,)
    within = None if keys.within is None else units_of(named[keys.within]).codes
    arranged = np.lexsort((*inner, *(() if within is None else (within,)), codes))  # stable; the last key counts first
    if (arranged[1:] < arranged[:-1]).any():
        columns = {name: _taken(values, arranged) for name, values in columns.items()}
        named = {name: _taken(values, arranged) for name, values in named.items()}
        codes, position = codes[arranged], position[arranged]
        within = within if within is None else within[arranged]
    sequence = None if keys.order is None else _sequences(codes, within)
    rows = Rows(columns, named, codes, units.labels, position, sequence, dropped)
    if sequence is not None:
        _refuse_ties(rows, keys, frame)
    return rows


def _sequences(codes: IntArray, within: IntArray | None) -> IntArray:
    if within is None:
        return codes
    new = (codes[1:] != codes[:-1]) | (within[1:] != within[:-1])
    return np.concatenate([[0], np.cumsum(new)]).astype(np.intp)


def _refuse_ties(rows: Rows, keys: Keys, frame: FrameView) -> None:
    sequence = rows.sequence
    if sequence is None or keys.order is None:
        return
    order = units_of(rows.keys[keys.order]).codes
    tied = (sequence[1:] == sequence[:-1]) & (order[1:] == order[:-1])
    if tied.any():
        i = int(tied.argmax())
        first, second = frame.labels[rows.position[i]], frame.labels[rows.position[i + 1]]
        raise DesignError(
            f"rows {shown(first)} and {shown(second)} of subject {shown(rows.labels[rows.codes[i]])} share "
            f"{keys.order} = {shown(rows.keys[keys.order].iloc[i])}; seq: needs one row per place; drop one, or "
            f"separate the sequences, as in seq: {keys.order} / session"
        )


def _lost(rows: Rows, frame: FrameView, group: str) -> tuple[int, int]:
    """How many of how many subjects are gone: have no row that is complete in its columns, or whose terms exist."""
    subjects, dropped = frame.column(group), [name for name, _ in rows.dropped.by_column]
    known = ~missing(subjects)
    left = subjects[known]
    columns = [name for name in dropped if name in frame]
    if columns:
        left = subjects[known & ~np.logical_or.reduce([missing(frame.column(name)) for name in columns])]
    labels = set(left)
    if len(columns) < len(dropped):  # a term such as lag(x), which the first row of a subject does not have
        labels &= set(rows.labels)
    total = subjects[known].nunique()
    return total - len(labels), total


def warn_dropped(rows: Rows, frame: FrameView, group: str | None) -> None:
    """Say how many rows and subjects are gone, and what can be done: covariates can be imputed, responses need not."""
    subjects = ""
    if group is not None and group in frame and rows.dropped.n_rows:
        lost, total = _lost(rows, frame, group)
        subjects = (
            f", among them all rows of {lost} of {total} subjects" if lost else f", of none of {total} subjects all"
        )
    say_dropped(rows.dropped, frame.n_rows, frame, subjects)


def say_dropped(dropped: Dropped, n_rows: int, known: Container[str], subjects: str = "") -> None:
    """Say how many rows are gone, and what can be done.

    Parameters
    ----------
    dropped : Dropped
    n_rows : int
        Rows of the data.
    known : container of str
        Columns of the data; other names are of terms.
    subjects : str
        In words, how many subjects are gone with them.
    """
    if dropped.n_rows:
        terms = [name for name, _ in dropped.by_column if name not in known]
        lags = [name for name in terms if "lag(" in name]
        others = [name for name in terms if name not in lags]
        undefined = f"; {', '.join(lags)} has nothing before the first rows" if lags else ""
        if others:
            undefined += f"; {', '.join(others)} may be undefined there, as a logarithm of negative values"
        covariates = [name for name, _ in dropped.by_column if name in dropped.imputable]
        advice = f"; impute {', '.join(covariates)} to keep them" if covariates else ""
        warn(
            f"{dropped.n_rows} of {n_rows} rows were left out because of missing values ({dropped}){subjects}"
            f"{advice}{undefined}",
            DroppedRowsWarning,
        )


def without_rows(rows: Rows, bad: IntArray, terms: tuple[tuple[str, int], ...], n_input: int) -> Rows:
    """`rows` less those where a term is not a number.

    Raises
    ------
    DesignError
        If none is left.
    """
    if len(bad) == 0:
        return rows
    keep = np.ones(rows.n, dtype=bool)
    keep[bad] = False
    dropped = rows.dropped + Dropped(len(bad), terms)
    if not keep.any():
        raise NothingLeftError(
            f"no row is left: of {n_input} rows all have a missing value or a term that is not a number ({dropped}); "
            "check the transforms of the formula",
            dropped,
        )
    present, codes = np.unique(rows.codes[keep], return_inverse=True)
    sequence = None if rows.sequence is None else np.unique(rows.sequence[keep], return_inverse=True)[1]
    return replace(
        rows,
        columns={name: _taken(values, keep) for name, values in rows.columns.items()},
        keys={name: _taken(values, keep) for name, values in rows.keys.items()},
        codes=codes.astype(np.intp),
        labels=rows.labels[present],
        position=rows.position[keep],
        sequence=sequence,
        dropped=dropped,
    )
