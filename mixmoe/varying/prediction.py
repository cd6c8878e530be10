"""Predictions of rows: probabilities of the experts, means, limits of a new response, places of responses."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.check.residuals import placed
from mixmoe.design.beside import check_beside
from mixmoe.design.complete_rows import NothingLeftError
from mixmoe.design.design import Design
from mixmoe.design.frame import places_of, shown
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.families import Distribution
from mixmoe.output.predictions import (
    Interval,
    Wanted,
    by_expert,
    check_own_rows,
    in_user_order,
    mean_columns,
    refuse_posterior_limits,
)
from mixmoe.output.summary import nothing_predicted
from mixmoe.responses.distribution import Family
from mixmoe.responses.zero_inflated import expected
from mixmoe.varying.em_steps import Natural, natural_parameters, own_natural, posterior
from mixmoe.varying.fitted import FittedVCMoE
from mixmoe.varying.function_frames import levels_at
from mixmoe.varying.problem import Rows
from mixmoe.varying.setup import sorted_rows

BISECTIONS = 200
_ALIKE = 1e-9  # of the largest value of a column


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
    new: object


def predicted(model: FittedVCMoE, new: Any, history: Any, wanted: Wanted, extrapolate: bool) -> pd.DataFrame:
    """Predictions as `VCMoEResults.predict` gives them, in the user's order."""
    _check_limits(model, wanted, history is not None)
    try:
        rows = prediction_rows(model, new, False, extrapolate)
        past = _past(model, rows, history, wanted, extrapolate)
    except NothingLeftError as error:
        first = prediction_rows(model, model.design.frame.iloc[:1], False, True)
        return nothing_predicted(new, [str(name) for name in prediction_columns(model, first, None, wanted)], error)
    return prediction_columns(model, rows, past, wanted)


def _check_limits(model: FittedVCMoE, wanted: Wanted, posterior: bool) -> None:
    """Refuse limits and scales that the fit does not have."""
    if posterior:
        refuse_posterior_limits(wanted)
    if wanted.interval == "confidence":
        raise ArgumentError(
            "VCMoE has no predict(interval='confidence'): functions of an index are estimated with a bias, which "
            "limits have to correct along the whole index; use bands(of='mean', at=...), which do, or "
            "interval='prediction' for a new response"
        )
    if wanted.scale == "categories":
        raise ArgumentError("VCMoE has no predict(scale='categories'): it has no ordinal family; use 'response'")
    if wanted.noise and wanted.scale == "link" and model.problem.family.name != "gaussian":
        raise ArgumentError("interval='prediction' is for responses, got scale='link'; use scale='response'")


def _past(
    model: FittedVCMoE, rows: PredictionRows, history: Any, wanted: Wanted, extrapolate: bool
) -> PredictionRows | None:
    """The rows with their responses; None where these play no part."""
    if history is not None:
        check_own_rows(history, rows.design, rows.new)
        past = prediction_rows(model, history, True, extrapolate)
        return None if wanted.kind in ("experts", "mean") else past
    known = wanted.kind == "subject" and rows.new is None
    return prediction_rows(model, None, True, extrapolate) if known else None


def prediction_rows(model: FittedVCMoE, new: Any, response: bool, extrapolate: bool) -> PredictionRows:
    """Rows and their predictors.

    Raises
    ------
    DesignError
        If the index leaves the range of the fit, or a column for offset or trials is missing.
    """
    design = model.design if new is None else model.design.for_new(new, response=response)
    check_beside(design, model.settings, ("offset", "trials"))
    made = sorted_rows(design, model.problem.family, response)
    grid, index, closed = model.problem.windows.grid, made.rows.index, model.problem.rows.period > 0.0
    if not (closed or extrapolate) and (index[0] < grid[0] or index[-1] > grid[-1]):
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


def prediction_columns(
    model: FittedVCMoE, at: PredictionRows, past: PredictionRows | None, wanted: Wanted
) -> pd.DataFrame:
    """Predictions of one kind, in the user's order.

    Parameters
    ----------
    model : FittedVCMoE
    at : PredictionRows
    past : PredictionRows or None
        The same rows, or some of them, with their responses, if probabilities are to be posterior ones.
    wanted : Wanted
    """
    family, natural, trials = model.problem.family, at.natural, at.rows.outcome.trials
    experts = natural.eta if wanted.scale == "link" else expected(family, natural.eta, natural.delta, trials)
    prob = np.exp(natural.log_gate) if past is None else given_responses(family, at, past)
    columns: dict[str, Array] = {}
    if wanted.kind in ("all", "probabilities"):
        columns |= by_expert("probability", prob.T)
    if wanted.kind in ("all", "experts"):
        columns |= by_expert("expert", experts.T)
    if wanted.kind in ("all", "mean", "subject"):
        mean = (prob * experts).sum(axis=0)
        columns |= mean_columns(response_interval(family, at, prob, wanted.alpha) if wanted.noise else mean)
    return in_user_order(columns, at.design, at.new)


def response_interval(family: Family, at: PredictionRows, prob: Array, alpha: float) -> Interval:
    """Mean and standard deviation of a new response, and limits that hold it, each shape (n,).

    Parameters
    ----------
    family : Family
    at : PredictionRows
    prob : ndarray, shape (K, n)
        Of the experts.
    alpha : float
    """
    natural, trials = at.natural, at.rows.outcome.trials
    experts = expected(family, natural.eta, natural.delta, trials)
    mean = (prob * experts).sum(axis=0)
    within = family.variance(experts, natural.delta, trials)
    spread = np.sqrt((prob * (within + (experts - mean) ** 2)).sum(axis=0))
    limits = (mixture_quantile(family, natural, prob, trials, p) for p in (alpha / 2.0, 1.0 - alpha / 2.0))
    return Interval(mean, spread, *limits)


def given_responses(family: Family, at: PredictionRows, past: PredictionRows) -> Array:
    """Probabilities of the experts given the response of each row, by the gate where there is none, shape (K, n).

    Raises
    ------
    DesignError
        If a row has another index or other gate covariates in the past than among the rows to predict.
    """
    where = places_of(at.design.position, past.design.position)
    found = np.flatnonzero(where >= 0)
    both = (at.rows.take(found), past.rows.take(where[found]))
    mine, theirs = (np.column_stack([rows.index, rows.gate]) for rows in both)
    wrong = (np.abs(mine - theirs) > _ALIKE * np.abs(mine).max(axis=0, initial=0.0)).any(axis=1)
    if wrong.any():
        raise DesignError(
            f"row {shown(at.design.rows[found[wrong.argmax()]])} has another index or other gate covariates in the "
            "history than among the rows to predict; pass the same rows in both"
        )
    prob, plain = np.exp(at.natural.log_gate), past.rows.with_weights(np.ones(past.rows.n))
    prob[:, found] = posterior(plain, family, past.natural).weighted[:, where[found]]
    return prob


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


def mixture_quantile(family: Family, natural: Natural, prob: Array, trials: Array, level: float) -> Array:
    """Smallest response whose distribution function reaches `level`, shape (n,), given probabilities of the experts."""

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
