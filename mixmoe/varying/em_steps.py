"""One E-step and the M-steps of the label-consistent EM, on arrays.

The state is ``coef (G, 2, L)``: level and slope (per bandwidth) of every coefficient function at every grid point; a
constant function has the same level everywhere and slope zero. Responsibilities carry the observation weights.

References
----------
Huang, M., Li, R. and Wang, S. (2013). Nonparametric mixture of regression models. JASA 108, 929-941, section 3.
Zhao, Q., Greenwood, C. M. T. and Zhang, Q. (2026). Varying-Coefficient Mixture of Experts Model. arXiv 2601.01699.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array, BoolArray
from mixmoe.mixture.gate import GatePenalty, Weighted
from mixmoe.numerics.linalg import log_softmax, logsumexp
from mixmoe.responses.distribution import Family, Outcome
from mixmoe.responses.exponential import StudentT, is_normal
from mixmoe.varying.problem import Problem, Rows, Slots, outer_rows
from mixmoe.varying.windows import Block, blocks, epanechnikov, hankel, local_moments, local_predictor

PEAK = float(epanechnikov(np.zeros(1))[0])


@dataclass(frozen=True, slots=True)
class WindowPrior:
    """What a penalty adds to the local likelihoods of a block.

    Attributes
    ----------
    units : ndarray, shape (K, pairs)
        Units of each expert that are added for the kernel weight of each pair.
    value : ndarray, shape (g,)
        Log prior of each grid point.
    """

    units: Array
    value: Array


def window_prior(penalty: GatePenalty, rows: Rows, block: Block, log_gate: Array, free: BoolArray) -> WindowPrior:
    """The penalty in the windows of a block.

    Parameters
    ----------
    penalty : GatePenalty
    rows : Rows
    block : Block
    log_gate : ndarray, shape (K, pairs)
        Log probabilities of the local gate.
    free : ndarray of bool, shape (D, (K - 1) m)
        Powers and functions that are estimated locally.

    Returns
    -------
    WindowPrior
    """
    powers, m, total = len(free), rows.gate.shape[1], float(rows.weights.sum())
    order = free.reshape(powers, -1, m).swapaxes(0, 1).ravel()  # by expert, then power, then column
    units, value = np.empty_like(log_gate), np.empty(block.last - block.first)
    for g in range(len(value)):
        span, part = block.spans[g], block.parts[g]
        t = block.t[span, None, None] ** np.arange(powers)[:, None]  # (w, D, 1)
        design = (t * rows.gate[part][:, None, :]).reshape(-1, powers * m)
        at = Weighted(block.kernel[span] * rows.weights[part] / PEAK, total, order)
        units[:, span] = penalty.units(design, log_gate[None, :, span], at)[0]
        value[g] = PEAK * penalty.value(design, log_gate[None, :, span], at)[0]
    return WindowPrior(units, value)


def global_units(penalty: GatePenalty, rows: Rows, log_gate: Array, free: BoolArray) -> Array:
    """Units of each expert that are added for the weight of each row in the likelihood of the constants, (S, K, n).

    Parameters
    ----------
    penalty : GatePenalty
    rows : Rows
    log_gate : ndarray, shape (S, K, n)
        At the rows' own index values.
    free : ndarray of bool, shape ((K - 1) m,)
        Coefficients that are constants.
    """
    return penalty.units(rows.gate, log_gate, Weighted(rows.weights, float(rows.weights.sum()), free))


def unit_score(units: Array, prob: Array) -> Array:
    """Scores of added units (..., K, n) in the predictors of experts 2 .. K at probabilities (..., K - 1, n)."""
    return np.asarray(units[..., 1:, :] - prob * units.sum(axis=-2, keepdims=True))


def unit_information(units: Array, prob: Array) -> Array:
    """Information of added units (K, n) in the predictors of experts 2 .. K, shape (K - 1, K - 1, n)."""
    return np.asarray(units.sum(axis=0) * (np.eye(len(prob))[:, :, None] * prob - prob[:, None] * prob))


DISPERSION_STEP = 1.0  # largest change of a log dispersion in one step
LEAST_CURVATURE = 1e-200  # less is none: its root would overflow
EXPERT_STEP = 5.0  # largest change of the predictor of an expert in one scoring step, links other than identity
GATE_STEP = 3.0  # largest change of a gate predictor, in its own units, in one step


@dataclass(frozen=True, slots=True)
class Natural:
    """Predictors of the rows at their own index values; a leading axis of starts is allowed.

    Attributes
    ----------
    eta, delta : ndarray, shape (..., K, n)
        Linear predictor with offset; log dispersion (zero where there is none).
    log_gate : ndarray, shape (..., K, n)
        Log probabilities of the gate.
    """

    eta: Array
    delta: Array
    log_gate: Array

    def take(self, rows: slice | NDArray[np.intp]) -> "Natural":
        """Predictors of some of the rows."""
        return Natural(self.eta[..., rows], self.delta[..., rows], self.log_gate[..., rows])


@dataclass(frozen=True, slots=True)
class Posterior:
    """Responsibilities and the log-likelihood that they belong to.

    Attributes
    ----------
    weighted : ndarray, shape (..., K, n)
        Responsibilities times observation weights.
    loglik : ndarray, shape (...)
        Weighted observed-data log-likelihood.
    """

    weighted: Array
    loglik: Array


def own_coefficients(problem: Problem, coef: Array, run: slice | None = None) -> Array:
    """Every coefficient function at the index value of every row.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)
    run : slice, optional
        Only these rows.

    Returns
    -------
    ndarray, shape (n, L)
    """
    stop = problem.slots.gates.start
    flat = coef.reshape(-1, coef.shape[-1])
    both = (problem.levels, problem.gate_levels)
    levels, gate_levels = both if run is None else (one[run] for one in both)
    # One bandwidth for all: one sparse product instead of two.
    if problem.levels is problem.gate_levels:
        return np.asarray(levels @ flat)
    return np.hstack([levels @ flat[:, :stop], gate_levels @ flat[:, stop:]])


def natural_parameters(rows: Rows, slots: Slots, theta: Array) -> Natural:
    """Predictors of the rows from row-wise or common coefficients.

    Parameters
    ----------
    rows : Rows
    slots : Slots
    theta : ndarray, shape (n, L) or (S, 1, L)
        Coefficients of each row, or common to all rows for each of S starts.

    Returns
    -------
    Natural
        Arrays of shape (K, n) or (S, K, n).
    """
    lead, n = theta.shape[:-2], rows.n
    experts = theta[..., slots.experts].reshape(*theta.shape[:-1], slots.n_experts, slots.n_expert_columns)
    eta = _rowwise_product(experts, rows.design) + rows.offset
    delta = np.zeros((*lead, slots.n_experts, n))
    if slots.has_dispersion:
        delta += np.moveaxis(theta[..., slots.dispersions], -1, -2)
    zeta = np.zeros((*lead, slots.n_experts, n))
    gates = theta[..., slots.gates].reshape(*theta.shape[:-1], slots.n_experts - 1, slots.n_gate_columns)
    zeta[..., 1:, :] = _rowwise_product(gates, rows.gate)
    return Natural(eta, delta, log_softmax(zeta, axis=-2))


def _rowwise_product(coef: Array, design: Array) -> Array:
    """Products ``x_i' b_ik`` of coefficients (n, K, p) or (S, 1, K, p) with rows (n, p), as (..., K, n)."""
    if coef.ndim == 4:
        return coef[:, 0] @ design.T
    out = np.zeros(coef.shape[:2])
    for j in range(design.shape[1]):
        out += coef[:, :, j] * design[:, j : j + 1]
    return out.T


