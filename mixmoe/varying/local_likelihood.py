"""The kernel-weighted observed-data log-likelihood at every grid point: score and information.

The score of a mixture is the responsibility-weighted complete-data score (Fisher's identity) and its information the
expected complete-data information less the variance of the complete-data score given the response (Louis' identity);
both are written in the natural parameters of a row (predictors, log dispersions, gate predictors) first.

References
----------
Louis, T. A. (1982). Finding the observed information matrix when using the EM algorithm. JRSS B 44, 226-233.
Fan, J. and Gijbels, I. (1996). Local Polynomial Modelling and Its Applications, chapter 5.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array, BoolArray
from mixmoe.numerics.linalg import log_softmax
from mixmoe.responses.distribution import Derivatives, Outcome
from mixmoe.varying.em_steps import (
    LEAST_CURVATURE,
    Natural,
    WindowPrior,
    own_natural,
    unit_information,
    unit_score,
    window_prior,
)
from mixmoe.varying.problem import Problem, Slots
from mixmoe.varying.windows import Block, Windows, blocks, epanechnikov, local_moments, local_predictor, wrapped

NEGLIGIBLE = 1e-5  # information about a predictor, per row, below which it has run to where rows say nothing
LOADED = 0.05  # share of the largest loading from which on a coefficient takes part in a direction
RIDGE = 1e-10


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of natural parameter: predictors, log dispersions or gate predictors.

    Attributes
    ----------
    slots : ndarray of int, shape (members, q)
        Coefficient functions behind each member.
    where : slice
        Of the members among the natural parameters of a row.
    design : ndarray, shape (n, q)
    """

    slots: NDArray[np.intp]
    where: slice
    design: Array


@dataclass(frozen=True, slots=True)
class Local:
    """A local-likelihood problem: windows, polynomial degree and what is free.

    Attributes
    ----------
    problem : Problem
    windows : Windows
        One bandwidth for all functions; coefficients of power s are per this bandwidth to the s.
    free : ndarray of bool, shape (D, L)
        Coefficients to be estimated.
    parts : tuple of Part
    products : mapping
        Of the columns of two parts, by their places, the first not behind the second: (n, q q').
    own : Natural or None
        Predictors of the rows at their own index values, if the experts are held there and only the gate is local.
    """

    problem: Problem
    windows: Windows
    free: BoolArray
    parts: tuple[Part, ...]
    products: Mapping[tuple[int, int], Array]
    own: Natural | None = None


@dataclass(frozen=True, slots=True)
class NaturalTerms:
    """Score and information of the rows in their natural parameters, for the pairs of a block.

    Attributes
    ----------
    score : ndarray, shape (d, pairs)
    information : ndarray, shape (d, d, pairs)
    complete : ndarray, shape (d, d, pairs)
        Complete-data information, which is never indefinite for the predictors.
    logdensity : ndarray, shape (pairs,)
    kernel : ndarray, shape (pairs,)
        Kernel times observation weights.
    prob : ndarray, shape (K, pairs)
        Probabilities of the gate.
    prior : WindowPrior or None
        What a penalty of the gate adds. The other arrays are those of the rows without it.
    """

    score: Array
    information: Array
    complete: Array
    logdensity: Array
    kernel: Array
    prob: Array
    prior: WindowPrior | None = None

    @property
    def penalised_score(self) -> Array:
        """Score with that of the added units, shape (d, pairs)."""
        if self.prior is None:
            return self.score
        out = self.score.copy()
        out[1 - len(self.prob) :] += unit_score(self.prior.units, self.prob[1:])
        return out

    def penalised(self, information: Array) -> Array:
        """An information (d, d, pairs) of the rows with that of the added units."""
        if self.prior is None:
            return information
        out, first = information.copy(), 1 - len(self.prob)
        out[first:, first:] += unit_information(self.prior.units, self.prob[1:])
        return out

    def added_score(self, expert: int) -> Array:
        """Roots of the summed squares of the scores of the units added for one expert, signed, shape (d, pairs)."""
        out = np.zeros_like(self.score)
        if self.prior is not None:
            off = (np.arange(len(self.prob)) == expert)[1:, None] - self.prob[1:]
            out[1 - len(self.prob) :] = np.sqrt(self.prior.units[expert]) * off
        return out


