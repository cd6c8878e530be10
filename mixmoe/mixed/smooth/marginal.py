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
Wood & Fasiolo (2017), Biometrics 73, 1071-1081. Wood (2011), JRSS B 73, 3-36. Hall (1992), Annals of Statistics 20,
675-694. Calonico, Cattaneo & Farrell (2018), JASA 113, 767-779.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.linalg import lapack
from scipy.optimize import brentq

from mixmoe._typing import Array, BoolArray, IntArray
from mixmoe.mixed.ascents import Guarded
from mixmoe.mixed.curvature import determinant_slope, information
from mixmoe.mixed.likelihood.observed import Problem, evaluate
from mixmoe.mixed.smooth.functions import Geometry
from mixmoe.mixed.starting_values import least_information
from mixmoe.numerics.linalg import floored_inverse
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
_FALL = 0.5  # of the marginal log-likelihood that an ascent may cost: the tilt is its slope but for memberships
_NO_DATA = 1e-16  # least information on a function, as a share of the largest
_EMPTIED = 1e-2  # share of the information on a function below which an ascent has taken its data away
_STIFF = 0.5  # first pull back to where the tilt was computed, as a share of the information
_TURNED = 0.25  # share of its last change by which the tilt turns back when parameters are held back
_STIFFER = 16.0
_STEEPEST = 2.0  # tilt, in standard errors of the parameter
_STIFF_AGAIN = 32.0  # most where the tilt goes to and fro
_STIFFEST = 1e3  # and where the marginal log-likelihood falls
_GAIN = 1e-6  # change of the marginal log-likelihood below which a round has gained nothing
_FURTHER = 2.5  # degrees of freedom that a function has where limits are from, besides those that are not penalised
_HALVINGS = 20  # of what the prior variances are raised by there
_IDLE = 5  # such rounds in a row after which only directions without information can be left


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
        Marginal log-likelihood after each ascent, at the smoothing parameters of that ascent.
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
    """A penalised log-likelihood with a linear term around a centre and a pull back to it, as an objective of `climb`.

    Attributes
    ----------
    guarded : Guarded
    tilt, centre : ndarray, shape (P,)
    pull : ndarray, shape (P, P), or None
        Of ``-1/2 d'pull d`` at the distance d from the centre.
    """

    guarded: Guarded
    tilt: Array
    centre: Array
    pull: Array | None

    def __call__(self, theta: Array) -> Evaluation:
        """Value and score at points (S, P)."""
        e, away = self.guarded(theta), theta - self.centre
        back = np.zeros_like(away) if self.pull is None else away @ self.pull
        value = e.loglik + away @ self.tilt - 0.5 * (away * back).sum(axis=1)
        return Evaluation(value, e.score + self.tilt - back)