def posterior(rows: Rows, family: Family, natural: Natural) -> Posterior:
    """Responsibilities and log-likelihood at given predictors."""
    if len(rows.runs) > 1:
        weighted, loglik = np.empty_like(natural.eta), np.zeros(())
        for run in rows.runs:
            part = posterior(rows.take(run), family, natural.take(run))
            weighted[:, run], loglik = part.weighted, loglik + part.loglik
        return Posterior(weighted, loglik)
    joint = natural.log_gate + family.log_density(rows.outcome, natural.eta, natural.delta)
    # The peak is shared by responsibilities and likelihood, so the exponentials are taken once; this is the inner loop.
    top = joint.max(axis=-2, keepdims=True)
    raw = np.exp(joint - top)
    mass = raw.sum(axis=-2, keepdims=True)
    loglik = (top + np.log(mass))[..., 0, :] @ rows.weights
    return Posterior(raw * (rows.weights / mass), loglik)


def row_logliks(outcome: Outcome, family: Family, natural: Natural) -> Array:
    """Log density of each row, shape (n,), whichever expert it belongs to."""
    return logsumexp(natural.log_gate + family.log_density(outcome, natural.eta, natural.delta), axis=0)


def own_natural(problem: Problem, coef: Array) -> Natural:
    """Predictors of the rows at their own index values, dispersions within their limits."""
    rows, slots = problem.rows, problem.slots
    if len(rows.runs) > 1:
        natural = Natural(*np.empty((3, slots.n_experts, rows.n)))
        for run in rows.runs:
            part = natural_parameters(rows.take(run), slots, own_coefficients(problem, coef, run))
            natural.eta[:, run], natural.delta[:, run], natural.log_gate[:, run] = part.eta, part.delta, part.log_gate
    else:
        natural = natural_parameters(rows, slots, own_coefficients(problem, coef))
    # A dispersion of zero makes the likelihood unbounded: limits keep the local maximum the one that is meant.
    np.clip(natural.delta, problem.floor, problem.ceiling, out=natural.delta)
    return natural