def build_local(
    problem: Problem,
    degree: int,
    bandwidth: float | None = None,
    points: NDArray[np.intp] | None = None,
    held: Array | None = None,
) -> Local:
    """Local likelihood of a degree.

    Parameters
    ----------
    problem : Problem
    degree : int
        1 as in the fit, 2 for robust bias correction. Dispersions keep the degree of the fit: a local parabola through
        log sigma follows single rows near the ends, and makes everything else there look more certain than it is.
    bandwidth : float, optional
        By default that of the experts.
    points : ndarray of int, optional
        Only these grid points.
    held : ndarray, shape (G, 2, L), optional
        State of the EM at whose experts the gate alone is estimated: for a gate with a bandwidth of its own. A line in
        the experts over the window of the gate would be a misfit.

    Returns
    -------
    Local
    """
    known = {problem.windows.bandwidth: problem.windows, problem.gate_windows.bandwidth: problem.gate_windows}
    h = problem.windows.bandwidth if bandwidth is None else bandwidth
    grid = problem.windows.grid if points is None else problem.windows.grid[points]
    made = h in known and points is None
    windows = known[h] if made else problem.windows.with_grid(grid, h / problem.windows.bandwidth)
    order = problem.order + degree - 1
    order[problem.slots.dispersions] = problem.order[problem.slots.dispersions]
    free = (np.arange(degree + 1)[:, None] <= order) & ~problem.const
    slots, rows = problem.slots, problem.rows
    k, every, d = slots.n_experts, np.arange(slots.n), slots.n_experts * (1 + slots.has_dispersion)
    parts = [Part(every[slots.experts].reshape(k, -1), slice(0, k), rows.design)]
    if slots.has_dispersion:
        parts.append(Part(every[slots.dispersions].reshape(k, 1), slice(k, d), np.ones((rows.n, 1))))
    if k > 1:
        parts.append(Part(every[slots.gates].reshape(k - 1, -1), slice(d, d + k - 1), rows.gate))
    products = {
        (i, j): _products(problem, parts[i].design, parts[j].design)
        for i, j in combinations_with_replacement(range(len(parts)), 2)
    }
    if held is None:
        return Local(problem, windows, free, tuple(parts), products)
    free[:, : slots.gates.start] = False
    return Local(problem, windows, free, tuple(parts), products, own_natural(problem, held))


def _products(problem: Problem, first: Array, second: Array) -> Array:
    """Products of the columns of two designs, (n, q q'), made once for all windows."""
    rows, width = problem.rows, first.shape[1] * second.shape[1]
    if first is second:
        return problem.products if first is rows.design else problem.gate_products if first is rows.gate else first

    def of(run: slice) -> Array:
        return (first[run, :, None] * second[run, None, :]).reshape(run.stop - run.start, width)

    return rows.made(of)


def local_start(local: Local, coef: Array) -> Array:
    """A state of the EM (G, 2, L) as coefficients of a local problem (G, D, L).

    Same degree and bandwidth: the state itself. Otherwise local polynomials through the functions of the state, because
    a line fitted in a narrow window says nothing about a wide one.
    """
    problem, degree = local.problem, local.free.shape[0] - 1
    if degree == 1 and (problem.bandwidths[local.free[1]] == local.windows.bandwidth).all():
        return coef.copy()
    t = wrapped(local.windows.grid - local.windows.grid[:, None], local.windows.period) / local.windows.bandwidth
    basis = t[:, :, None] ** np.arange(degree + 1)  # (G, grid, D)
    unit = (local.windows.bandwidth / local.windows.widths)[:, None]
    weighted = basis * epanechnikov(t * unit)[:, :, None]
    normal = np.swapaxes(weighted, 1, 2) @ basis
    out: Array = np.linalg.pinv(normal, rcond=1e-8, hermitian=True) @ (np.swapaxes(weighted, 1, 2) @ coef[:, 0])
    return np.where(local.free | (np.arange(degree + 1) == 0)[:, None], out, 0.0)


def state_of(local: Local, coef: Array) -> Array:
    """The first two powers of a local fit as a state of the EM: the inverse of `local_start`."""
    out = coef[:, :2].copy()
    out[:, 1] *= local.problem.bandwidths / local.windows.bandwidth
    return out


