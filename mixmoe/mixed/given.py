"""What users pass to a MEMoE as parameters to start from and as clusters, checked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._frame import shown, view
from mixmoe._labels import exact, places_of, unhashable, units_of
from mixmoe.design import Design
from mixmoe.errors import ArgumentError
from mixmoe.layout import Parameter, ParamLayout

Array = NDArray[np.float64]


def start_vector(start: Any, layout: ParamLayout) -> Array:
    """Values of all parameters, in the order of the layout.

    Parameters
    ----------
    start : Series, mapping, ndarray of shape (P,), or results with `params`
    layout : ParamLayout

    Returns
    -------
    ndarray, shape (P,)

    Raises
    ------
    ArgumentError
        If a parameter is missing or not finite, or the length is wrong.
    """
    values = getattr(start, "params", start)
    if isinstance(values, pd.Series | Mapping):
        missing = [name for name in layout.names if name not in values]
        if missing:
            raise ArgumentError(f"start has no value for {missing[0]!r}; give all of {', '.join(layout.names)}")
        values = [values[name] for name in layout.names]
    try:
        vector = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"start must hold numbers or be another fit, got {start!r}") from error
    if vector.shape != (len(layout.names),):
        raise ArgumentError(f"start must have {len(layout.names)} values, one per parameter, got shape {vector.shape}")
    for parameter, value in zip(layout.parameters, vector, strict=True):
        if parameter.block == "random" and parameter.tested and np.isnan(value):
            continue  # correlation with a random effect of zero variance
        if not _inside(parameter, value):
            raise ArgumentError(
                f"start has {parameter.name} = {value}; values must be finite, standard deviations of random effects "
                "at least zero, of residuals above zero, correlations between -1 and 1"
            )
    return vector


def _inside(parameter: Parameter, value: float) -> bool:
    """Whether a value lies in the space of its parameter."""
    if not np.isfinite(value):
        return False
    if parameter.block == "random" and parameter.tested:
        return abs(value) <= 1
    if parameter.name.startswith("sigma") and not parameter.tested:
        return bool(value > 0)
    return parameter.block != "random" or bool(value >= 0)


def cluster_codes(cluster: Any, design: Design) -> NDArray[np.int64]:
    """Cluster of each subject as codes 0..G-1, shape (N,).

    Parameters
    ----------
    cluster : mapping or Series by subject label, or array or Series with one entry per row of the data
        A Series as long as the data has the rows of the labels of its index, unless each subject has one row.
    design : Design

    Returns
    -------
    ndarray of int, shape (N,)

    Raises
    ------
    ArgumentError
        If a subject has no cluster or lies in two.
    """
    if cluster is None:
        raise ArgumentError("cov_type='cluster' needs cluster=, the cluster of each subject (by label) or of each row")
    if isinstance(cluster, str):
        raise ArgumentError(f"cluster must hold the clusters, not their name, got {cluster!r}; pass data[{cluster!r}]")
    values = _by_label(cluster, design)
    rows = design.codes if values is None else np.arange(design.n_units)  # subject of each value
    if values is None:
        values = _by_row(cluster, design)
    absent = values.isna().to_numpy()
    if absent.any():
        raise ArgumentError(f"subject {shown(design.labels[rows[absent.argmax()]])} has no cluster (missing value)")
    wrong = unhashable(values)
    if wrong is not None:
        raise ArgumentError(f"cluster must hold single values, such as numbers or texts, got {values.iloc[wrong]!r}")
    codes = units_of(exact(values)).codes
    first = codes[np.unique(rows, return_index=True)[1]]
    split = codes != first[rows]
    if split.any():
        raise ArgumentError(f"subject {shown(design.labels[rows[split.argmax()]])} lies in more than one cluster")
    return first.astype(np.int64)


def _by_label(cluster: Any, design: Design) -> pd.Series | None:
    """The cluster of each subject from a mapping or Series by label; None if it is not one for all subjects."""
    rows_anyway = isinstance(cluster, pd.Series) and len(cluster) == design.n_input > design.n_units
    if rows_anyway or not isinstance(cluster, Mapping | pd.Series):
        return None
    keys = list(cluster.index if isinstance(cluster, pd.Series) else cluster)
    where = places_of(design.labels, keys)
    if (where < 0).any():
        return None
    values = cluster if isinstance(cluster, pd.Series) else pd.Series(list(cluster.values()), dtype=object)
    return values.iloc[where].reset_index(drop=True)


def _by_row(cluster: Any, design: Design) -> pd.Series:
    """The cluster of each row of the design, from one entry per row of the data."""
    if np.shape(cluster) != (design.n_input,):
        raise ArgumentError(
            f"cluster must have one entry per row of the data ({design.n_input}) or per subject label, "
            f"got shape {np.shape(cluster)}"
        )
    where = design.position
    if isinstance(cluster, pd.Series) and not cluster.index[where].equals(design.rows):
        where = cluster.index.get_indexer(design.rows) if cluster.index.is_unique else np.full(design.n, -1)
        if (where < 0).any():
            raise ArgumentError(
                f"cluster has no value for the row {shown(design.rows[int(where.argmin())])} of the data, whose labels "
                "its index should have; pass a column of the data, or an array, which is read row by row"
            )
    return view({"cluster": cluster}).column("cluster").iloc[where].reset_index(drop=True)
