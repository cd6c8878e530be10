"""Columns out of whatever frame the user has (pandas, what narwhals reads, a mapping), and labels of subjects."""

import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from narwhals.exceptions import DuplicateError
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.errors import DesignError, meant

_WHOLE = 2.0**63  # whole floats below are shown as the integers they are


@dataclass(frozen=True, slots=True)
class Units:
    """Values that name units.

    Attributes
    ----------
    codes : ndarray of int, shape (n,)
        Unit of each value.
    labels : ndarray of object, shape (N,)
        Sorted; integers, floats, texts and dates as Python has them.
    """

    codes: IntArray
    labels: NDArray[np.object_]


def exact(values: pd.Series) -> pd.Series:
    """A complete column of labels in a type that holds every one of them exactly.

    Parameters
    ----------
    values : Series
        Without missing values.

    Notes
    -----
    Integers stay integers whatever their size: above 2^53 floats no longer tell neighbours apart.
    """
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return values.cat.remove_unused_categories() if len(values) else values
    if isinstance(dtype, pd.SparseDtype):
        return exact(pd.Series(np.asarray(values), index=values.index, name=values.name))
    if pd.api.types.is_bool_dtype(dtype):
        return values.astype(bool)
    if pd.api.types.is_unsigned_integer_dtype(dtype):
        # Signed where all fit, so that 1 of uint8 and 1 of int64 are one label and sort alike.
        wide = values.astype(np.uint64)
        return wide.astype(np.int64) if not len(wide) or wide.max() <= np.iinfo(np.int64).max else wide
    if pd.api.types.is_integer_dtype(dtype):
        return values.astype(np.int64)
    if pd.api.types.is_float_dtype(dtype):
        return values.astype(np.float64)
    return _exact_objects(values)


def _exact_objects(values: pd.Series) -> pd.Series:
    kind = pd.api.types.infer_dtype(values)
    if kind == "string":
        return values if values.dtype == object or str(values.dtype) == "str" else values.astype(object)
    if kind == "integer":
        return whole_numbers(values)
    if kind in ("boolean", "floating") and values.dtype == object:
        return values.astype(bool if kind == "boolean" else np.float64)
    return values


def whole_numbers(values: pd.Series) -> pd.Series:
    """A column of Python integers at 64 bits where they all fit, else as they are."""
    whole = [int(value) for value in values]
    limits = np.iinfo(np.int64)
    fits = not whole or (limits.min <= min(whole) and max(whole) <= limits.max)
    return pd.Series(whole, index=values.index, name=values.name, dtype=np.int64 if fits else object)


def unhashable(values: pd.Series) -> int | None:
    """Place of the first value that is no label, as a list is not; None if there is none."""
    if values.dtype != object:
        return None
    return next((place for place, value in enumerate(values) if not _hashable(value)), None)