def solve_scaled(matrix: Array, right: Array, free: BoolArray | None = None) -> Array:
    """Solutions of symmetric positive semi-definite systems, scaled to unit diagonal first.

    Parameters
    ----------
    matrix : ndarray, shape (..., q, q)
    right : ndarray, shape (..., q)
    free : ndarray of bool, shape (..., q), optional
        Unknowns that are solved for; the others are zero.

    Returns
    -------
    ndarray, shape (..., q)
        The minimum-norm solution where a matrix is singular.
    """
    keep = np.ones(right.shape) if free is None else np.broadcast_to(free, right.shape).astype(float)
    diagonal = np.einsum("...ii->...i", matrix)
    keep = keep * (diagonal > LEAST_CURVATURE)
    # Unit diagonal first: units of covariates then have no part in what counts as singular.
    root = keep / np.sqrt(np.where(keep > 0.0, diagonal, 1.0))
    unit = matrix * root[..., :, None] * root[..., None, :]
    np.einsum("...ii->...i", unit)[...] += 1.0 - keep
    scaled = (right * root)[..., None]
    try:
        # Cholesky decides: an LU solve of an indefinite or singular matrix may succeed with nonsense.
        np.linalg.cholesky(unit)
        return np.linalg.solve(unit, scaled)[..., 0] * root
    except np.linalg.LinAlgError:
        return (np.linalg.pinv(unit, rcond=1e-10, hermitian=True) @ scaled)[..., 0] * root


def expert_step(problem: Problem, coef: Array, resp: Array) -> Array:
    """Change of the expert functions: one scoring step at every grid point.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)
    resp : ndarray, shape (K, n)

    Returns
    -------
    ndarray, shape (G, 2, K p)
        Exact weighted least squares for a Gaussian response.
    """
    slots = problem.slots
    k, p = slots.n_experts, slots.n_expert_columns
    out = np.zeros((problem.windows.n_grid, 2, k * p))
    free = ~problem.const[slots.experts].reshape(k, p)
    gaussian = problem.family.name == "gaussian"
    # For a normal response weights do not depend on the predictor: products of rows are made once, and windows only
    # sum them. For t errors those of an EM step do not either.
    rowwise = _gaussian_rows(problem, _of_normal_rows(problem, coef, resp)) if gaussian else None
    for block in blocks(problem.windows):
        current = coef[block.first : block.last, :, slots.experts].reshape(-1, 2, k, p)
        if rowwise is not None:
            gradient, matrix = _gaussian_normal(block, current, rowwise, k, p)
        else:
            gradient, matrix = scoring_normal(problem, block, coef, current, resp)
        step = solve_scaled(matrix, gradient, np.concatenate([free, free], axis=-1))
        lines = step.reshape(-1, k, 2, p).transpose(0, 2, 1, 3)
        lines = lines if gaussian else _within_reach(block, lines, problem.design_t)
        out[block.first : block.last] = lines.reshape(-1, 2, k * p)
    return out