@dataclass(frozen=True, slots=True)
class Eliminated:
    """An information in the user's coefficients with those that are not penalised eliminated.

    Of ``H + S`` smoothing parameters change the diagonal of the penalised block alone, however many other coefficients
    there are: what these leave of the information on penalised ones is known once for all (the Schur complement). In
    the user's coefficients, where S is diagonal: penalties without bound would drown the rest elsewhere.

    Attributes
    ----------
    geometry : Geometry
    A : ndarray, shape (P, P)
        The information without penalties, as it is.
    inside, outside : ndarray of int, shapes (M,) and (P - M,)
        Coefficients that are penalised, and the others.
    least : float
        Curvature of a parameter about which there are no data.
    others : ndarray, shape (P - M, P - M)
        Inverse information on the others, the curvature of every direction taken as positive.
    across : ndarray, shape (M, P - M)
        What a change of a penalised coefficient moves the others by, with the sign turned.
    left : ndarray, shape (M, M)
        Information on penalised coefficients, the others integrated out.
    """

    geometry: Geometry
    A: Array
    inside: IntArray
    outside: IntArray
    least: float
    others: Array
    across: Array
    left: Array

    @classmethod
    def of(cls, geometry: Geometry, H: Array, steady: Array | None = None) -> Self:
        """The information H on the free vector, shape (P, P), of which `steady` is what may be divided by."""
        A = geometry.basis.T @ H @ geometry.basis
        B = A if steady is None else geometry.basis.T @ steady @ geometry.basis
        inside = np.concatenate(geometry.penalised)
        outside = np.setdiff1d(np.arange(len(A)), inside)
        least = max(_NO_DATA * float(np.abs(np.diag(A)).max()), np.finfo(float).tiny)
        others = _positive_inverse(B[np.ix_(outside, outside)], least)
        across = B[np.ix_(inside, outside)] @ others
        left = B[np.ix_(inside, inside)] - across @ B[np.ix_(outside, inside)]
        return cls(geometry, A, inside, outside, least, others, across, 0.5 * (left + left.T))

    def covariance(self, lambdas: Array) -> Array:
        """The block of ``(H + S)^-1`` of the penalised coefficients, shape (M, M)."""
        return _positive_inverse(self.left + np.diag(lambdas[self.geometry.owners]), self.least)

    def slope(self, score: Array) -> Array:
        """Slope in the penalised coefficients where the others follow, shape (M,), from a score in the free vector."""
        mine = self.geometry.basis.T @ score
        return np.asarray(mine[self.inside] - self.across @ mine[self.outside])

    def decrement(self, lambdas: Array, score: Array) -> float:
        """``g'(H + S)^-1 g`` of a score g in the free vector."""
        rest, slope = (self.geometry.basis.T @ score)[self.outside], self.slope(score)
        return float(rest @ self.others @ rest + slope @ self.covariance(lambdas) @ slope)

    def inverse_information(self, lambdas: Array) -> Array:
        """``(H + S)^-1`` in the free vector with the curvature of every direction taken as positive, shape (P, P)."""
        V = self.covariance(lambdas)
        beside = -V @ self.across
        out = np.empty_like(self.A)
        out[np.ix_(self.inside, self.inside)] = V
        out[np.ix_(self.inside, self.outside)] = beside
        out[np.ix_(self.outside, self.inside)] = beside.T
        out[np.ix_(self.outside, self.outside)] = self.others - self.across.T @ beside
        return self.geometry.basis @ out @ self.geometry.basis.T

    def spectrum(self, lambdas: Array, j: int) -> Array:
        """Eigenvalues, ascending, of the information on the coefficients of function j, all others integrated out."""
        own = self.geometry.owners == j
        rest = _positive_inverse(
            self.left[np.ix_(~own, ~own)] + np.diag(lambdas[self.geometry.owners[~own]]), self.least
        )
        across = self.left[np.ix_(own, ~own)]
        return np.asarray(np.linalg.eigvalsh(self.left[np.ix_(own, own)] - across @ rest @ across.T))


