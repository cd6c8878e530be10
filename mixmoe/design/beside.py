"""Columns beside the formula, ``offset=``, ``weights=``, ``trials=``, ``time=``, ``cluster=``: names, arrays or Series.

Whatever a user passes becomes a column of the data at the door, so that everything behind it knows names alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.design.design import Design
from mixmoe.design.frame import FrameView, exact, series_of, shown, unhashable, units_of, view
from mixmoe.errors import ArgumentError, DesignError

BESIDE = ("trials", "offset", "weights", "time", "cluster")
"""The arguments that are columns."""


def with_columns(data: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, str | None]]:
    """The data with the columns that were passed as arrays, and the name of the column of each argument.

    Parameters
    ----------
    data : DataFrame (pandas or polars) or mapping of columns
        Never changed.
    given : mapping of str to str, array, Series or None
        By argument. A Series that is a column of the data stands for that column; any other array becomes one with the
        name of its argument, with underscores behind it where the data have another column of that name.

    Returns
    -------
    data : object
        As given, if all are names.
    names : dict of str to str or None

    Raises
    ------
    ArgumentError
        If one is no name and no array as long as the data, or a Series cannot be aligned with their rows.
    """
    names = {option: value if isinstance(value, str) else None for option, value in given.items()}
    arrays = {option: value for option, value in given.items() if value is not None and not isinstance(value, str)}
    for option, values in arrays.items():
        frame = view(data)
        column = _placed(option, values, _labels(data, frame), np.arange(frame.n_rows), frame.n_rows)
        name = _name_of(option, column, frame)
        names[option] = name
        if name not in frame:
            data = _with_column(data, name, column)
    return data, names


def named_columns(data: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The data and the options of a fit with names in the place of arrays beside the formula, see `with_columns`."""
    data, names = with_columns(data, {name: value for name, value in options.items() if name in BESIDE})
    return data, {**options, **names}


def column_of_rows(design: Design, option: str, values: Any) -> pd.Series:
    """A column for the rows of a design, after the fit.

    Parameters
    ----------
    design : Design
    option : str
        The argument, for messages.
    values : str, array or Series
        The name of a column that the fit uses, or one value for each row of the data.

    Returns
    -------
    Series, length n
        With a range index.
    """
    if isinstance(values, str):
        if values in design.frame.columns:
            return design.frame[values].reset_index(drop=True)
        raise ArgumentError(
            f"{option}={values!r} is not among the columns that this fit uses, {', '.join(design.frame.columns)}, and "
            f"it keeps no others; pass data[{values!r}], or fit with {option}={values!r}"
        )
    return _placed(option, values, design.rows, design.position, design.n_input)


def check_beside(design: Design, settings: Mapping[str, Any], options: tuple[str, ...]) -> None:
    """Refuse new data without a column that the fit had beside the formula.

    Raises
    ------
    DesignError
        Names argument and column.
    """
    for option in options:
        column = settings[option]
        if column is not None and option not in design.aux:
            array = ", the values that were passed as an array" if column.rstrip("_") == option else ""
            raise DesignError(f"the new data lack the column {column!r} ({option}){array}; add it")


def check_clusters(clusters: pd.Series, rows: pd.Index, of: str = "row") -> None:
    """Refuse clusters that are one, or that are missing, lists, or texts among numbers.

    Parameters
    ----------
    clusters : Series, length n
        With a range index.
    rows : Index, length n
        Labels of the rows.
    of : {"row", "subject"}
        What they are the clusters of.

    Raises
    ------
    ArgumentError, DesignError
    """
    absent = clusters.isna().to_numpy()
    if absent.any():
        raise ArgumentError(f"{of} {shown(rows[int(absent.argmax())])} has no cluster (missing value); fill it in")
    wrong = unhashable(clusters)
    if wrong is not None:
        raise ArgumentError(f"cluster must hold single values, such as numbers or texts, got {clusters.iloc[wrong]!r}")
    values = np.asarray(clusters, dtype=object)
    texts = np.array([isinstance(value, str) for value in values])
    if texts.any() and not texts.all():  # '1' and 1 would be two clusters
        i, j = int(texts.argmin()), int(texts.argmax())
        raise DesignError(
            f"cluster= holds values of different types, {shown(values[i])} in {of} {shown(rows[i])} and "
            f"{shown(values[j])} in {of} {shown(rows[j])}, which would be two clusters even if they read alike; make "
            "them one type, for instance by astype(str)"
        )
    if len(units_of(clusters).labels) < 2:
        raise DesignError(
            f"cluster= has the same value, {shown(values[0])}, in all {len(values)} {of}s; clusters are independent "
            "units, of which standard errors need many, so leave it out or name another column"
        )