def natural_predictors(local: Local, block: Block, coef: Array) -> Natural:
    """Predictors of every pair of a block at given coefficients.

    Parameters
    ----------
    local : Local
    block : Block
    coef : ndarray, shape (g, D, L)
        Coefficients of the block's grid points.

    Returns
    -------
    Natural
        Arrays of shape (K, pairs).
    """
    problem = local.problem
    slots, rows, k = problem.slots, problem.rows, problem.slots.n_experts
    shape = coef.shape[:2]
    zeta = np.zeros((k, len(block.t)))
    if k > 1:
        zeta[1:] = local_predictor(block, coef[..., slots.gates].reshape(*shape, k - 1, -1), problem.gate_t)
    if local.own is not None:
        return Natural(local.own.eta[:, block.rows], local.own.delta[:, block.rows], log_softmax(zeta, axis=0))
    eta = local_predictor(block, coef[..., slots.experts].reshape(*shape, k, -1), problem.design_t)
    eta += rows.offset[block.rows]
    delta = np.zeros_like(eta)
    if slots.has_dispersion:
        ones = np.ones((1, rows.n))
        delta = local_predictor(block, coef[..., slots.dispersions].reshape(*shape, k, 1), ones)
        # A unit beyond the limits: the maximiser must be able to cross a limit, so that it can be seen to run there.
        np.clip(delta, problem.floor - 1.0, problem.ceiling + 1.0, out=delta)
    return Natural(eta, delta, log_softmax(zeta, axis=0))


def natural_terms(local: Local, block: Block, coef: Array) -> NaturalTerms:
    """Score and information of every pair of a block in its natural parameters, see `natural_predictors`."""
    natural = natural_predictors(local, block, coef)
    terms = assemble_terms(local.problem, block, natural)
    rows, gates = local.problem.rows, local.problem.slots.gates
    if rows.penalty is None or local.problem.slots.n_experts == 1:
        return terms
    return replace(terms, prior=window_prior(rows.penalty, rows, block, natural.log_gate, local.free[:, gates]))


@dataclass(frozen=True, slots=True)
class CompleteScores:
    """Complete-data scores and their expectation given the response.

    Attributes
    ----------
    owners : ndarray of int, shape (d,)
        Expert of each natural parameter.
    resp, prob : ndarray, shape (K, n)
    raw : ndarray, shape (d, n)
        Scores if the expert were known, up to the constant of the gate.
    score : ndarray, shape (d, n)
    logdensity : ndarray, shape (n,)
    parts : Derivatives
    """

    owners: NDArray[np.intp]
    resp: Array
    prob: Array
    raw: Array
    score: Array
    logdensity: Array
    parts: Derivatives


def complete_scores(problem: Problem, outcome: Outcome, natural: Natural) -> CompleteScores:
    """Scores of rows in their natural parameters, (K, n) predictors each, before and after memberships are averaged."""
    eta, delta, log_gate = natural.eta, natural.delta, natural.log_gate
    joint = log_gate + problem.family.log_density(outcome, eta, delta)
    # Responsibilities, density and score share one exponential per expert and row.
    top = joint.max(axis=0)
    resp, prob = np.exp(joint - top), np.exp(log_gate)
    mass = resp.sum(axis=0)
    resp /= mass
    total = top + np.log(mass)
    parts = problem.family.derivatives(outcome, eta, delta)
    k, disp = problem.slots.n_experts, problem.slots.has_dispersion
    owners = np.concatenate([np.arange(k), np.arange(k * disp), np.arange(1, k)])
    raw = np.concatenate([parts.eta, parts.delta[: k * disp], np.ones((k - 1, len(total)))])
    score = resp[owners] * raw
    # The derivative of log pi_c in predictor a is 1{a=c} - pi_a; given the response 1{a=c} becomes the responsibility.
    score[k * (1 + disp) :] -= prob[1:]
    return CompleteScores(owners, resp, prob, raw, score, total, parts)


def assemble_terms(problem: Problem, block: Block, natural: Natural) -> NaturalTerms:
    """Score and information in natural parameters from the predictors of the pairs, (K, pairs) each."""
    c = complete_scores(problem, problem.rows.outcome.take(block.rows), natural)
    resp, prob, parts, owners = c.resp, c.prob, c.parts, c.owners
    k, disp = problem.slots.n_experts, problem.slots.has_dispersion
    weighted = resp[owners] * c.raw  # E[complete score], up to the constant of the gate
    complete = np.zeros((len(owners), len(owners), len(c.logdensity)))
    each = np.arange(k)
    complete[each, each] = resp * parts.eta_eta
    if disp:
        complete[each, k + each] = complete[k + each, each] = resp * parts.eta_delta
        complete[k + each, k + each] = resp * parts.delta_delta
    first = k * (1 + disp)
    for a in range(1, k):
        for b in range(1, k):
            complete[first + a - 1, first + b - 1] = prob[a] * ((a == b) - prob[b])
    # Louis: observed = complete - missing information, and missing = E[s s'] - E[s] E[s]'. Natural parameters of two
    # experts are never both at work in one row, so E[s s'] has entries within an expert only.
    information = weighted[:, None] * weighted
    information += complete
    for a, b in np.argwhere(owners[:, None] == owners):  # less the variance of the complete score (Louis 1982)
        information[a, b] -= weighted[a] * c.raw[b]
    kernel = block.kernel * problem.rows.weights[block.rows]
    return NaturalTerms(c.score, information, complete, c.logdensity, kernel, prob)


