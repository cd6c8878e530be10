"""Estimates of a varying-coefficient mixture for other numbers of experts, other responses and resamples."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe.varying.carried import fit_carried
from mixmoe.varying.estimate import Control, Run, best_run, fit_functions
from mixmoe.varying.labels import permute_experts, reported_order
from mixmoe.varying.local_maximum import local_maxima
from mixmoe.varying.problem import Problem, Slots, build_problem
from mixmoe.varying.smoothing import smoothed_functions
from mixmoe.varying.steps import own_natural, posterior

Array = NDArray[np.float64]


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


@dataclass(frozen=True, slots=True)
class Reported:
    """What is reported of a fit.

    Attributes
    ----------
    estimate : {"shrunken", "local", "joint"}
        See `VCMoE`.
    clusters : ndarray of int, shape (n,), or None
        Independent units.
    """

    estimate: str = "shrunken"
    clusters: NDArray[np.intp] | None = None


def maximise(problem: Problem, control: Control, rng: np.random.Generator, start: From, reported: Reported) -> Run:
    """The best of EM runs, with the functions that are reported, experts in the reported order.

    Parameters
    ----------
    problem : Problem
    control : Control
    rng : numpy.random.Generator
    start : From
    reported : Reported

    Returns
    -------
    Run
    """
    runs = []
    if start.same is not None:
        runs.append(fit_functions(problem, control, rng, start.same))
    if start.smaller is not None:
        runs.append(fit_carried(problem, control, rng, start.smaller))
    if start.random:
        runs.append(fit_functions(problem, control, rng))
    run = best_run(runs) if len(runs) > 1 else runs[0]
    run = _ordered(problem, with_reported(problem, _ordered(problem, run), reported))
    post = posterior(problem.rows, problem.family, own_natural(problem, run.coef))
    return replace(run, loglik=float(post.loglik))


def _ordered(problem: Problem, run: Run) -> Run:
    """A run with experts in the reported order."""
    return replace(run, coef=permute_experts(problem.slots, run.coef, reported_order(problem, run.coef)))


def with_reported(problem: Problem, run: Run, reported: Reported) -> Run:
    """A run of the joint EM with the functions that are reported in the place of its own.

    With one expert these are the local maxima, so that a Gaussian fit is kernel-weighted least squares exactly. Experts
    come in an order that does not depend on the starts: which one the gate refers to matters to the smoothing.
    """
    if reported.estimate == "joint" or problem.const.all():
        return run
    maxima = local_maxima(problem, run.coef)
    coef = maxima.state
    if reported.estimate == "shrunken" and problem.slots.n_experts > 1:
        coef = smoothed_functions(problem, maxima, reported.clusters)
    return replace(run, coef=coef, lost=maxima.lost)


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
