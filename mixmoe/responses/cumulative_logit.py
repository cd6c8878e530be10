"""Ordered categories by proportional odds: cumulative logits with thresholds.

With thresholds c_1 < ... < c_{C-1} and the logistic function F, ``P(Y <= j) = F(c_j - eta)`` (McCullagh 1980). For a
response between the thresholds ``low`` and ``high``, with a = high - eta and b = low - eta (infinite at the ends)::

    log P = log F(a) + log F(-b) + log(1 - exp(b - a))

of which the last term does not involve eta: no digits are lost where a category is improbable, and the curvature
``-(F'(a) + F'(b))`` is that of two binary responses.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from mixmoe._typing import Array, IntArray

_PASSES = 100
_CLOSE = 1e-10  # relative size of a last step, of which Newton squares the error
_FAR = 700.0  # where the logistic function is zero or one to all digits


@dataclass(frozen=True, slots=True)
class Borders:
    """The logistic function at both ends of the category of each response, each shape (E, n).

    Attributes
    ----------
    high, low : ndarray
        Upper and lower threshold minus the predictor, infinite at the ends.
    above, below : ndarray
        F(high) and F(low).
    rest : ndarray
        ``(1 + exp(-|high|)) (1 + exp(-|low|)) - 1``, from which both logarithms follow.
    """

    high: Array
    low: Array
    above: Array
    below: Array
    rest: Array

    @property
    def slope(self) -> Array:
        """Derivative of the log-probability in the predictor."""
        return self.above + self.below - 1.0

    @property
    def weight(self) -> Array:
        """Minus its second derivative."""
        return density(self.above) + density(self.below)

    @property
    def third(self) -> Array:
        """Third derivative of the log probability in the predictor."""
        return density_slope(self.above) + density_slope(self.below)


def density(F: Array) -> Array:
    """Derivative of the logistic function where it is F."""
    return F * (1.0 - F)


def density_slope(F: Array) -> Array:
    """Second derivative of the logistic function where it is F."""
    return F * (1.0 - F) * (1.0 - 2.0 * F)


def borders(codes: IntArray, eta: Array, cuts: Array) -> Borders:
    """Both ends of the category of each response.

    Parameters
    ----------
    codes : ndarray of int, shape (n,)
        Category, from 0.
    eta : ndarray, shape (E, n)
    cuts : ndarray, shape (E, C - 1)
        Increasing thresholds.
    """
    ends = with_ends(cuts)
    high, low = ends.take(codes + 1, axis=1) - eta, ends.take(codes, axis=1) - eta
    # One exponential of each, of a negative number, serves the logistic function and its logarithms on both sides.
    small_high, small_low = np.exp(-np.abs(high)), np.exp(-np.abs(low))
    above = np.where(high >= 0.0, 1.0, small_high) / (1.0 + small_high)
    below = np.where(low >= 0.0, 1.0, small_low) / (1.0 + small_low)
    return Borders(high, low, above, below, small_high + small_low + small_high * small_low)


def with_ends(cuts: Array) -> Array:
    """Thresholds with the infinite ones, shape (E, C + 1)."""
    end = np.full((len(cuts), 1), np.inf)
    return np.concatenate([-end, cuts, end], axis=1)


def log_probability(codes: IntArray, at: Borders, widths: Array) -> Array:
    """Log-probability of the responses, shape (E, n).

    Parameters
    ----------
    codes : ndarray of int, shape (n,)
    at : Borders
    widths : ndarray, shape (E, C - 2)
        Of the inner categories: differences of thresholds, which these hold to all digits where they nearly meet.
    """
    # F(b) - F(a) = F(b) F(-a) (1 - e^-(b - a)): the difference itself would cancel in the tails.
    with np.errstate(divide="ignore"):  # no width leaves no probability
        inner = np.log(-np.expm1(-widths))
    ends = np.zeros((len(inner), 1))  # the first and the last category are as wide as can be
    log_width = np.concatenate([ends, inner, ends], axis=1)
    # log F(x) = min(x, 0) - log(1 + e^-|x|): one logarithm for both ends.
    return np.minimum(at.high, 0.0) - np.maximum(at.low, 0.0) - np.log1p(at.rest) + log_width.take(codes, axis=1)


def category_probabilities(eta: Array, cuts: Array) -> Array:
    """Probability of each category, shape (C, E, n)."""
    ends = with_ends(cuts).T[:, :, None]
    share = np.pad(-np.expm1(-np.diff(cuts, axis=1)), ((0, 0), (1, 1)), constant_values=1.0).T[:, :, None]
    return np.asarray(expit(ends[1:] - eta) * expit(eta - ends[:-1]) * share)


def expected_score(eta: Array, cuts: Array, scores: Array) -> Array:
    """Expectation of what the categories count as, shape (E, n)."""
    # Summed by parts over thresholds: one logistic function per threshold instead of differences per category.
    total = np.full(eta.shape, scores[0])
    for j, gap in enumerate(np.diff(scores)):
        total += gap * expit(eta - cuts[:, j : j + 1])
    return total


def score_variance(eta: Array, cuts: Array, scores: Array) -> Array:
    """Variance of what the categories count as, shape (E, n)."""
    away = scores[:, None, None] - expected_score(eta, cuts, scores)
    return np.asarray((category_probabilities(eta, cuts) * away**2).sum(axis=0))


def predictor_of_score(mean: Array, cuts: Array, scores: Array) -> Array:
    """The predictor at which the expected score is `mean`, shape (E, n); far out at the first and the last score.

    Newton steps on the logit of the share of the range, which is nearly linear in the predictor. The share is a
    weighted mean of F(eta - c_j), so that eta lies between the least and the largest threshold plus that logit.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.clip(np.log(mean - scores[0]) - np.log(scores[-1] - mean), -_FAR, _FAR)
    low, high = place + cuts.min(axis=1, keepdims=True), place + cuts.max(axis=1, keepdims=True)
    eta = 0.5 * (low + high)
    for _ in range(_PASSES):
        here = _share(eta, cuts, scores)
        off = np.log(here.inside) - np.log(here.rest) - place
        # The bracket shrinks with every pass: a Newton step that leaves it is replaced by bisection.
        low, high = np.where(off < 0, eta, low), np.where(off < 0, high, eta)
        new = eta - off * here.inside * here.rest / here.slope
        new = np.where((new >= low) & (new <= high), new, 0.5 * (low + high))
        step, eta = np.abs(new - eta), new
        if (step <= _CLOSE * (1.0 + np.abs(eta))).all():
            break
    return eta


