"""Curves of a fitted MEMoE along one column of the data, and probabilities of the categories of an ordinal response."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from mixmoe._typing import Array
from mixmoe.check.residuals import binned_means, mean_marks
from mixmoe.design.design import Axis, Design, axis_of, continuous_columns, levels_in_use, used_columns
from mixmoe.errors import ArgumentError
from mixmoe.inference.uncertainty import checked_alpha
from mixmoe.mixed.prediction.linear_predictor import Seen, Table
from mixmoe.mixed.prediction.response_scale import (
    Covariates,
    LinkEstimate,
    Shown,
    averaged,
    bisected,
    estimated,
    given_past,
    mean_intervals,
    predictors,
)
from mixmoe.mixed.prediction.trajectories import Estimate, expert_intervals, gate_intervals
from mixmoe.mixed.thresholds import OrdinalResponse, cuts_of
from mixmoe.mixture.gate import gate_log_probabilities
from mixmoe.output.predictions import Interval, Wanted, named_columns
from mixmoe.output.records import Curve, Marks, Observed
from mixmoe.responses.cumulative_logit import at_most, with_ends

_POINTS = 101
_BINS = 8
_IN_A_LINE = 3  # columns whose values are named in a line of a label
_SECTIONS = ("expert", "gate", "random", "sigma")


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows along one column, the others held.

    Attributes
    ----------
    rows : DataFrame
    x : ndarray, shape (G,)
        Values of the column, or places of its categories.
    label : str
    categories : tuple of str
        Empty if the column is numeric.
    held : mapping of str to object
        Values of the other columns.
    """

    rows: pd.DataFrame
    x: Array
    label: str
    categories: tuple[str, ...]
    held: Mapping[str, Any]

    def held_of(self, columns: Sequence[str]) -> str:
        """A line that says where those of some columns are held that do not move; empty if there is none."""
        values = {name: self.held[name] for name in columns if name in self.held}
        said = [f"{name} = {v:.3g}" if isinstance(v, float) else f"{name} = {v}" for name, v in values.items()]
        return "\n".join(["", *(", ".join(said[i : i + _IN_A_LINE]) for i in range(0, len(said), _IN_A_LINE))])


def trajectory_curves(
    design: Design,
    e: Estimate,
    ylabel: str,
    x: str | None = None,
    at: Mapping[str, Any] | None = None,
    alpha: float = 0.05,
) -> tuple[Curve, ...]:
    """Trajectory of each expert at an offset of zero with pointwise confidence limits."""
    grid = build_grid(design, trajectory_axis(design) if x is None else checked_column(design, x, "expert"), at)
    curves = expert_intervals(e, design.for_new(grid.rows).expert, checked_alpha(alpha))
    return interval_curves("trajectories", curves, grid, ylabel + grid.held_of(used_columns(design, "expert")))


def gate_curves(
    design: Design, e: Estimate, x: str | None = None, at: Mapping[str, Any] | None = None, alpha: float = 0.05
) -> tuple[Curve, ...]:
    """Probability of each expert against a gate covariate, with pointwise confidence limits."""
    grid = build_grid(design, _first_axis(design, ["gate"]) if x is None else checked_column(design, x, "gate"), at)
    curves = gate_intervals(e, design.for_new(grid.rows).gate, checked_alpha(alpha))
    held = grid.held_of(used_columns(design, "gate"))
    return interval_curves("gate", curves, grid, "probability of the expert" + held)


def interval_curves(panel: str, values: Interval, grid: Grid, ylabel: str) -> tuple[Curve, ...]:
    """One curve per expert."""
    return tuple(
        Curve(
            panel=panel,
            label=f"expert {k + 1}",
            x=grid.x,
            y=values.estimate[:, k],
            lower=values.lower[:, k],
            upper=values.upper[:, k],
            expert=k + 1,
            xlabel=grid.label,
            ylabel=ylabel,
            categories=grid.categories,
        )
        for k in range(values.estimate.shape[1])
    )


