"""EM for a MEMoE, many starts in lockstep.

Two conditional steps alternate (AECM, Meng & van Dyk 1997): one treats only the memberships as missing and updates gate
and fixed effects by generalised least squares, the other treats the random effects as missing too and updates their
covariances and the residual variances. Neither can lower the log-likelihood.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.observed import ClosedForm
from mixmoe.mixed.parameters import Params, Structure, free_to_working, working_to_free
from mixmoe.mixture.gate import gate_log_probabilities, gate_step
from mixmoe.numerics.linalg import normalised

_CG_STEPS = 4  # at most, of conjugate gradients where columns are many
_REDUCED = 0.3  # of the score, in the metric of its scale, is what they leave
_SMALLEST = 1e-10  # variances below this fraction of the pooled residual variance are not resolved


@dataclass(frozen=True, slots=True)
class Expectations:
    """Responsibility-weighted sums over subjects.

    Attributes
    ----------
    loglik : ndarray, shape (S,)
        Zero where responsibilities are given.
    responsibilities : ndarray, shape (S, K, N)
    subjects, rows : ndarray, shape (S, K)
        Expected numbers of subjects and rows of each expert.
    pull : ndarray, shape (S, K, p)
        X'V^-1 r.
    normal : ndarray, shape (S, K, p, p), or None
        X'V^-1 X; None where columns are too many.
    second_moment : ndarray, shape (S, K, q, q)
        Sum of E[b b'].
    residual : ndarray, shape (S, K)
        Sum of E|r - Z b|^2.
    """

    loglik: Array
    responsibilities: Array
    subjects: Array
    rows: Array
    pull: Array
    normal: Array | None
    second_moment: Array
    residual: Array


Memberships = Callable[[slice, Array], Array]  # of a run of subjects, from their log-densities, both (S, K, n)


def expectations(problem: ClosedForm, params: Params, given: Array | Memberships | None = None) -> Expectations:
    """E-step at `params`; responsibilities `given`, shape (S, K, N) or found likewise, replace the posterior ones."""
    S, K, p = params.beta.shape
    q, N = problem.structure.n_random, problem.n_subjects
    loglik, responsibilities = np.zeros(S), np.empty((S, K, N))
    normal = np.zeros((S * K, p, p)) if not problem.experts.by_rows else None
    pull, second, residual, rows = np.zeros((S, K, p)), np.zeros((S, K, q, q)), np.zeros((S, K)), np.zeros((S, K))
    for where, experts in problem.experts.blocks(S * K):
        densities = experts.densities(params)
        if given is None:
            log_joint = gate_log_probabilities(problem.W[where], params.gamma) + densities.log_density
            block_loglik, found = normalised(log_joint, axis=1)
            loglik += block_loglik.sum(axis=1)
        else:
            found = given(where, densities.log_density) if callable(given) else given[..., where]
        responsibilities[..., where] = found
        scores, here = densities.summed_scores(found), found @ experts.counts
        pull += scores[..., :p]
        # The score in log sigma is E|r - Z b|^2 / sigma^2 less the number of rows.
        residual += params.sigma**2 * (scores[..., p + q * q] + here)
        rows += here
        weights = found.reshape(S * K, -1)
        second += densities.second_moments(weights).reshape(second.shape)
        if normal is not None:
            normal += densities.normal_matrix(weights)
    return Expectations(
        loglik,
        responsibilities,
        responsibilities.sum(axis=2),
        rows,
        pull,
        None if normal is None else normal.reshape(S, K, p, p),
        second,
        residual,
    )


def update_means(problem: ClosedForm, params: Params, e: Expectations) -> Params:
    """Gate by one Newton step, fixed effects by generalised least squares given the responsibilities."""
    gamma = gate_step(problem.W, e.responsibilities, params.gamma)
    where = problem.free.beta - problem.free.gate.stop  # (K, p)
    size = int(where.max()) + 1
    S = params.beta.shape[0]
    pull = np.zeros((S, size))
    for k, columns in enumerate(where):
        pull[:, columns] += e.pull[:, k]
    if e.normal is None:
        step = _conjugate_gradients(problem, params, e, where, pull)
        return replace(params, gamma=gamma, beta=params.beta + step[:, where])
    normal = np.zeros((S, size, size))
    for k, columns in enumerate(where):
        normal[:, columns[:, None], columns] += e.normal[:, k]
    ridge = 1e-10 * (1 + np.trace(normal, axis1=1, axis2=2)[:, None, None] / size) * np.eye(size)
    step = np.linalg.solve(normal + ridge, pull[..., None])[..., 0]
    return replace(params, gamma=gamma, beta=params.beta + step[:, where])


def _conjugate_gradients(problem: ClosedForm, params: Params, e: Expectations, where: Array, pull: Array) -> Array:
    """Steps of the fixed effects towards generalised least squares, shape (S, size), from scores `pull` of that shape.

    Where columns are many, products with their normal matrix cost rows times columns, and the matrix itself columns
    times that. Working columns are orthogonal over all rows, so that it is near a multiple of the identity and a few
    steps do; each of them raises the log-likelihood expected, so that EM still cannot fall.
    """
    experts, K = problem.experts.without_response(), problem.structure.n_experts
    scale = np.zeros(pull.shape)
    for k, columns in enumerate(where):
        scale[:, columns] += (np.maximum(e.rows[:, k], 1.0) / params.sigma[:, k] ** 2)[:, None]

    def normal_times(v: Array) -> Array:
        # With a response of zero and fixed effects -v the score is X'V^-1 X v.
        out, moved = np.zeros_like(v), replace(params, beta=-v[:, where])
        for at, part in experts.blocks(len(v) * K):
            found = part.densities(moved).summed_scores(e.responsibilities[..., at])
            for k, columns in enumerate(where):
                out[:, columns] += found[:, k, : columns.size]
        return out

    step, left = np.zeros_like(pull), pull.copy()
    solved = left / scale
    direction, size = solved.copy(), (left * solved).sum(axis=1)
    enough = _REDUCED**2 * size
    for _ in range(_CG_STEPS):
        product = normal_times(direction)
        length = size / np.maximum((direction * product).sum(axis=1), np.finfo(float).tiny)
        # A start that has come far enough stays where it is while the others go on.
        length = np.where(size > enough, length, 0.0)[:, None]
        step, left = step + length * direction, left - length * product
        solved = left / scale
        before, size = size, (left * solved).sum(axis=1)
        if (size <= enough).all():
            break
        direction = solved + (size / np.maximum(before, np.finfo(float).tiny))[:, None] * direction
    return step


def update_variances(problem: ClosedForm, params: Params, e: Expectations) -> Params:
    """Gate by one Newton step, covariances and residual variances from the expected second moments."""
    s = problem.structure
    gamma = gate_step(problem.W, e.responsibilities, params.gamma)
    if not s.has_sigma:
        return replace(params, gamma=gamma, factor=updated_factor(s, e, params.factor))
    if s.residual == "common":
        variance = np.broadcast_to((e.residual.sum(axis=1) / e.rows.sum(axis=1))[:, None], e.rows.shape)
    else:
        variance = e.residual / np.maximum(e.rows, np.finfo(float).tiny)
    sigma = np.sqrt(np.maximum(variance, _SMALLEST))
    return replace(params, gamma=gamma, factor=updated_factor(s, e, params.factor), sigma=sigma)


def updated_factor(s: Structure, e: Expectations, old: Array) -> Array:
    """Factors of the random-effect covariances, shape (S, K, q, q), that the expected second moments call for."""
    if not s.n_random:
        return old
    counts = np.maximum(e.subjects, np.finfo(float).tiny)[..., None, None]
    moment = e.second_moment if s.correlated else e.second_moment * np.eye(s.n_random)
    if s.cov_re == "expert":
        return _factor(moment / counts)
    if s.cov_re == "common":
        D = moment.sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True)
        return np.broadcast_to(_factor(D), old.shape)
    reference = _factor(np.einsum("skab,skcb->skac", old[:, :1], old[:, :1]))
    omega2 = np.einsum("skaa->sk", np.linalg.solve(reference @ np.swapaxes(reference, -1, -2), moment)) / (
        s.n_random * counts[..., 0, 0]
    )
    omega2 = np.maximum(omega2, _SMALLEST)
    D = (moment / omega2[..., None, None]).sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True)
    return _factor(D) * np.sqrt(omega2)[..., None, None]


def _factor(D: Array) -> Array:
    floor = _SMALLEST * (1 + np.einsum("...aa->...", D))[..., None, None] * np.eye(D.shape[-1])
    return np.linalg.cholesky(D + floor)


def em_iterations(problem: ClosedForm, theta: Array, n_iter: int) -> tuple[Array, Array]:
    """Free vectors (S, P) after `n_iter` pairs of conditional steps, and log-likelihoods before each, (S, 2n).

    Notes
    -----
    With tau the responsibilities, V_k = Z D_k Z' + sigma_k^2 I and r = y - X beta_k, a pair of steps is::

        E     tau_ik = P(C_i = k | y_i)
        CM 1  gamma  <- one Newton step of the softmax regression of tau on w
              beta_k <- beta_k + (sum_i tau_ik X_i'V_k^-1 X_i)^-1 sum_i tau_ik X_i'V_k^-1 r_i
        E     tau, E[b b' | y, k] and E|r - Z b|^2 at the new gamma and beta
        CM 2  gamma  <- one more Newton step
              D_k    <- sum_i tau_ik E[b_i b_i'] / sum_i tau_ik
              sigma_k^2 <- sum_i tau_ik E|r_i - Z_i b_i|^2 / sum_i tau_ik n_i

    References
    ----------
    Meng & van Dyk (1997), JRSS B 59, 511-567, section 3. Laird & Ware (1982), Biometrics 38, 963-974.
    """
    trace = np.empty((theta.shape[0], 2 * n_iter))
    params = free_to_working(problem.structure, theta)
    for i in range(n_iter):
        # E-step: responsibilities and the sums that they weigh.
        e = expectations(problem, params)
        trace[:, 2 * i] = e.loglik
        # CM-step 1, memberships alone missing: gate and fixed effects, random effects integrated out.
        params = update_means(problem, params, e)
        # E-step again: without it the next step would not be one of AECM, and the likelihood could fall.
        e = expectations(problem, params)
        trace[:, 2 * i + 1] = e.loglik
        # CM-step 2, random effects missing too: gate, covariances and residual variances from second moments.
        params = update_variances(problem, params, e)
    return working_to_free(problem.structure, params), trace
