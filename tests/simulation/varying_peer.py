"""What the R package VCMoE 0.1.0 computes, for comparisons on simulated sets: two experts.

Each grid point is fitted alone, from left to right, by an EM that stops when its local log-likelihood changes by less
than 1e-5 of itself: from the fit to the left (at the first point, from two means of the response) and from two starts
more, of which the highest is kept. Starts of the Gaussian are random memberships; the others begin at one regression
for all, with experts pushed apart. Binomial coefficients are drawn to zero by a ridge of 1, those of counts by 1e-4,
gates and Gaussian coefficients by 1e-6. Theta of the negative binomial is constant within a window. The labels are
not looked at here: whoever compares puts them in order by the truth.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, gammaln, log_expit, xlogy

from mixmoe.varying.problem import Problem

Array = NDArray[np.float64]

TOLERANCE = 1e-5
TIGHT = 1e-9
MAX_ITER = 100
N_STARTS = 3
RIDGE = {"gaussian": 1e-6, "binomial": 1.0, "negbinomial": 1e-4}
GATE_RIDGE = 1e-6
SIGMA_RIDGE = 1e-6
LOG_SIGMA = (np.log(1e-4), np.log(1e4))
LOG_THETA = (np.log(1e-3), np.log(1e4))
FIRST_THETA = 8.0
APART = {"binomial": (1.0, 0.2, 0.5, 0.1), "negbinomial": (0.6, 0.15, 0.25, 0.05)}  # distance, growth, tilt, jitter
GATE_APART = {"binomial": (0.2, -0.1), "negbinomial": (0.15, -0.08)}


@dataclass(frozen=True)
class Window:
    """Rows of a grid point, with local-linear designs (w, 2p) and density weights."""

    family: str
    y: Array
    trials: Array
    offset: Array
    t: Array
    design: Array
    gate: Array
    weights: Array


@dataclass(frozen=True)
class Params:
    """Expert coefficients (2, 2p), log sigma with slope or log theta (2, 2), gate of expert 1 against 2 (2m,)."""

    expert: Array
    spread: Array
    gate: Array


def window_at(problem: Problem, point: float) -> Window:
    """Rows with a positive kernel at a point."""
    rows, h = problem.rows, problem.windows.bandwidth
    t = (rows.index - point) / h
    near = np.abs(t) < 1.0
    line = lambda x: np.hstack([x[near], x[near] * t[near, None]])  # noqa: E731
    return Window(
        problem.family.name, rows.outcome.y[near], rows.outcome.trials[near], rows.offset[near], t[near],
        line(rows.design), line(rows.gate), 0.75 * (1.0 - t[near] ** 2) / h,
    )  # fmt: skip


def log_densities(w: Window, p: Params) -> Array:
    """Log densities of the experts, (2, w)."""
    eta = p.expert @ w.design.T + w.offset
    if w.family == "gaussian":
        log_sigma = np.clip(p.spread @ np.vstack([np.ones_like(w.t), w.t]), *LOG_SIGMA)
        return -0.5 * ((w.y - eta) / np.exp(log_sigma)) ** 2 - log_sigma - 0.5 * np.log(2.0 * np.pi)
    if w.family == "binomial":
        ways = gammaln(w.trials + 1.0) - gammaln(w.y + 1.0) - gammaln(w.trials - w.y + 1.0)
        return ways + w.y * log_expit(eta) + (w.trials - w.y) * log_expit(-eta)
    return negbinomial(w.y, np.exp(np.clip(eta, -20.0, 20.0)), np.exp(p.spread[:, :1]))


def negbinomial(y: Array, mu: Array, theta: Array) -> Array:
    """Log density of the negative binomial."""
    ways = gammaln(y + theta) - gammaln(theta) - gammaln(y + 1.0)
    return ways + theta * np.log(theta / (theta + mu)) + xlogy(y, mu / (theta + mu))


def expectation(w: Window, p: Params) -> tuple[Array, float]:
    """Responsibilities (2, w) and the local log-likelihood."""
    zeta = w.gate @ p.gate
    joint = np.vstack([log_expit(zeta), log_expit(-zeta)]) + log_densities(w, p)
    total = np.logaddexp(*joint)
    return np.exp(joint - total), float(w.weights @ total)


def newton(objective, start: Array, n_iter: int = 50) -> Array:
    """Minimum of a convex function given as value, gradient, Hessian, with steps halved where it would rise."""
    par = start
    value, gradient, hessian = objective(par)
    for _ in range(n_iter):
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]  # flat where an expert has died out
        for _ in range(20):
            trial = objective(par - step)
            if trial[0] <= value:
                break
            step = 0.5 * step
        else:
            return par
        par, fallen, (value, gradient, hessian) = par - step, value - trial[0], trial
        if fallen <= 1e-8 * (abs(value) + 1e-8):
            return par
    return par


def logit(success: Array, trials: Array, x: Array, weights: Array, ridge: float, start: Array) -> Array:
    """Weighted logistic regression with a ridge."""

    def objective(par: Array) -> tuple[float, Array, Array]:
        eta = x @ par
        prob = expit(eta)
        value = -weights @ (success * log_expit(eta) + (trials - success) * log_expit(-eta)) + 0.5 * ridge * par @ par
        gradient = -x.T @ (weights * (success - trials * prob)) + ridge * par
        return value, gradient, (x.T * (weights * trials * prob * (1.0 - prob))) @ x + ridge * np.eye(len(par))

    return newton(objective, start)


def loglinear(w: Window, weights: Array, theta: float, start: Array) -> Array:
    """Weighted negative binomial regression at a known theta."""
    x, ridge = w.design, RIDGE["negbinomial"]

    def objective(par: Array) -> tuple[float, Array, Array]:
        mu = np.exp(np.clip(w.offset + x @ par, -20.0, 20.0))
        value = -weights @ negbinomial(w.y, mu, np.array(theta)) + 0.5 * ridge * par @ par
        gradient = -x.T @ (weights * (w.y - mu * (w.y + theta) / (mu + theta))) + ridge * par
        curvature = weights * mu * theta * (w.y + theta) / (mu + theta) ** 2
        return value, gradient, (x.T * curvature) @ x + ridge * np.eye(len(par))

    return newton(objective, start)


def normal(w: Window, weights: Array, spread: Array) -> tuple[Array, Array]:
    """Weighted least squares with a log-linear sigma, the two in turn until they agree."""
    basis = np.column_stack([np.ones_like(w.t), w.t])
    ridge = np.diag([0.0, SIGMA_RIDGE])
    for _ in range(20):
        precision = weights * np.exp(-2.0 * np.clip(basis @ spread, *LOG_SIGMA))
        cross = (w.design.T * precision) @ w.design + RIDGE["gaussian"] * np.eye(w.design.shape[1])
        coef = np.linalg.solve(cross, w.design.T @ (precision * w.y))
        squares = (w.y - w.design @ coef) ** 2

        def objective(par: Array, squares: Array = squares) -> tuple[float, Array, Array]:
            log_sigma = np.clip(basis @ par, *LOG_SIGMA)
            ratio = squares * np.exp(-2.0 * log_sigma)
            value = weights @ (log_sigma + 0.5 * ratio) + 0.5 * par @ ridge @ par
            gradient = basis.T @ (weights * (1.0 - ratio)) + ridge @ par
            return value, gradient, (basis.T * (2.0 * weights * ratio)) @ basis + ridge

        before, spread = spread, newton(objective, spread)
        if np.abs(spread - before).max() < 1e-5:
            break
    return coef, spread


def maximisation(w: Window, resp: Array, p: Params) -> Params:
    """Parameters from responsibilities, beginning at the previous ones."""
    expert, spread = p.expert.copy(), p.spread.copy()
    for c in range(2):
        weights = w.weights * resp[c]
        if w.family == "gaussian":
            expert[c], spread[c] = normal(w, weights, spread[c])
        elif w.family == "binomial":
            expert[c] = logit(w.y, w.trials, w.design, weights, RIDGE["binomial"], expert[c])
        else:
            expert[c] = loglinear(w, weights, float(np.exp(spread[c, 0])), expert[c])
            mu = np.exp(np.clip(w.offset + w.design @ expert[c], -20.0, 20.0))
            cost = lambda s, mu=mu, weights=weights: -weights @ negbinomial(w.y, mu, np.array(np.exp(s)))  # noqa: E731
            spread[c, 0] = minimize_scalar(cost, bounds=LOG_THETA, method="bounded", options={"xatol": 1e-4}).x
    gate = logit(resp[0], np.ones(len(w.t)), w.gate, w.weights, GATE_RIDGE, p.gate)
    return Params(expert, spread, gate)


def climb(w: Window, start: Params, tolerance: float) -> tuple[Params, float]:
    """EM until the local log-likelihood changes by less than a fraction of itself."""
    p, value = start, -np.inf
    for _ in range(MAX_ITER if tolerance == TOLERANCE else 10 * MAX_ITER):
        p = maximisation(w, expectation(w, p)[0], p)
        reached = expectation(w, p)[1]
        if np.isfinite(value) and abs(reached - value) <= tolerance * (abs(value) + 1.0):
            return p, reached
        value = reached
    return p, value


def empty(w: Window, y: Array) -> Params:
    """Nothing known yet."""
    first = np.log(y.std(ddof=1)) if w.family == "gaussian" else np.log(FIRST_THETA)
    spread = np.array([[first, 0.0]] * 2)
    return Params(np.zeros((2, w.design.shape[1])), spread, np.zeros(w.gate.shape[1]))


def two_means(y: Array) -> Array:
    """Probability of the first expert: 0.95 or 0.05, by the best split of the sorted response into two groups."""
    order = np.sort(y)
    n, total = len(y), order.sum()
    left = np.cumsum(order)[:-1]
    size = np.arange(1, n)
    between = left**2 / size + (total - left) ** 2 / (n - size)
    return np.where(y <= order[between.argmax()], 0.95, 0.05)


def pushed_apart(w: Window, start: int, rng: np.random.Generator, y: Array) -> Params:
    """One regression for all, with experts pushed apart in opposite directions."""
    distance, growth, tilt, jitter = APART[w.family]
    p = empty(w, y)
    if w.family == "binomial":
        base = logit(w.y, w.trials, w.design, w.weights, RIDGE["binomial"], p.expert[0])
    else:
        cross = (w.design.T * w.weights) @ w.design + RIDGE[w.family] * np.eye(w.design.shape[1])
        base = np.linalg.solve(cross, w.design.T @ (w.weights * (np.log(w.y + 0.5) - w.offset)))
    side = np.array([-0.5, 0.5]) * (1.0 if start % 2 == 0 else -1.0)
    shift = side * distance * (1.0 + growth * (start - 1))
    expert = np.tile(base, (2, 1))
    expert[:, 0] += shift
    expert[:, 1] -= tilt * shift
    if w.family == "binomial":
        expert[:, 2] += 0.2 * shift
    if start > 1:
        expert += rng.normal(0.0, jitter / np.sqrt(start), expert.shape)
    gate = p.gate.copy()
    gate[:2] = np.array(GATE_APART[w.family]) * (side[0] - side[1])
    return replace(p, expert=expert, gate=gate)


def peer_functions(
    problem: Problem, rng: np.random.Generator, *, n_starts: int = N_STARTS, tolerance: float = TOLERANCE
) -> Array:
    """Expert coefficients at every grid point, (G, 2, p)."""
    y, n_columns = problem.rows.outcome.y, problem.rows.design.shape[1]
    halves = two_means(y)
    previous: Params | None = None
    out = []
    for point in problem.windows.grid:
        w = window_at(problem, point)
        near = np.abs(problem.rows.index - point) < problem.windows.bandwidth
        starts = []
        for start in range(1, n_starts + 1):
            if start == 1 and previous is not None:
                starts.append(previous)
            elif problem.family.name != "gaussian":
                starts.append(pushed_apart(w, start, rng, y))
            else:
                pair = rng.uniform(size=(2, len(y)))
                first = halves if start == 1 else pair[0] / pair.sum(axis=0)
                resp = np.vstack([first, 1.0 - first])[:, near]
                starts.append(maximisation(w, resp, empty(w, y)))
        previous = max((climb(w, one, tolerance) for one in starts), key=lambda found: found[1])[0]
        out.append(previous.expert[:, :n_columns])
    return np.array(out)
