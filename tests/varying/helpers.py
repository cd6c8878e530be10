"""Problems on simulated rows, without formula or data frame."""

from itertools import permutations

import numpy as np

from mixmoe.responses.distribution import Outcome
from mixmoe.responses.exponential import family_named
from mixmoe.varying.presets import VaryingData
from mixmoe.varying.problem import Problem, Rows, Slots, build_problem


def make_problem(
    sim: VaryingData,
    bandwidth: float,
    *,
    n_grid: int = 50,
    experts: int = 2,
    family: str = "gaussian",
    const: np.ndarray | None = None,
    gate_bandwidth: float | None = None,
) -> Problem:
    """The problem ``y ~ z1 | gate: x1 | vary: u`` of a simulated data set."""
    frame = sim.data.sort_values("u")
    dist = family_named(family)
    one = np.ones(len(frame))
    y = frame["y"].to_numpy(float)
    trials = frame["trials"].to_numpy(float) if "trials" in frame else one
    offset = frame["log_size"].to_numpy(float) if "log_size" in frame else 0.0 * one
    outcome = Outcome(y, trials, dist.constant(y, trials))
    design = np.column_stack([one, frame["z1"]])
    gate = np.column_stack([one, frame["x1"]])
    rows = Rows(outcome, design, gate, frame["u"].to_numpy(), offset, one)
    slots = Slots(experts, 2, 2, dist.has_dispersion)
    held = np.zeros(slots.n, dtype=bool) if const is None else const
    grid = np.linspace(rows.index[0], rows.index[-1], n_grid)
    return build_problem(rows, dist, slots, held, grid, bandwidth, gate_bandwidth or bandwidth, 0.01)


def switched_points(problem: Problem, coef: np.ndarray, sim: VaryingData) -> int:
    """Grid points whose experts are closer to the truth in another order than that of the whole fit."""
    grid, truth, k = problem.windows.grid, sim.truth, problem.slots.n_experts
    here = np.stack([[np.interp(grid, truth.index, truth.expert[:, c, j]) for j in range(2)] for c in range(k)])
    levels = coef[:, 0, problem.slots.experts].reshape(len(grid), k, 2)
    errors = np.array(
        [((levels[:, p] - here.transpose(2, 0, 1)) ** 2).sum(axis=(1, 2)) for p in permutations(range(k))]
    )
    whole = errors.sum(axis=1).argmin()
    return int((errors[whole] > errors.min(axis=0) + 1e-12).sum())


def check_derivatives(family, out, eta, delta, rtol, eps=1e-6):
    """First, second and third derivatives of a response's log-density are those of central differences."""
    parts, third = family.derivatives(out, eta, delta), family.third(out, eta, delta)

    def change(what, in_eta, in_delta):
        above, below = (what(out, eta + s * in_eta * eps, delta + s * in_delta * eps) for s in (1.0, -1.0))
        return (above - below) / (2.0 * eps)

    close = {"rtol": rtol, "atol": 1e-7}
    np.testing.assert_allclose(parts.eta, change(family.log_density, 1, 0), **close)
    np.testing.assert_allclose(parts.delta, change(family.log_density, 0, 1), **close)
    np.testing.assert_allclose(parts.eta_eta, -change(lambda *a: family.derivatives(*a).eta, 1, 0), **close)
    np.testing.assert_allclose(parts.eta_delta, -change(lambda *a: family.derivatives(*a).eta, 0, 1), **close)
    np.testing.assert_allclose(parts.delta_delta, -change(lambda *a: family.derivatives(*a).delta, 0, 1), **close)
    np.testing.assert_allclose(third.eta, -change(lambda *a: family.derivatives(*a).eta_eta, 1, 0), **close)
    np.testing.assert_allclose(third.delta, -change(lambda *a: family.derivatives(*a).eta_eta, 0, 1), **close)
    return parts