def _within_reach(block: Block, step: Array, design_t: Array) -> Array:
    """Steps (g, 2, K, p), each shortened where it would change a predictor in its window by more than `EXPERT_STEP`.

    Scoring steps of a generalised linear model can run off from far away, as where a rare column separates responses.
    """
    change = np.abs(local_predictor(block, step, design_t))  # (K, pairs)
    most = np.zeros((len(step), len(change)))
    filled = np.flatnonzero(np.diff(block.offsets) > 0)
    most[filled] = np.maximum.reduceat(change, block.offsets[:-1][filled], axis=1).T
    return step * np.minimum(1.0, EXPERT_STEP / np.maximum(most, EXPERT_STEP))[:, None, :, None]


def _of_normal_rows(problem: Problem, coef: Array, resp: Array) -> Array:
    """Responsibilities times the weights that t errors give to the residuals of the rows at their own index values."""
    if not isinstance(problem.family, StudentT):
        return resp
    natural = own_natural(problem, coef)
    return resp * problem.family.precision_weights(problem.rows.outcome, natural.eta, natural.delta)


def _gaussian_rows(problem: Problem, resp: Array) -> Array:
    """Responsibility-weighted products of each row: (n, K (p p + p))."""
    rows = problem.rows

    def of(run: slice) -> Array:
        y = (rows.outcome.y[run] - rows.offset[run])[:, None]
        products = np.hstack([problem.products[run], rows.design[run] * y])  # (n, pp + p)
        return np.asarray((resp.T[run, :, None] * products[:, None, :]).reshape(len(products), -1))

    return rows.made(of)


def _gaussian_normal(block: Block, current: Array, rowwise: Array, k: int, p: int) -> tuple[Array, Array]:
    moments = local_moments(block, block.kernel[None], rowwise, 3).reshape(-1, 3, k, p * p + p)
    matrix = hankel(moments[..., : p * p].reshape(-1, 3, k, p, p), 1)  # (g, K, 2p, 2p)
    right = moments[:, :2, :, p * p :].transpose(0, 2, 1, 3).reshape(-1, k, 2 * p)
    flat = current.transpose(0, 2, 1, 3).reshape(-1, k, 2 * p)
    # As a step from the current line, like every other family; it ends at the weighted least-squares line.
    return right - np.einsum("gkab,gkb->gka", matrix, flat), matrix


def scoring_normal(problem: Problem, block: Block, coef: Array, current: Array, resp: Array) -> tuple[Array, Array]:
    """Gradient (g, K, 2 p) and expected information (g, K, 2 p, 2 p) of the experts in the windows of a block."""
    rows, p = problem.rows, problem.slots.n_expert_columns
    eta = local_predictor(block, current, problem.design_t) + rows.offset[block.rows]
    delta = _pair_dispersion(problem, block, coef)
    score, information = problem.family.scoring(rows.outcome.take(block.rows), eta, delta)
    weight = resp[:, block.rows] * block.kernel
    gradient = local_moments(block, weight * score, rows.design, 2)  # (g, 2, K, p)
    # The powers 0, 1, 2 of t fill the (2p, 2p) matrix of level and slope: a Hankel matrix of three moments.
    moments = local_moments(block, weight * information, problem.products, 3)
    n_grid, k = gradient.shape[0], gradient.shape[2]
    matrix = hankel(moments.reshape(n_grid, 3, k, p, p), 1)
    return gradient.transpose(0, 2, 1, 3).reshape(n_grid, k, 2 * p), matrix


