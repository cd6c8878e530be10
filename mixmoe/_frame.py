"""Columns out of whatever frame the user has: pandas, polars (never imported) or a dict of columns."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.errors import DesignError

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class FrameView:
    """The user's data, read only.

    Attributes
    ----------
    data : object
        The frame as given.
    places : mapping of str to tuple of int
        Positions of each column, by its name as text.
    n_rows : int
    labels : Index
        Row labels of the user's frame; a range where it has none.
    """

    data: Any
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
        return pd.Series(_foreign(self.data[key], name), index=pd.RangeIndex(self.n_rows), name=name)


def view(data: Any) -> FrameView:
    """The columns of a pandas or polars frame or a mapping of columns.

    Raises
    ------
    DesignError
        If `data` is none of these, or its columns differ in length.
    """
    if hasattr(data, "collect") and not hasattr(data, "shape"):
        raise DesignError(f"data is a {type(data).__name__}, which holds no rows yet; pass data.collect()")
    if not isinstance(data, Mapping) and not (hasattr(data, "columns") and hasattr(data, "__getitem__")):
        raise DesignError(
            f"data must be a pandas or polars DataFrame or a mapping of names to columns, got {type(data).__name__}"
        )
    keys = list(_keys(data))
    places: dict[str, tuple[int, ...]] = {}
    for i, key in enumerate(keys):
        places[str(key)] = (*places.get(str(key), ()), i)
    if isinstance(data, pd.DataFrame):
        return FrameView(data, places, len(data), data.index)
    n_rows = _common_length(data, keys)
    return FrameView(data, places, n_rows, pd.RangeIndex(n_rows))


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


def _length(values: Any, key: object) -> int:
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise DesignError(f"column {key!r} must be a sequence of values, got {values!r}; repeat it for every row")
    return len(values)


def _foreign(values: Any, name: str) -> Any:
    """Values of a column that is not a pandas column of a frame, as pandas can hold them."""
    if isinstance(values, pd.Series | pd.Index):
        return values.array
    if isinstance(values, np.ndarray | pd.api.extensions.ExtensionArray):
        return _one_dimension(values, name)
    if not hasattr(values, "to_numpy"):
        return _one_dimension(np.asarray(values, dtype=object), name) if _has_none(values) else list(values)
    kind = str(getattr(values, "dtype", ""))
    if kind.startswith("Enum"):
        return pd.Categorical(values.to_list(), categories=list(values.dtype.categories), ordered=True)
    if kind.startswith(("Int", "UInt", "Float", "Date", "Time", "Duration")) or kind == "Boolean":
        return pd.array(values.to_list(), dtype="boolean") if _null_boolean(values, kind) else values.to_numpy()
    return np.asarray(values.to_list(), dtype=object)


def _null_boolean(values: Any, kind: str) -> bool:
    return kind == "Boolean" and bool(values.null_count())


def _has_none(values: Any) -> bool:
    return any(v is None for v in values)


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
    close = difflib.get_close_matches(name, columns, n=3, cutoff=0.6)
    folded = [c for c in columns if c.lower() == name.lower() and c not in close]
    hints = [repr(c) for c in (*folded, *close)][:3]
    meant = f"; did you mean {' or '.join(hints)}?" if hints else "; correct the name."
    names = ", ".join(columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")
    also = f" Also absent: {', '.join(map(repr, others))}." if others else ""
    return DesignError(f"{where} uses {name!r}, which is not a column of the data{meant}{also} Columns are: {names}")


def plain(values: pd.Series) -> pd.Series:
    """A complete column in a type that formulas understand: float, integer, boolean, text or category.

    Parameters
    ----------
    values : Series
        Without missing values.
    """
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return values.cat.remove_unused_categories() if len(values) else values
    if isinstance(dtype, np.dtype) and dtype.kind in "fiubMm":
        return _full_width(values, dtype)
    if isinstance(dtype, pd.SparseDtype):
        return pd.Series(np.asarray(values), index=values.index, name=values.name, copy=False)
    if pd.api.types.is_bool_dtype(dtype):
        return values.astype(bool)
    if pd.api.types.is_integer_dtype(dtype):
        return values.astype(np.int64)
    if pd.api.types.is_float_dtype(dtype):
        return values.astype(np.float64)
    return _plain_objects(values)


def _full_width(values: pd.Series, dtype: np.dtype[Any]) -> pd.Series:
    """Numbers at 64 bits with a sign, so that terms such as I(x ** 2) of an int8 do not wrap around silently."""
    kind, size = dtype.kind, dtype.itemsize
    if kind == "f" and size < 8:
        return values.astype(np.float64)
    if kind == "u" and size == 8:
        fits = len(values) == 0 or values.max() <= np.iinfo(np.int64).max
        return values.astype(np.int64 if fits else np.float64)
    return values.astype(np.int64) if kind == "u" or (kind == "i" and size < 8) else values


def _plain_objects(values: pd.Series) -> pd.Series:
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind in ("integer", "floating", "mixed-integer-float", "decimal"):
        return values.astype(np.float64)
    if kind == "boolean":
        return values.astype(bool)
    if kind.startswith(("datetime", "date", "timedelta", "complex", "period")):
        return values
    if kind == "string" and values.dtype != object and str(values.dtype) != "str":
        return values.astype(object)
    return values


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
        if np.isfinite(array.sum()):
            return None
    rows = np.isinf(array)
    return rows if rows.any() else None
