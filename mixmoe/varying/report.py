"""Tables and curves of a fitted varying-coefficient mixture."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.inference.covariance import DESCRIPTIONS
from mixmoe.layout import ParamLayout
from mixmoe.output.curves import Curve
from mixmoe.output.tables import Cell, Table
from mixmoe.results import column_facts
from mixmoe.varying.fitted import FittedVCMoE

Array = NDArray[np.float64]

_PLAIN = (0.01, 1e5)  # sizes of functions that are shown with three decimals, others with three digits

PLOTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "functions": ("coefficients", "probabilities"),
        "probabilities": ("probabilities",),
        "means": ("experts", "mean"),
        "differences": ("differences",),
        "bandwidth": (),
        "gate_bandwidth": (),
    }
)


def title(results: Any) -> str:
    """Heading of the summary."""
    k = results.model.n_experts
    return f"VCMoE with {k} expert{'s' if k > 1 else ''}"


def facts(results: Any) -> tuple[tuple[str, Cell], ...]:
    """Label and value of each line of the header."""
    model, em = results.model, results.em
    problem, dropped = model.problem, model.design.dropped
    gate = model.settings["gate_bandwidth"]
    span = f"{model.design.names.index}, {problem.windows.grid[0]:.4g} to {problem.windows.grid[-1]:.4g}"
    finished = (
        f"{em.starts.n_replicated} of {len(em.starts.logliks)} candidates ({em.starts.n_starts} starts of each kind)"
    )
    return (
        ("Formula", model.formula.text),
        ("Family", problem.family.name),
        ("Experts", model.n_experts),
        ("Rows", results.nobs),
        ("Clusters", None if model.clusters is None else results.n_units),
        ("Rows dropped", f"{dropped.n_rows} ({dropped})" if dropped.n_rows else 0),
        *column_facts(model),
        ("Index", span),
        ("Bandwidth", _bandwidth_text(results.bandwidth, model.selection)),
        ("Gate bandwidth", None if gate is None else _bandwidth_text(gate, model.gate_selection)),
        ("Grid points", problem.windows.n_grid),
        ("Log-likelihood", results.llf),
        ("Effective parameters", float(results.effective_df)),
        ("AIC", results.aic),
        ("AICc", results.aicc),
        ("BIC", results.bic),
        ("Entropy", results.entropy if model.n_experts > 1 else None),
        ("Covariance", results.cov_type),
        ("Converged", "yes" if results.converged else "NO"),
        ("Best value reached by", finished if em.starts.n_starts > 1 and model.n_experts > 1 else None),
    )


def _bandwidth_text(bandwidth: float, table: pd.DataFrame | None) -> str:
    text = "infinite (constant)" if np.isinf(bandwidth) else f"{bandwidth:.4g}"
    return text if table is None else f"{text} (cross-validated)"


def notes(results: Any) -> tuple[str, ...]:
    """What a reader must know: the covariance, and each flag of the fit."""
    cov = results.cov
    about = f"Standard errors: {DESCRIPTIONS[cov.kind]}{'; ' + cov.note if cov.note else ''}."
    return (about, *(flag.message for flag in results.flags))


def constant_tables(layout: ParamLayout, frame: pd.DataFrame, alpha: float) -> tuple[Table, ...]:
    """Table of the constants, if there are any."""
    chosen = [i for i, name in enumerate(layout.names) if "=" not in name.rpartition("(")[2]]
    if not chosen:
        return ()
    part = frame.iloc[chosen]
    columns = ("estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high")
    return (
        Table(
            key="constants",
            title="Coefficients constant along the index",
            columns=("Estimate", "Std. Err.", "z", "P>|z|", f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]"),
            index=tuple(str(name) for name in part.index),
            cells=tuple(tuple(_cell(v) for v in row) for row in part[list(columns)].to_numpy(dtype=float)),
            formats=("num", "num", ".3f", "p", "num", "num"),
        ),
    )


def function_tables(
    model: FittedVCMoE, bands: pd.DataFrame | None, p_values: Mapping[str, float] | None, level: float
) -> tuple[Table, ...]:
    """One table per expert and one for the gate: range, test of constancy (if any), values with bands at quantiles."""
    if bands is None:
        return ()
    tables = []
    shares = model.problem.slots.n_experts
    for c in range(1, shares + 1):
        part = bands[(bands["expert"] == c) & bands["block"].isin(["expert", "residual"])]
        title = f"Expert {c}: functions of the index"
        tables.append(_function_table(model, part, p_values, f"expert{c}", title))
    gate = bands[bands["block"] == "gate"]
    title = "Gate: functions of the index (log odds against expert 1)"
    tables.append(_function_table(model, gate, p_values, "gate", title))
    *others, last = [table for table in tables if table.index]
    about = _about_functions(str(model.design.names.index), level, p_values is not None)
    gaps = missing_bands(bands)
    return (*others, replace(last, notes=(about, *([] if gaps is None else [gaps]))))


def _about_functions(index: str, level: float, tested: bool) -> str:
    """What the columns and second lines of the tables of functions are."""
    test = (
        "P const.: asymptotic GLR test that the function is constant, which rejects too often in small samples; "
        "test_varying() has the bootstrap."
    )
    untested = (
        "There is no test that a function is constant: rows of a cluster are not independent, which its null "
        "distribution needs; a constant is ruled out where no horizontal line fits into the band."
    )
    return (
        f"Second lines: {100 * level:g} % simultaneous bands over the whole range of {index}, robust bias correction. "
        f"{test if tested else untested}"
    )


def missing_bands(bands: pd.DataFrame) -> str | None:
    """In words: for which functions, at how many grid points, there are no bands; None if there are everywhere."""
    counts = bands["std_error"].isna().groupby(bands["coefficient"], sort=False).sum()
    counts = counts[counts > 0]
    if counts.empty:
        return None
    n_grid = int((bands["coefficient"] == bands["coefficient"].iloc[0]).sum())
    several = f"{len(counts)} functions" if len(counts) > 4 else ", ".join(str(name) for name in counts.index)
    return (
        f"There are no bands at up to {counts.max()} of {n_grid} grid points for {several}: the local fit behind them "
        "(local-quadratic by default) has no maximum near the fit there; use a larger bandwidth or fewer experts, or "
        "bias='none', whose bands leave out the bias."
    )


def _function_table(
    model: FittedVCMoE, bands: pd.DataFrame, p_values: Mapping[str, float] | None, key: str, heading: str
) -> Table:
    index = str(model.design.names.index)
    grid, points = model.problem.windows.grid, model.points
    names: list[str] = []
    cells: list[tuple[Cell, ...]] = []
    for name, part in bands.groupby("coefficient", sort=False):
        values = {c: part[c].to_numpy() for c in ("estimate", "band_low", "band_high")}
        label = str(part["term"].iloc[0]) if key != "gate" else str(name)
        names += [label, "  simultaneous band"]
        estimate = values["estimate"]
        show = "{:.3f}".format if _PLAIN[0] <= np.abs(estimate).max() < _PLAIN[1] else "{:.3g}".format
        span = f"{show(estimate.min())} to {show(estimate.max())}"
        test = () if p_values is None else (p_values.get(str(name)),)
        cells.append((span, *test, *(show(estimate[g]) for g in points)))
        limits = zip(values["band_low"][points], values["band_high"][points], strict=True)
        shown = ("-" if np.isnan(low) else f"{show(low)}, {show(high)}" for low, high in limits)
        cells.append((None, *([None] * len(test)), *shown))
    return Table(
        key=key,
        title=heading,
        columns=("Range", *([] if p_values is None else ["P const."]), *(f"{index}={grid[g]:.3g}" for g in points)),
        index=tuple(names),
        cells=tuple(cells),
        formats=("num", *([] if p_values is None else ["p"]), *("num" for _ in points)),
    )


def _cell(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def band_curves(model: FittedVCMoE, frames: Mapping[str, pd.DataFrame]) -> tuple[Curve, ...]:
    """Curves of frames of bands: a panel per term of the experts, one for probabilities."""
    curves = []
    for of, frame in frames.items():
        if of == "coefficients":
            frame = frame[frame["block"] != "gate"]
        for name, part in frame.groupby("coefficient", sort=False):
            curves.append(_curve(model, of, str(name), part))
    return tuple(curves)


def _curve(model: FittedVCMoE, of: str, name: str, part: pd.DataFrame) -> Curve:
    index = str(model.design.names.index)
    expert = None if pd.isna(part["expert"].iloc[0]) else int(part["expert"].iloc[0])
    panel = {
        "coefficients": f"coefficient of {part['term'].iloc[0]}",
        "probabilities": "probability of the expert",
        "experts": "expected response",
        "mean": "expected response",
        "differences": name,
    }[of]
    if part["block"].iloc[0] == "residual":
        panel = str(part["term"].iloc[0])
    value = {
        c: part[c].to_numpy(dtype=float) for c in part.columns if c not in ("coefficient", "block", "expert", "term")
    }
    return Curve(
        panel=panel,
        label="marginal mean" if of == "mean" else "" if expert is None else f"expert {expert}",
        x=value[index],
        y=np.where(np.isnan(value["conf_low"]), np.nan, value["center"]),  # a gap where there is no maximum
        lower=value["conf_low"],
        upper=value["conf_high"],
        band_lower=value["band_low"],
        band_upper=value["band_high"],
        expert=expert,
        xlabel=index,
        ylabel="",
    )


def bandwidth_curves(selection: pd.DataFrame, xlabel: str) -> tuple[Curve, ...]:
    """The cross-validated criterion against the bandwidth, with one standard error."""
    x, y, se = (selection[c].to_numpy() for c in ("bandwidth", "criterion", "std_error"))
    return (Curve("", "", x, y, y - se, y + se, xlabel=xlabel, ylabel="held-out log-likelihood per row"),)


def classification_entropy(responsibilities: Array) -> float:
    """Entropy of the posterior classification, summed over rows."""
    safe = np.maximum(responsibilities, np.finfo(float).tiny)
    return float(-(responsibilities * np.log(safe)).sum())
