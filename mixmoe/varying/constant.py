"""Starting values: mixtures with constant or linear coefficients, all random starts in lockstep."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.varying.problem import Problem, Rows, Slots
from mixmoe.varying.steps import Natural, global_step, natural_parameters, posterior

Array = NDArray[np.float64]

SCREENING_ITERATIONS = 8  # EM iterations of every start, then the better ones go on
LOCKSTEP_ITERATIONS = 12
MANY = 10_000  # rows on which mixtures with constant or linear coefficients are sought, at most
KEPT = 2  # distinct solutions kept of each kind
DISTINCT = 0.1  # difference in log-likelihood that makes two solutions distinct


@dataclass(frozen=True, slots=True)
class Lines:
    """A mixture whose coefficients are lines along the index.

    Attributes
    ----------
    theta : ndarray, shape (2, L)
        Level at the centre of the index, and slope per unit of the index.
    centre : float
    loglik : float
    """

    theta: Array
    centre: float
    loglik: float

    @property
    def constant(self) -> bool:
        """Whether all slopes are zero."""
        return not self.theta[1].any()


def constant_mixtures(problem: Problem, n_starts: int, rng: np.random.Generator) -> list[Lines]:
    """Distinct mixtures with constant coefficients and with coefficients linear in the index.

    Parameters
    ----------
    problem : Problem
    n_starts : int
        Random starts of each kind.
    rng : numpy.random.Generator

    Returns
    -------
    list of Lines
        The best few of each kind, best first within the kind; of every few rows where there are more than `MANY`.
    """
    plain = np.zeros(problem.slots.n, dtype=bool)
    found = _solutions(problem, plain, n_starts, rng)
    if problem.slots.n_experts == 1 or problem.const.all():
        return found
    return found + _solutions(problem, ~problem.const, n_starts, rng)


def widen(problem: Problem, lines: Lines) -> Array:
    """Lines along the index as a state (G, 2, L) on the grid."""
    grid = problem.windows.grid
    out = np.empty((len(grid), 2, problem.slots.n))
    out[:, 0] = lines.theta[0] + (grid - lines.centre)[:, None] * lines.theta[1]
    out[:, 1] = np.where(problem.free[1], lines.theta[1] * problem.bandwidths, 0.0)
    return out


def _solutions(problem: Problem, linear: NDArray[np.bool_], n_starts: int, rng: np.random.Generator) -> list[Lines]:
    """Best distinct mixtures in which the functions marked `linear` are lines and the others constants."""
    slots, rows = problem.slots, problem.rows.take(_every_few(problem.rows))
    centre, width = float(rows.index.mean()), max(float(np.ptp(rows.index)) / 2.0, np.finfo(float).tiny)
    wide = _wide_rows(rows, centre, width) if linear.any() else rows
    wide_slots = Slots(slots.n_experts, wide.design.shape[1], wide.gate.shape[1], slots.has_dispersion)
    active = _active(slots, linear) if linear.any() else np.ones(slots.n, dtype=bool)
    scale = np.concatenate([_doubled(problem.scale[slots.experts], slots.n_experts), np.ones(wide_slots.n)])
    scale = scale[: wide_slots.n] if linear.any() else problem.scale
    starts = 1 if slots.n_experts == 1 else n_starts
    theta = _first_theta(problem, wide, wide_slots, active, starts, scale, rng)
    theta, logliks = _lockstep(problem, wide, wide_slots, active, theta, scale)
    order = np.argsort(-logliks)
    kept = [s for j, s in enumerate(order) if j == 0 or logliks[order[j - 1]] - logliks[s] > DISTINCT][:KEPT]
    return [Lines(_split(slots, theta[s], width, bool(linear.any())), centre, float(logliks[s])) for s in kept]


def _every_few(rows: Rows) -> NDArray[np.intp]:
    """Rows spread evenly along the index, at most `MANY`: starts need no more."""
    return np.arange(0, rows.n, -(-rows.n // MANY))


def _wide_rows(rows: Rows, centre: float, width: float) -> Rows:
    """Rows whose designs carry every column and its product with the standardised index."""
    v = ((rows.index - centre) / width)[:, None]
    design, gate = np.hstack([rows.design, rows.design * v]), np.hstack([rows.gate, rows.gate * v])
    return Rows(rows.outcome, design, gate, rows.index, rows.offset, rows.weights)


def _doubled(values: Array, groups: int) -> Array:
    return np.repeat(values.reshape(groups, 1, -1), 2, axis=1).ravel()


def _active(slots: Slots, linear: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which coefficients of the doubled layout are free."""
    parts = []
    for c in range(slots.n_experts):
        parts += [np.ones(slots.n_expert_columns, dtype=bool), linear[slots.expert(c)]]
    parts.append(np.ones(slots.dispersions.stop - slots.dispersions.start, dtype=bool))
    for c in range(1, slots.n_experts):
        parts += [np.ones(slots.n_gate_columns, dtype=bool), linear[slots.gate(c)]]
    return np.concatenate(parts)


