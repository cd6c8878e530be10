"""Probabilities of the categories of an ordinal response, random effects averaged over their distribution."""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mixmoe.gate import gate_log_probabilities
from mixmoe.kernels.ordinal import at_most, with_ends
from mixmoe.mixed.course import Seen, Table
from mixmoe.mixed.frames import interval_columns
from mixmoe.mixed.ordinal import OrdinalResponse, cuts_of
from mixmoe.mixed.predict import Interval
from mixmoe.mixed.profiles import Grid, interval_curves
from mixmoe.mixed.response_scale import (
    Covariates,
    LinkEstimate,
    Shown,
    averaged,
    bisected,
    given_past,
    mean_intervals,
    predictors,
)
from mixmoe.output.curves import Curve

Array = NDArray[np.float64]


def expert_categories(e: LinkEstimate, at: Covariates) -> Array:
    """Probabilities of the categories under each expert in the population, expert by expert, shape (n, K * C)."""
    by_category = averaged(_of_categories(e), predictors(e, at))
    return by_category.transpose(2, 1, 0).reshape(len(at.X), -1)


def marginal_categories(e: LinkEstimate, at: Covariates) -> Array:
    """Probabilities of the categories in the population, shape (n, C)."""
    experts = np.exp(gate_log_probabilities(at.W, e.params.gamma))[0]
    return np.asarray((averaged(_of_categories(e), predictors(e, at)) * experts).sum(axis=1).T)


def subject_category_intervals(e: LinkEstimate, at: Covariates, seen: Seen, alpha: float) -> Interval:
    """Probabilities of the categories for subjects given their past, each shape (n, C), with equal-tailed limits.

    Parameters
    ----------
    e : LinkEstimate
    at : Covariates
    seen : Seen
        With the same rows.
    alpha : float

    Returns
    -------
    Interval
        Limits carry the uncertainty of membership and random effects. A category has at most a given probability at
        predictors outside an interval that is known in closed form.
    """
    where, weights, probabilities = given_past(e, at, seen), seen.probabilities.T, _of_categories(e)
    mean = (weights * where.averaged(probabilities)).sum(axis=1)
    away = where.averaged(lambda eta: (probabilities(eta) - mean[:, None]) ** 2)
    mean, spread = mean.T, np.sqrt((weights * away).sum(axis=1)).T
    table = where.table()
    ends = with_ends(cuts_of(e.extra))
    lower, upper = np.empty_like(mean), np.empty_like(mean)
    for j in range(mean.shape[1]):
        for limit, level in ((lower, alpha / 2), (upper, 1 - alpha / 2)):
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


def _experts(e: LinkEstimate, at: Covariates, alpha: float) -> dict[str, Array]:
    names = [f"expert{k + 1}.{name}" for k in range(len(e.extra)) for name in _names(e)]
    return interval_columns(names, category_intervals(e, at, alpha))


def _population(e: LinkEstimate, at: Covariates, alpha: float) -> dict[str, Array]:
    return interval_columns(_names(e), mean_intervals(marginal_categories, e, at, alpha, _limits))


def _subjects(e: LinkEstimate, at: Covariates, seen: Seen, alpha: float, noise: bool) -> dict[str, Array]:
    return interval_columns(_names(e), subject_category_intervals(e, at, seen, alpha))


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
