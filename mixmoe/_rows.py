"""Complete rows of the columns in use, sorted by subject."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._frame import FrameView, missing, plain, shown
from mixmoe.errors import DesignError

Integers = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows left out because of missing values.

    Attributes
    ----------
    n_rows : int
    by_column : tuple of (str, int)
        Columns or terms with missing values, and in how many rows; a row can be missing in several.
    """

    n_rows: int = 0
    by_column: tuple[tuple[str, int], ...] = ()

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
    """

    name: str
    where: str
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Rows:
    """Complete rows, sorted by unit and, if given, by sequence and order.

    Attributes
    ----------
    columns : mapping of str to Series, length n
        With a range index.
    codes : ndarray of int, shape (n,)
        Unit of each row, non-decreasing.
    labels : ndarray of object, shape (N,)
        Labels of the units.
    position : ndarray of int, shape (n,)
        Place of each row in the user's frame.
    sequence : ndarray of int, shape (n,), or None
        Sequence of each row, non-decreasing.
    dropped : Dropped
    """

    columns: Mapping[str, pd.Series]
    codes: Integers
    labels: NDArray[np.object_]
    position: Integers
    sequence: Integers | None
    dropped: Dropped

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.codes)

    @property
    def starts(self) -> Integers:
        """First row of each unit, shape (N,)."""
        return starts_of(self.codes)


@dataclass(frozen=True, slots=True)
class Keys:
    """Columns by which rows are arranged.

    Attributes
    ----------
    group, within, order : str or None
        Column of the subjects, of the sequences within a subject, and of the order within a sequence.
    """

    group: str | None = None
    within: str | None = None
    order: str | None = None


class NothingLeftError(DesignError):
    """No row of the data is complete."""


def earliest(mask: NDArray[np.bool_], rows: Rows) -> int:
    """Of the rows in `mask`, the one that comes first in the user's frame."""
    found = np.flatnonzero(mask)
    return int(found[rows.position[found].argmin()])


def starts_of(codes: Integers) -> Integers:
    """First place of each value of a non-decreasing array."""
    if len(codes) == 0:
        return np.zeros(0, dtype=np.intp)
    return np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1]).astype(np.intp)


def collect_rows(frame: FrameView, needs: Sequence[Need], keys: Keys) -> Rows:
    """Rows of `frame` that are complete in the columns needed, sorted.

    Raises
    ------
    DesignError
        If no row is complete, or two rows of a sequence share their place.
    """
    raw = {need.name: frame.column(need.name) for need in needs}
    absent = {need.name: missing(raw[need.name]) for need in needs if need.complete}
    keep = _complete(absent, frame.n_rows)
    dropped = _dropped(absent, keep)
    if not keep.any():
        raise NothingLeftError(
            f"all {frame.n_rows} rows have a missing value ({dropped}); nothing is left to analyse, so leave out the "
            "columns that are missing or fill them in"
        )
    everything = bool(keep.all())
    kept = raw if everything else {name: _taken(values, keep) for name, values in raw.items()}
    columns = {name: plain(values) for name, values in kept.items()}
    position = np.arange(frame.n_rows) if everything else np.flatnonzero(keep)
    return _sorted(columns, position, keys, dropped, frame)


def _complete(absent: Mapping[str, NDArray[np.bool_]], n_rows: int) -> NDArray[np.bool_]:
    lost = np.zeros(n_rows, dtype=bool)
    for rows in absent.values():
        lost |= rows
    return ~lost


def _dropped(absent: Mapping[str, NDArray[np.bool_]], keep: NDArray[np.bool_]) -> Dropped:
    counts = ((name, int(np.count_nonzero(rows))) for name, rows in absent.items())
    return Dropped(int(len(keep) - np.count_nonzero(keep)), tuple((name, c) for name, c in counts if c))


def _taken(values: pd.Series, rows: NDArray[Any]) -> pd.Series:
    array = values.array[rows]
    return pd.Series(array, index=pd.RangeIndex(len(array)), name=values.name, copy=False)


