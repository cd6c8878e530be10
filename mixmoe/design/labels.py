"""Labels of subjects, clusters and sequences: told apart by their values, never by arithmetic."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import IntArray

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
