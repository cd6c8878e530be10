"""Smoothing parameters by the marginal likelihood of a penalised mixture, together with all other parameters.

Given smoothing parameters, penalised coefficients b have the prior N(0, 1/lambda). With all others, eta, they maximise
Laplace's approximation of the marginal likelihood::

    l(eta, b) - 1/2 sum_j lambda_j b_j'b_j + 1/2 sum_j r_j log lambda_j - 1/2 log|H + Lambda|

at the b that maximises the first two terms, H being minus their second derivatives in b. For one Gaussian expert it is
exact: the likelihood of a mixed model in which the coefficients are random, mgcv's ``method="ML"``. The last term
depends on eta too (without it residual deviations would be too small by the degrees of freedom of the functions): its
gradient is added to the score as a constant tilt that is computed anew between ascents.

References
----------
Wood & Fasiolo (2017), Biometrics 73, 1071-1081. Wood (2011), JRSS B 73, 3-36. Wood, Pya & Safken (2016), JASA 111,
1548-1563.
"""

from dataclasses import dataclass, replace

import numpy as np

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.observed import Problem, evaluate
from mixmoe.mixed.search import Guarded
from mixmoe.mixed.smooth.curvature import determinant_slope, information
from mixmoe.mixed.smooth.functions import Geometry, Index
from mixmoe.numerics.optimise import Control, Evaluation, climb

_ROUNDS = 60  # ascents between updates of the smoothing parameters
_INNER = 100  # Fellner-Schall steps on one quadratic model
_SETTLED = 1e-4  # distance from their aims at which smoothing parameters and tilt rest, see `Rest`
_NEAR = 1e-2  # and below which ascents are run to the end
_FARTHEST = 4.0  # change of log lambda between two ascents
_LINE = 1e5  # lambda over the mean information of its coefficients beyond which nothing of them is left
_ROUGHEST = 1e-8  # and below which they are not penalised
_FLOOR = 1e-10  # of the largest eigenvalue of an information that counts
_CLOSE = 1e-2  # tolerance of the last ascents over that of the first ones


@dataclass(frozen=True, slots=True)
class Smoothed:
    """Outcome of an estimation with smoothing parameters.

    Attributes
    ----------
    theta : ndarray, shape (P,)
    lambdas : ndarray, shape (J,)
    tilt : ndarray, shape (P,)
        What the score of the penalised log-likelihood lacks at the maximum of the marginal one.
    trace : ndarray
        Penalised log-likelihood after each ascent.
    n_iter, n_evaluations : int
    converged : bool
        Whether score and smoothing parameters have come to rest.
    interrupted : bool
    """

    theta: Array
    lambdas: Array
    tilt: Array
    trace: Array
    n_iter: int
    n_evaluations: int
    converged: bool
    interrupted: bool


@dataclass(frozen=True, slots=True)
class Tilted:
    """A penalised log-likelihood with a linear term, as an objective of `climb`."""

    guarded: Guarded
    tilt: Array

    def __call__(self, theta: Array) -> Evaluation:
        """Value and score at points (S, P)."""
        e = self.guarded(theta)
        return Evaluation(e.loglik + theta @ self.tilt, e.score + self.tilt)


def marginal_loglik(problem: Problem, geometry: Geometry, lambdas: Array, theta: Array) -> float:
    """Laplace's approximation of the marginal log-likelihood at a maximum of the penalised one, in working units."""
    plain = replace(problem, ridge=None)
    H = information(plain, theta)
    N = geometry.directions
    value = float(evaluate(plain, theta[None]).loglik[0]) - 0.5 * float(lambdas @ geometry.squares(theta))
    inner = N.T @ H @ N + np.diag(lambdas[geometry.owners])
    return value + 0.5 * float(geometry.ranks @ np.log(lambdas)) - 0.5 * float(np.linalg.slogdet(inner)[1])