def local_gradient(local: Local, block: Block, terms: NaturalTerms) -> Array:
    """Gradient of the local log-likelihoods of a block, shape (g, D, L)."""
    n_powers, n_slots = local.free.shape
    out = np.zeros((block.last - block.first, n_powers, n_slots))
    score = terms.penalised_score
    for part in local.parts:
        values = score[part.where] * terms.kernel
        moments = local_moments(block, values, part.design, n_powers)
        out[:, :, part.slots.ravel()] = moments.reshape(*moments.shape[:2], -1)
    return out * local.free


def full_information(local: Local, block: Block, natural: Array, kernel: Array) -> Array:
    """Minus the second derivatives of the local log-likelihoods of a block in all coefficients, free or not.

    Parameters
    ----------
    local : Local
    block : Block
    natural : ndarray, shape (d, d, pairs)
        Information in the natural parameters.
    kernel : ndarray, shape (pairs,)

    Returns
    -------
    ndarray, shape (g, D L, D L)
    """
    d, n_slots = local.free.shape
    out = np.zeros((block.last - block.first, d, n_slots, d, n_slots))
    # By pairs of parts: each has one design, so moments of natural information times products of columns suffice.
    for (i, j), products in local.products.items():
        a, b = local.parts[i], local.parts[j]
        values = natural[a.where, b.where] * kernel
        # Only the sum of the powers of t matters: 2D - 1 moments fill all D^2 blocks.
        moments = local_moments(block, values.reshape(-1, values.shape[-1]), products, 2 * d - 1)
        shape = (len(out), 2 * d - 1, *values.shape[:2], a.design.shape[1], b.design.shape[1])
        moments = moments.reshape(shape).transpose(0, 1, 2, 4, 3, 5)
        moments = moments.reshape(len(out), 2 * d - 1, a.slots.size, b.slots.size)
        for s, r in product(range(d), repeat=2):
            out[:, s, a.slots.ravel()[:, None], r, b.slots.ravel()] = moments[:, s + r]
            if i != j:  # the information is symmetric
                out[:, s, b.slots.ravel()[:, None], r, a.slots.ravel()] = np.swapaxes(moments[:, s + r], 1, 2)
    return out.reshape(len(out), d * n_slots, d * n_slots)


def masked_information(full: Array, free: BoolArray) -> Array:
    """The information (g, D L, D L) with unit rows and columns for what is not free, (D L,) or (g, D L)."""
    out: Array = full * (free[..., :, None] & free[..., None, :])
    # A unit diagonal for what is held keeps the matrix invertible and its inverse block-diagonal.
    np.einsum("gii->gi", out)[...] += ~free
    return out


def local_information(local: Local, block: Block, natural: Array, kernel: Array) -> Array:
    """Minus the Hessians of the local log-likelihoods of a block in the free coefficients, shape (g, D L, D L)."""
    return masked_information(full_information(local, block, natural, kernel), local.free.ravel())


def local_loglik(block: Block, terms: NaturalTerms) -> Array:
    """Local log-likelihoods of a block, with the log prior of the gate if there is one, shape (g,)."""
    value = local_moments(block, (terms.kernel * terms.logdensity)[None], np.ones((block.n, 1)), 1)[:, 0, 0, 0]
    return value if terms.prior is None else value + terms.prior.value


def unit_diagonal(matrix: Array) -> tuple[Array, Array]:
    """Symmetric matrices (g, q, q) scaled to unit diagonal, and the scale (g, q).

    One that is not finite or has no curvature in some direction becomes minus the identity: not positive definite.
    """
    symmetric = 0.5 * (matrix + np.swapaxes(matrix, -1, -2))
    usable = np.isfinite(symmetric).all(axis=(1, 2)) & (np.einsum("gii->gi", symmetric) > LEAST_CURVATURE).all(axis=1)
    safe = np.where(usable[:, None, None], symmetric, -np.eye(symmetric.shape[1]))
    root = 1.0 / np.sqrt(np.abs(np.einsum("gii->gi", safe)))
    return safe * root[:, :, None] * root[:, None, :], root


def positive_definite(matrix: Array) -> BoolArray:
    """Whether each information (g, q, q) is positive definite, in units of its diagonal."""
    # 1e-8 of a unit diagonal: the square root of machine precision, below which a Newton step has no digit.
    return np.linalg.eigvalsh(unit_diagonal(matrix)[0])[:, 0] > 1e-8


