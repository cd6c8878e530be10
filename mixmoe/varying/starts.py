"""Starting values: mixtures with constant or linear coefficients, and permutations of the experts."""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from mixmoe._typing import Array, IntArray
from mixmoe.design.design import Design
from mixmoe.inference.cells import (
    Predictor,
    ambiguity_flag,
    cheapest_exchange,
    exchanged_labels,
    linked_cells,
    pairs_of,
)
from mixmoe.mixture.estimate import Flag
from mixmoe.responses.zero_inflated import ZeroInflated
from mixmoe.varying.em_steps import Natural, global_step, natural_parameters, own_natural, posterior, row_logliks
from mixmoe.varying.problem import Problem, Rows, Slots

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
    if problem.slots.n_experts == 1 or problem.const.all() or problem.rows.period:  # no line closes a circle
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
    slots, rows = problem.slots, problem.rows.take(every_few(problem.rows, MANY))
    centre, width = float(rows.index.mean()), max(float(np.ptp(rows.index)) / 2.0, np.finfo(float).tiny)
    wide, wide_slots, active, scale = rows, slots, np.ones(slots.n, dtype=bool), problem.scale
    if linear.any():  # every column, and its product with the standardised index
        v = ((rows.index - centre) / width)[:, None]
        wide = replace(
            rows, design=np.hstack([rows.design, rows.design * v]), gate=np.hstack([rows.gate, rows.gate * v])
        )
        wide_slots = replace(slots, n_expert_columns=wide.design.shape[1], n_gate_columns=wide.gate.shape[1])
        active, scale = _active(slots, linear), np.ones(wide_slots.n)
        of_experts = problem.scale[slots.experts].reshape(slots.n_experts, 1, -1)
        scale[wide_slots.experts] = np.repeat(of_experts, 2, axis=1).ravel()
    starts = 1 if slots.n_experts == 1 else n_starts
    theta = _first_theta(problem, wide, wide_slots, active, starts, scale, rng)
    theta, logliks = _lockstep(problem, wide, wide_slots, active, theta, scale)
    order = np.argsort(-logliks)
    kept = [s for j, s in enumerate(order) if j == 0 or logliks[order[j - 1]] - logliks[s] > DISTINCT][:KEPT]
    return [Lines(_split(slots, theta[s], width, bool(linear.any())), centre, float(logliks[s])) for s in kept]