def _positive_inverse(A: Array, least: float) -> Array:
    """Inverse of a symmetric matrix in units of its diagonal, the curvature of every direction taken as positive."""
    scale = np.sqrt(np.maximum(np.abs(np.diag(A)), least))
    unit = np.outer(scale, scale)
    return np.asarray(floored_inverse(A / unit, share=_FLOOR) / unit)


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
    least = least_information(problem)
    H = information(problem, theta)
    lambdas = np.where(known, given, typical_smoothing(H, geometry))
    if start is not None:
        lambdas = np.where(known | np.isnan(start), lambdas, start)
    trace: list[float] = []
    tilt, n_iter, n_evaluations = np.zeros(theta.size), 0, 0
    interrupted, settled, stiff, idle = False, False, 0.0, 0
    curve = Eliminated.of(geometry, H, _at_least(H, least))
    theta = _shrunk(curve, theta, typical_smoothing(H, geometry), lambdas)
    limit, e = _limit(control, control.tol / _CLOSE, problem.n_subjects), evaluate(problem, theta[None])
    step, last, last_tilt = np.ones(lambdas.size), np.zeros(lambdas.size), np.zeros(theta.size)
    for _ in range(_ROUNDS):
        # 1. where smoothing parameters and tilt would lie if the log-likelihood were its quadratic model here
        score = e.score[0] + tilt
        aim = lambdas if known.all() else _fellner_schall(geometry, curve, score, theta, lambdas, ~known)
        unit = np.sqrt(np.maximum(np.diag(H), 1.0))
        # Farther from a maximum the determinant may be as steep as it likes: what asks for more is no correction.
        lean = np.clip(_tilt(problem, geometry, curve, aim, theta), -_STEEPEST * unit, _STEEPEST * unit)
        if not (np.isfinite(aim).all() and np.isfinite(lean).all()):
            break  # an expert without subjects: nothing says how smooth its functions are
        rest = Rest(_moved(geometry, curve, lambdas, aim), float(np.abs((lean - tilt) / unit).max()))
        rested = rest.still(_SETTLED)
        # 2. on towards them; in a mixture H moves with the fit, so that one that turns back is led on by half, and
        # parameters that the tilt sends to and fro are held back
        way, way_of_tilt = np.log(aim / lambdas), (lean - tilt) / unit
        step = np.where(way * last < 0, 0.5 * step, np.minimum(1.0, 1.5 * step))
        turned = -(way_of_tilt @ last_tilt) > _TURNED * (last_tilt @ last_tilt)
        stiff = min(max(_STIFF, 2 * stiff), _STIFF_AGAIN) if turned and not rested else 0.5 * stiff
        last, last_tilt, tilt = way, way_of_tilt, lean
        lambdas = np.where(known, given, lambdas * np.exp(step * way))
        # 3. an ascent with both held, in steps as short as the marginal likelihood asks for
        R = geometry.root(lambdas)
        objective, inverse = Guarded(replace(problem, ridge=R), sigma_floor), curve.inverse_information(lambdas)
        before = _height(e, geometry, H, lambdas, theta)
        hold = _at_least(H, 1.0) if stiff else None
        while True:
            there = Tilted(objective, tilt, theta, None if hold is None else stiff * hold)
            end = climb(there, theta[None], inverse[None], problem.n_subjects, limit, logarithmic=logarithmic)
            n_iter, n_evaluations = n_iter + int(end.n_iter[0]), n_evaluations + int(end.n_evaluations[0])
            with np.errstate(all="ignore"):  # an ascent that went too far may end where anything overflows
                H_there, e_there = information(problem, end.theta[0]), evaluate(problem, end.theta)
                after = _height(e_there, geometry, H_there, lambdas, end.theta[0])
            # From a start, which has its bends halved, residual deviations and with them all information may move far.
            emptied = bool(trace) and bool(
                (typical_smoothing(H_there, geometry) < _EMPTIED * typical_smoothing(H, geometry)).any()
            )
            if (after > before - _FALL and not emptied) or end.interrupted or stiff > _STIFFEST:
                break
            stiff = max(_STIFF, _STIFFER * stiff)
            hold = _at_least(H, 1.0) if hold is None else hold
        interrupted = end.interrupted
        if emptied or not np.isfinite(after):
            break  # an expert has lost its subjects, and with them its functions all that tells smoothing parameters
        theta, H, e = end.theta[0], H_there, e_there
        curve = Eliminated.of(geometry, H, _at_least(H, least))
        trace.append(after)
        score = e.score[0] - (R @ theta) @ R + tilt
        left = 0.5 * curve.decrement(lambdas, score)
        idle = idle + 1 if len(trace) > 1 and abs(after - trace[-2]) < _GAIN else 0
        at_rest = rested and left <= 100 * _limit(control, control.tol, problem.n_subjects).promise
        settled = at_rest or idle >= _IDLE
        if interrupted or (settled and limit.tol == control.tol):
            break
        if rest.still(_NEAR) or idle:
            limit = _limit(control, control.tol, problem.n_subjects)
    return Smoothed(
        theta, lambdas, tilt, np.array(trace), n_iter, n_evaluations, settled and not interrupted, interrupted
    )


def _height(e: Evaluation, geometry: Geometry, H: Array, lambdas: Array, theta: Array) -> float:
    """Marginal log-likelihood from that without penalties, also off a maximum; minus infinity without information."""
    if not np.isfinite(H).all():
        return -np.inf
    N = geometry.directions
    inner = _definite(N.T @ H @ N) + np.diag(lambdas[geometry.owners])
    value = float(e.loglik[0]) - 0.5 * float(lambdas @ geometry.squares(theta))
    return value + 0.5 * float(geometry.ranks @ np.log(lambdas)) - 0.5 * float(np.linalg.slogdet(inner)[1])


def _at_least(H: Array, least: float) -> Array:
    """The information with the size of its curvature, and not less than `least`.

    Along what data say nothing about, as levels of a factor that an expert has no rows of, a tilt knows no bounds, and
    the first steps would be so long that what they tell of the curvature drowns all that is known of it.
    """
    # One factorisation tells whether all is larger.
    if lapack.dpotrf(H - least * np.eye(len(H)), lower=True)[1] == 0:
        return H
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    return (vectors * np.maximum(np.abs(values), least)) @ vectors.T