def estimate(
    problem: Problem,
    geometry: Geometry,
    theta: Array,
    given: Array,
    sigma_floor: float,
    control: Control,
    start: Array | None = None,
) -> Smoothed:
    """Maximum of the marginal likelihood from a start.

    Parameters
    ----------
    problem : Problem
        Without penalty.
    geometry : Geometry
    theta : ndarray, shape (P,)
    given : ndarray, shape (J,)
        Smoothing parameters that are known; NaN where they are to be estimated.
    sigma_floor : float
        Residual deviation below which an expert has collapsed.
    control : Control
    start : ndarray, shape (J,), optional
        Smoothing parameters to start from; NaN where they are as without it.

    Returns
    -------
    Smoothed
    """
    logarithmic = np.append(problem.free.log_sigma, problem.free.extra)
    known = ~np.isnan(given)
    H = information(problem, theta)
    lambdas = np.where(known, given, typical_smoothing(H, geometry))
    if start is not None:
        lambdas = np.where(known | np.isnan(start), lambdas, start)
    tilt, trace, n_iter, n_evaluations = np.zeros(theta.size), [], 0, 0
    interrupted, rested = False, False
    theta = _shrunk(geometry, theta, typical_smoothing(H, geometry), lambdas)
    limit = _limit(control, control.tol / _CLOSE, problem.n_subjects)
    step, last = np.ones(lambdas.size), np.zeros(lambdas.size)
    for _ in range(_ROUNDS):
        # 1. where smoothing parameters and tilt would lie if the log-likelihood were its quadratic model here
        score = evaluate(problem, theta[None]).score[0] + tilt
        aim = lambdas if known.all() else _fellner_schall(geometry, H, score, theta, lambdas, ~known)
        lean = _tilt(problem, geometry, H, aim, theta)
        # 2. on towards them; in a mixture H moves with the fit, so that one that turns back is led on by half
        unit = np.sqrt(np.maximum(np.diag(H), 1.0))
        rest = Rest(_moved(geometry, H, lambdas, aim), float(np.abs((lean - tilt) / unit).max()))
        way = np.log(aim / lambdas)
        step = np.where(way * last < 0, 0.5 * step, np.minimum(1.0, 1.5 * step))
        last, tilt, lambdas = way, lean, np.where(known, given, lambdas * np.exp(step * way))
        # 3. an ascent with both held
        objective = Tilted(Guarded(replace(problem, ridge=geometry.root(lambdas)), sigma_floor), tilt)
        inverse = penalised_inverse(geometry, H, lambdas)
        end = climb(objective, theta[None], inverse[None], problem.n_subjects, limit, logarithmic=logarithmic)
        theta, interrupted = end.theta[0], end.interrupted
        n_iter, n_evaluations = n_iter + int(end.n_iter[0]), n_evaluations + int(end.n_evaluations[0])
        trace.append(float(end.loglik[0] - theta @ tilt))
        rested = rest.still(_SETTLED)
        if interrupted or (rested and limit.tol == control.tol):
            break
        if rest.still(_NEAR):
            limit = _limit(control, control.tol, problem.n_subjects)
        H = information(problem, theta)
    score = evaluate(replace(problem, ridge=geometry.root(lambdas)), theta[None]).score[0] + tilt
    left = 0.5 * float(score @ penalised_inverse(geometry, H, lambdas) @ score)
    still = left <= 100 * _limit(control, control.tol, problem.n_subjects).promise
    return Smoothed(
        theta, lambdas, tilt, np.array(trace), n_iter, n_evaluations, rested and still and not interrupted, interrupted
    )


def _limit(control: Control, tol: float, n_subjects: int) -> Control:
    """Limits of an ascent that ends where what is left to gain is that of a score of `tol` per subject.

    The score itself says little beside penalties without bound: rounding of a coefficient that they hold at zero is
    multiplied by them.
    """
    return replace(control, tol=tol, promise=0.5 * tol**2 * n_subjects, progress=False)


def _shrunk(geometry: Geometry, theta: Array, typical: Array, lambdas: Array) -> Array:
    """The start with penalised coefficients drawn to zero as their penalties will draw them."""
    coefficients = geometry.inverse @ theta
    for at, known, lam in zip(geometry.penalised, typical, lambdas, strict=True):
        coefficients[at] *= known / (known + lam)
    return np.asarray(geometry.basis @ coefficients)


@dataclass(frozen=True, slots=True)
class Rest:
    """How far smoothing parameters and tilt are from their aims.

    Attributes
    ----------
    smoothing : float
        Largest change of a log smoothing parameter, weighed by the degrees of freedom that hang on it.
    tilt : float
        Largest change of the tilt, in standard errors of the parameters that it moves.
    """

    smoothing: float
    tilt: float

    def still(self, least: float) -> bool:
        """Whether both have come to rest."""
        return max(self.smoothing, self.tilt) < least


