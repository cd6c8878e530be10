"""Ordinal responses of an expert, and how their thresholds are reported.

Inside, an expert has its intercept like any other and the thresholds are 0 and the running sums of positive steps: so
starts, closed form and working coordinates find experts that differ in location as they find all others. What is
reported are thresholds in the place of the intercept: minus the intercept, and that plus the running sums.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.further_parameters import Extra, Positive
from mixmoe.mixed.likelihood.modes import Terms
from mixmoe.mixture.estimate import Parameter
from mixmoe.responses.cumulative_logit import (
    Borders,
    borders,
    category_probabilities,
    density,
    density_slope,
    expected_score,
    log_probability,
    predictor_of_score,
    score_variance,
    with_ends,
)
from mixmoe.responses.distribution import Curvature, FurtherTerms, Outcome


@dataclass(frozen=True, slots=True)
class OrdinalResponse:
    """Ordered categories by proportional odds, see `Response`; `extra` holds the logarithms of the steps.

    Attributes
    ----------
    scores : ndarray, shape (C,)
        What the categories count as, ascending.
    labels : tuple of str
        Names of the categories.
    extras : tuple of Extra
        The steps; none with two categories.
    """

    scores: Array
    labels: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()

    @property
    def name(self) -> str:
        """Name of the response family."""
        return "ordinal"

    @property
    def support(self) -> Array:
        """What the categories count as."""
        return self.scores

    @property
    def discrete(self) -> bool:
        """Whether responses are discrete: ordered categories are."""
        return True

    def outcome(self, y: Array, trials: Array) -> Outcome:
        """Categories, from 0, of responses in terms of what they count as."""
        return Outcome(np.searchsorted(self.scores, y).astype(float), trials, np.zeros(len(y)))

    def bends(self, extra: Array) -> Array:
        """The first and the last threshold."""
        return cuts_of(extra)[:, [0, -1]]

    def log_density(self, out: Outcome, eta: Array, extra: Array) -> Array:
        """Log-probability."""
        codes = _codes(out.y)
        return log_probability(codes, borders(codes, eta, cuts_of(extra)), np.exp(extra))

    def curvature(self, out: Outcome, eta: Array, extra: Array) -> Curvature:
        """Log-probability, slope and weight in one pass."""
        codes = _codes(out.y)
        at = borders(codes, eta, cuts_of(extra))
        return Curvature(log_probability(codes, at, np.exp(extra)), at.slope, at.weight)

    def terms(self, out: Outcome, eta: Array, extra: Array) -> Terms:
        """All derivatives.

        A step moves both borders of the categories above it, which is the predictor moving down, and the upper border
        of the category that it is the width of.
        """
        codes, steps = _codes(out.y), np.exp(extra)
        at = borders(codes, eta, cuts_of(extra))
        slope, weight, third = at.slope, at.weight, at.third
        further = tuple(
            _in_step(steps[:, j : j + 1], codes - (j + 1), at, Terms(slope, weight, third, ()))
            for j in range(extra.shape[1])
        )
        return Terms(slope, weight, third, further)

    def scoring_weight(self, out: Outcome, eta: Array, extra: Array) -> Array:
        """The weight itself: log-probabilities of categories are concave in the predictor."""
        return borders(_codes(out.y), eta, cuts_of(extra)).weight

    def mean(self, eta: Array, extra: Array, trials: Array) -> Array:
        """Expected score."""
        return expected_score(eta, cuts_of(extra), self.scores)

    def predictor(self, mean: Array, extra: Array, trials: Array) -> Array:
        """The predictor at which the score has this expectation."""
        return predictor_of_score(mean, cuts_of(extra), self.scores)

    def limits(self, mean: Array, half: Array, trials: Array) -> tuple[Array, Array]:
        """Limits by the delta method on the logit of the share of the range."""
        low, width = self.scores[0], self.scores[-1] - self.scores[0]
        share = (mean - low) / width
        away = half / (width * share * (1.0 - share))
        return low + width * expit(logit(share) - away), low + width * expit(logit(share) + away)

    def variance(self, eta: Array, extra: Array, trials: Array) -> Array:
        """Variance of the score."""
        return score_variance(eta, cuts_of(extra), self.scores)

    def deviance(self, out: Outcome, mean: Array, extra: Array) -> Array:
        """Minus twice the log-probability of the response where the score has this expectation."""
        return -2.0 * self.curvature(out, self.predictor(mean, extra, out.trials), extra).value

    def cdf(self, y: Array, eta: Array, extra: Array, trials: Array) -> Array:
        """``P(Y <= y)`` for categories y, from 0."""
        return np.asarray(expit(self._border(y, extra) - eta))

    def sf(self, y: Array, eta: Array, extra: Array, trials: Array) -> Array:
        """``P(Y > y)`` for categories y, from 0."""
        return np.asarray(expit(eta - self._border(y, extra)))

    def _border(self, y: Array, extra: Array) -> Array:
        """The threshold above categories y, from 0, shape (E, n)."""
        place = np.clip(y, -1, len(self.scores) - 1).astype(np.intp) + 1
        return np.asarray(with_ends(cuts_of(extra))[:, place])

    def draw(self, rng: np.random.Generator, eta: Array, extra: Array, trials: Array) -> Array:
        """Scores of latent logistic values between the thresholds."""
        below = expit(cuts_of(extra).T[:, :, None] - eta)  # (C - 1, E, n)
        return np.asarray(self.scores[(rng.random(eta.shape) > below).sum(axis=0)])

    def probabilities(self, eta: Array, extra: Array) -> Array:
        """Probability of each category, shape (C, E, n)."""
        return category_probabilities(eta, cuts_of(extra))


def _codes(y: Array) -> NDArray[np.intp]:
    return y.astype(np.intp)


def cuts_of(extra: Array) -> Array:
    """Thresholds of a predictor with intercept, shape (E, C - 1): zero and the running sums of the steps."""
    return np.concatenate([np.zeros((len(extra), 1)), np.cumsum(np.exp(extra), axis=1)], axis=1)


def _in_step(step: Array, beyond: NDArray[np.intp], at: Borders, row: Terms) -> FurtherTerms:
    """Derivatives in the logarithm of one step, of rows `beyond` so many categories above that of this width."""
    inside, above = beyond == 0, beyond > 0
    with np.errstate(over="ignore"):
        width = 1.0 - at.above + 1.0 / np.expm1(step)
    return FurtherTerms(
        step * np.where(inside, width, np.where(above, -row.slope, 0.0)),
        step * np.where(inside, density(at.above), np.where(above, row.weight, 0.0)),
        step * np.where(inside, -density_slope(at.above), np.where(above, -row.third, 0.0)),
    )


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How thresholds are reported in the place of the intercept.

    Attributes
    ----------
    column : int
        Place of the intercept among the expert columns.
    labels : tuple of str
        Of the C - 1 thresholds.
    own_location, own_steps : bool
        Whether each expert has its own intercept, and its own steps between thresholds. If they differ, the first
        threshold and the steps are reported; else, and with one expert, all thresholds.
    """

    column: int
    labels: tuple[str, ...]
    own_location: bool
    own_steps: bool

    def parameters(self, n_experts: int) -> list[Parameter]:
        """Entries of the layout."""
        if self._alike(n_experts):
            return self._group("cut", self.labels, self.own_location, n_experts)
        first = self._group("cut", self.labels[:1], self.own_location, n_experts)
        return first + self._group("step", self.labels[1:], self.own_steps, n_experts)

    def _group(self, name: str, labels: tuple[str, ...], own: bool, n_experts: int) -> list[Parameter]:
        experts = range(1, n_experts + 1) if own else [None]
        return [
            Parameter(f"{name}{k or ''}({label})", "threshold", f"{name}({label})", k, tested=False)
            for k in experts
            for label in labels
        ]

    def reported(self, cuts: NDArray[Any]) -> NDArray[Any]:
        """Reported values, shape (S, D), from the thresholds of every expert, shape (S, K, C - 1); complex-safe."""
        if self._alike(cuts.shape[1]):
            return self._flat(cuts, self.own_location)
        steps = np.diff(cuts, axis=-1)
        return np.concatenate([self._flat(cuts[..., :1], self.own_location), self._flat(steps, self.own_steps)], axis=1)

    def by_expert(self, reported: NDArray[Any], n_experts: int) -> NDArray[Any]:
        """Thresholds of every expert, shape (K, C - 1), from reported values, shape (D,); complex-safe."""
        c = len(self.labels)
        if self._alike(n_experts):
            return np.broadcast_to(reported.reshape(-1, c), (n_experts, c))
        n_first = n_experts if self.own_location else 1
        first, steps = reported[:n_first].reshape(-1, 1), reported[n_first:].reshape(-1, c - 1)
        first, steps = np.broadcast_to(first, (n_experts, 1)), np.broadcast_to(steps, (n_experts, c - 1))
        return np.cumsum(np.concatenate([first, steps], axis=1), axis=1)

    def first(self, n_experts: int) -> NDArray[np.intp]:
        """Places of the first thresholds of the experts among the reported values, shape (K,)."""
        if not self.own_location:
            return np.zeros(n_experts, dtype=np.intp)
        return np.arange(n_experts) * (len(self.labels) if self._alike(n_experts) else 1)

    def place(self, expert: int, threshold: int, n_experts: int) -> int:
        """Place of a threshold of an expert, both from 0, among the reported values: of its step if these are reported.

        Only for steps of each expert's own.
        """
        if self._alike(n_experts):
            return expert * len(self.labels) + threshold
        return 1 + expert * (len(self.labels) - 1) + threshold - 1

    def wrong(self, reported: Array, n_experts: int) -> str | None:
        """What is wrong with reported values, shape (D,), if anything is."""
        for k, cuts in enumerate(self.by_expert(reported, n_experts), start=1):
            if not (np.isfinite(cuts).all() and (np.diff(cuts) >= 0).all()):
                return f"thresholds {', '.join(f'{c:g}' for c in cuts)} of expert {k}; they must increase"
        return None

    def reports_steps(self, n_experts: int) -> bool:
        """Whether the reported values of an expert are steps between thresholds, not the thresholds."""
        return not self._alike(n_experts)

    def _alike(self, n_experts: int) -> bool:
        return n_experts == 1 or self.own_location == self.own_steps

    @staticmethod
    def _flat(values: NDArray[Any], own: bool) -> NDArray[Any]:
        return (values if own else values[:, :1]).reshape(len(values), -1)


def step_extra(frequencies: Array, labels: tuple[str, ...], own: bool) -> tuple[Extra, ...]:
    """The steps between thresholds as further parameters, starting from the logits of cumulative frequencies.

    Parameters
    ----------
    frequencies : ndarray, shape (C,)
        Of the categories, all positive.
    labels : tuple of str
        Of the C - 1 thresholds.
    own : bool
    """
    if len(labels) < 2:
        return ()
    steps = np.diff(logit(np.cumsum(frequencies)[:-1] / np.sum(frequencies)))
    start = tuple(np.log(steps).tolist())
    return (Extra("step", labels[1:], Positive(), start, own, "threshold"),)
