"""Starting values from a fit with one expert fewer, each of whose experts is split."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixmoe.varying.estimate import Control, Run, best_run, em_step, run_em, short_runs
from mixmoe.varying.problem import Problem, Slots
from mixmoe.varying.steps import Posterior, own_natural, posterior

Array = NDArray[np.float64]

SPLITS = 3  # of each expert of the smaller fit
SOFT = 0.1  # share of a row that stays on the other side of a split


def fit_carried(problem: Problem, control: Control, rng: np.random.Generator, smaller: Array) -> Run:
    """The best of EM runs from splits of a smaller fit and from that fit itself.

    Parameters
    ----------
    problem : Problem
        With K experts.
    control : Control
    rng : numpy.random.Generator
    smaller : ndarray, shape (G, 2, L')
        Fit with K - 1 experts on the grid and bandwidth of `problem`; the log-likelihood of the result is not below it.

    Returns
    -------
    Run
    """
    slots = problem.slots
    few = Slots(slots.n_experts - 1, slots.n_expert_columns, slots.n_gate_columns, slots.has_dispersion)
    doubled = [double_expert(problem, few, smaller, c) for c in range(few.n_experts)]
    split = [split_rows(problem, doubled[c], c, rng) for c in range(few.n_experts) for _ in range(SPLITS)]
    short = short_runs(problem, split, control)
    nested = run_em(problem, doubled[0], control)
    best = best_run([nested, run_em(problem, short[0].coef, control)])
    return replace(best, candidates=np.sort([nested.loglik, *(one.loglik for one in short)])[::-1])


def double_expert(problem: Problem, few: Slots, coef: Array, c: int) -> Array:
    """State (G, 2, L) in which expert c stands twice, the second time last, each with half of its probability.

    Parameters
    ----------
    problem : Problem
        With K experts.
    few : Slots
        Of K - 1 experts.
    coef : ndarray, shape (G, 2, L')
    c : int
        From 0.
    """
    slots, lead = problem.slots, coef.shape[:2]
    rows = np.ones(problem.rows.n)
    intercept = np.linalg.lstsq(problem.rows.gate, rows, rcond=None)[0]
    order = [*range(few.n_experts), c]
    gates = np.zeros((*lead, few.n_experts, few.n_gate_columns))
    gates[:, :, 1:] = coef[:, :, few.gates].reshape(*lead, few.n_experts - 1, few.n_gate_columns)
    gates = gates[:, :, order]
    gates[:, 0, [c, -1]] -= np.log(2.0) * intercept
    out = np.empty((*lead, slots.n))
    experts = coef[:, :, few.experts].reshape(*lead, few.n_experts, -1)
    out[:, :, slots.experts] = experts[:, :, order].reshape(*lead, -1)
    if slots.has_dispersion:
        out[:, :, slots.dispersions] = coef[:, :, few.dispersions][:, :, order]
    out[:, :, slots.gates] = (gates[:, :, 1:] - gates[:, :, :1]).reshape(*lead, -1)
    return out


def split_rows(problem: Problem, doubled: Array, c: int, rng: np.random.Generator) -> Array:
    """State after an M-step in which the rows of expert c are shared out by a cut across a random direction."""
    rows, natural = problem.rows, own_natural(problem, doubled)
    post = posterior(rows, problem.family, natural)
    residual = problem.family.start_predictor(rows.outcome) - natural.eta[c]
    features = np.column_stack([residual[:, None] * rows.design, rows.index, rows.gate])
    spread = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0)
    position = features @ rng.normal(size=features.shape[1])
    both = post.weighted[c] + post.weighted[-1]
    inside = both > 0.5 * rows.weights
    cut = np.quantile(position[inside] if inside.any() else position, rng.uniform(0.2, 0.8))
    side = np.where(position > cut, 1.0 - SOFT, SOFT)
    shared = post.weighted.copy()
    shared[-1], shared[c] = both * side, both * (1.0 - side)
    return em_step(problem, doubled, natural, Posterior(shared, post.loglik))


def on_grid(problem: Problem, old: Problem, coef: Array) -> Array:
    """A state (G, 2, L) of another problem on the grid and with the bandwidths of this one.

    Levels are interpolated; slopes are per bandwidth, so that they change with it.
    """
    slots, grid = old.slots, problem.windows.grid
    out = np.empty((len(grid), 2, slots.n))
    for s in range(slots.n):
        gate = slots.gates.start <= s < slots.gates.stop
        mine, his = ((one.gate_windows if gate else one.windows).bandwidth for one in (problem, old))
        for part, factor in ((0, 1.0), (1, mine / his if np.isfinite(his) else 0.0)):
            out[:, part, s] = factor * np.interp(grid, old.windows.grid, coef[:, part, s])
    return out