def _pair_dispersion(problem: Problem, block: Block, coef: Array) -> Array:
    if not problem.slots.has_dispersion:
        return np.zeros((problem.slots.n_experts, len(block.t)))
    local = coef[block.first : block.last, :, problem.slots.dispersions]  # (g, 2, K)
    sizes = np.diff(block.offsets)
    lines = np.repeat(local[:, 0].T, sizes, axis=1) + np.repeat(local[:, 1].T, sizes, axis=1) * block.t
    return np.clip(lines, problem.floor, problem.ceiling)


def dispersion_step(problem: Problem, coef: Array, resp: Array, natural: Natural) -> Array:
    """Change of the log-dispersion functions: one scoring step of the local likelihood.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)
    resp : ndarray, shape (K, n)
    natural : Natural
        Predictors and dispersions at the rows' own index values.

    Returns
    -------
    ndarray, shape (G, 2, K)

    Notes
    -----
    Local lines through the working responses of the rows' own log dispersions. That costs no special function per pair
    of row and grid point, and agrees with the local likelihood to second order in the change within a window.
    """

    def of(run: slice) -> Array:
        at, own = natural.take(run), resp[:, run]
        parts = problem.family.derivatives(problem.rows.outcome.take(run), at.eta, at.delta)
        # Of a normal response the curvature, twice the squared residual, is positive everywhere; others need the mean.
        curved = parts.delta_delta if is_normal(problem.family) else _positive_curvature(parts.delta, parts.delta_delta)
        weight = own * curved
        return np.concatenate([weight, weight * at.delta + own * parts.delta]).T  # the last times the weight

    slots, free = problem.slots, problem.free[:, problem.slots.dispersions]  # (2, K)
    rowwise = problem.rows.made(of)  # (n, 2K)
    moments = [local_moments(b, b.kernel[None], rowwise, 3)[:, :, 0] for b in blocks(problem.windows)]
    total = np.concatenate(moments)  # (G, 3, 2K)
    target = _local_lines(total[..., : slots.n_experts], total[..., slots.n_experts :], free)
    step = (target - coef[:, :, slots.dispersions]) * free
    return np.clip(step, -DISPERSION_STEP, DISPERSION_STEP)


def _local_lines(mass: Array, product: Array, free: BoolArray) -> Array:
    """Weighted local lines (or constants where the slope is not free) from moments (G, 3, K), as (G, 2, K)."""
    tiny = np.finfo(float).tiny
    level = product[:, 0] / np.maximum(mass[:, 0], tiny)
    determinant = mass[:, 0] * mass[:, 2] - mass[:, 1] ** 2
    # By Cauchy-Schwarz the determinant is at most the product: their ratio is free of units.
    sloped = free[1] & (determinant > 1e-10 * mass[:, 0] * mass[:, 2])
    safe = np.where(sloped, determinant, 1.0)
    slope = (mass[:, 0] * product[:, 1] - mass[:, 1] * product[:, 0]) / safe
    return np.stack(
        [
            np.where(sloped, (mass[:, 2] * product[:, 0] - mass[:, 1] * product[:, 1]) / safe, level),
            np.where(sloped, slope, 0.0),
        ],
        axis=1,
    )


def _positive_curvature(score: Array, curvature: Array) -> Array:
    """Curvature averaged with the squared score, whose mean is the same: positive far from the optimum too."""
    # Bartlett: E[curvature] = E[score^2], so that near the optimum the average is a consistent estimate of both.
    return np.maximum(curvature, 0.5 * (np.abs(curvature) + score * score))