def _hashable(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else ()
    return isinstance(value, Hashable) and all(_hashable(part) for part in parts)


def units_of(values: pd.Series) -> Units:
    """The units that a column of labels names, told apart by their exact values."""
    if values.dtype == object and pd.api.types.infer_dtype(values) != "string":
        return _units_of_objects(values)
    codes, found = pd.factorize(values, sort=True)
    return Units(codes.astype(np.intp, copy=False), _as_objects(_shown_whole(list(found))))


def _units_of_objects(values: pd.Series) -> Units:
    """Codes of values of several types, by Python's equality, which is exact for numbers of any type."""
    known: dict[Any, int] = {}
    codes = np.array([known.setdefault(_key(value), len(known)) for value in values], dtype=np.intp)
    found = [value for _, value in known]
    # Types do not compare in Python; numbers come first, then each type by itself.
    order = sorted(range(len(found)), key=lambda i: _order(found[i]))
    rank = np.empty(len(found), dtype=np.intp)
    rank[order] = np.arange(len(found))
    return Units(rank[codes], _as_objects(_shown_whole([found[i] for i in order])))


def _key(value: Any) -> tuple[bool, Any]:
    """What two labels share if they are one: 1 and 1.0 are, True and 1 are not."""
    return isinstance(value, bool | np.bool_), value


def _order(value: Any) -> tuple[str, Any]:
    if isinstance(value, Real) and not isinstance(value, bool):
        return "", value
    if isinstance(value, tuple):
        return "tuple", tuple(_order(part) for part in value)
    return type(value).__name__, value if isinstance(value, str | bytes | bool) else str(value)


def _shown_whole(labels: list[Any]) -> list[Any]:
    """Labels of which all that are floats are whole numbers, as a missing value elsewhere makes them, as integers."""
    floats = [value for value in labels if isinstance(value, float)]
    if not floats or not all(value.is_integer() and abs(value) < _WHOLE for value in floats):
        return labels
    return [int(value) if isinstance(value, float) else value for value in labels]


def _as_objects(labels: Sequence[Any]) -> NDArray[np.object_]:
    """An array of the labels themselves, also where they are tuples."""
    plain = (value.item() if isinstance(value, np.number | np.bool_) else value for value in labels)
    return np.fromiter(plain, dtype=object, count=len(labels))


def places_of(labels: Iterable[Any], among: Iterable[Any]) -> IntArray:
    """Place of each label in `among`, -1 where it is not there; the last one if it is there twice.

    Examples
    --------
    >>> places_of([2**53 + 1, "a"], [2.0**53, 2**53 + 1]).tolist()
    [1, -1]
    """
    known = {_key(label): place for place, label in enumerate(among)}
    return np.array([known.get(_key(label), -1) for label in labels], dtype=np.intp)


Columns = pd.DataFrame | nw.DataFrame[Any] | Mapping[Any, Any]  # frames as `view` has them
_SHOWN = 12
_MIXED_NUMBERS = ("integer", "mixed-integer-float", "decimal")
_EXACT = 2**53  # whole numbers up to which floats tell neighbours apart


@dataclass(frozen=True, slots=True)
class FrameView:
    """The user's data, read only.

    Attributes
    ----------
    data : DataFrame, narwhals DataFrame or mapping
        The frame as given; a lazy one with its rows.
    places : mapping of str to tuple of int
        Positions of each column, by its name as text.
    n_rows : int
    labels : Index
        Row labels of the user's frame; a range where it has none.
    """

    data: Columns
    places: Mapping[str, tuple[int, ...]]
    n_rows: int
    labels: pd.Index

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def column(self, name: str) -> pd.Series:
        """One column with a range index; the user's memory is shared where possible."""
        places = self.places[name]
        if len(places) > 1:
            raise DesignError(f"the data have {len(places)} columns named {name!r}; rename or drop all but one")
        if isinstance(self.data, pd.DataFrame):
            return self.data.iloc[:, places[0]].set_axis(pd.RangeIndex(self.n_rows)).rename(name)
        key = list(_keys(self.data))[places[0]]
        return pd.Series(_as_pandas(self.data[key], name), index=pd.RangeIndex(self.n_rows), name=name)


def view(data: Any) -> FrameView:
    """The columns of a frame or of a mapping of columns; a lazy frame is collected.

    Raises
    ------
    DesignError
        If `data` is none of these, or its columns differ in length.
    """
    # Pandas frames stay themselves: their labels name rows in messages, and may have several columns of one name.
    if not isinstance(data, pd.DataFrame | Mapping):
        data = _collected(data)
    keys = list(_keys(data))
    places: dict[str, tuple[int, ...]] = {}
    for i, key in enumerate(keys):
        places[str(key)] = (*places.get(str(key), ()), i)
    if isinstance(data, pd.DataFrame):
        return FrameView(data, places, len(data), data.index)
    n_rows = _common_length(data, keys)
    _refuse_other_indexes(data, keys)
    return FrameView(data, places, n_rows, pd.RangeIndex(n_rows))


def _collected(data: Any) -> nw.DataFrame[Any]:
    try:
        frame = nw.from_native(data)
    except TypeError as error:
        cells = type(data).__name__ == "AnnData"
        way = "; mm.fit_each takes it, and for one gene there is adata.obs.join(adata.to_df())" if cells else ""
        raise DesignError(
            "data must be a DataFrame of pandas, polars or another library that narwhals reads (pyarrow, DuckDB ...), "
            f"or a mapping of names to columns, got {type(data).__name__}{way}"
        ) from error
    except DuplicateError as error:  # two columns of one name, each with its count
        raise DesignError(f"{' '.join(str(error).split())}; rename or drop all but one of each") from error
    return frame.collect() if isinstance(frame, nw.LazyFrame) else frame


def series_of(values: Any, name: str) -> pd.Series:
    """An array, list or Series of pandas or polars as a column with a range index, under its own name if it has one."""
    held = pd.Series(_as_pandas(values, name), name=getattr(values, "name", None))
    return held.set_axis(pd.RangeIndex(len(held)))


def whole_frame(data: Any) -> pd.DataFrame:
    """The user's data as a pandas frame; a pandas frame as it is."""
    if isinstance(data, pd.DataFrame):
        return data
    seen = view(data)
    return pd.DataFrame({name: seen.column(name) for name in seen.places}, index=seen.labels)


def _keys(data: Any) -> Iterable[Any]:
    return data.keys() if isinstance(data, Mapping) else data.columns


def _common_length(data: Any, keys: list[Any]) -> int:
    if not isinstance(data, Mapping):
        return int(data.shape[0])
    lengths = {key: _length(data[key], key) for key in keys}
    if len(set(lengths.values())) > 1:
        first, other = keys[0], next(key for key in keys if lengths[key] != lengths[keys[0]])
        raise DesignError(
            f"columns differ in length: {first!r} has {lengths[first]} rows, {other!r} has {lengths[other]}; "
            "all columns need the same number"
        )
    return next(iter(lengths.values()), 0)


def _refuse_other_indexes(data: Any, keys: list[Any]) -> None:
    """Refuse Series whose labels say that their rows do not belong together as they stand."""
    if not isinstance(data, Mapping):
        return
    series = [key for key in keys if isinstance(data[key], pd.Series)]
    for key in series[1:]:
        mine, first = data[key].index, data[series[0]].index
        if not mine.equals(first):
            i = next(i for i, (a, b) in enumerate(zip(mine, first, strict=True)) if a != b)
            raise DesignError(
                f"the Series {series[0]!r} and {key!r} have different indexes, {shown(first[i])} and {shown(mine[i])} "
                f"in place {i}; pass pd.DataFrame(data), which puts rows of one label together, or arrays, which are "
                "taken as they stand"
            )


def _length(values: Any, key: object) -> int:
    if isinstance(values, Mapping | Set | bytes | pd.DataFrame):
        # Of the first one would take the keys for values, of the second the order is not known.
        raise DesignError(
            f"column {key!r} must be a sequence of values, got a {type(values).__name__}; pass a list, an array or a "
            "Series, or pd.DataFrame(data) for columns that map labels to values"
        )
    if isinstance(values, str) or not hasattr(values, "__len__") or getattr(values, "shape", None) == ():
        raise DesignError(f"column {key!r} must be a sequence of values, got {values!r}; repeat it for every row")
    return len(values)


def _as_pandas(values: Any, name: str) -> Any:
    """Values of a column that is not a pandas column of a frame, as pandas can hold them."""
    if isinstance(values, pd.Series | pd.Index):
        return values.array
    if isinstance(values, np.ndarray | pd.api.extensions.ExtensionArray):
        return _one_dimension(values, name)
    series = nw.from_native(values, series_only=True, pass_through=True)
    return _from_series(series, name) if isinstance(series, nw.Series) else _listed(values, name)


def _from_series(values: nw.Series[Any], name: str) -> Any:
    dtype = values.dtype
    if isinstance(dtype, nw.Enum):
        return pd.Categorical(values.to_list(), categories=list(dtype.categories), ordered=True)
    if isinstance(dtype, nw.Int128 | nw.UInt128):  # NumPy has none
        return _listed(values.to_list(), name)
    if (dtype.is_integer() or isinstance(dtype, nw.Boolean)) and values.null_count():  # to_numpy would make them floats
        return pd.Series(values.to_list(), dtype=str(dtype).replace("Boolean", "boolean")).array
    if isinstance(dtype, nw.Datetime) and dtype.time_zone is not None:
        return pd.DatetimeIndex(values.to_numpy(), tz="UTC").tz_convert(dtype.time_zone).array
    if dtype.is_integer() or dtype.is_float() or isinstance(dtype, nw.Boolean | nw.Date | nw.Datetime | nw.Duration):
        return values.to_numpy()
    return np.fromiter(values.to_list(), dtype=object, count=len(values))  # text, categories, decimals, times of day


def _listed(values: Any, name: str) -> Any:
    """A list as pandas reads it, but as it is where that would make floats of whole numbers beyond 2^53."""
    listed = list(values)
    if any(v is None for v in listed):
        return _one_dimension(np.asarray(listed, dtype=object), name)
    large = (v for v in listed if isinstance(v, int) and abs(v) > _EXACT)
    return np.fromiter(listed, dtype=object, count=len(listed)) if any(True for _ in large) else listed


def _one_dimension(values: Any, name: str) -> Any:
    if values.ndim != 1:
        raise DesignError(f"column {name!r} must have one dimension, got shape {values.shape}; split it into columns")
    return values


def shown(value: Any) -> str:
    """A value as messages show it: text in quotes, numbers and dates as they read, also those of NumPy in a list."""
    value = _without_numpy(value)
    return repr(value) if isinstance(value, str | bytes | tuple) else str(value)


def _without_numpy(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(_without_numpy(one) for one in value)
    return value


def unknown_column(name: str, known: Iterable[str], where: str, others: tuple[str, ...] = ()) -> DesignError:
    """The error for a name that is not a column, with close matches."""
    columns = list(known)
    hint = meant(name, columns) or "correct the name."
    names = ", ".join(columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")
    also = f" Also absent: {', '.join(map(repr, others))}." if others else ""
    return DesignError(f"{where} uses {name!r}, which is not a column of the data; {hint}{also} Columns are: {names}")


def plain(values: pd.Series) -> pd.Series:
    """A complete column in a type that formulas understand: float, integer, boolean, text or category.

    Parameters
    ----------
    values : Series
        Without missing values, or with them if they stay: then whole numbers become floats.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        return exact(values)
    if values.hasnans:
        kind = pd.api.types.infer_dtype(values, skipna=True)
        numbers = pd.api.types.is_numeric_dtype(values.dtype) or kind in ("boolean", *_MIXED_NUMBERS)
        return values.astype(object).where(values.notna(), np.nan).astype(np.float64) if numbers else values
    held = exact(values)
    return _plain_objects(held) if held.dtype == object else held


def with_gaps(values: pd.Series) -> pd.Series:
    """A column of levels some of which may be missing, in a type that formulas understand; whole numbers stay whole."""
    if isinstance(values.dtype, pd.CategoricalDtype) or not values.hasnans:
        return plain(values)
    if pd.api.types.is_extension_array_dtype(values.dtype) and values.dtype.kind in "iufb":
        return values.astype(object).where(values.notna(), None)  # of which NumPy's integers and booleans have none
    return values


def _plain_objects(values: pd.Series) -> pd.Series:
    """Numbers of mixed types as floats, which terms compute with; others as they are."""
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind not in _MIXED_NUMBERS:
        return values
    try:
        return values.astype(np.float64)
    except OverflowError as error:
        raise DesignError(
            f"column {values.name!r} holds whole numbers beyond {sys.float_info.max:.3g}, which nothing can be "
            "computed from; change its unit, or make it a category by astype(str)"
        ) from error


def is_numeric(values: pd.Series) -> bool:
    """Whether a column of `plain` holds numbers."""
    return isinstance(values.dtype, np.dtype) and values.dtype.kind in "fiub"


def missing(values: pd.Series) -> NDArray[np.bool_]:
    """Rows where a column is missing, shape (n,)."""
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iub":
        return np.zeros(len(values), dtype=bool)
    return np.asarray(values.isna(), dtype=bool)


def infinite(values: pd.Series) -> NDArray[np.bool_] | None:
    """Rows where a numeric column is infinite, shape (n,); None if there are none."""
    if not (isinstance(values.dtype, np.dtype) and values.dtype.kind == "f"):
        return None
    array = values.to_numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        # One pass without a mask: an infinite or overflowing sum is rare, and only then is it asked where.
        if np.isfinite(array.sum()):
            return None
    rows = np.isinf(array)
    return rows if rows.any() else None


def check_sizes(columns: Mapping[str, Array], labels: pd.Index, limits: tuple[float, float]) -> None:
    """Refuse columns so large or small that products of their values leave the range of floating-point numbers.

    Parameters
    ----------
    columns : mapping of str to ndarray, shape (n,)
        By what they are, as messages say it.
    labels : Index, length n
        Of their rows.
    limits : tuple of float
        Between which the largest absolute value of a column must lie, if it is not zero.

    Raises
    ------
    DesignError
        Names the column and the row of its largest value.
    """
    for what, values in columns.items():
        size = np.abs(np.asarray(values, dtype=float))
        if size.size:
            place = int(size.argmax())
            refuse_size(what, float(size[place]), limits, f", in row {shown(labels[place])}")


def refuse_size(what: str, largest: float, limits: tuple[float, float], where: str = "") -> None:
    """Refuse a column by its largest absolute value, see `check_sizes`; `where` is its place, in words."""
    if largest > 0.0 and not limits[0] < largest < limits[1]:
        raise DesignError(
            f"{what} has the largest value {largest:.3g}{where}; it must lie between {limits[0]:g} and {limits[1]:g}, "
            "so that products of values can be computed: correct it or change the unit"
        )
