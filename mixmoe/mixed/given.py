"""What users pass to a MEMoE as parameters to start from and as clusters, checked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._frame import shown
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
        A Series as long as the data is read row by row, whatever its index, unless each subject has one row.
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
    by_row_anyway = isinstance(cluster, pd.Series) and len(cluster) == design.n_input > design.n_units
    by_label = isinstance(cluster, Mapping | pd.Series) and not by_row_anyway
    if by_label and all(label in cluster for label in design.labels):
        values = [cluster[label] for label in design.labels]
    else:
        rows = np.asarray(cluster)
        if rows.shape != (design.n_input,):
            raise ArgumentError(
                f"cluster must have one entry per row of the data ({design.n_input}) or per subject label, "
                f"got shape {rows.shape}"
            )
        by_row = pd.Series(rows[design.position]).groupby(design.codes)
        split = np.flatnonzero(by_row.nunique(dropna=False).to_numpy() > 1)
        if split.size:
            raise ArgumentError(f"subject {shown(design.labels[split[0]])} lies in more than one cluster")
        values = by_row.first().tolist()
    codes, _ = pd.factorize(np.asarray(values), sort=True)
    if (codes < 0).any():
        raise ArgumentError(f"subject {shown(design.labels[int((codes < 0).argmax())])} has no cluster (missing value)")
    return codes.astype(np.int64)