def every_few(rows: Rows, most: int) -> NDArray[np.intp]:
    """Rows spread evenly along the index, at most `most`: starts need no more."""
    return np.arange(0, rows.n, -(-rows.n // most))


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
    first = -1.0 if isinstance(problem.family, ZeroInflated) else 1.0  # of log odds of a certain zero, of log theta
    theta[:, slots.dispersions] = np.log(spread) if problem.family.name == "gaussian" else first
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


MOVES = 3  # exchanges tried for each pair of experts
CLOSE = 2.0  # squared distance of two experts, in units of noise, above which they are not exchanged


def permute_experts(slots: Slots, coef: Array, order: NDArray[np.intp]) -> Array:
    """The same functions with the experts in another order, the gate against the new first one.

    Parameters
    ----------
    slots : Slots
    coef : ndarray, shape (..., L)
    order : ndarray of int, shape (K,)
        Old position of each new expert.

    Returns
    -------
    ndarray, shape (..., L)
    """
    out, k = coef.copy(), slots.n_experts
    lead = coef.shape[:-1]
    out[..., slots.experts] = coef[..., slots.experts].reshape(*lead, k, -1)[..., order, :].reshape(*lead, -1)
    if slots.has_dispersion:
        out[..., slots.dispersions] = coef[..., slots.dispersions][..., order]
    if k > 1:
        full = np.zeros((*lead, k, slots.n_gate_columns))
        full[..., 1:, :] = coef[..., slots.gates].reshape(*lead, k - 1, -1)
        moved = full[..., order, :]
        out[..., slots.gates] = (moved[..., 1:, :] - moved[..., :1, :]).reshape(*lead, -1)
    return out


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


def reported_order(problem: Problem, coef: Array) -> NDArray[np.intp]:
    """Experts by their mean gate probability over the rows, largest first, as in the other families.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)

    Returns
    -------
    ndarray of int, shape (K,)
    """
    shares = np.exp(own_natural(problem, coef).log_gate) @ problem.rows.weights
    return np.argsort(-shares, kind="stable")


def exchanges(problem: Problem, coef: Array) -> list[Array]:
    """States in which two experts change places from a point on where they come close, on a circle to another such.

    A mixture whose experts nearly meet has a second mode in which they are connected the wrong way; labels are
    consistent in both, only the likelihood tells them apart.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)

    Returns
    -------
    list of ndarray, shape (G, 2, L)
    """
    slots, k = problem.slots, problem.slots.n_experts
    scaled = (coef[:, 0, slots.experts] / problem.scale[slots.experts]).reshape(len(coef), k, -1)
    found = []
    for a in range(k):
        for b in range(a):
            distance = ((scaled[:, a] - scaled[:, b]) ** 2).sum(axis=-1)
            order = np.arange(k)
            order[[a, b]] = order[[b, a]]
            swapped = np.where(problem.const, coef, permute_experts(slots, coef, order))
            places = np.sort(_minima(distance)) if problem.rows.period else _minima(distance)
            arcs = list(combinations(places, 2)) if problem.rows.period else [(g, len(coef)) for g in places]
            found += [np.concatenate([coef[:g], swapped[g:h], coef[h:]]) for g, h in arcs]
    return found


def _minima(distance: Array) -> NDArray[np.intp]:
    """The smallest interior local minima of a distance along the grid."""
    inner = np.arange(2, len(distance) - 2)
    lowest = (distance[inner] <= distance[inner - 1]) & (distance[inner] <= distance[inner + 1])
    places = inner[lowest & (distance[inner] < CLOSE)]
    return places[np.argsort(distance[places], kind="stable")][:MOVES]


def label_flag(design: Design, order: NDArray[np.intp], problem: Problem, natural: Natural) -> Flag | None:
    """A flag if labels could be exchanged within cells of the gate's factors at hardly any cost.

    Parameters
    ----------
    design : Design
    order : ndarray of int, shape (n,)
        Row of the design behind each row of the problem.
    problem : Problem
    natural : Natural
        Predictors of the rows at the estimate.

    Notes
    -----
    Functions of the index, the same for all rows of a cell, are exchanged as constants are. A dispersion, which is a
    function of the index alone, stays with its expert in the other cells, and follows the exchange by a factor.
    """
    slots, rows = problem.slots, problem.rows
    if slots.n_experts == 1:
        return None
    cells = _cells(problem)
    if not cells.any():
        return None

    def weighted(here: Natural) -> Array:
        return row_logliks(rows.outcome, problem.family, here) * rows.weights

    exchanged = {}
    for first, second in pairs_of(slots.n_experts):
        swapped = exchanged_labels(slots.n_experts, (first, second))
        delta = natural.delta[swapped] if slots.has_dispersion else natural.delta
        exchanged[first, second] = weighted(replace(natural, delta=delta))
    here = weighted(natural)
    found = cheapest_exchange(cells, here, exchanged)
    if slots.has_dispersion and found.drop > 0.0:
        own = np.broadcast_to(np.arange(slots.n_experts)[:, None], natural.delta.shape)
        other = exchanged_labels(slots.n_experts, found.experts)
        labels = np.where(cells == found.cell, other[:, None], own)  # whose dispersion each expert has, (K, n)

        def highest(labels: IntArray) -> float:
            """Log-likelihood with dispersions by these labels, times one factor for each."""
            delta, bounds = np.take_along_axis(natural.delta, labels, axis=0), [(-2.0, 2.0)] * slots.n_experts

            def deviance(shift: Array) -> float:
                return -float(weighted(replace(natural, delta=delta + shift[labels])).sum())

            start = np.zeros(slots.n_experts)
            return -float(minimize(deviance, start, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-13}).fun)

        found = replace(found, drop=highest(own) - highest(labels))
    in_design = np.empty(rows.n, dtype=np.intp)
    in_design[order] = cells
    return ambiguity_flag(design, in_design, slots.n_experts, found, "" if problem.const.all() else "const({})")


def _cells(problem: Problem) -> NDArray[np.intp]:
    """Cells of the rows by gate and experts, functions and constants each, shape (n,)."""
    slots, rows = problem.slots, problem.rows
    units = np.arange(rows.n)
    constant = problem.const[slots.gate(1)]
    gate = [Predictor(rows.gate[:, which], units) for which in (~constant, constant) if which.any()]
    if not gate or not linked_cells(gate, rows.n).any():  # the usual case, at the least cost
        return np.zeros(rows.n, dtype=np.intp)
    constant = problem.const[slots.expert(0)]
    experts = [Predictor(rows.design[:, which], units) for which in (~constant, constant) if which.any()]
    return linked_cells([*gate, *experts], rows.n)
