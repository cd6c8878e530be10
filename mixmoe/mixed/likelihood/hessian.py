"""Minus Hessians of the log-likelihood of a MEMoE: of all subjects, of each, and through linear predictors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.inference.uncertainty import within_clusters
from mixmoe.mixed.likelihood.columns import Columns
from mixmoe.mixed.likelihood.observed import Problem, evaluate, evaluate_block, restriction, subject_scores
from mixmoe.mixed.likelihood.protocol import (
    RowDensities,
    RowwiseExperts,
)
from mixmoe.mixed.parameters import derivatives_in_free, free_to_working
from mixmoe.mixture.gate import gate_scores, penalty_score
from mixmoe.numerics.linalg import jacobian, slope


def observed_information(problem: Problem, theta: Array) -> Array:
    """Minus the Hessian of the log-likelihood, shape (P, P).

    The derivative of the exact score: by complex steps (Squire & Trapp 1998) where the experts let them through, one
    direction per row, with no step size to choose and no digits lost; else by central differences. Where columns are
    many, from derivatives in the linear predictors, see `predictor_information`.
    """
    if problem.has_many_columns:
        hessian = -sum((part.whole(problem) for part in predictor_information(problem, theta)), np.zeros(()))
        return -0.5 * (hessian + hessian.T) + _penalty_information(problem, theta)

    plain = replace(problem, restricted=False)

    def score(step: complex, direction: Array) -> Array:
        return evaluate(plain, (theta + step * direction)[None]).score[0]

    # One direction at a time: P complex copies of the moments at once would not fit the cache.
    analytic = problem.experts.analytic
    hessian = np.array([slope(partial(score, direction=d), analytic) for d in np.eye(theta.size)])
    information: Array = -0.5 * (hessian + hessian.T)
    if problem.restricted:
        others = _no_coefficients(problem)
        information[np.ix_(others, others)] += _restriction_information(problem, theta, others).sum(axis=0)
    return information


def unit_information(problem: Problem, theta: Array, clusters: NDArray[np.int64] | None = None) -> Array:
    """Minus the Hessian of the log-likelihood of every subject or cluster, shape (G, P, P)."""
    plain = replace(problem, restricted=False)

    def scores(step: complex, direction: Array) -> Array:
        return subject_scores(plain, theta + step * direction)

    columns = []
    for direction in np.eye(theta.size):
        found = slope(partial(scores, direction=direction), problem.experts.analytic)
        columns.append(within_clusters(found, clusters))
    hessian = np.stack(columns, axis=1)
    information: Array = -0.5 * (hessian + np.swapaxes(hessian, 1, 2))
    if problem.restricted:
        others = _no_coefficients(problem)
        found = _restriction_information(problem, theta, others).reshape(problem.n_subjects, -1)
        shape = (-1, others.size, others.size)
        information[:, others[:, None], others] += within_clusters(found, clusters).reshape(shape)
    return information


def _no_coefficients(problem: Problem) -> NDArray[np.intp]:
    """Places of the free vector that are no coefficients of gate or experts, ascending."""
    everything = np.arange(problem.free.size)
    return np.setdiff1d(everything, [*everything[problem.free.gate], *problem.free.beta.flat])


def _restriction_information(problem: Problem, theta: Array, others: NDArray[np.intp]) -> Array:
    """Minus the Hessian of each subject's part in the restriction, shape (N, o, o): that is a function of V alone."""

    def scores(step: complex, direction: Array) -> Array:
        return restriction(problem, theta + step * direction).scores[others]

    steps = np.eye(theta.size)[others]
    slopes = np.array([slope(partial(scores, direction=step), analytic=True) for step in steps])  # (o, o, N)
    return np.moveaxis(-0.5 * (slopes + np.swapaxes(slopes, 0, 1)), 2, 0)