def typical_smoothing(H: Array, geometry: Geometry) -> Array:
    """Smoothing parameters that weigh as much as the data: the mean information of the coefficients of each."""
    return np.array([_mean_information(H, geometry, at) for at in geometry.penalised])


def _mean_information(H: Array, geometry: Geometry, at: Index) -> float:
    N = geometry.basis[:, at]
    return max(float(np.einsum("pm,pq,qm->", N, H, N)) / len(at), np.finfo(float).tiny)


def _fellner_schall(
    geometry: Geometry, H: Array, score: Array, theta: Array, lambdas: Array, estimated: Array
) -> Array:
    """Generalised Fellner-Schall steps on the quadratic model of the log-likelihood at `theta`.

    ``lambda <- (r - lambda tr V) / b'b`` with V the block of ``(H + Lambda)^-1`` of the function.
    """
    N, owners, J = geometry.directions, geometry.owners, len(lambdas)
    inner = _definite(N.T @ H @ N)
    typical = typical_smoothing(H, geometry)
    out, start = lambdas.copy(), lambdas
    for _ in range(_INNER):
        there = theta + penalised_inverse(geometry, H, out) @ (score - geometry.penalty(out) @ theta)
        V = np.linalg.inv(inner + np.diag(out[owners]))
        trace = np.bincount(owners, weights=np.diag(V), minlength=J)
        new = np.maximum(geometry.ranks - out * trace, 1e-12) / np.maximum(geometry.squares(there), 1e-300)
        new = np.clip(new, start * np.exp(-_FARTHEST), start * np.exp(_FARTHEST))
        new = np.where(estimated, np.clip(new, _ROUGHEST * typical, _LINE * typical), out)
        change = float(np.abs(np.log(new / out)).max())
        out = new
        if change < 0.1 * _SETTLED:
            break
    return out


def _moved(geometry: Geometry, H: Array, before: Array, after: Array) -> float:
    """Change of the log smoothing parameters, each weighed by the degrees of freedom that hang on it, at most one."""
    N, owners = geometry.directions, geometry.owners
    V = np.linalg.inv(_definite(N.T @ H @ N) + np.diag(after[owners]))
    left = geometry.ranks - after * np.bincount(owners, weights=np.diag(V), minlength=len(after))
    return float((np.abs(np.log(after / before)) * np.minimum(left, 1.0)).max())


def _tilt(problem: Problem, geometry: Geometry, H: Array, lambdas: Array, theta: Array) -> Array:
    """Gradient of ``-1/2 log|H + Lambda|`` in the parameters that are not integrated out, along the ridge of b.

    Of what known memberships would give: how doubt about them moves with the parameters is left out, which in mixtures
    of experts that are hardly told apart is large, and noise. For one expert nothing is left out.
    """
    N, owners = geometry.directions, geometry.owners
    inner = _definite(N.T @ H @ N) + np.diag(lambdas[owners])
    slope = determinant_slope(problem, theta, N @ np.linalg.cholesky(np.linalg.inv(inner)))
    full = geometry.basis.T @ slope  # in the user's coefficients
    inside = np.concatenate(geometry.penalised)
    outside = np.setdiff1d(np.arange(theta.size), inside)
    across = geometry.basis[:, outside].T @ H @ N
    moved = np.zeros(theta.size)
    # The ridge: db/deta = -(H + Lambda)^-1 H_b,eta.
    moved[outside] = full[outside] - across @ np.linalg.solve(inner, full[inside])
    return geometry.inverse.T @ moved


def _definite(A: Array) -> Array:
    """The matrix without its negative curvature, which a mixture may have away from its maximum."""
    values, vectors = np.linalg.eigh((A + A.T) / 2)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T


def penalised_inverse(geometry: Geometry, H: Array, lambdas: Array) -> Array:
    """``(H + S)^-1`` with the curvature of every direction taken as positive, shape (P, P).

    In the user's coefficients, where S is diagonal: penalties without bound would drown the rest elsewhere.
    """
    A = geometry.basis.T @ H @ geometry.basis
    inside = np.concatenate(geometry.penalised)
    A[inside, inside] += lambdas[geometry.owners]
    scale = np.sqrt(np.maximum(np.abs(np.diag(A)), np.finfo(float).tiny))
    values, vectors = np.linalg.eigh(A / np.outer(scale, scale))
    size = np.maximum(np.abs(values), _FLOOR * np.abs(values).max())
    half = geometry.basis @ (vectors / np.sqrt(size) / scale[:, None])
    return half @ half.T
