"""End points of ascents: which search each belongs to, how high it lies, and which are maxima of the likelihood."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.inference.uncertainty import delta_se
from mixmoe.mixed.boundary import find_boundary, informative_basis, invert_information
from mixmoe.mixed.likelihood.hessian import observed_information
from mixmoe.mixed.likelihood.observed import Problem, block_scores, evaluate, likelihood_blocks, subject_logliks
from mixmoe.mixed.parameters import Coordinates, Params, Structure, free_to_reported_jacobian, free_to_working
from mixmoe.mixture.estimate import SAME, EMFit, Flag, ParamLayout
from mixmoe.mixture.gate import gate_log_probabilities
from mixmoe.numerics.linalg import logsumexp
from mixmoe.numerics.optimise import ROUNDING, Climb, Control

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
        beside = max(_loglik(fine, point) for point in scaled_effects(problem, at.theta, 0.5))
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


def scaled_effects(problem: Problem, theta: Array, by: float) -> Array:
    """Copies, shape (n, P), of a free vector with random effects `by` times as large, those of one expert in each.

    Those of all experts at once where they are common, and with proportional ones in addition.
    """
    free = problem.free
    sets = [*np.unique(free.factor, axis=0), *free.scale[free.scale >= 0][:, None]]
    return np.array([np.where(np.isin(np.arange(theta.size), own), by, 1.0) * theta for own in sets])


def _loglik(problem: Problem, theta: Array) -> float:
    return float(logsumexp(subject_logliks(problem, theta), axis=1).sum())


@dataclass(frozen=True, slots=True)
class _Scored:
    """Log-likelihood and the scores of the subjects, (N, P)."""

    loglik: float
    scores: Array


def _scored(problem: Problem, theta: Array) -> _Scored:
    loglik, scores = 0.0, np.empty((problem.n_subjects, theta.size))
    for block in likelihood_blocks(problem, theta[None]):
        loglik += float(block.loglik.sum())
        scores[block.where] = block_scores(problem, theta[None], block)[0].T
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
    flag = Flag(
        "laplace_bias" if shift.from_laplace else "quadrature_bias",
        f"{'The Laplace approximation' if shift.from_laplace else 'The quadrature'} is too coarse for these data: with "
        f"{shift.n_quad} points per random effect the log-likelihood at these estimates is "
        f"{', and '.join(found)}.",
        f"Fit with n_quad={shift.n_quad}.",
    )
    return replace(fit, flags=(*fit.flags, flag))


_SIGMA_COLLAPSED = 1e-3  # fraction of the one-expert residual standard deviation
_SIGMA_OF_FEW = 0.1  # fraction of the largest, for an expert with at most this many subjects more than coefficients:
_FEW = 2


def collapsed(problem: Problem, sigma_one: float, theta: Array) -> NDArray[np.bool_]:
    """Which of the points, shape (S, P), are spurious maxima.

    The residual deviation of an expert has vanished beside that of the one-expert model, or it is far below that of
    another expert while hardly more subjects than coefficients belong to it.
    """
    params = free_to_working(problem.structure, theta)
    noise = residual_deviations(problem.structure, params)
    largest = noise.max(axis=1, keepdims=True)
    out = np.asarray((noise < _SIGMA_COLLAPSED * sigma_one).any(axis=1))
    # Subjects are counted where it may matter, and for one point, (K, N), at a time.
    for i in np.flatnonzero((noise < _SIGMA_OF_FEW * largest).any(axis=1) & ~out):
        subjects = np.exp(gate_log_probabilities(problem.W, params.gamma[[i]]))[0].sum(axis=1)
        out[i] = nearly_exact(problem.structure, noise[i], largest[i], subjects).any()
    return out


def nearly_exact(s: Structure, noise: Array, largest: Array, subjects: Array) -> NDArray[np.bool_]:
    """Whether experts with these residual deviations and numbers of subjects fit a few of them nearly exactly."""
    few = subjects <= (~s.common).sum() + _FEW
    return np.asarray(few & (noise < _SIGMA_OF_FEW * largest))


def residual_deviations(s: Structure, params: Params) -> Array:
    """Residual deviations, or what stands for them where responses have a precision, shape (S, K); else ones."""
    for extra, where in s.spans:
        if extra.precision:
            return np.asarray(np.exp(-0.5 * params.extra[:, :, where.start]))
    return params.sigma


_FINISHED = 5  # candidates that are run to full convergence, on all subjects
_AT_REST = 0.01  # log-likelihood within which rough ascents stop below their maximum
_COMPARED = 10  # end points whose likelihood is compared by a finer integral
_ARTEFACT_MARGIN = 100.0  # log-likelihood by which a maximum of the approximation alone may lie above the true one
_STEPS, _MOST_STEPS = 2, 12  # of Newton's method at the end
_PROMISE = 1e-5  # gain in log-likelihood for which more are worth their cost
_CROSS_PRODUCTS = 100.0  # times the rounding of sums, of log-likelihoods whose residuals are differences of squares
OVERSTATED = 0.1  # log-likelihood by which an approximation is too high where a maximum may be of its making


@dataclass(frozen=True, slots=True)
class Ends:
    """End points of a search, before they are run to convergence.

    Attributes
    ----------
    climb : Climb
    rank : ndarray, shape (S,)
        Log-likelihoods, minus infinity for a collapsed expert.
    returned : ndarray of bool, shape (S,)
        Moves that fell back to the point that they left, which says nothing about other ways to it.
    search : ndarray of int, shape (S,)
        Which of the independent searches each belongs to.
    little : bool
        Whether the last expert gained so little that it may be a handful of subjects, in the first search.
    """

    climb: Climb
    rank: Array
    returned: NDArray[np.bool_]
    search: NDArray[np.intp]
    little: bool = False

    @property
    def best(self) -> int:
        """Place of the best; if all have collapsed, of the highest."""
        return int(np.argmax(or_any(self.rank, self.climb.loglik)))

    @property
    def summits(self) -> Array:
        """The highest log-likelihood of each search, best first."""
        each = [self.rank[self.search == i].max() for i in np.unique(self.search)]
        return np.sort(np.array(each))[::-1]

    @property
    def agree(self) -> bool:
        """Whether two searches reached the best."""
        return bool((self.summits >= self.rank.max() - _AT_REST).sum() > 1)


def candidates(logliks: Array, margin: float, n: int = _FINISHED) -> NDArray[np.intp]:
    """Positions, best first, of up to `n` values within `margin` of the best that differ by more than `SAME`."""
    order = np.argsort(-logliks, kind="stable")
    apart = np.ones(order.size, dtype=bool)
    with np.errstate(invalid="ignore"):  # two collapsed solutions, both of -inf, are not apart
        apart[1:] = -np.diff(logliks[order]) > SAME
        apart &= logliks[order] >= logliks[order[0]] - margin
    return order[apart][:n]


def one_search(found: Climb, rank: Array) -> Ends:
    """End points of one search."""
    return Ends(found, rank, np.zeros(rank.size, dtype=bool), np.zeros(rank.size, dtype=np.intp))


def join(a: Ends, b: Ends) -> Ends:
    """Both sets of end points as one."""
    x, y = a.climb, b.climb
    both = Climb(
        np.vstack([x.theta, y.theta]),
        np.append(x.loglik, y.loglik),
        np.vstack([x.score, y.score]),
        np.append(x.n_iter, y.n_iter),
        np.append(x.n_evaluations, y.n_evaluations),
        np.append(x.converged, y.converged),
        x.traces + y.traces,
        x.interrupted or y.interrupted,
    )
    returned, search = np.append(a.returned, b.returned), np.append(a.search, b.search)
    return Ends(both, np.append(a.rank, b.rank), returned, search, a.little)


def continued(found: Climb, who: NDArray[np.intp], more: Climb) -> Climb:
    """`found` with the ascents `who`, shape (c,), gone on to the ends of `more`, which began where they had ended."""
    theta, loglik, score = found.theta.copy(), found.loglik.copy(), found.score.copy()
    n_iter, n_evaluations, converged = found.n_iter.copy(), found.n_evaluations.copy(), found.converged.copy()
    traces = list(found.traces)
    theta[who], loglik[who], score[who], converged[who] = more.theta, more.loglik, more.score, more.converged
    n_iter[who] += more.n_iter
    n_evaluations[who] += more.n_evaluations
    for i, trace in zip(who, more.traces, strict=True):
        traces[i] = traces[i] + trace[1:]
    interrupted = found.interrupted or more.interrupted
    return Climb(theta, loglik, score, n_iter, n_evaluations, converged, tuple(traces), interrupted)


def finished(ends: Ends, chosen: NDArray[np.intp], logliks: Array) -> Ends:
    """`ends` with the final log-likelihoods of those `chosen`, shape (c,), for them and all that had reached the same.

    Searches that reach one maximum stop at different distances from it, and count as two only afterwards.
    """
    rank = ends.rank.copy()
    for at, loglik in zip(chosen, logliks, strict=True):
        with np.errstate(invalid="ignore"):  # collapsed ones, of -inf, stay so
            same = np.abs(ends.rank - ends.rank[at]) <= SAME
        rank[same] = np.maximum(rank[same], loglik)
    return replace(ends, rank=rank)


def or_any(rank: Array, loglik: Array) -> Array:
    """Log-likelihoods of solutions that have not collapsed, or of all where all have."""
    return rank if np.isfinite(rank).any() else loglik


def without_artefacts(problem: Problem, theta: Array, rank: Array) -> Array:
    """`rank` of points, shape (S, P), with those put last that lie above the best of all by a finer integral.

    With rare events Laplace's method has maxima at huge standard deviations that the likelihood does not have, and they
    are often the highest. The finer integral is not maximised: it only decides which maximum to take. What lies higher
    because the approximation is too low at the best of all stays: it is a maximum, and no nested fit may lie above.
    """
    at = candidates(rank, _ARTEFACT_MARGIN, _COMPARED)
    fine = finer_logliks(problem, theta[at]) if at.size > 1 else None
    if fine is None:
        return rank
    real = (rank[at] - fine <= OVERSTATED) | (fine == fine.max())
    return np.where(rank > rank[at][real].max() + SAME, -np.inf, rank)


def is_stationary(score: Array, problem: Problem, control: Control) -> bool:
    """Whether the score is zero to the tolerance, per subject."""
    return bool(np.abs(score).max(initial=0.0) <= 10 * control.tol * problem.n_subjects)


def newton_polish(problem: Problem, theta: Array) -> Array:
    """`theta` after Newton steps with the exact information, each kept only if it does not lower the log-likelihood.

    Two, and more while they promise a gain: towards an infinite coefficient each goes but a third of what is left.
    Where a step gains less than the log-likelihood's own rounding, the score decides: residuals from cross-products
    lose the more digits the more errors lie between the experts.
    """
    here = evaluate(problem, theta[None])
    for done in range(_MOST_STEPS):
        information = observed_information(problem, theta)
        # By its diagonal, as coefficients of means a few hundred errors apart are known far better than those of gates.
        unit = 1.0 / np.sqrt(np.maximum(np.diag(information), np.finfo(float).tiny))
        values, vectors = np.linalg.eigh(information * np.outer(unit, unit))
        usable = values > 1e-8 * values.max()
        step = unit * (vectors[:, usable] @ ((vectors[:, usable].T @ (unit * here.score[0])) / values[usable]))
        if done >= _STEPS and step @ here.score[0] < _PROMISE:
            break
        with np.errstate(all="ignore"):
            there = evaluate(problem, (theta + step)[None])
        gain = there.loglik[0] - here.loglik[0]
        flatter = np.abs(there.score[0]).max() < np.abs(here.score[0]).max()
        if not (gain >= 0 or (flatter and gain >= -_CROSS_PRODUCTS * ROUNDING * abs(here.loglik[0]))):
            break
        theta, here = theta + step, there
    return theta