def gate_step(problem: Problem, coef: Array, resp: Array) -> Array:
    """Change of the gate functions: one Newton step of the local multinomial logit at every grid point.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)
    resp : ndarray, shape (K, n)

    Returns
    -------
    ndarray, shape (G, 2, (K - 1) m)
    """
    slots, rows = problem.slots, problem.rows
    c, m = slots.n_experts - 1, slots.n_gate_columns
    out = np.zeros((problem.gate_windows.n_grid, 2, c * m))
    free = ~problem.const[slots.gates]
    for block in blocks(problem.gate_windows):
        current = coef[block.first : block.last, :, slots.gates].reshape(-1, 2, c, m)
        zeta = local_predictor(block, current, problem.gate_t)  # (c, pairs)
        prob = gate_probabilities(zeta)
        weight = rows.weights[block.rows] * block.kernel
        # Responsibilities carry the observation weights already; the probabilities get them here.
        residual = resp[1:, block.rows] * block.kernel - weight * prob
        if rows.penalty is not None:  # its units come to the rows, as if memberships were known
            log_gate = log_softmax(np.concatenate([np.zeros_like(zeta[:1]), zeta]), axis=0)
            added = window_prior(rows.penalty, rows, block, log_gate, np.stack([free, free])).units
            residual += weight * unit_score(added, prob)
            weight = weight * (1.0 + added.sum(axis=0))
        gradient = local_moments(block, residual, rows.gate, 2).reshape(-1, 2 * c * m)
        matrix = _gate_information(problem, block, weight, prob)
        step = solve_scaled(matrix, gradient, np.concatenate([free, free]))
        out[block.first : block.last] = _shorten(step.reshape(-1, 2, c * m), problem.scale[slots.gates])
    return out


def gate_probabilities(zeta: Array) -> Array:
    """Softmax probabilities of experts 2 .. K from their predictors against expert 1, shape (..., K - 1, pairs)."""
    # Expert 1 has predictor zero: it takes part in the peak, and in the sum as exp(-top).
    top = np.maximum(zeta.max(axis=-2, keepdims=True), 0.0)
    raw = np.exp(zeta - top)
    out: Array = raw / (np.exp(-top) + raw.sum(axis=-2, keepdims=True))
    return out


def _gate_information(problem: Problem, block: Block, weight: Array, prob: Array) -> Array:
    """Information of the local multinomial logit, order (power, expert, column)."""
    c, m = prob.shape[0], problem.slots.n_gate_columns
    pairs = [(a, b) for a in range(c) for b in range(a + 1)]
    values = np.stack([weight * prob[a] * ((a == b) - prob[b]) for a, b in pairs])
    moments = local_moments(block, values, problem.gate_products, 3).reshape(-1, 3, len(pairs), m, m)
    full = np.empty((len(moments), 3, c, m, c, m))
    for j, (a, b) in enumerate(pairs):
        full[:, :, a, :, b, :] = full[:, :, b, :, a, :] = moments[:, :, j]
    return hankel(full.reshape(-1, 3, c * m, c * m), 1)


def _shorten(step: Array, scale: Array) -> Array:
    """The step, shortened where it would change a predictor by more than `GATE_STEP`."""
    size = np.abs(step / scale).max(axis=(-1, -2), keepdims=True)
    return step * np.minimum(1.0, GATE_STEP / np.maximum(size, np.finfo(float).tiny))


def global_step(
    rows: Rows, family: Family, slots: Slots, const: BoolArray, natural: Natural, resp: Array, scale: Array
) -> Array:
    """Change of the constant coefficients, with the functions as offset; for several starts at once.

    Parameters
    ----------
    rows : Rows
    family : Family
    slots : Slots
    const : ndarray of bool, shape (L,)
    natural : Natural
        Arrays of shape (S, K, n).
    resp : ndarray, shape (S, K, n)
    scale : ndarray, shape (L,)

    Returns
    -------
    ndarray, shape (S, L)
        Zero for functions that vary.
    """
    step = np.zeros((*resp.shape[:-2], slots.n))
    eta = natural.eta
    if const[slots.experts].any():
        change = _global_experts(rows, family, slots, const, natural, resp)  # (S, K, p)
        step[..., slots.experts] = change.reshape(*step.shape[:-1], -1)
        # Dispersions are fitted at the new predictors: with the old ones the residuals would be too large.
        eta = eta + change @ rows.design.T
    if const[slots.dispersions].any():
        change = _global_dispersion(rows.outcome, family, Natural(eta, natural.delta, natural.log_gate), resp)
        step[..., slots.dispersions] = np.clip(change, -DISPERSION_STEP, DISPERSION_STEP) * const[slots.dispersions]
    if const[slots.gates].any():
        step[..., slots.gates] = _global_gate(rows, slots, const, natural, resp, scale)
    return step