def _sorted(
    columns: Mapping[str, pd.Series], position: Integers, keys: Keys, dropped: Dropped, frame: FrameView
) -> Rows:
    if keys.group is None:
        labels = np.asarray(frame.labels.take(position), dtype=object)
        return Rows(columns, np.arange(len(position)), labels, position, None, dropped)
    codes, labels = _units(columns[keys.group])
    inner = () if keys.order is None else (_ranks(columns[keys.order]),)
    within = None if keys.within is None else _units(columns[keys.within])[0]
    by = (*inner, *(() if within is None else (within,)), codes)
    arranged = _arrangement(by)
    if arranged is not None:
        columns = {name: _taken(values, arranged) for name, values in columns.items()}
        codes, position = codes[arranged], position[arranged]
        within = within if within is None else within[arranged]
    sequence = None if keys.order is None else _sequences(codes, within)
    rows = Rows(columns, codes, labels, position, sequence, dropped)
    if sequence is not None:
        _refuse_ties(rows, keys, frame)
    return rows


def _units(values: pd.Series) -> tuple[Integers, NDArray[np.object_]]:
    """Code of each row and the sorted labels."""
    if values.dtype == object and pd.api.types.infer_dtype(values).startswith("mixed"):
        return _mixed_units(values)
    codes, found = pd.factorize(values, sort=True)
    labels: NDArray[Any] = np.asarray(found)
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.round(labels)).all():
        labels = labels.astype(np.int64)
    return codes.astype(np.intp, copy=False), labels.astype(object)


def _mixed_units(values: pd.Series) -> tuple[Integers, NDArray[np.object_]]:
    """The same for labels of several types, which Python cannot sort."""
    codes, found = pd.factorize(values, sort=False)
    order = sorted(range(len(found)), key=lambda i: (str(type(found[i])), str(found[i])))
    rank = np.empty(len(found), dtype=np.intp)
    rank[order] = np.arange(len(found))
    return rank[codes], np.asarray(found, dtype=object)[order]


def _ranks(values: pd.Series) -> Integers:
    return _units(values)[0]


def _arrangement(by: tuple[Integers, ...]) -> Integers | None:
    """The stable order of rows, last key first; None if they are in order."""
    if len(by) == 1:
        codes = by[0]
        return None if (codes[1:] >= codes[:-1]).all() else np.argsort(codes, kind="stable")
    arranged = np.lexsort(by)
    return None if (arranged[1:] > arranged[:-1]).all() else arranged


def _sequences(codes: Integers, within: Integers | None) -> Integers:
    if within is None:
        return codes
    new = (codes[1:] != codes[:-1]) | (within[1:] != within[:-1])
    return np.concatenate([[0], np.cumsum(new)]).astype(np.intp)


def _refuse_ties(rows: Rows, keys: Keys, frame: FrameView) -> None:
    sequence = rows.sequence
    if sequence is None or keys.order is None:
        return
    order = _ranks(rows.columns[keys.order])
    tied = (sequence[1:] == sequence[:-1]) & (order[1:] == order[:-1])
    if tied.any():
        i = int(tied.argmax())
        first, second = frame.labels[rows.position[i]], frame.labels[rows.position[i + 1]]
        raise DesignError(
            f"rows {shown(first)} and {shown(second)} of subject {shown(rows.labels[rows.codes[i]])} share "
            f"{keys.order} = {shown(rows.columns[keys.order].iloc[i])}; seq: needs one row per place; drop one, or "
            f"separate the sequences, as in seq: {keys.order} / session"
        )


def without_rows(rows: Rows, bad: Integers, terms: tuple[tuple[str, int], ...], n_input: int) -> Rows:
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
    dropped = Dropped(rows.dropped.n_rows + len(bad), rows.dropped.by_column + terms)
    if not keep.any():
        raise NothingLeftError(
            f"no row is left: of {n_input} rows all have a missing value or a term that is not a number ({dropped}); "
            "check the transforms of the formula"
        )
    present, codes = np.unique(rows.codes[keep], return_inverse=True)
    sequence = None if rows.sequence is None else np.unique(rows.sequence[keep], return_inverse=True)[1]
    return replace(
        rows,
        columns={name: _taken(values, keep) for name, values in rows.columns.items()},
        codes=codes.astype(np.intp),
        labels=rows.labels[present],
        position=rows.position[keep],
        sequence=sequence,
        dropped=dropped,
    )
