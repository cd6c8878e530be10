"""Predictions of a fitted varying-coefficient mixture."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.assess.residuals import Distribution, placed
from mixmoe.design import Design
from mixmoe.errors import DesignError
from mixmoe.kernels.distribution import Family
from mixmoe.output.frames import row_labels
from mixmoe.varying.fitted import FittedVCMoE
from mixmoe.varying.problem import Rows
from mixmoe.varying.profiles import levels_at
from mixmoe.varying.setup import sorted_rows
from mixmoe.varying.steps import Natural, natural_parameters, own_natural, posterior

Array = NDArray[np.float64]

KINDS = ("mean", "experts", "probabilities", "posterior", "interval")
BISECTIONS = 200


@dataclass(frozen=True, slots=True)
class PredictionRows:
    """Rows to predict, in the order of their design.

    Attributes
    ----------
    design : Design
    rows : Rows
    natural : Natural
    new : object
        What the user passed, None for the data of the fit.
    """

    design: Design
    rows: Rows
    natural: Natural
    new: Any


def prediction_rows(model: FittedVCMoE, new: Any, response: bool, extrapolate: bool) -> PredictionRows:
    """Rows and their predictors.

    Raises
    ------
    DesignError
        If the index leaves the range of the fit, or a column for offset or trials is missing.
    """
    design = model.design if new is None else model.design.for_new(new, response=response)
    for name in ("offset", "trials"):
        if name in model.design.aux and name not in design.aux:
            raise DesignError(f"the new data lack the column {model.settings[name]!r} ({name}); add it")
    made = sorted_rows(design, model.problem.family, response)
    grid, index = model.problem.windows.grid, made.rows.index
    if not extrapolate and (index[0] < grid[0] or index[-1] > grid[-1]):
        value = index[0] if index[0] < grid[0] else index[-1]
        raise DesignError(
            f"the index {design.names.index!r} is {value:g}, outside the range of the fit, {grid[0]:g} to "
            f"{grid[-1]:g}; leave such rows out, or pass extrapolate=True to continue the functions as lines"
        )
    natural = natural_parameters(made.rows, model.problem.slots, levels_at(model, index))
    back = np.argsort(made.order)
    delta = np.clip(natural.delta, model.problem.floor, model.problem.ceiling)
    unsorted = Natural(natural.eta[:, back], delta[:, back], natural.log_gate[:, back])
    return PredictionRows(design, made.rows.take(back), unsorted, new)


def prediction_columns(model: FittedVCMoE, at: PredictionRows, kind: str, alpha: float) -> pd.DataFrame:
    """Predictions of one kind, in the user's order."""
    family, natural, names = model.problem.family, at.natural, column_names(model.n_experts, kind)
    prob, trials = np.exp(natural.log_gate), at.rows.outcome.trials
    experts = family.mean(natural.eta, trials)
    if kind == "mean":
        values = (prob * experts).sum(axis=0)[None]
    elif kind == "experts":
        values = experts
    elif kind == "interval":
        values = np.stack([mixture_quantile(family, natural, trials, p) for p in (alpha / 2.0, 1.0 - alpha / 2.0)])
    else:
        values = prob if kind == "probabilities" else _posterior(at, family)
    return _in_user_order(values.T, names, at.design, at.new)


def column_names(n_experts: int, kind: str) -> list[str]:
    """Columns of predictions of one kind."""
    alone = {"mean": ["mean"], "interval": ["low", "high"]}
    each = range(1, n_experts + 1)
    return alone.get(kind, [f"{'expert' if kind == 'experts' else 'probability'}{c}" for c in each])


def _posterior(at: PredictionRows, family: Family) -> Array:
    plain = at.rows.with_weights(np.ones(at.rows.n))
    return posterior(plain, family, at.natural).weighted


def response_places(model: FittedVCMoE) -> Distribution:
    """Where the responses of the fit lie in their fitted mixtures, rows in the order of the design."""
    problem = model.problem
    natural = own_natural(problem, model.coef)
    out, weights = problem.rows.outcome, np.exp(natural.log_gate)

    def mixed(values: Array) -> Array:
        found = np.empty(values.shape[1])
        found[model.data.order] = (weights * values).sum(axis=0)
        return found

    def cdf(y: Array) -> Array:
        return mixed(problem.family.cdf(y, natural.eta, natural.delta, out.trials))

    def sf(y: Array) -> Array:
        return mixed(problem.family.sf(y, natural.eta, natural.delta, out.trials))

    return placed(cdf, sf, out.y, problem.family.discrete)


def mixture_quantile(family: Family, natural: Natural, trials: Array, level: float) -> Array:
    """Smallest response whose distribution function reaches `level`, shape (n,)."""
    prob = np.exp(natural.log_gate)

    def below(y: Array) -> NDArray[np.bool_]:
        return (prob * family.cdf(y, natural.eta, natural.delta, trials)).sum(axis=0) < level

    mean = family.mean(natural.eta, trials)
    width = np.exp(natural.delta).max(axis=0) if family.name == "gaussian" else 1.0 + mean.max(axis=0)
    low, high = mean.min(axis=0) - width, mean.max(axis=0) + width
    if family.name != "gaussian":
        low = np.full_like(low, -1.0)
    for _ in range(60):
        high = np.where(below(high), high + (high - low), high)
        if family.name == "gaussian":
            low = np.where(below(low), low, low - (high - low))
    discrete = family.name != "gaussian"
    high = np.ceil(high) if discrete else high
    for _ in range(BISECTIONS):
        middle = np.floor(0.5 * (low + high)) if discrete else 0.5 * (low + high)
        under = below(middle)
        low, high = np.where(under, middle, low), np.where(under, high, middle)
        if (high - low <= (1.0 if discrete else 1e-10 * width)).all():
            break
    return high


def _in_user_order(values: Array, names: list[str], design: Design, new: Any) -> pd.DataFrame:
    if new is None:
        index = design.rows[np.argsort(design.position, kind="stable")]
        return pd.DataFrame(design.in_order(values), index=index, columns=names)
    return pd.DataFrame(design.in_order(values, fill=True), index=row_labels(new, design.n_input), columns=names)