def _split(slots: Slots, theta: Array, width: float, doubled: bool) -> Array:
    """Level and slope (2, L) from the coefficients of one solution."""
    if not doubled:
        return np.stack([theta, np.zeros_like(theta)])
    k, p, m = slots.n_experts, slots.n_expert_columns, slots.n_gate_columns
    experts = theta[: 2 * k * p].reshape(k, 2, p).transpose(1, 0, 2).reshape(2, -1)
    scales = theta[2 * k * p : theta.size - 2 * (k - 1) * m]
    gates = theta[theta.size - 2 * (k - 1) * m :].reshape(k - 1, 2, m).transpose(1, 0, 2).reshape(2, -1)
    out = np.hstack([experts, np.stack([scales, np.zeros_like(scales)]), gates])
    out[1] /= width
    return out


def _first_theta(
    problem: Problem,
    rows: Rows,
    slots: Slots,
    active: NDArray[np.bool_],
    n_starts: int,
    scale: Array,
    rng: np.random.Generator,
) -> Array:
    """Coefficients (S, L) from hard partitions: residual quantiles first, then regressions through random subsets."""
    target = problem.family.start_predictor(rows.outcome) - rows.offset
    pooled: Array = np.asarray(np.linalg.lstsq(rows.design, target, rcond=None)[0], dtype=np.float64)
    spread = float(np.std(target - rows.design @ pooled)) or 1.0
    theta = np.zeros((n_starts, slots.n))
    theta[:, slots.experts] = np.tile(pooled, slots.n_experts) * active[slots.experts]  # constants get no slope
    theta[:, slots.dispersions] = np.log(spread) if problem.family.name == "gaussian" else 1.0
    theta[:, slots.dispersions] = np.clip(theta[:, slots.dispersions], problem.floor, problem.ceiling)
    resp = np.stack([_partition(rows, slots.n_experts, target, pooled, s, rng) for s in range(n_starts)])
    for _ in range(1 if problem.family.name == "gaussian" else 3):
        natural = natural_parameters(rows, slots, theta[:, None, :])
        theta = theta + global_step(rows, problem.family, slots, active, natural, resp, scale)
    return theta


def _partition(rows: Rows, k: int, target: Array, pooled: Array, start: int, rng: np.random.Generator) -> Array:
    """Softened hard assignment (K, n) of the rows, times their weights."""
    residual = target - rows.design @ pooled
    if start == 0:
        label = (np.argsort(np.argsort(residual, kind="stable"), kind="stable") * k) // rows.n
    else:
        size = min(rows.n, 2 * rows.design.shape[1] + 2)
        fits = [rng.choice(rows.n, size, replace=False) for _ in range(k)]
        coefs = [np.linalg.lstsq(rows.design[f], target[f], rcond=None)[0] for f in fits]
        label = np.argmin([np.abs(target - rows.design @ b) for b in coefs], axis=0)
    soft = np.full((k, rows.n), 0.1 / k) + 0.9 * (label == np.arange(k)[:, None])
    return soft * rows.weights


def _lockstep(
    problem: Problem, rows: Rows, slots: Slots, active: NDArray[np.bool_], theta: Array, scale: Array
) -> tuple[Array, Array]:
    """EM of all starts together, the worse half given up early: coefficients (S, L) and log-likelihoods (S,)."""
    for _ in range(SCREENING_ITERATIONS):
        theta, logliks = _lockstep_iteration(problem, rows, slots, active, theta, scale)
    theta = theta[np.argsort(-logliks)[: max(2, len(theta) // 3)]]
    for _ in range(LOCKSTEP_ITERATIONS):
        theta, logliks = _lockstep_iteration(problem, rows, slots, active, theta, scale)
    return theta, logliks


def _lockstep_iteration(
    problem: Problem, rows: Rows, slots: Slots, active: NDArray[np.bool_], theta: Array, scale: Array
) -> tuple[Array, Array]:
    natural = natural_parameters(rows, slots, theta[:, None, :])
    natural = Natural(natural.eta, np.clip(natural.delta, problem.floor, problem.ceiling), natural.log_gate)
    post = posterior(rows, problem.family, natural)
    theta = theta + global_step(rows, problem.family, slots, active, natural, post.weighted, scale)
    theta[:, slots.dispersions] = np.clip(theta[:, slots.dispersions], problem.floor, problem.ceiling)
    return theta, np.where(np.isfinite(post.loglik), post.loglik, -np.inf)
