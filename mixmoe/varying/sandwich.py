"""Influence of every row on every coefficient function, and the covariance that follows.

Notes
-----
At a grid point the estimate solves the local score equations, so a row moves it by ``H^-1 psi_i`` to first order. A
plain sandwich is too small near the ends of the index, where few rows determine a local line: a row draws the estimate
towards itself, and its score is too close to zero by a factor ``I - C_i L_i``, with C_i its information in the natural
parameters and ``L_i = Z_i H^-1 Z_i'`` the covariance of these. The correction divides by the root of this factor, which
in least squares is HC2, unbiased for errors of equal variance (MacKinnon and White 1985; Kauermann and Carroll 2001 for
generalised linear models). In a mixture a row draws the memberships of those around it as well, which is of the next
order: in simulations HC2 is still too small by five to eight per cent in the middle of the index and by a third at its
ends, and dividing by the whole factor, HC3, which is what a jackknife does, is right in the median. Rows of a cluster
draw the estimate together, so that the factor is that of the cluster, and the whole of it is divided by, CR3: to first
order the influence of a cluster is then the change of the estimate when it is left out (Bell and McCaffrey 2002,
section 3; MacKinnon, Nielsen and Webb 2023), and copies of rows within their cluster change nothing.

A variance estimated from few rows is uncertain itself. Bell and McCaffrey (2002) and Imbens and Kolesar (2016) give it
the degrees of freedom of a chi-square with the same relative spread, under the model and given the covariates: here
under the fitted mixture. Squared scores of the gate vary little, those of a dispersion much. They are those of HC2 also
where HC3 is the variance: with its own, larger weights of the few rows at an end both would correct for the same.

Constant coefficients solve one global score equation in which the functions enter by their estimates; their influence
is what is left of it after the functions have been profiled out. Where experts coincide in part of the index the
observed information of the windows there is nearly singular, and its inverse, a number without meaning, would reach all
functions through the constants. The information of the constants is then, in all windows, the one expected under the
fitted mixture, which is positive definite whatever the responses (Louis 1982, for how the two differ in mixtures).

For the functions themselves it is no help there: to first order it hardly knows more, and standard errors from it are
1.5 to 2 times too small (600 rows, 40 sets). What made them up to a hundred times too large are single rows: the
information of a row between two experts is indefinite, and in a flat direction may be as large as that of the window,
so that its factor ``I - C L`` has an eigenvalue near zero. In a mixture at least a quarter of its score is left to a
row. How well the observed information about a level is known is a matter of its rows as well, see `_noise`; where it
is noise, there is no standard error.

References
----------
Bell, R. M. and McCaffrey, D. F. (2002). Bias reduction in standard errors for linear regression with multi-stage
samples. Survey Methodology 28, 169-181.
Imbens, G. W. and Kolesar, M. (2016). Robust standard errors in small samples: some practical advice. Rev. Econ. Stat.
98, 701-712.
Louis, T. A. (1982). Finding the observed information matrix when using the EM algorithm. JRSS B 44, 226-233.
Kauermann, G. and Carroll, R. J. (2001). A note on the efficiency of sandwich covariance matrix estimation. JASA 96,
1387-1396.
MacKinnon, J. G., Nielsen, M. O. and Webb, M. D. (2023). Cluster-robust inference: a guide to empirical practice. J.
Econometrics 232, 272-299.
MacKinnon, J. G. and White, H. (1985). Some heteroskedasticity-consistent covariance matrix estimators. J. Econometrics.
Zhao, Q., Greenwood, C. M. T. and Zhang, Q. (2026). Varying-Coefficient Mixture of Experts Model. arXiv 2601.01699.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from mixmoe._typing import Array, BoolArray, IntArray
from mixmoe.inference.small_samples import cluster_moves, leverage_power
from mixmoe.varying.constants import ConstantsEquation, is_flat
from mixmoe.varying.em_steps import Natural, own_natural
from mixmoe.varying.leave_one_out import Node, response_nodes
from mixmoe.varying.local_likelihood import (
    Local,
    NaturalTerms,
    complete_scores,
    full_information,
    local_pieces,
    masked_information,
    natural_design,
    natural_predictors,
    state_of,
    unit_diagonal,
    without_information,
)
from mixmoe.varying.problem import Problem
from mixmoe.varying.windows import Block, linear_matrix

CHUNK = 4096  # rows whose influence is held as a dense matrix at once
# Share of its own score that is left to a row or cluster at least, whether there is one expert.
LEAST_OWN = {True: 0.05, False: 0.25}
ROOT, WHOLE = 0.5, 1.0  # powers of the correction: HC2 of rows with one expert, HC3 of others and CR3 of clusters


@dataclass(frozen=True, slots=True)
class Influence:
    """First-order influence of the rows on the levels of all functions.

    Attributes
    ----------
    levels : ndarray, shape (G, L)
        The estimates that the influence refers to.
    lo, hi : ndarray of int, shape (G,)
        Rows in the window of each grid point, on a circle counted on from turn to turn.
    local : tuple of ndarray, shape (hi - lo, L)
        Influence of the rows in a window on the levels there; NaN where the information is not positive definite.
    const : ndarray, shape (n, C)
        Influence on the constant coefficients.
    coupling : ndarray, shape (G, L, C)
        How much the levels move with the constants.
    slots : ndarray of int, shape (C,)
        Functions that are constant.
    n : int
        Number of rows.
    df : ndarray, shape (G, L)
        Degrees of freedom of the variances of the levels under the model; NaN where not asked for.
    noise : ndarray, shape (G, L)
        Relative standard error of the information about each level, see `_noise`; zero for one expert.
    """

    levels: Array
    lo: IntArray
    hi: IntArray
    local: tuple[Array, ...]
    const: Array
    coupling: Array
    slots: IntArray
    n: int
    df: Array
    noise: Array


def small_sample_power(correction: bool, clusters: IntArray | None, n_experts: int) -> float:
    """Power of the small-sample correction."""
    if not correction:
        return 0.0
    return ROOT if clusters is None and n_experts == 1 else WHOLE


def influence(
    local: Local,
    coef: Array,
    power: float = ROOT,
    nodes: Sequence[Node] = (),
    clusters: IntArray | None = None,
    held: BoolArray | None = None,
    derivative: int = 0,
    added: int | None = None,
) -> Influence:
    """Influence of the rows on the coefficient functions or their derivatives.

    Parameters
    ----------
    local : Local
    coef : ndarray, shape (G, D, L)
        Maxima of the local likelihoods.
    power : float
        Of the small-sample correction; zero for none.
    nodes : sequence of Node
        Of the responses under the estimate, for the degrees of freedom.
    clusters : ndarray of int, shape (n,), optional
        Rows that the correction takes together.
    held : ndarray of bool, shape (G, L), optional
        Functions that are not estimated at some grid points; the influence on them is NaN there.
    derivative : {0, 1}
        Of the functions, per unit of the index: their levels or their slopes.
    added : int, optional
        Instead of the rows the units that a penalty of the gate adds at them for this expert, from 0: their influence
        times the root of their number. They vary as rows do; without them a window without a single row of an expert
        would make the log odds there certain.

    Returns
    -------
    Influence
    """
    n_grid, _, n_slots = coef.shape
    held = np.zeros((n_grid, n_slots), dtype=bool) if held is None else held
    free = (local.free & ~held[:, None]).reshape(n_grid, -1)
    slots, unit = np.flatnonzero(local.problem.const), local.windows.bandwidth**-derivative
    wanted = slice(derivative * n_slots, (derivative + 1) * n_slots)
    # Constants are common to all windows: one bordered system ties the local solutions together.
    border = ConstantsEquation(local, coef, slots, added) if len(slots) else None
    kept = local.problem.rows.in_files
    pieces: list[Array] = []
    flat = False
    coupling, df = np.zeros((n_grid, n_slots, len(slots))), np.full((n_grid, n_slots), np.nan)
    noise = np.zeros((n_grid, n_slots))
    for block, terms in local_pieces(local, coef):
        full = full_information(local, block, terms.penalised(terms.information), terms.kernel)
        inverse = _inverses(full, free[block.first : block.last])
        if border is not None and local.problem.slots.n_experts > 1:
            known = full_information(local, block, terms.penalised(terms.complete), terms.kernel)
            flat = flat or is_flat(full, known, free[block.first : block.last])
        natural = natural_predictors(local, block, coef[block.first : block.last])
        score = terms.score if added is None else terms.added_score(added)
        for g in range(block.last - block.first):
            at, rows = block.first + g, block.parts[g]
            move, unbiased = _moves(local, block, terms, g, inverse[g], score, power, nodes, clusters)
            pieces.append(_filed(unit * move[:, wanted], kept))
            noise[at] = _noise(local, block, terms, g, inverse[g][:, wanted], clusters)
            df[at] = _model_df(local.problem, natural.take(block.spans[g]), rows, nodes, unbiased[:, :, wanted])
            if border is not None:
                drift = -inverse[g] @ full[g][:, slots]  # (D L, C): how the local solution follows the constants
                coupling[at] = unit * drift[wanted]
                border.add(at, rows, move, drift)
    if border is not None and flat:
        border = _expected_border(local, coef, free, power, clusters, added)
    const = border.solve() if border is not None else np.zeros((local.problem.rows.n, 0))
    coupling[:, :, np.isnan(const).any(axis=0)] = 0.0  # given those that have run off
    for c, slot in enumerate(slots):
        coupling[:, slot] = 0.0
        coupling[:, slot, c] = float(derivative == 0)
    # What is held, or unknown to the rows of a window, has no influence of rows there.
    unknown = (without_information(local, coef) | held) & ~local.problem.const
    if unknown.any():
        gone = zip(unknown, pieces, strict=True)
        pieces = [_filed(np.where(there, np.nan, piece), kept) if there.any() else piece for there, piece in gone]
    return Influence(
        unit * coef[:, derivative],
        local.windows.lo,
        local.windows.hi,
        tuple(pieces),
        const,
        coupling,
        slots,
        local.problem.rows.n,
        df,
        noise,
    )


def gate_influence(
    local: Local,
    coef: Array,
    first: Influence,
    power: float = ROOT,
    nodes: Sequence[Node] = (),
    clusters: IntArray | None = None,
    shown: Influence | None = None,
    added: int | None = None,
) -> Influence:
    """Influence on all functions when the gate has a bandwidth of its own.

    Parameters
    ----------
    local : Local
        Of the gate, with the experts held at the estimates behind `first`.
    coef : ndarray, shape (G, D, L)
        Maxima of the local likelihoods of the gate.
    first : Influence
        On the experts, and on the gate as far as it is constant.
    power : float
    nodes : sequence of Node
    clusters : ndarray of int, shape (n,), optional
    shown : Influence, optional
        On the derivatives of the experts, if those of all functions are wanted instead of the levels.
    added : int, optional
        As for `influence`, behind `first` too.

    Returns
    -------
    Influence

    Notes
    -----
    The gate solves its local score equation at estimated experts, so that a row moves it by ``H^-1 (psi_i - C e_i)``:
    e_i is the influence on the experts at all rows, C the mixed curvature (two-step estimation; Newey and McFadden
    1994, Handbook of Econometrics 4, section 6). Between grid points e_i is interpolated linearly. Degrees of freedom
    are those at given experts.
    """
    gates = local.problem.slots.gates
    # The gate sees the experts at the rows, not at the grid: their influence is carried there by interpolation.
    between = linear_matrix(local.windows.grid, local.windows.index, local.windows.period)
    derivative, unit = (0, 1.0) if shown is None else (1, 1.0 / local.windows.bandwidth)
    wanted = slice(gates.start + derivative * gates.stop, (derivative + 1) * gates.stop)
    out = first if shown is None else shown
    levels, coupling, df, noise = (a.copy() for a in (out.levels, out.coupling, out.df, out.noise))
    levels[:, gates] = unit * coef[:, derivative, gates]
    lo, hi, pieces = first.lo.copy(), first.hi.copy(), []
    for block, terms in local_pieces(local, coef):
        full = full_information(local, block, terms.penalised(terms.information), terms.kernel)
        inverse = _inverses(full, np.broadcast_to(local.free.ravel(), full.shape[:2]))
        natural = natural_predictors(local, block, coef[block.first : block.last])
        score = terms.score if added is None else terms.added_score(added)
        for g in range(block.last - block.first):
            at, rows = block.first + g, block.parts[g]
            move, unbiased = _moves(local, block, terms, g, inverse[g], score, power, nodes, clusters)
            move, unbiased = move[:, wanted], unbiased[:, :, wanted]
            df[at, gates] = _model_df(local.problem, natural.take(block.spans[g]), rows, nodes, unbiased)
            noise[at, gates] = _noise(local, block, terms, g, inverse[g][:, wanted], clusters)
            drift = -np.einsum("lk,kgm->lgm", inverse[g][wanted], _mixed_curvature(local, block, terms, g, between))
            lo[at], piece = _second_step(first, out, at, int(block.lo[g]), unit * move, unit * drift)
            hi[at] = lo[at] + len(piece)
            pieces.append(_filed(piece, local.problem.rows.in_files))
            along = -inverse[g][wanted] @ full[g][:, first.slots] * (first.slots >= gates.start)
            along = unit * (along + np.einsum("lgm,gmc->lc", drift, first.coupling))
            coupling[at, gates] = np.where(local.free[0, gates, None], along, coupling[at, gates])
    return Influence(levels, lo, hi, tuple(pieces), first.const, coupling, first.slots, first.n, df, noise)


def _second_step(
    first: Influence, shown: Influence, at: int, start: int, move: Array, drift: Array
) -> tuple[int, Array]:
    """Influence on all levels at one grid point, (w, L), and the first row that has any.

    Parameters
    ----------
    first, shown : Influence
        On the levels of the experts, and on what is wanted of them.
    at : int
    start : int
        First row of the window of the gate.
    move : ndarray, shape (w, gates)
        Influence on the gate at given experts.
    drift : ndarray, shape (gates, G, L)
        How the gate follows the experts.
    """
    near = np.append(np.flatnonzero(drift.any(axis=(0, 2))), at)
    middle = first.lo[near] + first.hi[near]
    turn = first.n * np.rint((middle[-1] - middle) / (2.0 * first.n)).astype(np.intp)  # by the shorter way round
    begins, ends = first.lo[near] + turn, first.hi[near] + turn
    lo, hi = min(start, int(begins.min())), max(start + len(move), int(ends.max()))
    piece = np.zeros((hi - lo, drift.shape[2]))
    n_first = drift.shape[2] - len(drift)
    piece[first.lo[at] - lo : first.hi[at] - lo, :n_first] = shown.local[at][:, :n_first]
    piece[start - lo : start - lo + len(move), n_first:] = move
    for h, begin, end in zip(near[:-1], begins, ends, strict=False):
        piece[begin - lo : end - lo, n_first:] += first.local[h] @ drift[:, h].T
    return lo, piece


def _mixed_curvature(local: Local, block: Block, terms: NaturalTerms, g: int, between: sparse.csr_array) -> Array:
    """Derivatives of minus the local score of the gate by the levels of the experts at all grid points, (D L, G, L)."""
    slots, span, rows = local.problem.slots, block.spans[g], block.parts[g]
    first = local.parts[-1].where.start  # natural parameters of the gate come last
    here = natural_design(local, rows, block.t[span])[:, first:]  # (w, K - 1, D L)
    there = natural_design(local, rows, np.zeros(span.stop - span.start))[:, :first, : slots.n]  # (w, d, L)
    curvature = np.moveaxis(terms.information[first:, :first, span] * terms.kernel[span], -1, 0)
    product = np.swapaxes(here, 1, 2) @ curvature @ there  # (w, D L, L)
    summed = between[rows].T @ product.reshape(len(product), -1)
    return np.moveaxis(np.asarray(summed).reshape(-1, *product.shape[1:]), 0, 1)


def _filed(values: Array, in_files: Callable[[tuple[int, ...], Any], Array] | None) -> Array:
    """The influence of the rows of a window, in a file where the rows lie in files."""
    if in_files is None:
        return values
    out = in_files(values.shape, values.dtype)
    out[...] = values
    return out


def _inverses(full: Array, free: BoolArray) -> Array:
    """Inverses of informations (g, D L, D L) on what is free, (g, D L), zero elsewhere; NaN where not definite."""
    unit, root = unit_diagonal(masked_information(full, free))
    values, vectors = np.linalg.eigh(unit)
    good = values[:, 0] > 1e-8
    safe = np.where(good[:, None], values, np.nan)
    scaled = vectors * root[:, :, None]
    out = np.einsum("gij,gj,gkj->gik", scaled, 1.0 / safe, scaled)
    return np.where(free[:, :, None] & free[:, None, :], out, 0.0)


def _expected_border(
    local: Local, coef: Array, free: BoolArray, power: float, clusters: IntArray | None, added: int | None
) -> ConstantsEquation:
    """The equation of the constants with the information expected under the fitted mixture, see `influence`."""
    problem, slots = local.problem, np.flatnonzero(local.problem.const)
    own = own_natural(problem, state_of(local, coef))
    # In a mixture the expected information of a row is the mean of squared scores over the law of its response.
    n_natural = local.parts[-1].where.stop
    expected = np.zeros((n_natural, n_natural, problem.rows.n))
    for node in response_nodes(problem, own):
        score = complete_scores(problem, node.outcome, own).score
        expected += node.weight * score[:, None] * score[None]
    border = ConstantsEquation(local, coef, slots, added, expected)
    for block, terms in local_pieces(local, coef):
        there = np.concatenate([expected[:, :, rows] for rows in block.parts], axis=2)
        terms = replace(terms, information=there)
        full = full_information(local, block, terms.penalised(there), terms.kernel)
        inverse = _inverses(full, free[block.first : block.last])
        score = terms.score if added is None else terms.added_score(added)
        for g in range(block.last - block.first):
            move, _ = _moves(local, block, terms, g, inverse[g], score, power, (), clusters)
            border.add(block.first + g, block.parts[g], move, -inverse[g] @ full[g][:, slots])
    return border


def _moves(
    local: Local,
    block: Block,
    terms: NaturalTerms,
    g: int,
    inverse: Array,
    score: Array,
    power: float,
    nodes: Sequence[Node],
    clusters: IntArray | None,
) -> tuple[Array, Array]:
    """Influence of rows on the solution at one grid point, (w, D L), and the derivatives behind its df, (w, d, D L)."""
    span, rows = block.spans[g], block.parts[g]
    if nodes:
        lever = _lever(local, terms, span, rows, block.t[span], inverse, power)
        move = np.einsum("dw,wdk->wk", score[:, span], lever)
        return move, _lever(local, terms, span, rows, block.t[span], inverse, ROOT) if power == WHOLE else lever
    none = np.empty((0, len(score), len(inverse)))
    if clusters is not None and power:
        # Clusters are corrected as wholes, so their rows must not be corrected one by one as well.
        return _together(local, block, terms, g, inverse, clusters[rows], power), none
    move = np.empty((span.stop - span.start, len(inverse)))
    for start in range(0, len(move), CHUNK):  # the derivatives of all rows of a wide window would be large
        some = slice(start, min(start + CHUNK, len(move)))
        at = slice(span.start + some.start, span.start + some.stop)
        there = rows[some] if isinstance(rows, np.ndarray) else slice(rows.start + some.start, rows.start + some.stop)
        lever = _lever(local, terms, at, there, block.t[at], inverse, power)
        move[some] = np.einsum("dw,wdk->wk", score[:, at], lever)
    return move, none


def _lever(
    local: Local, terms: NaturalTerms, span: slice, rows: slice | IntArray, t: Array, inverse: Array, power: float
) -> Array:
    """Derivatives of the solution at one grid point by the scores of some rows, corrected, (w, d, D L)."""
    kernel = terms.kernel[span, None, None]
    design = natural_design(local, rows, t)  # (w, d, D L)
    out: Array = kernel * (design @ inverse)
    if power and np.isfinite(inverse).all():
        curvature = np.moveaxis(terms.information[:, :, span], -1, 0) * kernel
        least = LEAST_OWN[local.problem.slots.n_experts == 1]
        out = leverage_power(curvature, (design @ inverse) @ np.swapaxes(design, 1, 2), power, least) @ out
    return out


def _together(
    local: Local, block: Block, terms: NaturalTerms, g: int, inverse: Array, codes: IntArray, power: float
) -> Array:
    """Influence of the rows on the solution at one grid point, corrected by the factors of their clusters, (w, D L)."""
    span = block.spans[g]
    kernel = terms.kernel[span]
    design = natural_design(local, block.parts[g], block.t[span])  # (w, d, D L)
    gradient = np.einsum("dw,wdk->wk", terms.score[:, span] * kernel, design)
    if not np.isfinite(inverse).all():
        return gradient @ inverse
    curvature = np.moveaxis(terms.information[:, :, span] * kernel, -1, 0)
    least = LEAST_OWN[local.problem.slots.n_experts == 1]
    return cluster_moves(gradient, curvature, design, inverse, codes, power, least)


def _noise(local: Local, block: Block, terms: NaturalTerms, g: int, inverse: Array, clusters: IntArray | None) -> Array:
    """Relative standard error of the information behind each level at one grid point, shape (L,).

    Parameters
    ----------
    local : Local
    block : Block
    terms : NaturalTerms
    g : int
    inverse : ndarray, shape (D L, L)
        Columns of the inverse of the information: a_l.
    clusters : ndarray of int, shape (n,), optional
        Rows that are taken together.

    Notes
    -----
    The model's variance of a level is ``a' I a``, a sum over rows of ``q_i = K_i a' Z_i' I_i Z_i a``, of which some are
    negative in a mixture: its relative standard error is ``(sum q_i^2)^(1/2) / |sum q_i|``. With known experts that is
    one over the root of the number of rows.
    """
    span = block.spans[g]
    if local.problem.slots.n_experts == 1:
        return np.zeros(inverse.shape[1])
    reach = natural_design(local, block.parts[g], block.t[span]) @ inverse  # (w, d, L)
    bent = np.moveaxis(terms.information[:, :, span] * terms.kernel[span], -1, 0) @ reach
    each = (reach * bent).sum(axis=1)
    if clusters is not None:
        _, codes = np.unique(clusters[block.parts[g]], return_inverse=True)
        each = np.stack([np.bincount(codes, column) for column in each.T], axis=1)
    return np.asarray(np.sqrt((each**2).sum(axis=0)) / np.maximum(np.abs(each.sum(axis=0)), np.finfo(float).tiny))


def _model_df(problem: Problem, natural: Natural, rows: slice | IntArray, nodes: Sequence[Node], lever: Array) -> Array:
    """Degrees of freedom under the model of the variances at one grid point, shape (L,).

    Parameters
    ----------
    problem : Problem
    natural : Natural
        Predictors of the rows of the window at the local solution, (K, w).
    rows : slice
    nodes : sequence of Node
    lever : ndarray, shape (w, d, L)
    """
    if not nodes:
        return np.full(lever.shape[2], np.nan)
    mean, fourth = np.zeros((len(lever), lever.shape[2])), np.zeros(lever.shape[2])
    for node in nodes:
        score, weight = complete_scores(problem, node.outcome.take(rows), natural).score, node.weight[rows]
        squares = np.einsum("dw,wdl->wl", score, lever) ** 2
        mean += weight[:, None] * squares
        fourth += weight @ squares**2
    spread = fourth - (mean**2).sum(axis=0)
    with np.errstate(over="ignore"):  # a variance without spread has all the degrees of freedom that there are
        out: Array = 2.0 * mean.sum(axis=0) ** 2 / np.maximum(spread, np.finfo(float).tiny)
    return out


def with_functions(inf: Influence, other: Influence, functions: slice) -> Influence:
    """Influence with that on some functions from other fits at the same grid points, whose windows are no wider."""
    pieces = []
    for lo, piece, start, own in zip(inf.lo, inf.local, other.lo, other.local, strict=True):
        out = piece.copy()
        out[:, functions] = 0.0
        out[start - lo : start - lo + len(own), functions] = own[:, functions]
        pieces.append(out)
    mine, theirs = ((one.levels, one.coupling, one.df, one.noise) for one in (inf, other))
    levels, coupling, df, noise = (a.copy() for a in mine)
    for out, own in zip((levels, coupling, df, noise), theirs, strict=True):
        out[:, functions] = own[:, functions]
    return replace(inf, levels=levels, local=tuple(pieces), coupling=coupling, df=df, noise=noise)


def unit_influence(inf: Influence, rows: slice) -> Array:
    """Influence of some rows on all levels as a dense matrix, shape (rows, G L)."""
    start, stop, _ = rows.indices(inf.n)
    n_grid, n_slots = inf.levels.shape
    out = np.zeros((stop - start, n_grid, n_slots))
    for g in range(n_grid):
        for turn in (-inf.n, 0, inf.n):  # windows that reach over the origin of a circle count on
            a, b = max(start + turn, int(inf.lo[g])), min(stop + turn, int(inf.hi[g]))
            if a < b:
                out[a - turn - start : b - turn - start, g] += inf.local[g][a - inf.lo[g] : b - inf.lo[g]]
    if inf.const.shape[1]:
        known = np.isfinite(inf.const).all(axis=0)
        out += np.einsum("nc,glc->ngl", inf.const[start:stop, known], inf.coupling[:, :, known])
        out[:, inf.coupling[:, :, ~known].any(axis=2)] = np.nan
    return out.reshape(stop - start, -1)


@dataclass(frozen=True, slots=True)
class LevelCovariance:
    """Covariance of the levels, and how many rows it rests on.

    Attributes
    ----------
    matrix : ndarray, shape (G L, G L)
        Order: grid point, then function. NaN in rows and columns of points without a valid estimate.
    df : ndarray, shape (G L,)
        Effective degrees of freedom of each variance: that of a chi-square with the same relative spread.
    """

    matrix: Array
    df: Array


def level_covariance(inf: Influence, clusters: IntArray | None = None, correction: bool = False) -> LevelCovariance:
    """Covariance of the levels of all functions at all grid points.

    Parameters
    ----------
    inf : Influence
    clusters : ndarray of int, shape (n,), optional
        Codes 0 .. C - 1 of the cluster of each row.
    correction : bool
        Whether the influence of clusters is what leaving them out changes, of which the jackknife takes the sum of
        squares times (C - 1) / C.

    Returns
    -------
    LevelCovariance

    Notes
    -----
    Degrees of freedom are those under the model where they are known and rows are independent. Otherwise the variance
    is taken as a sum of squares of independent contributions, ``v = sum_i c_i^2``, with ``2 v^2 / Var(v)`` degrees of
    freedom, and ``sum_i c_i^4``, which is never smaller, stands in for ``Var(v)``.
    """
    size, share = inf.levels.size, 1.0
    spans = [slice(start, min(start + CHUNK, inf.n)) for start in range(0, inf.n, CHUNK)]
    contributions: Iterable[Array] = (unit_influence(inf, rows) for rows in spans)
    if clusters is not None:
        sums = np.zeros((int(clusters.max()) + 1, size))
        for rows, chunk in zip(spans, contributions, strict=True):
            np.add.at(sums, clusters[rows], chunk)
        contributions, share = [sums], 1.0 - correction / len(sums)
    matrix, fourth = np.zeros((size, size)), np.zeros(size)
    for chunk in contributions:
        matrix += chunk.T @ chunk
        squares = chunk * chunk  # a general fourth power is slow
        fourth += np.einsum("nc,nc->c", squares, squares)
    observed = 2.0 * np.diag(matrix) ** 2 / np.maximum(fourth, np.finfo(float).tiny)
    given = inf.df.ravel()
    return LevelCovariance(share * matrix, np.where(np.isfinite(given), given, observed))


def added_covariance(problem: Problem, of_expert: Callable[[int], Influence]) -> Array | float:
    """Covariance of the levels that comes from the units which a penalty of the gate adds, zero without one.

    Parameters
    ----------
    problem : Problem
    of_expert : callable
        Influence of the units of one expert, see `influence`.
    """
    if problem.rows.penalty is None or problem.slots.n_experts == 1:
        return 0.0
    parts = [level_covariance(of_expert(k)).matrix for k in range(problem.slots.n_experts)]
    out: Array = np.sum(parts, axis=0)
    return out