def trajectory_data(
    design: Design, y: Array, responsibilities: Array, x: str | None = None, alpha: float = 0.05
) -> Observed | tuple[Marks, ...]:
    """What was observed along a column: courses with their most probable expert, or of a 0/1 response proportions.

    Parameters
    ----------
    design : Design
    y : ndarray, shape (n,)
        The response as it is drawn.
    responsibilities : ndarray, shape (N, K)
    x : str, optional
        Column, by default that of `trajectory_axis`.
    alpha : float
        One minus the level of the limits of proportions.

    Returns
    -------
    Observed, or a tuple of Marks
        Courses of zeros and ones would only cross one another: their proportions are weighted by responsibilities, at
        each value of the column or in groups of it.
    """
    column = trajectory_axis(design) if x is None else checked_column(design, x, "expert")
    axis = Axis(np.zeros(design.n), ()) if column is None else axis_of(design, column)
    if not np.isin(y, (0.0, 1.0)).all():
        return Observed(axis.values, y, design.codes, responsibilities.argmax(axis=1) + 1)
    tau, bins = responsibilities[design.codes], max(_BINS, len(axis.categories))
    means = binned_means(axis.values, y, tau, np.zeros_like(tau), design.codes, bins)
    marks = (mean_marks(means, k, checked_alpha(alpha)) for k in range(tau.shape[1]))
    return tuple(replace(m, lower=np.maximum(m.lower, 0.0), upper=np.minimum(m.upper, 1.0)) for m in marks)


def trajectory_axis(design: Design) -> str | None:
    """The column along which trajectories run: the first random slope or expert term that changes within subjects.

    Numbers come before categories; None if the expert part uses no column.
    """
    numeric = continuous_columns(design)
    candidates = [*used_columns(design, "random"), *used_columns(design, "expert")]
    for name in (name for name in candidates if name in numeric):
        values = design.frame[name].to_numpy(dtype=float)
        if (values != values[design.starts][design.codes]).any():
            return name
    return _first_axis(design, ["random", "expert"])


def _first_axis(design: Design, sections: list[str]) -> str | None:
    """The first column that the sections use, numbers before categories."""
    numeric = continuous_columns(design)
    used = [name for section in sections for name in used_columns(design, section)]
    return next(iter([*(n for n in used if n in numeric), *used]), None)


def checked_column(design: Design, name: str, section: str) -> str:
    """`name` if it is a column of a section.

    Raises
    ------
    ArgumentError
        If it is not.
    """
    columns = used_columns(design, section)
    if name not in columns:
        raise ArgumentError(f"x must be a column of the {section} part, {columns or 'there are none'}, got {name!r}")
    return name


def build_grid(design: Design, x: str | None, at: Mapping[str, Any] | None = None) -> Grid:
    """Rows along column `x`; others at medians or most frequent categories, or as given in `at`.

    Raises
    ------
    ArgumentError
        If `at` names a column that is not in use, or the one that varies.
    """
    frame, values, numeric = design.frame, dict(at or {}), continuous_columns(design)
    columns = list(dict.fromkeys(c for section in _SECTIONS for c in used_columns(design, section)))
    for name in values:
        if name not in columns or name == x:
            raise ArgumentError(
                f"at= holds {name!r}, which is not among the other columns {[c for c in columns if c != x]}"
            )
    along: list[Any] = [None]
    if x is not None:
        along = _span(frame[x]) if x in numeric else levels_in_use(frame[x])
    held = {c: values.get(c, _typical(frame[c], c in numeric)) for c in columns if c != x}
    moving = {} if x is None else {x: along}
    all_columns = {**moving, **{c: [value] * len(along) for c, value in held.items()}}
    rows = pd.DataFrame({c: pd.Series(v, dtype=_dtype(frame[c])) for c, v in all_columns.items()})
    if x in numeric:
        return Grid(rows, np.array(along), str(x), (), held)
    shown = ("all",) if x is None else tuple(str(level) for level in along)
    return Grid(rows if columns else pd.DataFrame(index=[0]), np.arange(len(along), dtype=float), x or "", shown, held)


def _span(values: pd.Series) -> list[float]:
    points: list[float] = np.linspace(float(values.min()), float(values.max()), _POINTS).tolist()
    return points


def _typical(values: pd.Series, numeric: bool) -> Any:
    return float(values.median()) if numeric else values.mode().iloc[0]


def _dtype(values: pd.Series) -> Any:
    return float if pd.api.types.is_numeric_dtype(values.dtype) else values.dtype


def expert_categories(e: LinkEstimate, at: Covariates) -> Array:
    """Probabilities of the categories under each expert in the population, expert by expert, shape (n, K * C)."""
    by_category = averaged(_of_categories(e), predictors(e, at))
    return by_category.transpose(2, 1, 0).reshape(len(at.X), -1)


