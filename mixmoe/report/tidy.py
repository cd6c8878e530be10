"""A fit as frames with the column names of R's broom, and frames as sheets of a workbook."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.atomic import replacing
from mixmoe.design.design import Design
from mixmoe.design.frame import is_numeric, plain, shown, view, whole_frame
from mixmoe.design.labels import exact
from mixmoe.errors import ArgumentError, MissingExtraError
from mixmoe.report.evidence import Fitted, FittedMixture

_TO_BROOM = {"std_error": "std.error", "p_value": "p.value", "conf_low": "conf.low", "conf_high": "conf.high"}


def broom_tidy(estimates: pd.DataFrame) -> pd.DataFrame:
    """One row per parameter, from the frame of `Results.to_frame`."""
    return estimates.rename(columns=_TO_BROOM).reset_index()


def broom_glance(results: Fitted) -> pd.DataFrame:
    """One row for the whole fit; what is known of experts only where there are any."""
    mixture = cast(FittedMixture, results) if results.model.spec.has_experts else None
    values = {
        "family": results.model.spec.name,
        **({"experts": results.model.n_experts} if mixture else {}),
        "nobs": results.nobs,
        "n.units": results.n_units,
        "df": results.df_model,
        "df.residual": results.df_resid,
        "logLik": results.llf,
        "AIC": results.aic,
        "BIC": results.bic,
        "sABIC": results.sabic,
        **({"ICL": mixture.icl, "entropy": mixture.entropy} if mixture else {}),
        "converged": results.converged,
    }
    return pd.DataFrame({name: [value] for name, value in values.items()})


def broom_augment(design: Design, classes: pd.DataFrame | None, by_row: pd.DataFrame, data: Any) -> pd.DataFrame:
    """The rows of the data with what the fit says about each.

    Parameters
    ----------
    design : Design
    classes : DataFrame, length N, or None
        Columns expert and probability, in the order of the units of `design`; None without experts.
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
    if classes is not None:
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


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_MAX_ROWS = 1_048_575  # of a sheet, below its head


def write_excel(path: str | os.PathLike[str], sheets: Mapping[str, pd.DataFrame]) -> None:
    """Write one sheet per frame; text stays text, also where it looks like a formula.

    Parameters
    ----------
    path : path-like
        Ends in ``.xlsx``.
    sheets : mapping of str to DataFrame
        By the name of the sheet.

    Raises
    ------
    ArgumentError
        If the path has another ending, or a frame more rows than a sheet.
    MissingExtraError
        If openpyxl is not installed.
    """
    if Path(path).suffix.lower() != ".xlsx":
        raise ArgumentError(f"path must end in .xlsx, got {str(path)!r}")
    for name, frame in sheets.items():
        if len(frame) > _MAX_ROWS:
            raise ArgumentError(
                f"the sheet {name!r} has {len(frame)} rows, and Excel holds {_MAX_ROWS}; leave the rows out with "
                "data=False, or write augment() to another format"
            )
    with replacing(path) as partial:
        try:
            writer = pd.ExcelWriter(partial, engine="openpyxl")
        except ImportError as error:
            raise MissingExtraError("to_excel()", "openpyxl", "files") from error
        with writer:
            for name, frame in sheets.items():
                _storable(frame).to_excel(writer, sheet_name=name, index=False, freeze_panes=(1, 0))
                _text_is_text(writer.sheets[name])


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with what a cell cannot hold as text, and without control characters."""
    return pd.DataFrame({_cleaned(str(name)): frame[name].map(_cleaned) for name in frame})


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return _CONTROL.sub(" ", value)
    if isinstance(value, pd.Timestamp) and value.tzinfo is not None:
        return value.isoformat()
    return value if pd.api.types.is_scalar(value) else str(value)


def _text_is_text(sheet: Any) -> None:
    """Cells that begin with an equals sign are no formulas: nothing that we write is one."""
    for row in sheet.iter_rows():
        for cell in row:
            if cell.data_type == "f":
                cell.data_type, cell.quotePrefix = "s", True