def _limit(control: Control, tol: float, n_subjects: int) -> Control:
    """Limits of an ascent that ends where what is left to gain is that of a score of `tol` per subject.

    The score itself says little beside penalties without bound: rounding of a coefficient that they hold at zero is
    multiplied by them.
    """
    return replace(control, tol=tol, promise=0.5 * tol**2 * n_subjects, progress=False)


def _shrunk(curve: Eliminated, theta: Array, typical: Array, lambdas: Array) -> Array:
    """The start with penalised coefficients drawn to zero as their penalties will draw them, the others following."""
    geometry = curve.geometry
    coefficients = geometry.inverse @ theta
    change = (typical / (typical + lambdas) - 1)[geometry.owners] * coefficients[curve.inside]
    coefficients[curve.inside] += change
    coefficients[curve.outside] -= curve.across.T @ change
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
    inner = geometry.directions.T @ H @ geometry.directions
    return _typical_of(np.diag(inner), geometry)


def _typical_of(diagonal: Array, geometry: Geometry) -> Array:
    """`typical_smoothing` from the information of each penalised coefficient, shape (M,)."""
    sums = np.bincount(geometry.owners, weights=diagonal, minlength=len(geometry.penalised))
    mean = sums / geometry.ranks
    # An expert without subjects has none: powers of what is left of it would underflow.
    return np.asarray(np.maximum(mean, max(_NO_DATA * float(mean.max()), np.finfo(float).tiny)))


def _fellner_schall(
    geometry: Geometry, curve: Eliminated, score: Array, theta: Array, lambdas: Array, estimated: Array
) -> Array:
    """Generalised Fellner-Schall steps on the quadratic model of the log-likelihood at `theta`.

    ``lambda <- (r - lambda tr V) / b'b`` with V the block of ``(H + Lambda)^-1`` of the function.
    """
    owners, J = geometry.owners, len(lambdas)
    b = (geometry.inverse @ theta)[curve.inside]
    own = _definite(curve.A[np.ix_(curve.inside, curve.inside)])
    typical = _typical_of(np.diag(curve.A)[curve.inside], geometry)
    slope = curve.slope(score)
    out, start = lambdas.copy(), lambdas
    for _ in range(_INNER):
        there = b + curve.covariance(out) @ (slope - out[owners] * b)
        V = np.linalg.inv(own + np.diag(out[owners]))
        trace = np.bincount(owners, weights=np.diag(V), minlength=J)
        squares = np.bincount(owners, weights=there * there, minlength=J)
        new = np.maximum(geometry.ranks - out * trace, 1e-12) / np.maximum(squares, 1e-300)
        new = np.clip(new, start * np.exp(-_FARTHEST), start * np.exp(_FARTHEST))
        new = np.where(estimated, np.clip(new, _ROUGHEST * typical, _LINE * typical), out)
        change = float(np.abs(np.log(new / out)).max())
        out = new
        if change < 0.1 * _SETTLED:
            break
    return out


def _moved(geometry: Geometry, curve: Eliminated, before: Array, after: Array) -> float:
    """Change of the log smoothing parameters, each weighed by the degrees of freedom that hang on it, at most one."""
    owners, own = geometry.owners, curve.A[np.ix_(curve.inside, curve.inside)]
    V = np.linalg.inv(_definite(own) + np.diag(after[owners]))
    left = geometry.ranks - after * np.bincount(owners, weights=np.diag(V), minlength=len(after))
    return float((np.abs(np.log(after / before)) * np.minimum(left, 1.0)).max())


def _tilt(problem: Problem, geometry: Geometry, curve: Eliminated, lambdas: Array, theta: Array) -> Array:
    """Gradient of ``-1/2 log|H + Lambda|`` in the parameters that are not integrated out, along the ridge of b.

    Of what known memberships would give: how doubt about them moves with the parameters is left out, which in mixtures
    of experts that are hardly told apart is large, and noise. For one expert nothing is left out.
    """
    inside, outside = curve.inside, curve.outside
    inner = _definite(curve.A[np.ix_(inside, inside)]) + np.diag(lambdas[geometry.owners])
    values, vectors = np.linalg.eigh(inner)
    values = np.maximum(values, _NO_DATA * values[-1])  # rounding may leave less than the penalties
    slope = determinant_slope(problem, theta, geometry.directions @ (vectors / np.sqrt(values)))
    full = geometry.basis.T @ slope  # in the user's coefficients
    moved = np.zeros(theta.size)
    # The ridge: db/deta = -(H + Lambda)^-1 H_b,eta.
    moved[outside] = full[outside] - curve.A[np.ix_(outside, inside)] @ np.linalg.solve(inner, full[inside])
    return geometry.inverse.T @ moved


