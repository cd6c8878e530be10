"""One number of a distribution, common to all experts, estimated beside the functions.

Degrees of freedom of t errors, theta of zero-inflated negative binomial counts.

Notes
-----
Given the functions the likelihood is maximised in this number and a common shift of all dispersions, with which it
goes together; then the functions are fitted again. Each round raises the likelihood nearly always, and the rounds end
where the number no longer changes.

References
----------
Lange, K. L., Little, R. J. A. and Taylor, J. M. G. (1989). Robust statistical modeling using the t distribution. JASA
84, 881-896.
Liu, C. and Rubin, D. B. (1995). ML estimation of the t distribution using EM and its extensions. Statistica Sinica 5,
19-39: maximising the likelihood of the data in the degrees of freedom converges faster than the EM does.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice, checked_positive
from mixmoe.design.frame import shown
from mixmoe.errors import ArgumentError
from mixmoe.mixture.estimate import Flag
from mixmoe.responses.distribution import Family
from mixmoe.responses.exponential import StudentT
from mixmoe.responses.zero_inflated import ZeroInflated
from mixmoe.varying.em_steps import own_natural, row_logliks
from mixmoe.varying.joint_em import Run
from mixmoe.varying.problem import THETA_FLOOR, THETA_OVER_MEAN, Problem

START = 5.0  # where the search begins, and what the search of a bandwidth takes
FEWEST, NORMAL = 0.5, 1e3  # degrees of freedom: Cauchy has one; data hardly tell a thousand from infinitely many
SETTLED = 1e-4  # relative change of the number
ROUNDS = 40


@dataclass(frozen=True, slots=True)
class Shaped:
    """A run and the problem with the number that belongs to it."""

    problem: Problem
    run: Run


def shape_of(family: Family) -> float | None:
    """The number of a family that has one, None of others."""
    if isinstance(family, StudentT):
        return family.df
    has_theta = isinstance(family, ZeroInflated) and family.base.has_dispersion
    return float(np.exp(family.log_theta)) if isinstance(family, ZeroInflated) and has_theta else None


def _reshaped(family: Family, value: float) -> Family:
    if isinstance(family, ZeroInflated):
        return replace(family, log_theta=float(np.log(value)))
    return StudentT(df=value)


def with_shape(problem: Problem, value: float) -> Problem:
    """The problem with another number."""
    family, outcome = _reshaped(problem.family, value), problem.rows.outcome
    rows = problem.rows.with_response(outcome.y, family.constant(outcome.y, outcome.trials))
    return replace(problem, family=family, rows=rows)


def _limits(problem: Problem) -> tuple[float, float]:
    """Smallest and largest number that is sought."""
    if isinstance(problem.family, StudentT):
        return FEWEST, NORMAL
    return THETA_FLOOR, THETA_OVER_MEAN * max(1.0, float(problem.rows.outcome.y.mean()))


def best_shape(problem: Problem, coef: Array, first: float) -> float:
    """The number with the highest likelihood given the functions up to a common shift of all dispersions.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)
    first : float
        Where the search begins.
    """
    natural, rows = own_natural(problem, coef), problem.rows

    def deviance(at: Array) -> float:
        family = _reshaped(problem.family, float(np.exp(at[0])))
        outcome = replace(rows.outcome, constant=family.constant(rows.outcome.y, rows.outcome.trials))
        moved = replace(natural, delta=natural.delta + at[1])
        return -float(row_logliks(outcome, family, moved) @ rows.weights) / rows.n

    bounds = [tuple(np.log(_limits(problem))), (-2.0, 2.0)]
    found = minimize(deviance, [np.log(first), 0.0], method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14})
    return float(np.exp(found.x[0]))


def fit_shape(problem: Problem, fitted: Callable[[Problem, Array | None], Run]) -> Shaped:
    """Functions and the number in turn.

    Parameters
    ----------
    problem : Problem
        Of a family that has one.
    fitted : callable
        The run of a problem, from a state (G, 2, L) or from starts.

    Returns
    -------
    Shaped
    """
    before, problem = START, with_shape(problem, START)
    run = fitted(problem, None)
    for _ in range(ROUNDS):
        value = best_shape(problem, run.coef, before)
        problem, settled = with_shape(problem, value), abs(np.log(value / before)) < SETTLED
        run, before = fitted(problem, run.coef), value
        if settled:
            break
    return Shaped(problem, run)


def checked_tails(errors_dist: Any, errors_df: Any, family: str) -> StudentT | None:
    """The distribution of t errors, None for normal ones.

    Raises
    ------
    ArgumentError
        If the family is not normal, or degrees of freedom are no positive number or have no use.
    """
    checked_choice(errors_dist, "errors_dist", ("normal", "t"))
    if errors_dist == "normal":
        if errors_df is not None:
            raise ArgumentError(f"errors_df={shown(errors_df)} is for errors_dist='t', got errors_dist='normal'")
        return None
    if family != "gaussian":
        raise ArgumentError(f"errors_dist='t' is for family='gaussian', got family={family!r}; leave it out")
    return StudentT(df=START if errors_df is None else checked_positive(errors_df, "errors_df"))


def shape_flag(problem: Problem) -> Flag | None:
    """A flag if the number that was estimated is the largest that is sought."""
    value = shape_of(problem.family)
    if value is None or value < 0.999 * _limits(problem)[1]:
        return None
    if not isinstance(problem.family, StudentT):
        return Flag(
            "boundary",
            f"theta is at its largest value {value:.3g}: counts that are no certain zeros are no more variable than "
            "Poisson; family='zipoisson' does.",
        )
    return Flag(
        "boundary",
        f"The degrees of freedom of the errors are at their largest value {NORMAL:g}: the errors are normal; "
        "errors_dist='normal' does.",
    )
