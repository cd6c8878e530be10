"""A fit as frames with the column names of R's broom."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._frame import is_numeric, plain, shown, view, whole_frame
from mixmoe._labels import exact
from mixmoe.design import Design
from mixmoe.errors import ArgumentError

_TO_BROOM = {"std_error": "std.error", "p_value": "p.value", "conf_low": "conf.low", "conf_high": "conf.high"}


def broom_tidy(estimates: pd.DataFrame) -> pd.DataFrame:
    """One row per parameter, from the frame of `MoEResults.to_frame`."""
    return estimates.rename(columns=_TO_BROOM).reset_index()


def broom_glance(results: Any) -> pd.DataFrame:
    """One row for the whole fit."""
    values = {
        "family": results.model.family_name,
        "experts": results.model.n_experts,
        "nobs": results.nobs,
        "n.units": results.n_units,
        "df": results.df_model,
        "df.residual": results.df_resid,
        "logLik": results.llf,
        "AIC": results.aic,
        "BIC": results.bic,
        "sABIC": results.sabic,
        "ICL": results.icl,
        "entropy": results.entropy,
        "converged": results.converged,
    }
    return pd.DataFrame({name: [value] for name, value in values.items()})


def broom_augment(design: Design, classes: pd.DataFrame, by_row: pd.DataFrame, data: Any) -> pd.DataFrame:
    """The rows of the data with what the fit says about each.

    Parameters
    ----------
    design : Design
    classes : DataFrame, length N
        Columns expert and probability, in the order of the units of `design`.
    by_row : DataFrame, length n
        Fitted values and the like of the rows used, in the order of the user's data.
    data : DataFrame or None
        The user's whole frame; None for the used columns of the used rows.

    Returns
    -------
    DataFrame

    Raises
    ------
    ArgumentError
        If `data` are not the data of the fit.
    """
    order = np.argsort(design.position, kind="stable")
    units, added = design.codes[order], by_row.copy()
    added[".class"] = pd.array(classes["expert"].to_numpy()[units], dtype="Int64")
    added[".probability"] = classes["probability"].to_numpy()[units]
    if data is None:
        frame = design.frame.iloc[order]
        return pd.concat([frame, added.set_axis(frame.index)], axis=1)
    frame = whole_frame(data)
    if len(frame) != design.n_input:
        raise ArgumentError(
            f"data must be the frame of the fit, with {design.n_input} rows, got {len(frame)}; for other rows use "
            "predict()"
        )
    places = _places(design, frame)[order]
    made = {lag.name for lags in design.recipe.lags.values() for lag in lags}  # from others, which are checked
    _check_same(design.frame.iloc[order].drop(columns=[n for n in made if n in design.frame]), frame, places)
    whole = added.set_axis(places).reindex(range(design.n_input))
    return pd.concat([frame, whole.set_axis(frame.index)], axis=1)


def _places(design: Design, frame: pd.DataFrame) -> NDArray[np.intp]:
    """Positions in `frame` of the rows of the fit, shape (n,): by label if labels tell rows apart, else as given."""
    if frame.index.is_unique:
        found = frame.index.get_indexer(pd.Index(design.rows))
        if (found >= 0).all():
            return found
    return design.position


def _check_same(used: pd.DataFrame, frame: pd.DataFrame, places: NDArray[np.intp]) -> None:
    """Refuse a frame whose rows are not those of the fit, `used`."""
    seen = view(frame)
    for name in used.columns:
        if name not in seen.places:
            raise ArgumentError(f"data must be the frame of the fit, which has a column {name!r}; this one has not")
        given, mine = seen.column(name).iloc[places], used[name]
        values = plain(given) if is_numeric(mine) and not is_numeric(exact(given)) else exact(given)
        equal = np.asarray(values, dtype=object) == np.asarray(mine, dtype=object)
        same = equal | (np.asarray(values.isna()) & np.asarray(mine.isna()))
        if not same.all():
            i = int(np.argmin(same))
            raise ArgumentError(
                f"data must be the frame of the fit: column {name!r} is {shown(values.iloc[i])} in row "
                f"{shown(frame.index[places[i]])}, in the fit it was {shown(used[name].iloc[i])}; pass the same rows, "
                "or use predict() for other ones"
            )
