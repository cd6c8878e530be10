"""A data set as tables: subjects, visits, spacing, and what each column holds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.errors import DesignError
from mixmoe.output.summary import header_table
from mixmoe.output.tables import Cell, Table

Array = NDArray[np.float64]
_MAX_LEVELS = 4


def describe(data: pd.DataFrame, subject: str | None = None, time: str | None = None) -> tuple[Table, ...]:
    """Tables that say what a data set holds and what may be used where in a formula.

    Parameters
    ----------
    data : DataFrame
    subject : str, optional
        Column that names the subjects.
    time : str, optional
        Column of the times of the visits.

    Returns
    -------
    tuple of Table
        Keys ``"header"`` and ``"columns"``; with a subject also ``"visits"``.

    Raises
    ------
    DesignError
        If there is no such column, or the time is not numeric.
    """
    for name in (subject, time):
        if name is not None and name not in data.columns:
            raise DesignError(f"the data have no column {name!r}; they have {', '.join(map(str, data.columns))}")
    if time is not None and not pd.api.types.is_numeric_dtype(data[time].dtype):
        raise DesignError(f"the column of times {time!r} must hold numbers, it holds {kind_of(data[time])}")
    codes = None if subject is None else pd.factorize(data[subject])[0]
    tables = [header_table(_facts(data, subject, codes, time))]
    if codes is not None:
        tables.append(visits_table(codes[codes >= 0]))
    return (*tables, columns_table(data, codes, subject))


def _facts(
    data: pd.DataFrame, subject: str | None, codes: NDArray[Any] | None, time: str | None
) -> tuple[tuple[str, Cell], ...]:
    facts: list[tuple[str, Cell]] = [("Rows", len(data)), ("Columns", data.shape[1])]
    facts.append(("Complete rows", int(data.notna().all(axis=1).sum())))
    if codes is not None:
        known = codes[codes >= 0]
        facts += [(f"Subjects ({subject})", int(known.max(initial=-1)) + 1)]
        facts += [("Visits per subject", spread(np.bincount(known)))]
        facts += [("Rows without subject", int((codes < 0).sum()) or None)]
    if time is not None:
        values = data[time].to_numpy(dtype=float, na_value=np.nan)
        facts += [(f"Range of {time}", spread(values[np.isfinite(values)]))]
        if codes is not None:
            facts += [("Time between visits", spread(gaps(codes, values)))]
            facts += [("Visits at the same time", int((gaps(codes, values) == 0).sum()) or None)]
    return tuple(facts)


def gaps(codes: NDArray[Any], times: Array) -> Array:
    """Times between consecutive visits of the same subject, whatever the order of the rows."""
    usable = (codes >= 0) & np.isfinite(times)
    codes, times = codes[usable], times[usable]
    order = np.lexsort((times, codes))
    same = np.diff(codes[order]) == 0
    return np.diff(times[order])[same]


def spread(values: NDArray[Any]) -> str:
    """Median and range as text; blank without values."""
    if not len(values):
        return ""
    low, mid, high = np.min(values), np.median(values), np.max(values)
    return f"median {mid:.4g} ({low:.4g} to {high:.4g})"


def visits_table(codes: NDArray[Any]) -> Table:
    """How many subjects have how many visits."""
    counts = np.bincount(codes)
    visits, subjects = np.unique(counts, return_counts=True)
    share = subjects / max(subjects.sum(), 1)
    return Table(
        key="visits",
        title="Visits per subject",
        columns=("subjects", "share", "cumulative"),
        index=tuple(f"{v} visit{'s' if v > 1 else ''}" for v in visits),
        cells=tuple((int(n), float(s), float(c)) for n, s, c in zip(subjects, share, np.cumsum(share), strict=True)),
        formats=("num", ".3f", ".3f"),
    )


def columns_table(data: pd.DataFrame, codes: NDArray[Any] | None, subject: str | None, title: str = "Columns") -> Table:
    """Type, missing values, values and constancy of each column."""
    heads = ["type", "missing", "distinct", "values"]
    describers: list[Callable[[pd.Series], Cell]] = [kind_of, _missing, lambda v: int(v.nunique()), _values]
    if codes is not None:
        heads.append("within subject")
        describers[3] = lambda v: "" if v.name == subject else _values(v)
        describers.append(lambda v: "subject" if v.name == subject else within(v, codes))
    columns = [data.iloc[:, i] for i in range(data.shape[1])]
    note = "Columns that are constant within subject can be used in the gate."
    return Table(
        key="columns",
        title=title,
        columns=tuple(heads),
        index=tuple(str(column.name) for column in columns),
        cells=tuple(tuple(describer(column) for describer in describers) for column in columns),
        formats=("text", "num", "num", "text", "text")[: len(heads)],
        notes=() if codes is None else (note,),
    )


def kind_of(values: pd.Series) -> str:
    """What a column holds, in a word."""
    dtype = values.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return "true or false"
    if pd.api.types.is_integer_dtype(dtype):
        return "whole numbers"
    if pd.api.types.is_numeric_dtype(dtype):
        return "numbers"
    if isinstance(dtype, pd.CategoricalDtype):
        return "categories"
    return "times" if pd.api.types.is_datetime64_any_dtype(dtype) else "text"


def within(values: pd.Series, codes: NDArray[Any]) -> str:
    """Whether a column is constant within subjects, missing values aside."""
    known = (codes >= 0) & values.notna().to_numpy()
    levels = pd.factorize(values[known])[0]
    pairs = pd.DataFrame({"subject": codes[known], "level": levels}).drop_duplicates()
    changing = int((pairs["subject"].value_counts() > 1).sum())
    if changing:
        return f"varies ({changing} subjects)"
    return "constant" if known.sum() == (codes >= 0).sum() else "constant where known"


def _missing(values: pd.Series) -> Cell:
    count = int(values.isna().sum())
    return f"{count} ({100 * count / len(values):.1f} %)" if count else 0


def _values(values: pd.Series) -> str:
    """Mean, deviation and range of numbers, the most frequent levels of others."""
    known = values.dropna()
    if not len(known):
        return ""
    if pd.api.types.is_numeric_dtype(known.dtype) and not pd.api.types.is_bool_dtype(known.dtype):
        x = known.to_numpy(dtype=float)
        deviation = f" (SD {np.std(x, ddof=1):.4g})" if len(x) > 1 else ""
        return f"{np.mean(x):.4g}{deviation}, {np.min(x):.4g} to {np.max(x):.4g}"
    return levels_text([(str(level), int(count)) for level, count in known.value_counts().items() if count])


def levels_text(counts: Sequence[tuple[str, int]]) -> str:
    """The most frequent levels with their counts."""
    shown = ", ".join(f"{level}: {count}" for level, count in counts[:_MAX_LEVELS])
    return shown + (" ..." if len(counts) > _MAX_LEVELS else "")