@dataclass(frozen=True, slots=True)
class PredictorInformation:
    """Minus Hessians of the log-likelihoods of some subjects in their linear predictors and the other parameters.

    A subject has m rows at most and so m K predictors of the experts, K - 1 of the gate, and the o parameters that are
    no coefficients: d in all, in this order. That of the free vector is F'CF with F the derivatives of these.

    Attributes
    ----------
    subjects : ndarray of int, shape (c,)
    rows : ndarray of int, shape (c, m)
        Their rows; any where there are no more.
    present : ndarray of bool, shape (c, m)
    matrices : ndarray, shape (c, d, d)
        C.
    others : ndarray of int, shape (o,)
        Places of the other parameters in the free vector.
    """

    subjects: NDArray[np.intp]
    rows: NDArray[np.intp]
    present: NDArray[np.bool_]
    matrices: Array
    others: NDArray[np.intp]

    def take(self, which: "slice | NDArray[np.intp]") -> "PredictorInformation":
        """That of some of the subjects."""
        parts = (self.subjects[which], self.rows[which], self.present[which], self.matrices[which])
        return PredictorInformation(*parts, self.others)

    def apart(self, n_coefficients: int) -> "PredictorInformation":
        """Without what is observed between the predictors, the first `n_coefficients` of each row, and all others."""
        inner = np.arange(self.matrices.shape[1]) < n_coefficients
        return replace(self, matrices=self.matrices * np.equal.outer(inner, inner))

    def along(self, problem: Problem, directions: Array) -> Array:
        """F times directions of the free vector, shape (c, d, r), for directions of shape (P, r)."""
        s, free = problem.structure, problem.free
        c, m = self.rows.shape
        parts, X = [], self._columns(problem)
        for k in range(s.n_experts):
            parts.append(X.predictor(directions[free.beta[k]].T).T.reshape(c, m, -1))
        gate = directions[free.gate].reshape(s.n_experts - 1, s.n_gate, directions.shape[1])
        parts.append(np.einsum("cm,jmr->cjr", problem.W[self.subjects], gate, optimize=True))
        parts.append(np.broadcast_to(directions[self.others], (c, self.others.size, directions.shape[1])))
        return np.concatenate(parts, axis=1)

    def whole(self, problem: Problem) -> Array:
        """Sum over the subjects of F'CF, shape (P, P)."""
        s, free = problem.structure, problem.free
        K, (c, m), o = s.n_experts, self.rows.shape, self.others.size
        X, W = self._columns(problem), problem.W[self.subjects]
        # Predictors of the gate and the other parameters: few columns, which are the same in all rows of a subject.
        rest, places = slice(K * m, None), np.concatenate([np.arange(free.size)[free.gate], self.others])
        few = np.zeros((c, K - 1 + o, places.size))
        for j in range(K - 1):
            few[:, j, j * s.n_gate : (j + 1) * s.n_gate] = W
        few[:, K - 1 :, (K - 1) * s.n_gate :] = np.eye(o)
        out = np.zeros((free.size, free.size))
        out[np.ix_(places, places)] = np.einsum(
            "cda,cde,ceb->ab", few, self.matrices[:, rest, rest], few, optimize=True
        )
        for k in range(K):
            at, mine = free.beta[k], slice(k * m, (k + 1) * m)
            out[np.ix_(at, at)] += X.between(self.matrices[:, mine, mine])
            beside = X.gathered((self.matrices[:, mine, rest] @ few).reshape(c * m, -1).T).T
            blocks = [(places, beside)]
            for other in range(k + 1, K):
                theirs = slice(other * m, (other + 1) * m)
                blocks.append((free.beta[other], X.between(self.matrices[:, mine, theirs])))
            for to, block in blocks:  # C is symmetric
                out[np.ix_(at, to)] += block
                out[np.ix_(to, at)] += block.T
        return out

    def _columns(self, problem: Problem) -> Columns:
        """Columns of the rows, m of each subject, zero where there are no more."""
        return (
            cast(RowwiseExperts, problem.experts)
            .columns.at(self.rows.ravel())
            .scaled(self.present.ravel().astype(float))
        )


_INFORMATION_SIZE = 2_000_000  # doubles of the matrices of one group of subjects (16 MB)