def _definite(A: Array) -> Array:
    """The matrix without its negative curvature, which a mixture may have away from its maximum."""
    values, vectors = np.linalg.eigh((A + A.T) / 2)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T


def undersmoothed(geometry: Geometry, H: Array, lambdas: Array, estimated: BoolArray) -> Array:
    """Smoothing parameters of the fit around which limits and bands of functions lie.

    Parameters
    ----------
    geometry : Geometry
    H : ndarray, shape (P, P)
        Information without penalties at the estimate.
    lambdas : ndarray, shape (J,)
    estimated : ndarray of bool, shape (J,)
        Which smoothing parameters are not known.

    Returns
    -------
    ndarray, shape (J,)
        ``1 / (1 / lambda + v)`` where lambda is estimated, with v the prior variance at which the function would have
        two and a half effective degrees of freedom (of a small basis half of them) besides those that are not
        penalised, all other parameters integrated out.

    Notes
    -----
    The marginal likelihood draws a bend that is small beside its standard error to a line more often than not. The
    bias is then as large as the standard error, and limits around the line, whose standard error is the smallest there
    is, hold far less often than they say; an average over the marginal likelihood of lambda holds them at the price of
    limits that are too wide where the function is a line. Limits around an estimate with less bias, with the standard
    error of that one, hold at both (undersmoothing, Hall 1992; robust bias correction, Calonico, Cattaneo & Farrell
    2018). For functions whose bend data see, little changes. Degrees of freedom are what decides how many turns are
    held; those of single coefficients would be others for each kind of basis. Bends that turn four times and more and
    are small beside their standard error are still held less often than limits say.

    Negative curvature of a mixture's likelihood is outweighed twice by the penalties, so that the covariance around
    this fit, see `priors_of_limits`, is one: where it would not be, all functions come back towards the estimate.
    """
    curve, raised = Eliminated.of(geometry, H), np.zeros(len(lambdas))
    for j in np.flatnonzero(estimated):
        raised[j] = _variance_of(curve.spectrum(lambdas, int(j)))
    for _ in range(_HALVINGS):
        out = np.asarray(lambdas / (1 + lambdas * raised))
        half = curve.left + 0.5 * np.diag(out[geometry.owners])
        scale = np.sqrt(np.maximum(np.abs(np.diag(half)), curve.least))
        if np.linalg.eigvalsh(half / np.outer(scale, scale))[0] > 0:
            return out
        raised *= 0.5
    return lambdas


def _variance_of(d: Array) -> float:
    """Prior variance at which coefficients with the information d, shape (r,), have the wanted degrees of freedom."""
    known = d[d > _NO_DATA * d[-1]] if d[-1] > 0 else d[:0]
    if not known.size:  # a function about which there are no data stays what it is
        return 0.0
    wanted = min(_FURTHER, 0.5 * known.size)
    # A coefficient has d / (d + 1 / v): at the ends of the range each has less, or each more, than its share.
    share = wanted / known.size
    ends = np.log(share / (1 - share) / known[[-1, 0]]) + np.array([-1.0, 1.0])
    return float(np.exp(brentq(lambda log_v: float((1 / (1 + np.exp(-log_v) / known)).sum()) - wanted, *ends)))


def priors_of_limits(geometry: Geometry, lambdas: Array, of_limits: Array) -> Array:
    """Scores of the priors in the covariance of the fit around which limits lie, shape (M, P).

    That fit, of smoothing parameters l, has the expected squared error ``V (H + l T l) V`` where coefficients have the
    prior variance T: sampling, and bias. T is half way between the variance that the data ask for, 1 / lambda, and
    1 / l, with which the error is V. The former is zero in most samples from a small bend; the latter is for limits of
    a line what makes them hold too often.
    """
    return geometry.root(0.5 * of_limits * (1 + of_limits / lambdas))