def _global_experts(rows: Rows, family: Family, slots: Slots, const: BoolArray, natural: Natural, resp: Array) -> Array:
    score, information = family.scoring(rows.outcome, natural.eta, natural.delta)
    # With dispersion functions, precisions differ from row to row and do not cancel from the normal equations.
    weight = resp * np.exp(-2.0 * natural.delta) if family.name == "gaussian" else resp
    gradient = (weight * score) @ rows.design  # (S, K, p)
    p = slots.n_expert_columns
    matrix = ((weight * information) @ outer_rows(rows.design)).reshape(*gradient.shape, p)
    return solve_scaled(matrix, gradient, const[slots.experts].reshape(slots.n_experts, p))


def _global_dispersion(outcome: Outcome, family: Family, natural: Natural, resp: Array) -> Array:
    total = np.maximum(resp.sum(axis=-1), np.finfo(float).tiny)
    if family.name == "gaussian":
        # Closed form: one factor that multiplies all standard deviations of the expert.
        squares = (outcome.y - natural.eta) ** 2 * np.exp(-2.0 * natural.delta)
        if isinstance(family, StudentT):
            squares = squares * family.precision_weights(outcome, natural.eta, natural.delta)
        ratio = (resp * squares).sum(axis=-1) / total
        return 0.5 * np.log(np.maximum(ratio, np.finfo(float).tiny))
    parts = family.derivatives(outcome, natural.eta, natural.delta)
    curvature = (resp * _positive_curvature(parts.delta, parts.delta_delta)).sum(axis=-1)
    return (resp * parts.delta).sum(axis=-1) / np.maximum(curvature, np.finfo(float).tiny)


def _global_gate(rows: Rows, slots: Slots, const: BoolArray, natural: Natural, resp: Array, scale: Array) -> Array:
    c, m = slots.n_experts - 1, slots.n_gate_columns
    prob = np.exp(natural.log_gate[..., 1:, :])
    residual, weights = resp[..., 1:, :] - rows.weights * prob, np.broadcast_to(rows.weights, resp[..., 0, :].shape)
    if rows.penalty is not None:
        stacked = natural.log_gate.reshape(-1, c + 1, rows.n)
        added = global_units(rows.penalty, rows, stacked, const[slots.gates]).reshape(natural.log_gate.shape)
        residual = residual + rows.weights * unit_score(added, prob)
        weights = weights * (1.0 + added.sum(axis=-2))
    gradient = (residual @ rows.gate).reshape(*resp.shape[:-2], c * m)
    products = outer_rows(rows.gate)
    matrix = np.empty((*resp.shape[:-2], c, m, c, m))
    for a in range(c):
        for b in range(c):
            value = weights * prob[..., a, :] * ((a == b) - prob[..., b, :])
            matrix[..., a, :, b, :] = (value @ products).reshape(*resp.shape[:-2], m, m)
    step = solve_scaled(matrix.reshape(*gradient.shape, c * m), gradient, const[slots.gates])
    return _shorten(step[..., None, :], scale[slots.gates])[..., 0, :]


def limit_dispersion(problem: Problem, coef: Array) -> Array:
    """The state with its log dispersions held within their limits, in place."""
    if problem.slots.has_dispersion:
        level = coef[:, 0, problem.slots.dispersions]
        outside = (level < problem.floor) | (level > problem.ceiling)
        np.clip(level, problem.floor, problem.ceiling, out=level)
        coef[:, 1:, problem.slots.dispersions] *= ~outside[:, None]
    return coef