def predictor_information(problem: Problem, theta: Array) -> Iterator[PredictorInformation]:
    """Informations of all subjects in groups, for experts with many columns.

    Coefficients act through linear predictors only, of which a subject has few: derivatives in these take as many
    evaluations as a subject has rows, not as there are coefficients, and no matrix of their size for each subject.

    Notes
    -----
    With s_k the score and H_k the Hessian of a subject's joint log-density with expert k in the predictors, and tau
    the responsibilities (Louis 1982)::

        C = -sum_k tau_k H_k - (sum_k tau_k s_k s_k' - s s'),   s = sum_k tau_k s_k

    References
    ----------
    Louis (1982), JRSS B 44, 226-233, equation 3.2.
    """
    K, counts = problem.structure.n_experts, problem.experts.counts
    starts = np.cumsum(counts) - counts
    others = _no_coefficients(problem)
    if problem.restricted:
        of_restriction = _restriction_information(problem, theta, others)
    for subjects in _alike(counts, lambda m: _INFORMATION_SIZE // (K * (m + 1) + others.size) ** 2):
        matrices = _predictor_matrices(problem.take(subjects), theta, others)
        rest = slice(matrices.shape[1] - others.size, None)
        if problem.restricted:
            matrices[:, rest, rest] += of_restriction[subjects]
        m = int(counts[subjects].max())
        present = np.arange(m) < counts[subjects][:, None]
        rows = starts[subjects][:, None] + np.where(present, np.arange(m), 0)
        yield PredictorInformation(subjects, rows, present, matrices, others)


def _alike(counts: NDArray[np.intp], room: Callable[[int], int]) -> Iterator[NDArray[np.intp]]:
    """Subjects in groups of similar numbers of rows, of as many as there is room for with so many rows."""
    order = np.argsort(-counts, kind="stable")
    while order.size:
        most = int(counts[order[0]])
        # Fewer than half of the rows: in a group of their own, or most of a matrix would be empty.
        size = max(1, min(room(most), int((2 * counts[order] >= most).sum())))
        yield np.sort(order[:size])
        order = order[size:]


def _predictor_matrices(part: Problem, theta: Array, others: NDArray[np.intp]) -> Array:
    """C of each of some subjects, shape (c, d, d)."""
    s, experts = part.structure, part.experts
    K, counts = s.n_experts, experts.counts
    c, m, o = part.n_subjects, int(counts.max()), others.size
    starts, n = np.cumsum(counts) - counts, int(counts.sum())
    whole = slice(0, c)
    # The others enter as in any score, those of the coefficients being of no interest here.
    bare = replace(s, common=s.common[:0], n_gate=0)

    def by_row(values: Array) -> Array:  # (K, n) to (K, c, m), zero where there are no rows
        out = np.zeros((len(values), c, m), dtype=values.dtype)
        out[:, np.repeat(np.arange(c), counts), np.arange(n) - np.repeat(starts, counts)] = values
        return out

    def found(step: complex, direction: Array) -> tuple[Array, Array, Array]:
        """Scores in the predictors of experts and gate, and in the others, at a step of the free vector."""
        moved = (theta + step * direction)[None]
        block = evaluate_block(part, free_to_working(s, moved), whole, experts)
        scores, tau = cast(RowDensities, block.densities).row_scores(), block.responsibilities
        in_rows = np.repeat(tau[0], counts, axis=1) * scores.predictor
        in_others = derivatives_in_free(bare, moved[:, others], np.zeros((1, 0, c)), scores.others * tau[:, :, None])
        return in_rows, gate_scores(block.log_prior, tau)[0], in_others[0]

    def flat(step: complex, direction: Array) -> Array:
        return np.concatenate([a.ravel() for a in found(step, direction)])

    def rows_at(step: complex, visit: int) -> Array:
        """Scores in the predictors of the rows of each expert, one row of each subject moved."""
        moved = np.zeros(n, dtype=complex if experts.analytic else float)
        moved[starts[counts > visit] + visit] = step
        densities = experts.shifted(moved).densities(free_to_working(s, theta[None]))
        return densities.row_scores().predictor

    here = evaluate_block(part, free_to_working(s, theta[None]), whole, experts)
    tau, prior = here.responsibilities[0], np.exp(here.log_prior[0])  # (K, c)
    C = np.zeros((c, K * m + K - 1 + o, K * m + K - 1 + o))
    gate, rest = slice(K * m, K * m + K - 1), slice(K * m + K - 1, None)
    # -sum tau_k H_k: by rows of each expert, one visit at a time, and by the gate.
    for visit in range(m):
        slopes = by_row(slope(partial(rows_at, visit=visit), experts.analytic))
        for k in range(K):
            C[:, k * m : (k + 1) * m, k * m + visit] -= tau[k][:, None] * slopes[k]
    p = prior[1:].T  # (c, K - 1)
    C[:, gate, gate] += p[:, :, None] * (np.eye(K - 1) - p[:, None])
    # Less the covariance of the scores over the experts.
    scores = np.zeros((K, c, K * m + K - 1))
    predictor = by_row(cast(RowDensities, here.densities).row_scores().predictor)
    for k in range(K):
        scores[k, :, k * m : (k + 1) * m] = predictor[k]
        scores[k, :, gate] = np.eye(K)[k, 1:] - p
    mean = np.einsum("kc,kcd->cd", tau, scores)
    away = scores - mean
    inner = slice(0, K * m + K - 1)
    C[:, inner, inner] -= np.einsum("kc,kcd,kce->cde", tau, away, away, optimize=True)
    # The other parameters one by one.
    for j, place in enumerate(others):
        moved = slope(partial(flat, direction=np.eye(theta.size)[place]), experts.analytic)
        in_rows, in_gate, in_others = np.split(moved, [K * n, K * n + (K - 1) * c])
        by = by_row(in_rows.reshape(K, n)).transpose(1, 0, 2).reshape(c, K * m)
        column = np.concatenate([by, in_gate.reshape(K - 1, c).T], axis=1)
        C[:, inner, K * m + K - 1 + j] = C[:, K * m + K - 1 + j, inner] = -column
        C[:, rest, K * m + K - 1 + j] = -in_others.reshape(o, c).T
    return 0.5 * (C + np.swapaxes(C, 1, 2))


def _penalty_information(problem: Problem, theta: Array) -> Array:
    """Minus the Hessian of the log prior of gate and functions, shape (P, P)."""
    s, where = problem.structure, problem.free.gate
    out = np.zeros((theta.size, theta.size)) if problem.ridge is None else problem.ridge.T @ problem.ridge
    if problem.penalty is not None:
        penalty, shape = problem.penalty, (1, s.n_experts - 1, s.n_gate)
        slopes = jacobian(lambda gamma: penalty_score(penalty, problem.W, gamma.reshape(shape)).ravel(), theta[where])
        out[where, where] -= 0.5 * (slopes + slopes.T)
    return out
