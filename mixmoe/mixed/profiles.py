"""Curves of a fitted MEMoE along one column of the data, the others held fixed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.design import Design, continuous_columns, used_columns
from mixmoe.errors import ArgumentError
from mixmoe.inference.intervals import checked_alpha
from mixmoe.mixed.predict import Estimate, Interval, expert_intervals, gate_intervals
from mixmoe.output.curves import Curve, Observed

Array = NDArray[np.float64]

_POINTS = 101


def trajectory_curves(
    design: Design, e: Estimate, x: str | None = None, at: Mapping[str, Any] | None = None, alpha: float = 0.05
) -> tuple[Curve, ...]:
    """Trajectory of each expert with pointwise confidence limits."""
    x = trajectory_axis(design) if x is None else checked_column(design, x, "expert")
    grid = profile(design, x, at)
    curves = expert_intervals(e, design.for_new(grid).expert, checked_alpha(alpha))
    return _curves("trajectories", curves, grid[x].to_numpy(dtype=float), x, design.names.response)


def gate_curves(
    design: Design, e: Estimate, x: str | None = None, at: Mapping[str, Any] | None = None, alpha: float = 0.05
) -> tuple[Curve, ...]:
    """Probability of each expert against a gate covariate, with pointwise confidence limits."""
    numeric = [name for name in used_columns(design, "gate") if name in continuous_columns(design)]
    if x is None and not numeric:
        raise ArgumentError(
            f"the gate of {design.formula.text!r} has no numeric covariate to draw; use proportions() or predict()"
        )
    x = numeric[0] if x is None else checked_column(design, x, "gate")
    grid = profile(design, x, at)
    curves = gate_intervals(e, design.for_new(grid).gate, checked_alpha(alpha))
    return _curves("gate", curves, grid[x].to_numpy(dtype=float), x, "probability of the expert")


def _curves(panel: str, values: Interval, x: Array, xlabel: str, ylabel: str) -> tuple[Curve, ...]:
    return tuple(
        Curve(
            panel=panel,
            label=f"expert {k + 1}",
            x=x,
            y=values.estimate[:, k],
            lower=values.lower[:, k],
            upper=values.upper[:, k],
            expert=k + 1,
            xlabel=xlabel,
            ylabel=ylabel,
        )
        for k in range(values.estimate.shape[1])
    )


def trajectory_data(design: Design, responsibilities: Array, x: str | None = None) -> Observed:
    """The observed courses, each with its most probable expert."""
    column = trajectory_axis(design) if x is None else checked_column(design, x, "expert")
    values = design.frame[column].to_numpy(dtype=float)
    return Observed(values, np.asarray(design.response), design.codes, responsibilities.argmax(axis=1) + 1)


def trajectory_axis(design: Design) -> str:
    """The column along which trajectories run: the first random slope or expert term that changes within subjects.

    Raises
    ------
    ArgumentError
        If no column of the expert part is numeric.
    """
    numeric = continuous_columns(design)
    candidates = [*used_columns(design, "random"), *used_columns(design, "expert")]
    candidates = [name for name in candidates if name in numeric]
    if not candidates:
        raise ArgumentError(
            f"the expert part of {design.formula.text!r} has no numeric column to draw trajectories along; "
            "use predict() instead"
        )
    for name in candidates:
        values = design.frame[name].to_numpy(dtype=float)
        if (values != values[design.starts][design.codes]).any():
            return name
    return candidates[0]


def checked_column(design: Design, name: str, section: str) -> str:
    """`name` if it is a numeric column of a section.

    Raises
    ------
    ArgumentError
        If it is not.
    """
    columns = [c for c in used_columns(design, section) if c in continuous_columns(design)]
    if name not in columns:
        raise ArgumentError(
            f"x must be a numeric column of the {section} part, {columns or 'there are none'}, got {name!r}"
        )
    return name


def profile(design: Design, x: str, at: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Rows along the range of column `x`; others at medians or most frequent categories, or as given in `at`."""
    frame, values = design.frame, dict(at or {})
    columns = list(dict.fromkeys(c for section in ("expert", "gate", "random") for c in used_columns(design, section)))
    for name in values:
        if name not in columns or name == x:
            raise ArgumentError(
                f"at= holds {name!r}, which is not among the other columns {[c for c in columns if c != x]}"
            )
    grid = np.linspace(float(frame[x].min()), float(frame[x].max()), _POINTS)
    numeric = continuous_columns(design)
    held = {c: [values.get(c, _typical(frame[c], c in numeric))] * _POINTS for c in columns if c != x}
    return pd.DataFrame({x: grid, **{c: pd.Series(v, dtype=_dtype(frame[c])) for c, v in held.items()}})


def _typical(values: pd.Series, numeric: bool) -> Any:
    return float(values.median()) if numeric else values.mode().iloc[0]


def _dtype(values: pd.Series) -> Any:
    return float if pd.api.types.is_numeric_dtype(values.dtype) else values.dtype
