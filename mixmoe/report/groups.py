"""Who is in the data, when they were seen, and how the experts' people differ, as tables."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from mixmoe.design import Design
from mixmoe.em import SAME, EMFit
from mixmoe.output.tables import Cell, Table, format_cell
from mixmoe.report.data import kind_of

Array = NDArray[np.float64]
_MAX_LEVELS = 8
_MAX_VISITS = 15
_MAX_ENDS = 10
_NUMBERS = ("numbers", "whole numbers")


def flow_table(design: Design, units: str) -> Table:
    """From the rows of the data to those that were fitted."""
    rows: list[tuple[str, Cell]] = [("Rows of the data", design.n_input)]
    rows += [(f"missing {name}", -count) for name, count in design.dropped.by_column]
    rows += [("Rows left out (a row may miss several)", -design.dropped.n_rows)] if design.dropped.n_rows else []
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


def attrition_table(design: Design, times: Array | None) -> Table | None:
    """Rank correlation of the number of visits with first values; None if all have as many visits."""
    counts, frame = design.counts, design.frame.iloc[first_rows(design, times)]
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
        notes=("Spearman's rank correlation; columns outside the formula are not looked at.",),
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
            made += [(values == level).rename(f"{name}: {level}") for level in _levels(values)]
    return made


def _levels(values: pd.Series) -> list[Any]:
    """The most frequent levels; of two only one, as the other says the same."""
    levels = list(values.value_counts().index[:_MAX_LEVELS])
    return levels[:1] if len(levels) == 2 else levels


def profile_table(design: Design, responsibilities: Array, times: Array | None, units: str) -> Table:
    """Means and deviations at the first row of each unit, by expert, every unit counted by its probabilities."""
    frame = design.frame.iloc[first_rows(design, times)]
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
        notes=("Every unit counts for each expert by its posterior probability.",),
    )


def _described(column: pd.Series) -> str:
    return f"{column.name}, share" if column.dtype == bool else f"{column.name}, mean (SD)"


def _weighted(column: pd.Series, weights: Array) -> str:
    x = column.to_numpy(dtype=float)
    mean = float(np.average(x, weights=weights))
    if column.dtype == bool:
        return f"{mean:.3f}"
    return f"{format_cell(mean)} ({format_cell(float(np.sqrt(np.average((x - mean) ** 2, weights=weights))))})"


def effects_table(effects: pd.DataFrame, alpha: float) -> Table:
    """What `gate_effects` found, one row per covariate, level, expert and, if coefficients vary, index value."""
    named = effects["covariate"].where(
        effects["contrast"] == "dy/dx", effects["covariate"] + ": " + effects["contrast"]
    )
    for index in effects.columns[3 : list(effects.columns).index("estimate")]:
        named += f", {index} = " + effects[index].map("{:.4g}".format)
    shown = effects[["estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high"]]
    return Table(
        key="gate_effects",
        title="Average marginal effects on the probabilities of the experts",
        columns=("Estimate", "Std. Err.", "z", "P>|z|", f"[{alpha / 2:g}", f"{1 - alpha / 2:g}]"),
        index=tuple(f"{name}: expert {k}" for name, k in zip(named, effects["expert"], strict=True)),
        cells=tuple(tuple(float(value) for value in row) for row in shown.to_numpy(dtype=float)),
        formats=("num", "num", ".3f", "p", "num", "num"),
        notes=("Mean over the units of the slope, or of the difference between two levels; delta method.",),
    )


def elsewhere(em: EMFit) -> str:
    """Where those starts ended that did not reach the best; blank if all did or it is not known."""
    others = em.starts.ends[em.starts.n_replicated :]
    below = em.loglik - others[np.isfinite(others)]
    parts = [f"{below.size} ended {below.min():.3g} to {below.max():.3g} below the best"] if below.size else []
    parts += [f"{others.size - below.size} collapsed"] if below.size < others.size else []
    return f"Of the other starts, {' and '.join(parts)} when the search ended." if parts else ""


def distinct_ends(logliks: Array) -> Array:
    """Log-likelihoods of different optima, best first: searches that were joined may have found the same."""
    ordered = np.sort(np.asarray(logliks, dtype=float))[::-1]
    return ordered[np.append(True, np.diff(ordered) < -SAME)[: len(ordered)]]


def end_points_table(logliks: Array) -> Table:
    """The best end points of the search and their distances from the best."""
    shown = [float(v) for v in logliks[:_MAX_ENDS]]
    return Table(
        key="ends",
        title="Maxima that were run to convergence",
        columns=("log-likelihood", "below the best"),
        index=tuple(f"{i + 1}" for i in range(len(shown))),
        cells=tuple((v, shown[0] - v) for v in shown),
        formats=(".3f", ".3f"),
        notes=(f"{len(logliks) - len(shown)} worse ones are not shown.",) if len(logliks) > len(shown) else (),
    )
