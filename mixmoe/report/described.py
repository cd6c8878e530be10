"""A data set as tables: subjects, visits, spacing, columns, and how the experts' people differ."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from mixmoe._typing import Array
from mixmoe.design.design import Design
from mixmoe.errors import DesignError
from mixmoe.mixture.estimate import SAME, EMFit
from mixmoe.output.records import Cell, Table, format_cell
from mixmoe.output.summary import header_table

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
        tables.append(visits_table(np.bincount(codes[codes >= 0])))
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


def visits_table(counts: NDArray[Any]) -> Table:
    """How many subjects have how many visits, from the visits of each."""
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
        describers[3] = lambda v: "" if v.name == subject else _values(_once(v, codes))
        describers.append(lambda v: "subject" if v.name == subject else within(v, codes))
    columns = [data.iloc[:, i] for i in range(data.shape[1])]
    note = (
        "Columns that are constant within subject can be used in the gate; their values are counted once per subject, "
        "those of other columns once per row."
    )
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


def _once(values: pd.Series, codes: NDArray[Any]) -> pd.Series:
    """One value per subject of a column that is constant within subjects; other columns as they are."""
    if within(values, codes).startswith("varies"):
        return values
    known = (codes >= 0) & values.notna().to_numpy()
    return values[known][~pd.Series(codes[known]).duplicated().to_numpy()]


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
    counts = [f"{level}: {count}" for level, count in known.value_counts().items() if count]
    return ", ".join(counts[:_MAX_LEVELS]) + (" ..." if len(counts) > _MAX_LEVELS else "")


_MAX_GROUPS = 8
_MAX_VISITS = 15
_MAX_ENDS = 10
_NUMBERS = ("numbers", "whole numbers")


def flow_table(design: Design, units: str) -> Table:
    """From the rows of the data to those that were fitted."""
    rows: list[tuple[str, Cell]] = [("Rows of the data", design.n_input)]
    rows += [(f"missing {name}", -count) for name, count in design.dropped.by_column]
    rows += [("Rows left out (a row may miss several)", -design.dropped.n_rows)] if design.dropped.n_rows else []
    rows += [("Rows of weight zero, not counted", -design.n_uncounted)] if design.n_uncounted else []
    rows += [("Rows fitted", design.n)]
    if design.names.group is not None:
        rows += [(f"Independent {units}", design.n_units)]
    return Table("flow", "Rows", ("count",), tuple(name for name, _ in rows), tuple((v,) for _, v in rows), ("num",))


def first_rows(design: Design, times: Array | None) -> NDArray[np.intp]:
    """The earliest row of each unit, shape (N,)."""
    if times is None:
        return design.starts
    order = np.lexsort((times, design.codes))
    return order[design.starts]


def waves_table(design: Design, times: Array, axis: str) -> Table:
    """When the first, second ... visits were: units, mean, deviation and range of the time."""
    order = np.lexsort((times, design.codes))
    visit = np.arange(design.n) - design.starts[design.codes]
    values = times[order]
    waves = [values[visit == v] for v in range(min(int(visit.max()) + 1, _MAX_VISITS))]
    cells: list[tuple[Cell, ...]] = [
        (len(w), float(w.mean()), float(w.std(ddof=1)) if len(w) > 1 else None, float(w.min()), float(w.max()))
        for w in waves
    ]
    more = int(visit.max()) + 1 - len(waves)
    return Table(
        key="waves",
        title=f"Time of each visit ({axis})",
        columns=("subjects", "mean", "SD", "minimum", "maximum"),
        index=tuple(f"visit {v + 1}" for v in range(len(waves))),
        cells=tuple(cells),
        formats=("num",) * 5,
        notes=(f"{more} later visits are not shown.",) if more > 0 else (),
    )


def first_values(design: Design, times: Array | None) -> pd.DataFrame:
    """Columns at the earliest row of each unit; without times those that do not change within units, and no others."""
    frame = design.frame.iloc[first_rows(design, times)]
    if times is not None or design.names.group is None:
        return frame
    distinct = design.frame.groupby(design.codes, sort=False).nunique(dropna=False)
    return frame[[name for name in frame if (distinct[name] == 1).all()]]


_CONSTANT_ONLY = "Columns that do not change within subjects; for first values of the others give time= to mm.fit."


def attrition_table(design: Design, times: Array | None) -> Table | None:
    """Rank correlation of the number of visits with first values; None if all have as many visits."""
    counts, frame = design.counts, first_values(design, times)
    if counts.min() == counts.max():
        return None
    columns = [column for column in _indicators(frame, design.names.group) if column.nunique() > 1]
    tests = [spearmanr(column.to_numpy(dtype=float), counts) for column in columns]
    return Table(
        key="attrition",
        title="Number of visits against first values",
        columns=("rank correlation", "p-value"),
        index=tuple(str(column.name) for column in columns),
        cells=tuple((float(test.statistic), float(test.pvalue)) for test in tests),
        formats=(".3f", "p"),
        notes=(
            "Spearman's rank correlation; columns outside the formula are not looked at.",
            *([_CONSTANT_ONLY] if times is None else []),
        ),
    )


def _indicators(frame: pd.DataFrame, group: str | None) -> list[pd.Series]:
    """Numeric columns as they are, an indicator per level of the others."""
    made: list[pd.Series] = []
    for name in frame.columns:
        values = frame[name]
        if name == group:
            continue
        if kind_of(values) in _NUMBERS:
            made.append(values)
        else:
            levels = list(values.value_counts().index[:_MAX_GROUPS])
            # Of two levels only one: the other says the same.
            shown = levels[:1] if len(levels) == 2 else levels
            made += [(values == level).rename(f"{name}: {level}") for level in shown]
    return made


def profile_table(design: Design, responsibilities: Array, times: Array | None, units: str) -> Table:
    """Means and deviations at the first row of each unit, by expert, every unit counted by its probabilities."""
    frame = first_values(design, times)
    K = responsibilities.shape[1]
    weights = [*responsibilities.T, np.ones(len(frame))]
    columns = _indicators(frame, design.names.group)
    return Table(
        key="profile",
        title="First values by expert",
        columns=(*(f"expert {k + 1}" for k in range(K)), "all"),
        index=(f"{units.capitalize()} (posterior mass)", *(_described(column) for column in columns)),
        cells=(
            tuple(f"{w.sum():.1f}" for w in weights),
            *(tuple(_weighted(column, w) for w in weights) for column in columns),
        ),
        formats=("num",) * (K + 1),
        notes=(
            "Every unit counts for each expert by its posterior probability.",
            *([_CONSTANT_ONLY] if times is None and design.names.group is not None else []),
        ),
    )


def _described(column: pd.Series) -> str:
    return f"{column.name}, share" if column.dtype == bool else f"{column.name}, mean (SD)"


def _weighted(column: pd.Series, weights: Array) -> str:
    x = column.to_numpy(dtype=float)
    mean = float(np.average(x, weights=weights))
    if column.dtype == bool:
        return f"{mean:.3f}"
    return f"{format_cell(mean)} ({format_cell(float(np.sqrt(np.average((x - mean) ** 2, weights=weights))))})"


def elsewhere(em: EMFit) -> str:
    """Where those starts ended that did not reach the best; blank if all did or it is not known."""
    others = em.starts.ends[em.starts.n_replicated :]
    # Starts of a fit with penalised functions were compared with each other on a coarse basis, without penalties.
    best = float(em.starts.logliks.max()) if em.smoothing.size and em.starts.logliks.size else em.loglik
    below = best - others[np.isfinite(others)]
    parts = [f"{below.size} ended {below.min():.3g} to {below.max():.3g} below the best"] if below.size else []
    parts += [f"{others.size - below.size} collapsed"] if below.size < others.size else []
    return f"Of the other starts, {' and '.join(parts)} when the search ended." if parts else ""


def distinct_ends(logliks: Array) -> Array:
    """Log-likelihoods of different optima, best first: searches that were joined may have found the same."""
    ordered = np.sort(np.asarray(logliks, dtype=float))[::-1]
    return ordered[np.append(True, np.diff(ordered) < -SAME)[: len(ordered)]]


def end_points_table(logliks: Array, title: str, note: str) -> Table:
    """The best end points of the search and their distances from the best."""
    shown = [float(v) for v in logliks[:_MAX_ENDS]]
    left = len(logliks) - len(shown)
    return Table(
        key="ends",
        title=title,
        columns=("log-likelihood", "below the best"),
        index=tuple(f"{i + 1}" for i in range(len(shown))),
        cells=tuple((v, shown[0] - v) for v in shown),
        formats=(".3f", ".3f"),
        notes=(*((f"{left} worse ones are not shown.",) if left else ()), *((note,) if note else ())),
    )
