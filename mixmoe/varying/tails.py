"""Degrees of freedom of t errors, one number for all experts, estimated beside the functions.

Notes
-----
Given the functions the likelihood is maximised in the degrees of freedom and a common factor of all sigmas, with which
they go together; then the functions are fitted again. Each round raises the likelihood nearly always, and the rounds
end where the degrees of freedom no longer change.

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
from mixmoe.responses.exponential import StudentT
from mixmoe.varying.em_steps import own_natural, row_logliks
from mixmoe.varying.joint_em import Run
from mixmoe.varying.problem import Problem

START = 5.0  # where the search begins, and what the search of a bandwidth takes
FEWEST, NORMAL = 0.5, 1e3  # degrees of freedom: Cauchy has one; data hardly tell a thousand from infinitely many
SETTLED = 1e-4  # relative change of the degrees of freedom
ROUNDS = 40


@dataclass(frozen=True, slots=True)
class Tailed:
    """A run and the problem with the degrees of freedom that belong to it."""

    problem: Problem
    run: Run


def with_df(problem: Problem, df: float) -> Problem:
    """The problem with other degrees of freedom."""
    family, outcome = StudentT(df=df), problem.rows.outcome
    rows = problem.rows.with_response(outcome.y, family.constant(outcome.y, outcome.trials))
    return replace(problem, family=family, rows=rows)


def best_df(problem: Problem, coef: Array, first: float) -> float:
    """Degrees of freedom with the highest likelihood given the functions up to a common factor of all sigmas.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)
    first : float
        Where the search begins.
    """
    natural, rows = own_natural(problem, coef), problem.rows

    def deviance(at: Array) -> float:
        family = StudentT(df=float(np.exp(at[0])))
        outcome = replace(rows.outcome, constant=family.constant(rows.outcome.y, rows.outcome.trials))
        moved = replace(natural, delta=natural.delta + at[1])
        return -float(row_logliks(outcome, family, moved) @ rows.weights) / rows.n

    bounds = [(np.log(FEWEST), np.log(NORMAL)), (-2.0, 2.0)]
    found = minimize(deviance, [np.log(first), 0.0], method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14})
    return float(np.exp(found.x[0]))


def fit_tails(problem: Problem, fitted: Callable[[Problem, Array | None], Run]) -> Tailed:
    """Functions and degrees of freedom in turn.

    Parameters
    ----------
    problem : Problem
        With t errors.
    fitted : callable
        The run of a problem, from a state (G, 2, L) or from starts.

    Returns
    -------
    Tailed
    """
    before, problem = START, with_df(problem, START)
    run = fitted(problem, None)
    for _ in range(ROUNDS):
        df = best_df(problem, run.coef, before)
        problem, settled = with_df(problem, df), abs(np.log(df / before)) < SETTLED
        run, before = fitted(problem, run.coef), df
        if settled:
            break
    return Tailed(problem, run)


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


def tails_flag(df: float) -> Flag | None:
    """A flag if errors are normal."""
    if df < 0.999 * NORMAL:
        return None
    return Flag(
        "boundary",
        f"The degrees of freedom of the errors are at their largest value {NORMAL:g}: the errors are normal; "
        "errors_dist='normal' does.",
    )
