"""A VCMoE estimated again: with other experts, on other responses, on resamples."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.responses.exponential import StudentT
from mixmoe.varying.effective_parameters import effective_df
from mixmoe.varying.em_steps import own_natural, posterior
from mixmoe.varying.joint_em import Control, Run, best_run, centred, fit_carried, fit_functions
from mixmoe.varying.local_maximum import LocalMaxima, local_maxima
from mixmoe.varying.problem import Problem, Slots, build_problem
from mixmoe.varying.smoothing import smoothed_functions
from mixmoe.varying.starts import permute_experts, reported_order

SHARES = (1.0, 0.5, 0.25)  # of the way from the local maxima to the smoothed functions


@dataclass(frozen=True, slots=True)
class From:
    """Where to start.

    Attributes
    ----------
    random : bool
        Random starts, as many as the control says.
    same : ndarray, shape (G, 2, L), or None
        A state.
    smaller : ndarray, shape (G, 2, L'), or None
        A state with one expert fewer, whose experts are split.
    """

    random: bool = True
    same: Array | None = None
    smaller: Array | None = None


def maximise(
    problem: Problem, control: Control, rng: np.random.Generator, start: From, estimate: str = "shrunken"
) -> Run:
    """The best of EM runs, with the functions that are reported, experts in the reported order.

    Parameters
    ----------
    problem : Problem
    control : Control
    rng : numpy.random.Generator
    start : From
    estimate : {"shrunken", "local", "joint"}
        Functions that are reported, see `VCMoE`.

    Returns
    -------
    Run
    """
    inner, centring = centred(problem)
    runs = []
    if start.same is not None:
        runs.append(fit_functions(inner, control, rng, centring.inwards(inner.slots, start.same)))
    if start.smaller is not None:
        few = replace(inner.slots, n_experts=inner.slots.n_experts - 1)
        runs.append(fit_carried(inner, control, rng, centring.inwards(few, start.smaller)))
    if start.random:
        runs.append(fit_functions(inner, control, rng))
    run = best_run(runs) if len(runs) > 1 else runs[0]
    run = _ordered(inner, with_reported(inner, _ordered(inner, run), estimate))
    return replace(run, coef=centring.outwards(inner.slots, run.coef), loglik=loglik_at(inner, run.coef))


def loglik_at(problem: Problem, coef: Array) -> float:
    """Log-likelihood of the data, each row at its own index value."""
    return float(posterior(problem.rows, problem.family, own_natural(problem, coef)).loglik)


def _ordered(problem: Problem, run: Run) -> Run:
    """A run with experts in the reported order."""
    return replace(run, coef=permute_experts(problem.slots, run.coef, reported_order(problem, run.coef)))


def with_reported(problem: Problem, run: Run, estimate: str) -> Run:
    """A run of the joint EM with the functions that are reported in the place of its own.

    With one expert there is nothing to add to the joint EM, which is kernel-weighted least squares for a Gaussian and
    the local generalised linear model for others; with t errors, whose weights the EM takes at the rows' own index
    values, the local maxima are reported. Experts come in an order that does not depend on the starts: which
    one the gate refers to matters to the smoothing.
    """
    alone = problem.slots.n_experts == 1 and estimate == "shrunken"
    tails = isinstance(problem.family, StudentT)
    if estimate == "joint" or problem.const.all() or (alone and not tails):
        return run
    maxima = local_maxima(problem, run.coef)
    coef = maxima.state if alone or estimate == "local" else _within_reach(problem, maxima)
    return replace(run, coef=coef, lost=maxima.lost)


def _within_reach(problem: Problem, maxima: LocalMaxima) -> Array:
    """Smoothed functions, or on the way to them from the local maxima as far as the data allow.

    Twice the log-likelihood that the truth lacks is about chi-square with as many degrees of freedom as the maxima
    have. Functions that lack more than its mean are not nearer to the truth; without a regular maximum, as for an
    expert that the data do not need, smoothing can lead anywhere.
    """
    smoothed, reached = smoothed_functions(problem, maxima), loglik_at(problem, maxima.state)
    lacking = reached - loglik_at(problem, smoothed)
    if lacking <= 0.0:
        return smoothed
    most = 0.5 * effective_df(problem, maxima.state)
    for share in SHARES:
        coef = maxima.state + share * (smoothed - maxima.state)
        if reached - loglik_at(problem, coef) <= most:
            return coef
    return maxima.state


def with_experts(problem: Problem, experts: int, const: NDArray[np.bool_], sigma_floor: float) -> Problem:
    """The problem with another number of experts and the same bandwidths.

    Parameters
    ----------
    problem : Problem
    experts : int
    const : ndarray of bool, shape (L,)
        Functions held constant with that many experts.
    sigma_floor : float
        As in `build_problem`.
    """
    old, windows = problem.slots, problem.windows
    slots = Slots(experts, old.n_expert_columns, old.n_gate_columns, old.has_dispersion)
    gate = problem.gate_windows.bandwidth
    return build_problem(problem.rows, problem.family, slots, const, windows.grid, windows.bandwidth, gate, sigma_floor)


def with_response(problem: Problem, response: Array, sigma_floor: float) -> Problem:
    """The problem with another response, shape (n,) in the order of the rows."""
    rows = problem.rows.with_response(response, problem.family.constant(response, problem.rows.outcome.trials))
    return with_experts(replace(problem, rows=rows), problem.slots.n_experts, problem.const, sigma_floor)