def population_categories(e: LinkEstimate, at: Covariates) -> Array:
    """Probabilities of the categories in the population, shape (n, C)."""
    experts = np.exp(gate_log_probabilities(at.W, e.params.gamma))[0]
    return np.asarray((averaged(_of_categories(e), predictors(e, at)) * experts).sum(axis=1).T)


def subject_categories(e: LinkEstimate, at: Covariates, seen: Seen, wanted: Wanted) -> Interval | Array:
    """Probabilities of the categories for subjects given their past, shape (n, C), with equal-tailed limits if wanted.

    Parameters
    ----------
    e : LinkEstimate
    at : Covariates
    seen : Seen
        With the same rows.
    wanted : Wanted

    Returns
    -------
    Interval or ndarray
        Limits carry the uncertainty of membership and random effects. A category has at most a given probability at
        predictors outside an interval that is known in closed form.
    """
    where, weights, probabilities = given_past(e, at, seen), seen.probabilities.T, _of_categories(e)
    mean = (weights * where.averaged(probabilities)).sum(axis=1)
    if not wanted.limits:
        return np.asarray(mean.T)
    away = where.averaged(lambda eta: (probabilities(eta) - mean[:, None]) ** 2)
    mean, spread = mean.T, np.sqrt((weights * away).sum(axis=1)).T
    table = where.table()
    ends = with_ends(cuts_of(e.extra))
    lower, upper = np.empty_like(mean), np.empty_like(mean)
    for j in range(mean.shape[1]):
        for limit, level in ((lower, wanted.alpha / 2), (upper, 1 - wanted.alpha / 2)):
            limit[:, j] = _quantile(ends[:, j : j + 2], table, weights, level)
    return Interval(mean, spread, lower, upper)


def category_intervals(e: LinkEstimate, at: Covariates, alpha: float) -> Interval:
    """`expert_categories` with limits by the delta method on the logit scale, each shape (n, K * C)."""
    return mean_intervals(expert_categories, e, at, alpha, _limits)


def category_curves(values: Interval, grid: Grid, labels: tuple[str, ...]) -> tuple[Curve, ...]:
    """One panel per expert with a curve per category, from values of shape (n, K * C)."""
    C = len(labels)
    return tuple(
        replace(
            curve,
            panel=f"expert {j // C + 1}",
            label=labels[j % C],
            expert=j // C + 1,
            shade=j % C + 1,
        )
        for j, curve in enumerate(interval_curves("", values, grid, "probability of the category"))
    )


def _experts(e: LinkEstimate, at: Covariates, wanted: Wanted) -> dict[str, Array]:
    names = [f"expert{k + 1}.{name}" for k in range(len(e.extra)) for name in _names(e)]
    return named_columns(names, estimated(expert_categories, e, at, wanted, _limits))


def _population(e: LinkEstimate, at: Covariates, wanted: Wanted) -> dict[str, Array]:
    return named_columns(_names(e), estimated(population_categories, e, at, wanted, _limits))


def _subjects(e: LinkEstimate, at: Covariates, seen: Seen, wanted: Wanted) -> dict[str, Array]:
    return named_columns(_names(e), subject_categories(e, at, seen, wanted))


CATEGORIES = Shown(_experts, _population, _subjects)


def _ordinal(e: LinkEstimate) -> OrdinalResponse:
    """The response, which only ordinal fits ask for."""
    return cast(OrdinalResponse, e.response)


def _names(e: LinkEstimate) -> list[str]:
    return [f"P({label})" for label in _ordinal(e).labels]


def _of_categories(e: LinkEstimate) -> Callable[[Array], Array]:
    """Probabilities of the categories, shape (C, K, n), at linear predictors."""
    return lambda eta: _ordinal(e).probabilities(eta, e.extra)


def _quantile(ends: Array, table: Table, weights: Array, level: float) -> Array:
    """Quantile of the probability of one category with borders `ends`, shape (K, 2), over experts and effects, (n,)."""

    def below(p: Array) -> Array:
        outside = at_most(p, ends[:, :1], ends[:, 1:])
        inside = table.below(outside.right) - table.below(outside.left)
        return np.asarray((weights * (1.0 - inside)).sum(axis=0))

    n = table.first.shape[1]
    return bisected(below, level, np.zeros(n), np.ones(n))


def _limits(probability: Array, half: Array, trials: Array) -> tuple[Array, Array]:
    away = np.where(half > 0, half / (probability * (1.0 - probability)), 0.0)
    return expit(logit(probability) - away), expit(logit(probability) + away)
