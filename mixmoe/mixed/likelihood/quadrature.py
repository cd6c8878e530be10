"""Whether the integral over the random effects is fine enough: what more quadrature points would change."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.inference.uncertainty import delta_se
from mixmoe.mixed.information import find_boundary, informative_basis, invert_information
from mixmoe.mixed.likelihood.observed import Problem, block_scores, evaluate_block, subject_logliks
from mixmoe.mixed.parameters import Coordinates, free_to_reported_jacobian, free_to_working
from mixmoe.mixture.estimate import EMFit, Flag, ParamLayout
from mixmoe.numerics.linalg import logsumexp

_ERRORS = 0.5  # standard errors; an estimate that far off leaves its 95 % interval a coverage of 92 %
_SIZE = 0.05  # on the scale of the link: five per cent of odds or rates; in large samples less would pass the other bar
_OUTSIDE = 1.92  # log-likelihood; as far below a maximum as the ends of a 95 % interval
_FAR = 5.0  # standard errors; a Newton step that is longer only says so


@dataclass(frozen=True, slots=True)
class Shift:
    """What a finer integral would change, to first order.

    Attributes
    ----------
    n_quad : int
        Its points per random effect.
    loglik : float
        What it adds to the log-likelihood at the estimates.
    working : ndarray, shape (P,)
        Changes of the free vector, in working coordinates.
    errors : ndarray, shape (P,)
        Sizes of the changes of the reported parameters in standard errors; NaN for those without.
    from_laplace : bool
        Whether the integral that is judged is Laplace's approximation.
    beside : float
        By how much the finer log-likelihood is higher with random effects of an expert half as large.
    """

    n_quad: int
    loglik: float
    working: Array
    errors: Array
    from_laplace: bool
    beside: float

    @property
    def spurious(self) -> bool:
        """Whether the estimates are no maximum of the finer log-likelihood, nor near one."""
        return self.beside > _OUTSIDE

    @property
    def moves(self) -> bool:
        """Whether a parameter would move by much, both beside its standard error and on the scale of the link."""
        far = np.nanmax(self.errors, initial=0.0) > _ERRORS
        return bool(far and np.abs(self.working).max(initial=0.0) > _SIZE)


def integral_shift(problem: Problem, coordinates: Coordinates, theta: Array) -> Shift | None:
    """What more quadrature points would change at a solution.

    Parameters
    ----------
    problem : Problem
        With as many points as the fit had.
    coordinates : Coordinates
    theta : ndarray, shape (P,)
        Maximiser in working coordinates.

    Returns
    -------
    Shift or None
        None where nothing finer is offered: without random effects, or with more than two.

    Notes
    -----
    One step of scoring from the estimate towards the maximum of the finer likelihood, ``(sum s_i s_i')^-1 sum s_i``
    with its scores s_i of the subjects (Berndt, Hall, Hall & Hausman 1974): one evaluation, no further fit. The scores
    of the fit itself, zero where it converged, are taken off the sum.

    With binary responses Laplace's method mostly understates standard deviations. With rare events it can do worse: the
    normal curve at the mode of a subject without events does not see the random effects with which she would have had
    some, so that her density stays near one as the intercept falls and the standard deviation grows, where the true one
    falls. There are then maxima at huge standard deviations that the true likelihood does not have. Where the scores of
    many subjects are large there, the step is short; half the random effects then have a higher finer likelihood.

    References
    ----------
    Berndt, Hall, Hall & Hausman (1974), Annals of Economic and Social Measurement 3, 653-665. Of the bias of Laplace's
    method with binary responses: Breslow & Lin (1995), Biometrika 82, 81-91; Joe (2008), CSDA 52, 5066-5074.
    """
    found = problem.experts.finer()
    if found is None:
        return None
    at = find_boundary(problem, coordinates, theta)
    with np.errstate(all="ignore"):  # where a spurious maximum has run away anything may overflow
        now, then = _scored(problem, at.theta), _scored(replace(problem, experts=found.experts), at.theta)
        if not np.isfinite(then.scores).all():
            far = np.full(theta.size, np.inf)
            return Shift(found.n_quad, then.loglik - now.loglik, far, far, found.from_laplace, 0.0)
        inverse = invert_information(then.scores.T @ then.scores, informative_basis(problem, at)).matrix
        step = inverse @ (then.scores - now.scores).sum(axis=0)
        jacobian = np.nan_to_num(free_to_reported_jacobian(problem.structure, coordinates, at.theta))
        errors = np.abs(jacobian @ step) / delta_se(jacobian, inverse)
        fine = replace(problem, experts=found.experts)
        beside = max(_loglik(fine, _halved(at.theta, row)) for row in np.unique(problem.free.factor, axis=0))
    errors[list(at.blank)] = np.nan
    higher = float(np.nan_to_num(beside - then.loglik))
    return Shift(found.n_quad, then.loglik - now.loglik, step, errors, found.from_laplace, higher)


def finer_logliks(problem: Problem, theta: Array) -> Array | None:
    """Log-likelihoods of free vectors, shape (S, P), by a finer integral, shape (S,).

    With ever more points, until the same one is the highest twice. None where nothing finer is offered.
    """
    logliks, finer = None, problem.experts.finer()
    while finer is not None:
        fine, before = replace(problem, experts=finer.experts), logliks
        with np.errstate(all="ignore"):  # where a spurious maximum has run away anything may overflow
            found = np.array([_loglik(fine, point) for point in theta])
        logliks = np.where(np.isfinite(found), found, -np.inf)
        if before is not None and logliks.argmax() == before.argmax():
            break
        finer = finer.experts.finer()
    return logliks


def _halved(theta: Array, where: NDArray[np.intp]) -> Array:
    out = theta.copy()
    out[where] *= 0.5
    return out


def _loglik(problem: Problem, theta: Array) -> float:
    return float(logsumexp(subject_logliks(problem, theta), axis=1).sum())


@dataclass(frozen=True, slots=True)
class _Scored:
    """Log-likelihood and the scores of the subjects, (N, P)."""

    loglik: float
    scores: Array


def _scored(problem: Problem, theta: Array) -> _Scored:
    params = free_to_working(problem.structure, theta[None])
    loglik, scores = 0.0, np.empty((problem.n_subjects, theta.size))
    for where, experts in problem.experts.blocks(problem.structure.n_experts):
        block = evaluate_block(problem, params, where, experts)
        loglik += float(block.loglik.sum())
        scores[where] = block_scores(problem, theta[None], block)[0].T
    return _Scored(loglik, scores)


def with_integral_flag(
    fit: EMFit, problem: Problem, coordinates: Coordinates, theta: Array, layout: ParamLayout
) -> EMFit:
    """The fit, with a flag if its integral over the random effects is too coarse.

    Parameters
    ----------
    fit : EMFit
    problem : Problem
    coordinates : Coordinates
    theta : ndarray, shape (P,)
        Its estimates in working coordinates.
    layout : ParamLayout

    Returns
    -------
    EMFit
    """
    shift = integral_shift(problem, coordinates, theta)
    if shift is None or not (shift.moves or shift.spurious):
        return fit
    return replace(fit, flags=(*fit.flags, _flag(shift, layout)))


def _flag(shift: Shift, layout: ParamLayout) -> Flag:
    found = [f"{abs(shift.loglik):.3g} {'higher' if shift.loglik > 0 else 'lower'}"]
    if shift.moves:
        most = int(np.nanargmax(shift.errors))
        size = shift.errors[most]
        far = f"about {size:.1f}" if size < _FAR else f"more than {_FAR:g}"
        found.append(f"{layout.names[most]} would move by {far} standard errors")
    if shift.spurious:
        found.append(
            f"half the random effects give one {shift.beside:.3g} above that: only the approximation peaks here"
        )
    return Flag(
        "laplace_bias" if shift.from_laplace else "quadrature_bias",
        f"{'The Laplace approximation' if shift.from_laplace else 'The quadrature'} is too coarse for these data: with "
        f"{shift.n_quad} points per random effect the log-likelihood at these estimates is "
        f"{', and '.join(found)}. Fit with n_quad={shift.n_quad}.",
    )
