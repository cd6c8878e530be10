"""Curves of an NME: marginal effects per person and of the population, losses per epoch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mixmoe.errors import ArgumentError
from mixmoe.neural.persons import Persons, predict_frame
from mixmoe.neural.predict import uncertainty
from mixmoe.neural.problem import Trace
from mixmoe.output.curves import Curve

GRID = 60


def learning_curves(trace: Trace) -> tuple[Curve, ...]:
    """Training and validation loss per epoch, and the mean variance of the effects."""
    x = np.arange(1, len(trace.train) + 1, dtype=float)
    curves = [Curve("loss", "training", x, trace.train, xlabel="epoch", ylabel="loss per row")]
    if np.isfinite(trace.validation).any():
        curves.append(Curve("loss", "validation", x, trace.validation, expert=2, xlabel="epoch"))
    curves.append(Curve("variance", "effects", x, trace.variance, xlabel="epoch", ylabel="mean variance of effects"))
    return tuple(curves)


def numeric_columns(frame: pd.DataFrame, skip: Sequence[str | None]) -> list[str]:
    """Numeric columns of the data that may lie along the axis."""
    return [
        name
        for name in frame.columns
        if name not in skip and pd.api.types.is_numeric_dtype(frame[name].dtype) and frame[name].nunique() > 2
    ]


def typical_rows(persons: Persons, variable: str) -> pd.DataFrame:
    """Rows along one variable, the others at their means or most frequent values."""
    frame = persons.design.frame
    grid = np.linspace(float(frame[variable].min()), float(frame[variable].max()), GRID)
    out: dict[str, Any] = {}
    for name in frame.columns:
        column = frame[name]
        numeric = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
        out[name] = np.full(GRID, column.mean()) if numeric else pd.Series([column.mode().iloc[0]] * GRID)
        if isinstance(column.dtype, pd.CategoricalDtype):
            out[name] = pd.Series(pd.Categorical([column.mode().iloc[0]] * GRID, dtype=column.dtype))
    out[variable] = grid
    return pd.DataFrame(out)


def effect_curves(
    persons: Persons, variable: str | None = None, labels: Sequence[Any] | None = None, n_persons: int = 8
) -> tuple[Curve, ...]:
    """Predictions along one input for the population, with limits for a new person's mean, and for some persons.

    Parameters
    ----------
    variable : str, optional
        Column of the data; default: the first numeric one of the formula.
    labels : sequence, optional
        Persons to show; default: the first `n_persons`.
    """
    design = persons.design
    formula = design.formula
    order = None if formula.seq is None else formula.seq.order
    known = numeric_columns(design.frame, (design.names.group, design.names.response, order))
    chosen = variable if variable is not None else (known[0] if known else None)
    if chosen is None or chosen not in design.frame.columns:
        raise ArgumentError(f"variable must be one of {', '.join(known) or 'none'}, got {variable!r}")
    rows = typical_rows(persons, chosen)
    shown = list(persons.labels[:n_persons] if labels is None else labels)
    return (*population_curve(persons, rows, chosen), *(person_curve(persons, rows, chosen, k) for k in shown))


def outcome(frame: pd.DataFrame) -> str:
    """Column of a prediction that is drawn: the mean, or the probability of the last level."""
    if "mean" in frame:
        return "mean"
    return [str(name) for name in frame if name != "known" and not str(name).startswith(("lower_", "upper_"))][-1]


def population_curve(persons: Persons, rows: pd.DataFrame, variable: str) -> tuple[Curve, ...]:
    """The mean over the distribution of effects, with limits of a person's mean."""
    if persons.design.names.group is not None:
        rows = rows.drop(columns=persons.design.names.group)
    covered = uncertainty(persons.problem, persons.trained, persons.z, population=False)
    found = predict_frame(persons, covered, rows, 0.05, 0)
    name = outcome(found)
    limits = (found.get("lower"), found.get("upper")) if name == "mean" else (None, None)
    ylabel = persons.design.names.response if name == "mean" else f"P({persons.design.names.response} = {name})"
    low, high = (None if v is None else v.to_numpy() for v in limits)
    x = rows[variable].to_numpy(dtype=float)
    return (
        Curve(variable, "population", x, found[name].to_numpy(), low, high, expert=1, xlabel=variable, ylabel=ylabel),
    )


def person_curve(persons: Persons, rows: pd.DataFrame, variable: str, label: Any) -> Curve:
    """Prediction of one person."""
    group = persons.design.names.group
    if label not in set(persons.labels):
        raise ArgumentError(f"labels must name persons of the fit, got {label!r}")
    mine = rows.drop(columns=group).assign(**{str(group): pd.Series([label] * len(rows))})
    found = predict_frame(persons, None, mine, 0.05, 0)
    x = rows[variable].to_numpy(dtype=float)
    return Curve(variable, f"{group} {label}", x, found[outcome(found)].to_numpy(), xlabel=variable)
