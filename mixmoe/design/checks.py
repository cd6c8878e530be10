"""Checks of data against a formula, and levels of a categorical response.

Messages name column and row.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.complete_rows import Rows, earliest, refuse_order_of_texts
from mixmoe.design.formulaic_engine import Categories, Materialized
from mixmoe.design.frame import FrameView, infinite, is_numeric, missing, shown, unhashable, units_of
from mixmoe.design.recipe import ENGINES, WHERE, Recipe, response_column
from mixmoe.errors import AssumptionWarning, CollinearityWarning, DesignError, warn

_NUMERIC_AUX = ("trials", "offset")  # auxiliary columns that must hold numbers; weights are checked with the rows
_MANY_LEVELS = 20
_FEW_NUMBERS = 10  # numbers in texts up to which they may well be names of categories
_SHOWN = 12
_PAIRS = 3  # of spellings shown
_ONE = {"categories": "category", "labels": "label"}
_BLANK = ("", "na", "n/a", "nan", "none", "null", "?", ".")
_COPIES = 0.1  # share of the rows that may be copies of others by rounding
_CONTINUOUS = 0.2  # different values per row of a response that is measured, if each row is there a few times


def check_types(rows: Rows, frame: FrameView, recipe: Recipe, wanted: tuple[str, ...]) -> None:
    """Raise for columns that no design can be built from, before anything is computed.

    Raises
    ------
    DesignError
        For a response or index that is not numeric, a date used as a covariate, numbers read as text.
    """
    for section in wanted:
        for used in recipe.names[section]:
            if used.name in rows.columns and not used.called:
                values = rows.columns[used.name]
                if used.plain and section in ("response", "index") and not is_numeric(values):
                    raise _not_numeric(values, used.name, section, rows, frame)
                check_single(values, used.name, f" in {WHERE[section]}")
                if used.plain:
                    _check_covariate(values, used.name, section, rows, frame)
    if recipe.formula.seq is not None and recipe.formula.seq.order in rows.keys:
        order = recipe.formula.seq.order
        refuse_order_of_texts(frame.column(order), f"the order {order!r} of seq:", frame.labels)


def check_single(values: pd.Series, name: str, where: str = "") -> None:
    """Refuse a column whose cells hold lists or the like: within calls, as C(g), the error were one of a library."""
    wrong = unhashable(values)
    if wrong is not None:
        value = values.iloc[wrong]
        raise DesignError(
            f"column {name!r}{where} holds {type(value).__name__} values, such as {value!r}; terms are computed from "
            "numbers, texts or categories; make columns of single values"
        )


def warn_doubtful(rows: Rows, frame: FrameView, recipe: Recipe, counting: str) -> None:
    """Tell of levels that stand for missing values or are spelt twice, of rows there twice, of rows in no order.

    Parameters
    ----------
    rows : Rows
    frame : FrameView
    recipe : Recipe
    counting : str
        What beside ``lag()`` takes the row before as the rows stand.

    Warns
    -----
    AssumptionWarning
    """
    warn_spellings(rows, recipe)
    copies = _copies(rows, recipe)
    if copies > _COPIES * rows.n:
        warn(
            f"{copies} of {rows.n} rows are copies of other rows of the same subject in all columns that the formula "
            "uses; if a table was joined or appended twice, take them out with data.drop_duplicates()",
            AssumptionWarning,
        )
    before = rows.lags[0].name if rows.lags else counting
    if before and recipe.formula.random is not None and recipe.formula.seq is None and "time" not in recipe.aux:
        _warn_unordered(rows, frame, recipe, before)


def _warn_unordered(rows: Rows, frame: FrameView, recipe: Recipe, before: str) -> None:
    """Tell that rows stand in the order of no column, where `before` goes by it and a column looks like their time.

    Such a column tells all rows of a subject apart, and is a date, a whole number that other subjects have too, or has
    a random slope. Where one of them is in order, it is the time, whatever others there are.
    """
    same = rows.codes[1:] == rows.codes[:-1]
    slopes = {used.name for used in recipe.names["random"]}
    unordered: dict[str, int] = {}
    for name in [n for n, places in frame.places.items() if len(places) == 1 and n not in rows.keys]:
        values = frame.column(name).iloc[rows.position].reset_index(drop=True)
        dated = pd.api.types.is_datetime64_any_dtype(values)
        if not (dated or (is_numeric(values) and values.dtype != bool)) or missing(values).any():
            continue
        distinct = values.nunique()
        whole = not dated and bool((values == np.round(values.astype(float))).all())
        shared = whole and distinct < rows.n / 2
        if not (dated or shared or name in slopes) or distinct < 3:
            continue
        if pd.DataFrame({"unit": rows.codes, "value": values}).duplicated().any():
            continue
        back = same & (values.to_numpy()[1:] < values.to_numpy()[:-1])
        if not back.any():
            return
        unordered[name] = len(np.unique(rows.codes[1:][back]))
    for name, n_units in list(unordered.items())[:1]:
        group = str(recipe.formula.random.group) if recipe.formula.random is not None else ""
        warn(
            f"{before} takes the row before as the rows stand, and in {n_units} of {len(rows.labels)} "
            f"subjects they are not in the order of {name!r}; if that is their time, sort them first: "
            f"data.sort_values([{group!r}, {name!r}])",
            AssumptionWarning,
        )


def warn_spellings(rows: Rows, recipe: Recipe, whole: bool = True) -> None:
    """Tell of texts that stand for missing values, and of those that differ in blanks, case or form of accents only.

    Columns that the formula uses, the response among them, and those that name subjects, sequences and clusters.

    Parameters
    ----------
    rows : Rows
    recipe : Recipe
    whole : bool
        Whether these are all rows; otherwise they hold all categories, and how often is not told.

    Warns
    -----
    AssumptionWarning
    """
    used = dict.fromkeys(u.name for names in recipe.names.values() for u in names if not u.called)
    order = {None if recipe.formula.seq is None else recipe.formula.seq.order, recipe.aux.get("time")}
    columns = {name: rows.columns[name] for name in (*used, recipe.formula.response) if name in rows.columns}
    labels = {name: values for name, values in rows.keys.items() if whole and name not in order}
    for name, values in {**columns, **labels}.items():
        if is_numeric(values):
            continue
        what = "categories" if name in columns else "labels"
        counts = values.value_counts()
        texts = {text: int(n) for text, n in counts.items() if isinstance(text, str) and n}
        # Categories in a given order were listed by hand; "none" is an answer, where it is one of pain or of a state.
        ordered = isinstance(values.dtype, pd.CategoricalDtype) and values.cat.ordered
        doubtful = () if ordered else tuple(t for t in _BLANK if name != recipe.formula.response or t != "none")
        blank = {text: n for text, n in texts.items() if text.strip().lower() in doubtful}
        if blank:
            first = next(text for text in values if text in blank)
            where = f"in {sum(blank.values())} rows, " if whole else "in some rows, "
            warn(
                f"column {name!r} is {shown(first)} {where}which is taken for a {_ONE[what]} of its own; where it "
                f"stands for a missing value, say so: data[{name!r}].replace({shown(first)}, None)",
                AssumptionWarning,
            )
        alike = _spelt_alike(texts)
        if alike:
            told = [[f"{_written(t, one)} ({n} rows)" if whole else _written(t, one) for t, n in one] for one in alike]
            listed = "; ".join(" and ".join(one) for one in told[:_PAIRS]) + ("; ..." if len(told) > _PAIRS else "")
            warn(
                f"column {name!r} has {what} that differ only in blanks, case or the form of accents: {listed}; each "
                f"is one of its own, so that, if they are meant to be the same, give them one spelling: data[{name!r}]"
                ".str.strip().str.lower().str.normalize('NFC')",
                AssumptionWarning,
            )


def _spelt_alike(texts: Mapping[str, int]) -> list[list[tuple[str, int]]]:
    """Texts that differ only in blanks, case or form of accents, with their number of rows, most frequent first."""
    by_reading: dict[str, list[tuple[str, int]]] = {}
    for text, n in texts.items():
        reading = " ".join(text.split()).casefold()
        by_reading.setdefault(unicodedata.normalize("NFKC", reading), []).append((text, n))
    return [found for found in by_reading.values() if len(found) > 1]


def _written(text: str, alike: Sequence[tuple[str, int]]) -> str:
    """A text as it is shown; by code points where others look the same."""
    forms = [unicodedata.normalize("NFC", other) for other, _ in alike]
    twice = forms.count(unicodedata.normalize("NFC", text)) > 1
    return ascii(text) if twice else shown(text)


def _copies(rows: Rows, recipe: Recipe) -> int:
    """Rows like another of their subject in all columns in use, where chance makes none.

    That is so where the response is continuous, and where a column such as time tells all other rows of a subject
    apart: a subject is measured once at a time, whatever is measured.
    """
    if recipe.formula.random is None:
        return 0
    table = pd.DataFrame({**rows.columns, "": rows.codes})
    copies = table.duplicated()
    if not copies.any():
        return 0
    left = table[~copies]
    # Of log(y) the column y: a transform of a continuous column is continuous.
    responses = [u.name for u in recipe.names["response"] if u.name in rows.columns and not u.called]
    response = responses[0] if len(responses) == 1 else None
    measured = {u.name for part in ("expert", "random", "index") for u in recipe.names.get(part, ()) if not u.called}
    measured = measured & set(left.columns) - {response}
    timed = any(is_numeric(left[name]) and not left.duplicated(["", name]).any() for name in measured)
    continuous = False
    if recipe.response_kind == "numeric" and response is not None and is_numeric(rows.columns[response]):
        values = rows.columns[response].to_numpy(dtype=float)
        continuous = len(np.unique(values)) >= _CONTINUOUS * rows.n and not (values == np.round(values)).all()
    return int(copies.sum()) if timed or continuous else 0


def check_replay(rows: Rows, frame: FrameView, recipe: Recipe) -> None:
    """Raise for new data that differ in kind from those of the fit.

    Raises
    ------
    DesignError
        For text where numbers were, and for categories that the fit has not seen.
    """
    for name in sorted(recipe.numeric & rows.columns.keys()):
        values = rows.columns[name]
        if not is_numeric(values):
            i = _first_text(values, rows)
            raise DesignError(
                f"column {name!r} is {shown(values.iloc[i])} in row {label_of(rows, frame, i)}, but held numbers when "
                "the model was fitted; convert it, for example with pd.to_numeric"
            )
    for known in ENGINES[recipe.engine].known_categories(recipe.specs):
        if known.column in rows.columns:
            _check_seen(rows.columns[known.column], known, rows, frame)


def _check_seen(values: pd.Series, known: Categories, rows: Rows, frame: FrameView) -> None:
    unseen = ~np.asarray(values.isin(list(known.levels)))
    if unseen.any():
        i = earliest(unseen, rows)
        levels = ", ".join(shown(level) for level in known.levels[:_SHOWN])
        more = ", ..." if len(known.levels) > _SHOWN else ""
        raise DesignError(
            f"column {known.column!r} is {shown(values.iloc[i])} in row {label_of(rows, frame, i)}, a category that "
            f"the fit has not seen; it has coefficients for {levels}{more}; leave these rows out or refit with them"
        )


def _not_numeric(values: pd.Series, name: str, section: str, rows: Rows, frame: FrameView) -> DesignError:
    i = _first_text(values, rows)
    what = {"response": "the response", "index": "the index"}[section]
    return DesignError(
        f"{what} {name!r} must be numeric, got {shown(values.iloc[i])} in row {label_of(rows, frame, i)} "
        f"(type {values.dtype}); convert it, {_way_to_numbers(values)}"
    )


def _way_to_numbers(values: pd.Series) -> str:
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind.startswith(("date", "datetime")):
        return "for example to days: (dates - dates.min()) / pd.Timedelta(days=1), after pd.to_datetime"
    if kind.startswith("timedelta"):
        return "for example to days: differences / pd.Timedelta(days=1)"
    return "for example with pd.to_numeric, or two categories to 0 and 1"


def _first_text(values: pd.Series, rows: Rows) -> int:
    """Place of the first value that is no number; the first value if all could be read as numbers."""
    if not (values.dtype == object or isinstance(values.dtype, pd.StringDtype | pd.CategoricalDtype)):
        return int(rows.position.argmin())
    unreadable = np.asarray(pd.to_numeric(values.astype(object), errors="coerce").isna())
    return earliest(unreadable if unreadable.any() else ~unreadable, rows)


def _check_covariate(values: pd.Series, name: str, section: str, rows: Rows, frame: FrameView) -> None:
    if is_numeric(values):
        return
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind.startswith(("date", "time", "period", "complex")):
        raise DesignError(
            f"column {name!r} in {WHERE[section]} holds {kind} values, such as {shown(values.iloc[0])}; terms are "
            "computed from numbers, texts or categories; convert it, for example dates to days since a start"
        )
    _refuse_numbers_as_text(values, name, section, rows, frame)
    levels = values.nunique()
    if levels > _MANY_LEVELS and levels > len(values) / 2:
        i = _first_text(values, rows)
        raise DesignError(
            f"column {name!r} in {WHERE[section]} holds {levels} different texts in {len(values)} rows, such as "
            f"{shown(values.iloc[i])} in row {label_of(rows, frame, i)}; convert numbers read as text with "
            "pd.to_numeric; true categories need fewer levels"
        )


def _refuse_numbers_as_text(values: pd.Series, name: str, section: str, rows: Rows, frame: FrameView) -> None:
    """Raise for a column of which a cell such as 'n/a', a comma or an equals sign made texts of numbers."""
    if isinstance(values.dtype, pd.CategoricalDtype) or pd.api.types.infer_dtype(values, skipna=True) != "string":
        return
    levels = pd.Series(values.dropna().unique(), dtype=object)
    # A spreadsheet's '="12"' and a decimal comma are numbers that were read as text.
    cells = levels.str.strip().str.removeprefix("=").str.strip('"').str.replace(",", ".", regex=False)
    numbers = pd.to_numeric(cells, errors="coerce").notna().to_numpy()
    if numbers.sum() <= max(_FEW_NUMBERS, len(levels) / 2):
        return
    plainly = pd.to_numeric(levels, errors="coerce").notna().to_numpy()
    odd = levels[~plainly].iloc[0] if not plainly.all() else levels.iloc[0]
    i = earliest(np.asarray(values == odd), rows)
    raise DesignError(
        f"column {name!r} in {WHERE[section]} holds numbers read as text, such as {shown(odd)} in row "
        f"{label_of(rows, frame, i)}; convert it, for example with pd.to_numeric(data[{name!r}], errors='coerce') or "
        f"read_csv(..., decimal=',', na_values=['n/a']); write C({name}) if they are names of categories"
    )


def check_columns(built: Materialized, recipe: Recipe) -> None:
    """Raise unless response and index are one numeric column each, and other sections have no columns without number.

    Raises
    ------
    DesignError
    """
    for section, matrix in built.matrices.items():
        if matrix.shape[1] > MAX_COLUMNS:
            owners, counts = np.unique(built.owners[section], return_counts=True)
            term = recipe.sections[section][owners[counts.argmax()]]
            raise DesignError(
                f"{WHERE[section]} has {matrix.shape[1]} columns, {counts.max()} of them by the term "
                f"{ENGINES[recipe.engine].name_of(term)!r}; at most {MAX_COLUMNS} can be used, so join categories, "
                "take smaller bases, or write out the products that are meant"
            )
    texts = {"response": recipe.formula.response, "index": recipe.formula.vary}
    for section, text in texts.items():
        if section not in built.matrices or not recipe.sections[section]:
            continue
        names = built.names[section]
        if len(names) != 1 or not built.numeric[section]:
            raise DesignError(
                f"{WHERE[section]} {text!r} must be one numeric column, got {len(names)} columns "
                f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); use one numeric column"
            )


def check_names(built: Materialized) -> None:
    """Raise if two columns of a section have one name, as the interaction a:b and a column called 'a:b' do.

    Raises
    ------
    DesignError
    """
    for section, names in built.names.items():
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise DesignError(
                f"two columns of {WHERE[section]} are called {twice!r}, so that their coefficients could not be told "
                "apart; rename the column of the data"
            )


def label_of(rows: Rows, frame: FrameView, i: int) -> str:
    """Label of a row, as messages show it."""
    return shown(frame.labels[rows.position[i]])


def check_finite(built: Materialized, rows: Rows, frame: FrameView, recipe: Recipe) -> None:
    """Refuse columns of a design that are not finite, with the row and the term they come from."""
    for section, matrix in built.matrices.items():
        with np.errstate(over="ignore", invalid="ignore"):
            finite = bool(np.isfinite(matrix.sum()))
        if not finite and not np.isfinite(matrix).all():
            raise _infinite_error(section, built, rows, frame, recipe)


def _infinite_error(section: str, built: Materialized, rows: Rows, frame: FrameView, recipe: Recipe) -> DesignError:
    for used in recipe.names[section]:
        wrong = infinite(rows.columns[used.name]) if used.name in rows.columns else None
        if wrong is not None:
            i = earliest(wrong, rows)
            return DesignError(
                f"column {used.name!r} is {rows.columns[used.name].iloc[i]} in row {label_of(rows, frame, i)}; "
                "values must be finite, so correct them or set them missing"
            )
    cells = ~np.isfinite(built.matrices[section])
    i = earliest(np.asarray(cells.any(axis=1)), rows)
    j = int(cells[i].argmax())
    names = [u.name for u in recipe.names[section] if not u.called and u.name in rows.columns]
    values = ", ".join(f"{name} = {rows.columns[name].iloc[i]}" for name in names)
    return DesignError(
        f"the term {built.names[section][j]!r} of {WHERE[section]} is {built.matrices[section][i, j]} in row "
        f"{label_of(rows, frame, i)} ({values}); terms must be finite, so change the transform or the values"
    )


def auxiliary(recipe: Recipe, rows: Rows, frame: FrameView) -> dict[str, NDArray[Any]]:
    """Columns beside the formula by argument, in the order of the rows.

    Raises
    ------
    DesignError
        If one is infinite, or holds no numbers where numbers are needed; names the row.
    """
    out: dict[str, NDArray[Any]] = {}
    for label, column in recipe.aux.items():
        if label == "cluster" and column in rows.keys:
            clusters = units_of(rows.keys[column])
            out[label] = clusters.labels[clusters.codes]
        if label == "cluster" or column not in rows.columns:
            continue
        values = rows.columns[column]
        wrong = infinite(values)
        if wrong is not None:
            i = earliest(wrong, rows)
            raise DesignError(
                f"column {column!r} ({label}) is {values.iloc[i]} in row {label_of(rows, frame, i)}; correct it"
            )
        if label in _NUMERIC_AUX and not is_numeric(values):
            i = earliest(np.ones(len(values), dtype=bool), rows)
            raise DesignError(
                f"column {column!r} ({label}) must hold numbers, got {shown(values.iloc[i])} in row "
                f"{label_of(rows, frame, i)}; convert it, for example with pd.to_numeric"
            )
        out[label] = np.array(values, dtype=np.float64) if is_numeric(values) else np.asarray(values, dtype=object)
    return out


def with_gate_by_unit(recipe: Recipe, built: Materialized, rows: Rows, frame: FrameView) -> Materialized:
    """The matrices with one row of the gate per unit, after checking that it is constant there; not along an index."""
    if recipe.formula.vary is not None:
        return built
    starts, gate = rows.starts, built.matrices["gate"]
    first = gate[starts]
    for j in range(gate.shape[1] if len(starts) < rows.n else 0):
        off = gate[:, j] - first[rows.codes, j]
        if not off.any():
            continue
        varies = np.abs(off) > 1e-9 * np.abs(gate[:, j]).max()
        if varies.any():
            raise _varying_error(int(varies.argmax()), built.names["gate"][j], rows, frame, recipe)
    return replace(built, matrices={**built.matrices, "gate": first})


def _varying_error(i: int, term: str, rows: Rows, frame: FrameView, recipe: Recipe) -> DesignError:
    start = rows.starts[rows.codes[i]]
    names = [u.name for u in recipe.names["gate"] if u.name in rows.columns and not u.called]
    differing = [name for name in names if rows.columns[name].iloc[i] != rows.columns[name].iloc[start]]
    column = differing[0] if differing else term
    subject = f"subject {shown(rows.labels[rows.codes[i]])}"
    if column in rows.columns:
        values = rows.columns[column]
        subject += (
            f" ({shown(values.iloc[start])} in row {label_of(rows, frame, start)}, "
            f"{shown(values.iloc[i])} in row {label_of(rows, frame, i)})"
        )
    group = recipe.formula.random.group if recipe.formula.random is not None else ""
    states = recipe.formula.seq is not None
    of_whole = "the transitions are those of a person" if states else "the gate routes whole subjects"
    # Cells of a few donors are units that belong to experts themselves: then the donors are an effect, no subjects.
    of_rows = "" if states else f"; if rows, not subjects, belong to experts, use {group!r} as a term in place of re:"
    return DesignError(
        f"the gate covariate {column!r} varies within {subject}; {of_whole}, so it must "
        f"be constant within {group!r}; use a baseline value, such as "
        f"data.groupby({group!r})[{column!r}].transform('first'), or move {column!r} left of the first bar{of_rows}"
    )


_MOST_LEVELS = 50
_LEVELS_SHOWN = 6


def response_levels(recipe: Recipe, rows: Rows, frame: FrameView) -> tuple[Any, ...] | None:
    """Levels of the response that occur, in their order; None if it is numeric.

    Raises
    ------
    DesignError
        If there is one level only, or an ordinal response does not say how its levels are ordered.

    Warns
    -----
    CollinearityWarning
        If levels of an ordinal response have no rows.
    """
    if recipe.response_kind == "numeric":
        return None
    column = str(response_column(recipe.formula))
    values = rows.columns[column]
    if recipe.response_kind == "ordinal":
        levels = ordered_levels(values, column)
        _warn_empty(frame.column(column), levels, column)
    else:
        levels = tuple(pd.factorize(values, sort=True)[1])
    if not levels:
        raise DesignError(f"the response {column!r} is missing in every row; it needs two levels")
    if len(levels) < 2:
        raise DesignError(f"the response {column!r} is {shown(levels[0])} in every row; it needs two levels")
    return levels


def level_codes(recipe: Recipe, rows: Rows, frame: FrameView) -> NDArray[np.intp] | None:
    """Place of each response among the levels of the fit, shape (n,), -1 where it is missing.

    None if the data have no response.

    Raises
    ------
    DesignError
        For a level that the fit has not seen.
    """
    column, levels = str(response_column(recipe.formula)), list(recipe.levels or ())
    if column not in rows.columns:
        return None
    codes = pd.Index(levels).get_indexer(pd.Index(np.asarray(rows.columns[column])))
    unseen = (codes < 0) & ~missing(rows.columns[column])
    if unseen.any():
        i = earliest(unseen, rows)
        raise DesignError(
            f"the response {column!r} is {shown(rows.columns[column].iloc[i])} in row {label_of(rows, frame, i)}, "
            f"which the fit has not seen; known are {', '.join(map(shown, levels))}"
        )
    return codes.astype(np.intp)


def level_scores(levels: Sequence[Any]) -> Array:
    """What ordinal levels count as: themselves if they are increasing numbers, else 1, 2, 3 ..., shape (C,)."""
    counted = np.arange(1.0, len(levels) + 1)
    if not all(isinstance(level, int | float | np.number | np.bool_) for level in levels):
        return counted
    values = np.array(levels, dtype=float)
    return values if (np.diff(values) > 0).all() else counted


def level_labels(levels: Sequence[Any]) -> tuple[str, ...]:
    """Levels as parameter names show them; whole numbers without a decimal point."""
    return tuple(f"{level:g}" if isinstance(level, float | np.floating) else str(level) for level in levels)


def ordered_levels(values: pd.Series, column: str) -> tuple[Any, ...]:
    """Levels of an ordinal response, lowest first.

    Raises
    ------
    DesignError
        If their order is not known, or they are too many.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = values.cat.categories
        if not values.cat.ordered and not pd.api.types.is_numeric_dtype(levels):
            raise _unordered(column, tuple(levels))
        found = tuple(levels if values.cat.ordered else sorted(levels))
    elif is_numeric(values):
        found = tuple(np.unique(values).tolist())
    else:
        raise _unordered(column, tuple(pd.unique(values)))
    if len(found) > _MOST_LEVELS:
        raise DesignError(
            f"the response {column!r} has {len(found)} different values; family='ordinal' is for at most "
            f"{_MOST_LEVELS} ordered levels; group them, for example with pd.cut, or choose another family"
        )
    return found


def _unordered(column: str, levels: tuple[Any, ...]) -> DesignError:
    names = ", ".join(map(shown, levels[:_LEVELS_SHOWN])) + (", ..." if len(levels) > _LEVELS_SHOWN else "")
    return DesignError(
        f"the response {column!r} of family='ordinal' has the levels {names}, whose order is not known; put them in "
        f"order, lowest first: data[{column!r}] = pd.Categorical(data[{column!r}], [{names}], ordered=True), with this "
        "list rearranged; or use numbers"
    )


def _warn_empty(raw: pd.Series, levels: tuple[Any, ...], column: str) -> None:
    if not isinstance(raw.dtype, pd.CategoricalDtype):
        return
    empty = [level for level in raw.cat.categories if level not in levels]
    if empty:
        warn(
            f"the response {column!r} has no rows at {', '.join(map(shown, empty))}, which was left out: the data say "
            "nothing about its thresholds",
            CollinearityWarning,
        )


MAX_COLUMNS = 3000
"""Columns that a section may have: more than a model can use, and few enough to look for those that others make."""