def local_pieces(local: Local, coef: Array) -> Iterator[tuple[Block, NaturalTerms]]:
    """Blocks with the natural terms at given coefficients."""
    for block in blocks(local.windows):
        yield block, natural_terms(local, block, coef[block.first : block.last])


def natural_design(local: Local, rows: slice | NDArray[np.intp], t: Array) -> Array:
    """Derivatives of the natural parameters of rows by the local coefficients, (w, d, D L)."""
    d, n_slots = local.free.shape
    out = np.zeros((len(t), local.parts[-1].where.stop, d, n_slots))
    powers = t[:, None] ** np.arange(d)  # (w, D)
    for part in local.parts:
        x = part.design[rows][:, None, :] * powers[:, :, None]  # (w, D, q)
        for j, slots in enumerate(part.slots):
            out[:, part.where.start + j, :, slots] = np.moveaxis(x, -1, 0)
    return out.reshape(len(t), -1, d * n_slots)


def without_information(local: Local, coef: Array) -> BoolArray:
    """Functions about which the rows in a window say nothing, because their expert has run off, shape (G, L).

    There all counts are zero, or a covariate separates the responses, so that no finite estimate exists. The gate is
    not asked about.

    Parameters
    ----------
    local : Local
    coef : ndarray, shape (G, D, L)
    """
    problem = local.problem
    out = np.zeros((len(coef), problem.slots.n), dtype=bool)
    if problem.family.name == "gaussian":
        return out
    for block in blocks(local.windows):
        natural = natural_predictors(local, block, coef[block.first : block.last])
        information = problem.family.scoring(problem.rows.outcome.take(block.rows), natural.eta, natural.delta)[1]
        kernel = block.kernel * problem.rows.weights[block.rows]
        sums = local_moments(block, np.vstack([information * kernel, kernel]), problem.products, 1)[:, 0]
        out[block.first : block.last] = _as_functions(problem.slots, _flat_directions(sums[:, :-1], sums[:, -1:]))
    return out


def constants_without_information(problem: Problem, natural: Natural) -> BoolArray:
    """Constants about which the rows say nothing, at their own predictors, shape (L,)."""
    rows = problem.rows
    if problem.family.name == "gaussian":
        return np.zeros(problem.slots.n, dtype=bool)
    information = problem.family.scoring(rows.outcome, natural.eta, natural.delta)[1]
    sums = np.vstack([information * rows.weights, rows.weights]) @ problem.products
    return _as_functions(problem.slots, _flat_directions(sums[None, :-1], sums[None, -1:]))[0]


def _flat_directions(information: Array, reference: Array) -> BoolArray:
    """Which coefficients take part in directions without information, (g, K, p), from sums of products (g, ., p p)."""
    p = int(np.sqrt(reference.shape[-1]))
    shape = (*information.shape[:-1], p, p)
    size = np.sqrt(np.maximum(np.einsum("gkii->gki", reference.reshape(len(reference), 1, p, p)), LEAST_CURVATURE))
    unit = size[..., :, None] * size[..., None, :]
    one = RIDGE * np.eye(p)  # columns that are zero in a window count as informed
    root = np.linalg.cholesky(reference.reshape(len(reference), 1, p, p) / unit + one)
    half = np.linalg.solve(root, information.reshape(shape) / unit + one)
    values, vectors = np.linalg.eigh(np.linalg.solve(root, np.swapaxes(half, -1, -2)))
    directions = np.abs(np.linalg.solve(np.swapaxes(root, -1, -2), vectors))
    loaded = directions > LOADED * directions.max(axis=-2, keepdims=True)
    return np.asarray((loaded & (values[..., None, :] < NEGLIGIBLE)).any(axis=-1), dtype=np.bool_)


def _as_functions(slots: Slots, coefficients: BoolArray) -> BoolArray:
    """Expert coefficients (g, K, p) as functions (g, L), with the dispersions of experts that have none left."""
    out = np.zeros((len(coefficients), slots.n), dtype=bool)
    out[:, slots.experts] = coefficients.reshape(len(out), -1)
    gone: BoolArray = np.asarray(coefficients.all(axis=-1), dtype=np.bool_)
    out[:, slots.dispersions] = gone[:, : slots.n_experts * slots.has_dispersion]
    return out


def whole_block(rows: slice) -> Block:
    """Rows once, at their own index values."""
    n = rows.stop - rows.start
    edges, places = np.array([0, n]), np.arange(rows.start, rows.stop)
    return Block(0, 1, edges[:1] + rows.start, edges, (slice(0, n),), (rows,), np.zeros(n), np.ones(n), places, n)