def split_subject(subject: Any) -> ArgumentError:
    """What is said of a subject whose rows lie in different clusters."""
    return ArgumentError(
        f"subject {shown(subject)} lies in more than one cluster; clusters hold whole subjects, so correct them"
    )


def _labels(data: Any, frame: FrameView) -> pd.Index:
    """Labels of the rows of the data; of a mapping those of the first Series."""
    if isinstance(data, Mapping):
        return next((values.index for values in data.values() if isinstance(values, pd.Series)), frame.labels)
    return frame.labels


def _placed(option: str, values: Any, labels: pd.Index, position: NDArray[np.intp], n_rows: int) -> pd.Series:
    """Values of the rows with these labels, at these places among the `n_rows` of the data."""
    if isinstance(values, Mapping) or not hasattr(values, "__len__") or isinstance(values, bytes):
        got = f"a {type(values).__name__}" if hasattr(values, "__len__") else repr(values)
        how = "; for values by subject pass data['id'].map(values)" if isinstance(values, Mapping) else ""
        raise ArgumentError(
            f"{option} must be the name of a column, or an array or Series with one value for each row of the data, "
            f"got {got}{how}"
        )
    if np.ndim(values) != 1 or len(values) != n_rows:
        size = f"shape {np.shape(values)}" if np.ndim(values) != 1 else f"{len(values)}"
        raise ArgumentError(
            f"{option} must have one value for each of the {n_rows} rows of the data, those with missing values "
            f"included, got {size}; name a column, or pass an array or Series as long as the data"
        )
    where = position
    if isinstance(values, pd.Series) and not values.index[position].equals(labels):
        # By label, as pandas aligns a column that is assigned; labels that are there twice have no single value.
        where = values.index.get_indexer(labels) if values.index.is_unique else np.full(len(labels), -1)
        if (where < 0).any():
            raise ArgumentError(
                f"{option} has no single value for the row {shown(labels[int(where.argmin())])} of the data, whose "
                "labels its index should have; pass a column of the data, or an array, which is read row by row"
            )
    return series_of(values, option).iloc[where].reset_index(drop=True)


def _name_of(option: str, column: pd.Series, frame: FrameView) -> str:
    """The column of the data that holds these values under their own name or the argument's, or else a free name."""
    for name in (column.name, option):
        if isinstance(name, str) and name in frame and frame.column(name).equals(column):
            return name
    name = option
    while name in frame:
        name += "_"
    return name


def _with_column(data: Any, name: str, column: pd.Series) -> Any:
    """The data with one more column; those of the user are shared, not copied."""
    if isinstance(data, pd.DataFrame):
        whole = data.copy(deep=False)
        whole[name] = column.array
        return whole
    keys = data.keys() if isinstance(data, Mapping) else data.columns
    return {**{key: data[key] for key in keys}, name: column.array}


def cluster_codes(design: Design, cluster: Any = None) -> NDArray[np.int64]:
    """Cluster of each subject as codes 0..G-1, shape (N,).

    Parameters
    ----------
    design : Design
    cluster : str, array or Series, optional
        A column that the fit uses, or one value for each row of the data; by default the clusters of the model.

    Returns
    -------
    ndarray of int, shape (N,)

    Raises
    ------
    ArgumentError, DesignError
        If a row has no cluster, a subject lies in two, or all lie in one.
    """
    if cluster is None and "cluster" not in design.aux:
        raise ArgumentError("cov_type='cluster' needs the clusters, got None; pass cluster=, a column or an array")
    own = pd.Series(design.aux.get("cluster"), dtype=object)
    values = own if cluster is None else column_of_rows(design, "cluster", cluster)
    check_clusters(values, design.rows)
    codes = units_of(exact(values)).codes
    first = codes[design.starts]
    split = codes != first[design.codes]
    if split.any():
        raise split_subject(design.labels[design.codes[split.argmax()]])
    return first.astype(np.int64)
