"""Estimates and predictions as tidy frames."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._frame import view
from mixmoe.errors import DroppedRowsWarning, warn
from mixmoe.inference.intervals import two_sided, wald_limits, wald_statistics
from mixmoe.layout import ParamLayout

Array = NDArray[np.float64]


def tidy(
    layout: ParamLayout, params: Array, bse: Array, alpha: float = 0.05, df: Array | float = np.inf
) -> pd.DataFrame:
    """One row per parameter.

    Parameters
    ----------
    layout : ParamLayout
    params, bse : ndarray, shape (P,)
    alpha : float
        One minus the level of the limits.
    df : ndarray, shape (P,), or float
        Degrees of freedom of t statistics and limits; infinite for normal ones.

    Returns
    -------
    DataFrame
        Index: full parameter names. Columns: term, block, expert (missing if shared), estimate, std_error, statistic
        and p_value (missing where zero is no meaningful hypothesis), conf_low, conf_high, df.
    """
    limits = wald_limits(params, bse, layout, alpha, df)
    statistic = wald_statistics(params, bse, layout)
    return pd.DataFrame(
        {
            "term": [p.term for p in layout.parameters],
            "block": [p.block for p in layout.parameters],
            "expert": pd.array([p.expert for p in layout.parameters], dtype="Int64"),
            "estimate": params.copy(),
            "std_error": bse.copy(),
            "statistic": statistic,
            "p_value": two_sided(statistic, df),
            "conf_low": limits.lower,
            "conf_high": limits.upper,
            "df": np.broadcast_to(df, params.shape).astype(float),
        },
        index=pd.Index(layout.names, name="name"),
    )


def row_labels(new: Any, n_rows: int) -> pd.Index:
    """Labels of the rows of a user's frame."""
    return new.index if isinstance(new, pd.DataFrame) else pd.RangeIndex(n_rows)


def nothing_predicted(new: Any, names: Sequence[str], why: Exception) -> pd.DataFrame:
    """NaN in all rows, with the warning that rows left out have."""
    warn(f"no row can be predicted: {why}", DroppedRowsWarning)
    return pd.DataFrame(np.nan, index=row_labels(new, view(new).n_rows), columns=list(names))
