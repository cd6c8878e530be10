"""A fit as frames with the column names of R's broom, and frames as sheets of a workbook."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.atomic import replacing
from mixmoe.design.design import Design
from mixmoe.design.frame import exact, is_numeric, plain, shown, view, whole_frame
from mixmoe.errors import ArgumentError, MissingExtraError
from mixmoe.families import Model
from mixmoe.inference.uncertainty import DESCRIPTIONS
from mixmoe.mixture.estimate import Block
from mixmoe.output.names import Names
from mixmoe.output.records import Cell, Table, format_cell, in_light_of
from mixmoe.output.summary import BLOCK_TITLES, Summary
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
                storable = pd.DataFrame({_cleaned(str(column)): frame[column].map(_cleaned) for column in frame})
                storable.to_excel(writer, sheet_name=name, index=False, freeze_panes=(1, 0))
                # Cells that begin with an equals sign are no formulas: nothing that we write is one.
                for cell in (cell for row in writer.sheets[name].iter_rows() for cell in row):
                    if cell.data_type == "f":
                        cell.data_type, cell.quotePrefix = "s", True


def _cleaned(value: Any) -> Any:
    """A value as a cell can hold it: as text where it is no scalar, and without control characters."""
    if isinstance(value, str):
        return _CONTROL.sub(" ", value)
    if isinstance(value, pd.Timestamp) and value.tzinfo is not None:
        return value.isoformat()
    return value if pd.api.types.is_scalar(value) else str(value)


Row = tuple[Block, int, str]  # block, expert or 0, term
_FURTHER: tuple[Block, ...] = ("random", "residual", "dispersion", "zeros", "threshold", "other")
_BLOCKS: tuple[Block, ...] = ("expert", "fixed", "common", "gate", *_FURTHER)
_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
_STARS_NOTE = "* p < 0.05, ** p < 0.01, *** p < 0.001 (two-sided, not corrected for the number of tests)."
_NO_ERROR = "(none)"
_NO_ERROR_NOTE = (
    f"{_NO_ERROR}: no valid standard error; the parameter is on the boundary of its space, infinite or not identified, "
    "and its printed value only says so."
)


_STATISTICS = {
    "subjects": ("Subjects", "n_units"),
    "rows": ("Rows", "nobs"),
    "parameters": ("Parameters", "df_model"),
    "loglik": ("Log-likelihood", "llf"),
    "aic": ("AIC", "aic"),
    "bic": ("BIC", "bic"),
    "sabic": ("Adjusted BIC", "sabic"),
    "icl": ("ICL", "icl"),
    "entropy": ("Entropy", "entropy"),
}


_DEFAULT = ("subjects", "rows", "parameters", "loglik", "aic", "bic", "entropy")


@runtime_checkable
class Tabled(Protocol):
    """What a column of the table needs: a fit, or fits pooled over imputations."""

    @property
    def model(self) -> Model: ...  # noqa: D102

    @property
    def cov_type(self) -> str: ...  # noqa: D102

    @property
    def _notes_of_table(self) -> tuple[str, ...]: ...

    @property
    def shown_names(self) -> Names: ...  # noqa: D102

    params: pd.Series
    bse: pd.Series
    pvalues: pd.Series
    nobs: int
    n_units: int


def table(
    fits: Sequence[Any] | Mapping[str, Any],
    names: Sequence[str] | None = None,
    *,
    stars: bool = False,
    statistics: Sequence[str] = _DEFAULT,
    title: str = "",
) -> Summary:
    """Estimates of several fits side by side, with standard errors in parentheses.

    Parameters
    ----------
    fits : sequence of results, or mapping of names to results
        Fits of any family and number of experts, and what `mixmoe.pool` made of several.
    names : sequence of str, optional
        Heads of the columns; by default the keys of the mapping, or (1), (2) ...
    stars : bool
        Whether to mark p-values below 0.05, 0.01 and 0.001.
    statistics : sequence of str
        Rows at the foot: any of ``"subjects"``, ``"rows"``, ``"parameters"``, ``"loglik"``, ``"aic"``, ``"bic"``,
        ``"sabic"``, ``"icl"``, ``"entropy"``.
    title : str

    Returns
    -------
    Summary
        Prints as text and has as_latex(), as_html(), as_markdown().

    Raises
    ------
    ArgumentError
        If there is no fit, something else is among the fits, or the names do not fit.

    Notes
    -----
    Parameters are aligned by expert and term, those of networks with those of one expert. Experts are numbered by size
    within each fit, so that expert 2 of one fit need not describe the same people as expert 2 of another; `relabel`
    changes the order. Of each penalised function ``s(...)`` the effective degrees of freedom stand, and below them the
    p-value of the test that it is constant.

    Examples
    --------
    >>> import mixmoe as mm
    >>> data = mm.datasets.load("sleepstudy")
    >>> one = mm.fit("reaction ~ 1 | re: (1 | subject)", data, experts=1)
    >>> two = mm.fit("reaction ~ days | re: (1 | subject)", data, experts=1)
    >>> print(mm.table([one, two], statistics=["loglik"]))  # doctest: +ELLIPSIS
    ==============================================================================
    ...
    """
    results: list[Any] = list(fits.values()) if isinstance(fits, Mapping) else [fits]
    if isinstance(fits, Sequence):
        results = list(fits)
    if not results:
        raise ArgumentError("a table needs at least one fit, got none; pass them as [fit1, fit2]")
    for result in results:
        if not isinstance(result, Tabled):
            raise ArgumentError(
                f"a table is made of fitted models, got {type(result).__name__}; pass what fit() or pool() gave"
            )
    heads = _checked_names(fits, names, len(results))
    wanted = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    for name in wanted:
        if name not in _STATISTICS:
            raise ArgumentError(f"statistics must be among {', '.join(map(repr, _STATISTICS))}, got {name!r}")
    panels = [*_panels(results, heads, stars), *_functions(results, heads)]
    rows = [_STATISTICS[name] for name in wanted]
    cells = tuple(tuple(_statistic(result, attribute) for result in results) for _, attribute in rows)
    foot = Table("statistics", "Fit", heads, tuple(label for label, _ in rows), cells, (".3f",) * len(heads))
    shown = _common_names(results)
    notes = map(shown.prose, _notes(results, heads, stars, shown))
    return Summary(title, (*map(shown.table, panels), *([foot] if rows else [])), tuple(notes))


def _common_names(results: Sequence[Any]) -> Names:
    """What the fits call experts, if all mixtures among them call them alike, and the labels of terms, first come."""
    given = {result.shown_names.experts for result in results if (result.model.n_experts or 1) > 1}
    terms: dict[str, str] = {}
    for result in results:
        terms = {**result.shown_names.terms, **terms}
    return Names(given.pop() if len(given) == 1 else (), terms)


def _checked_names(fits: Any, names: Sequence[str] | None, n_fits: int) -> tuple[str, ...]:
    if names is None:
        return tuple(map(str, fits)) if isinstance(fits, Mapping) else tuple(f"({i + 1})" for i in range(n_fits))
    if isinstance(names, str) or len(names) != n_fits:
        raise ArgumentError(f"names must be {n_fits} texts, one per fit, got {names!r}")
    return tuple(map(str, names))


def _rows(results: Sequence[Any]) -> list[dict[Row, str]]:
    """For each fit its parameters by their row of the table.

    A network beside mixtures has its fixed effects where these have those of their only, or largest, expert: then rows
    of one meaning are one row.
    """
    mixtures = any(result.model.n_experts for result in results)
    found = []
    for result in results:
        # Networks alone keep the heading of their own block.
        alone = mixtures and result.model.n_experts is None
        rows: dict[Row, str] = {}
        for p in result.model.layout.parameters:
            if p.block == "smooth":
                continue  # coefficients of basis functions, which mean nothing one by one
            block: Block = "expert" if alone and p.block == "fixed" else p.block
            rows[block, 1 if alone else p.expert or 0, p.term] = p.name
        found.append(rows)
    return found


def _panels(results: Sequence[Any], heads: tuple[str, ...], stars: bool) -> list[Table]:
    """A table for each expert and each further block: of every parameter the estimates, and errors below them."""
    by_fit = _rows(results)
    groups: dict[tuple[int, int], list[Row]] = {}
    for row in dict.fromkeys(row for rows in by_fit for row in rows):
        groups.setdefault((_BLOCKS.index(row[0]), row[1] if row[0] == "expert" else 0), []).append(row)
    made = []
    for (block, expert), rows in sorted(groups.items()):
        key = f"expert{expert}" if block == 0 else _BLOCKS[block]
        index: list[str] = []
        cells: list[tuple[Cell, ...]] = []
        for row in sorted(rows, key=lambda row: row[1]):
            names = [(result, known.get(row)) for result, known in zip(results, by_fit, strict=True)]
            index += [row[2] if block == 0 or not row[1] else f"expert {row[1]}: {row[2]}", ""]
            cells += [tuple(_estimate(*one, stars) for one in names), tuple(_error(*one) for one in names)]
        title = f"Expert {expert}" if block == 0 else BLOCK_TITLES[_BLOCKS[block]]
        made.append(Table(key, title, heads, tuple(index), tuple(cells), ("num",) * len(heads)))
    return made


@runtime_checkable
class _Smooth(Protocol):
    """What a fit with penalised functions has besides."""

    functions: pd.DataFrame

    def test_functions(self) -> pd.DataFrame: ...


def _functions(results: Sequence[Any], heads: tuple[str, ...]) -> list[Table]:
    """Effective degrees of freedom of penalised functions, and below them p-values of tests that they are constant."""
    smooth = [result if isinstance(result, _Smooth) and len(result.functions) else None for result in results]
    names = dict.fromkeys(name for result in smooth if result is not None for name in result.functions.index)
    if not names:
        return []
    edf = [None if result is None else result.functions["edf"] for result in smooth]
    p_values = [None if result is None else result.test_functions()["p_value"] for result in smooth]
    index: list[str] = []
    cells: list[tuple[Cell, ...]] = []
    for name in names:
        index += [str(name), ""]
        cells.append(tuple(None if v is None or name not in v else f"edf {v[name]:.2f}" for v in edf))
        cells.append(tuple(None if v is None or name not in v else _constant(float(v[name])) for v in p_values))
    note = "Functions: effective degrees of freedom, and Wood's test that the function is constant."
    return [Table("functions", "Functions", heads, tuple(index), tuple(cells), ("num",) * len(heads), (note,))]


def _constant(p_value: float) -> Cell:
    return None if np.isnan(p_value) else f"(p {format_cell(p_value, 'p')})"


def _estimate(result: Any, name: str | None, stars: bool) -> Cell:
    if name is None:
        return None
    p_value = result.pvalues[name]
    mark = next((mark for limit, mark in _STARS if p_value < limit), "") if stars else ""
    return format_cell(in_light_of(float(result.params[name]), float(result.bse[name]))) + mark


def _error(result: Any, name: str | None) -> Cell:
    if name is None:
        return None
    return _NO_ERROR if np.isnan(result.bse[name]) else f"({format_cell(float(result.bse[name]))})"


def _statistic(result: Any, attribute: str) -> Cell:
    """A number of the fit; blank where it says nothing, as the entropy of a single expert."""
    experts = result.model.n_experts
    if (attribute == "entropy" and experts in (None, 1)) or (attribute == "icl" and experts is None):
        return None
    value = getattr(result, attribute, None)  # a pooled fit has no likelihood
    return None if value is None else int(value) if isinstance(value, int) else float(value)


def _notes(results: Sequence[Any], heads: Sequence[str], stars: bool, shown: Names) -> tuple[str, ...]:
    kinds = {result.cov_type: DESCRIPTIONS[result.cov_type] for result in results}
    if len(kinds) == 1:
        errors = next(iter(kinds.values()))
    else:
        errors = "; ".join(f"{head} {DESCRIPTIONS[r.cov_type]}" for head, r in zip(heads, results, strict=True))
    notes = [f"Standard errors in parentheses: {errors}."]
    notes += [_STARS_NOTE] if stars else []
    if len({(result.nobs, result.n_units) for result in results}) > 1:
        notes.append("The fits use different rows: their log-likelihoods and criteria are not comparable.")
    if len({result.model.n_experts for result in results} - {None}) > 1:
        notes.append("Experts are numbered by size within each fit; the same number need not mean the same people.")
    if not shown.experts:  # fits that call the same number differently
        notes += [
            f"{head}: {', '.join(f'expert {k} is {name}' for k, name in enumerate(r.shown_names.experts, 1))}."
            for head, r in zip(heads, results, strict=True)
            if r.shown_names.experts
        ]
    notes += [_NO_ERROR_NOTE] if any(result.bse.isna().any() for result in results) else []
    notes += [f"{head}: {message}" for head, r in zip(heads, results, strict=True) for message in r._notes_of_table]
    return tuple(notes)