@dataclass(frozen=True, slots=True)
class _Share:
    """Share of the range of the scores at a predictor, its complement, and its derivative, each shape (E, n)."""

    inside: Array
    rest: Array
    slope: Array


def _share(eta: Array, cuts: Array, scores: Array) -> _Share:
    inside, rest, slope = np.zeros(eta.shape), np.zeros(eta.shape), np.zeros(eta.shape)
    for j, weight in enumerate(np.diff(scores) / (scores[-1] - scores[0])):
        above, below = expit(eta - cuts[:, j : j + 1]), expit(cuts[:, j : j + 1] - eta)
        inside += weight * above
        rest += weight * below
        slope += weight * above * below
    return _Share(inside, rest, slope)


@dataclass(frozen=True, slots=True)
class Outside:
    """Where the probability of a category does not exceed a value: predictors up to `left`, and from `right` on.

    Attributes
    ----------
    left, right : ndarray
        Equal where the probability is nowhere larger.
    """

    left: Array
    right: Array


def at_most(p: Array, low: Array, high: Array) -> Outside:
    """Predictors at which a category between two thresholds has at most the probability p, all broadcast.

    With u = exp(eta - low) the borders solve ``p A u^2 + (p (1 + A) - (1 - A)) u + p = 0``, A = exp(low - high). The
    first category has no left part, the last no right one.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logit = np.log(p) - np.log1p(-p)
        A = np.exp(low - high)
        linear = (1.0 - A) - p * (1.0 + A)
        root = np.sqrt(np.maximum(linear**2 - 4.0 * p**2 * A, 0.0))
        apart = (linear > 0) & (linear**2 >= 4.0 * p**2 * A)
        # Product of the two roots is 1/A: the smaller one from the larger, since its own formula would cancel.
        upper = low + np.log((linear + root) / (2.0 * p * A))
        lower = low + np.log(2.0 * p / (linear + root))
    first, last = np.isneginf(low), np.isposinf(high)
    middle = np.where(np.isfinite(low) & np.isfinite(high), 0.5 * (low + high), 0.0)
    left = np.where(first, -np.inf, np.where(last, low + logit, np.where(apart, lower, middle)))
    right = np.where(last, np.inf, np.where(first, high - logit, np.where(apart, upper, middle)))
    return Outside(left, right)
