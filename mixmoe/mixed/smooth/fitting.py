"""From a model with penalised functions to its estimate: coarse starts, smoothing parameters, what is known of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mixmoe._typing import Array
from mixmoe.design.design import Design
from mixmoe.errors import ArgumentError
from mixmoe.families import Estimated
from mixmoe.mixed.ascents import Search, permute
from mixmoe.mixed.curvature import information
from mixmoe.mixed.likelihood.observed import evaluate, subject_logliks
from mixmoe.mixed.parameters import Params, user_to_reported, user_to_working, working_to_free
from mixmoe.mixed.search import gate_shares
from mixmoe.mixed.smooth.functions import COARSE, COARSEST, Function, Geometry, coarse_columns, geometry_of
from mixmoe.mixed.smooth.marginal import Eliminated, Smoothed, estimate, marginal_loglik, undersmoothed
from mixmoe.mixture.estimate import EMFit, Flag
from mixmoe.mixture.gate import posterior_probabilities
from mixmoe.numerics.optimise import Control

if TYPE_CHECKING:
    from mixmoe.mixed.estimation import Estimation

SIGMA_FLOOR = 1e-4  # in working coordinates, where the pooled residual standard deviation is one
_FROM_STARTS = ("not_replicated", "interrupted", "degenerate")  # flags of the search that hold for the fine fit
_LOG_ODDS = 10.0  # largest of a gate at the start
_LINE = 1e-2  # degrees of freedom beyond those that are not penalised below which nothing else is left
_SAME_MEMBERSHIP = 0.1  # probability by which those of two starts for the same maximum may differ
_CROWDED = 0.9  # of the largest degrees of freedom that a basis has


@dataclass(frozen=True, slots=True)
class Smoothing:
    """Penalised functions at their smoothing parameters.

    Attributes
    ----------
    functions : tuple of Function
    lambdas : ndarray, shape (J,)
        Of ``1/2 lambda b'b``, in units of the user's coefficients.
    edf : ndarray, shape (J,)
        Effective degrees of freedom of each function.
    total : float
        Effective number of all parameters.
    of_experts : ndarray, shape (K,)
        Effective number of coefficients of each expert.
    weights : ndarray, shape (P,)
        What each reported coefficient adds to the degrees of freedom of tests, ``diag(2F - FF)``; one for other
        parameters.
    marginal : float
        Log marginal likelihood, in units of the response.
    of_limits : ndarray, shape (J,)
        Smoothing parameters of the fit around which limits lie, see `marginal.undersmoothed`.
    """

    functions: tuple[Function, ...]
    lambdas: Array
    edf: Array
    total: float
    of_experts: Array
    weights: Array
    marginal: float
    of_limits: Array


def checked_smoothing(given: Any, functions: Sequence[Function]) -> Array:
    """Smoothing parameters that the user knows, NaN for those to be estimated, shape (J,).

    Raises
    ------
    ArgumentError
        If they are no positive numbers or belong to no function.
    """
    names = [f.name for f in functions]
    if given is None:
        return np.full(len(names), np.nan)
    if not functions:
        raise ArgumentError(f"smoothing={given!r} is for formulas with functions s(...), and there are none")
    if not isinstance(given, Mapping):
        given = dict(zip(names, np.broadcast_to(_numbers(given), len(names)).tolist(), strict=True))
    out = np.full(len(names), np.nan)
    for key, value in given.items():
        at = [i for i, f in enumerate(functions) if key in (f.name, f.columns.name)]
        if not at:
            raise ArgumentError(
                f"smoothing= names {key!r}, which is no function of the model; it has {', '.join(names)}"
            )
        out[at] = _numbers(value)
    if not (np.isnan(out) | (np.isfinite(out) & (out > 0))).all():
        raise ArgumentError(
            f"smoothing= must hold positive numbers, got {given!r}; leave it out to have them estimated"
        )
    return out


def _numbers(value: Any) -> Array:
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"smoothing= must be a number, or map functions to numbers, got {value!r}") from error


def smooth_maximum(
    model: "Estimation", n_starts: int, rng: np.random.Generator, start: Estimated | None, control: Control
) -> EMFit:
    """The estimate of a model with penalised functions.

    Starts are searched with the few smoothest columns of each function, without penalties, where the search of a MEMoE
    holds as it is; its maximum goes on with all columns and smoothing parameters by marginal likelihood. Where experts
    meet along an index, their functions may be joined in several ways that are alike but for their bends, of which a
    likelihood without penalties knows nothing: a second search has one column for bends, and the higher marginal
    likelihood is the estimate's. Where it finds the same memberships, it has found the same maximum.

    Parameters
    ----------
    model : Estimation
    n_starts : int
    rng : numpy.random.Generator
    start : Estimated, optional
    control : Control

    Returns
    -------
    EMFit
    """
    geometry = geometry_of(model.functions, model.problem.free, model.structure, model.coordinates)
    begun: list[tuple[EMFit | None, Array]] = []
    if start is not None and start.experts == model.n_experts and not n_starts:
        begun.append((None, model.working(start.values)))
    else:
        for columns in (COARSE, COARSEST) if model.n_experts > 1 else (COARSE,):
            coarse = model.coarse(columns)
            first = None if start is None else _on_coarse(model, coarse, start, columns)
            end = coarse.maximum(n_starts, rng, first, control)
            theta = _refined(model, coarse, end, columns)
            if not any(_alike(model, theta, other) for _, other in begun):
                begun.append((end, theta))
    ends = [
        (rough, estimate(model.problem, geometry, theta, model.given_smoothing, SIGMA_FLOOR, control))
        for rough, theta in begun
    ]
    rough, found = max(ends, key=lambda end: end[1].trace[-1] if end[1].trace.size else -np.inf)
    found = _ordered(model, geometry, found, control)
    at = model.at(found.lambdas, found.theta)
    fit = at.record(_as_search(model, geometry, found))
    more = () if at.smoothing is None else smoothing_flags(at.smoothing)
    flags = (*fit.flags, *more, *between_subjects(model.functions, model.design))
    fit = replace(fit, smoothing=found.lambdas, converged=found.converged, flags=flags)
    if rough is None:
        return fit
    kept = tuple(flag for flag in rough.flags if flag.code in _FROM_STARTS)
    return replace(fit, starts=rough.starts, flags=(*kept, *fit.flags))


def _on_coarse(model: "Estimation", coarse: "Estimation", start: Estimated, columns: int) -> Estimated:
    """A start on the coarse basis: its rougher columns left out."""
    fine = model.with_experts(start.experts)
    p = fine.user(start.values)
    x, w = (coarse_columns(model.design, section, columns) for section in ("expert", "gate"))
    params = replace(p, beta=p.beta[:, :, x], gamma=p.gamma[:, :, w])
    values = user_to_reported(coarse.with_experts(start.experts).structure, params)[0]
    return Estimated(start.experts, values, start.loglik, start.degenerate)


def _refined(model: "Estimation", coarse: "Estimation", fit: EMFit, columns: int) -> Array:
    """The free vector of a fit on the coarse basis with all columns."""
    p, s = coarse.user(fit.params), model.structure
    beta, gamma = np.zeros((1, s.n_experts, s.n_columns)), np.zeros((1, s.n_experts - 1, s.n_gate))
    beta[:, :, coarse_columns(model.design, "expert", columns)] = p.beta
    gamma[:, :, coarse_columns(model.design, "gate", columns)] = p.gamma
    # A coarse basis without penalties may tell experts apart without error: what is infinite there is no start here.
    largest = np.abs(model.design.gate @ np.swapaxes(gamma, 1, 2)).max(axis=1)  # (1, K - 1)
    gamma *= np.minimum(1.0, _LOG_ODDS / np.maximum(largest, _LOG_ODDS))[:, :, None]
    user = Params(gamma, beta, p.factor, p.sigma, p.extra)
    return working_to_free(s, user_to_working(model.coordinates, user))[0]


def _alike(model: "Estimation", theta: Array, other: Array) -> bool:
    """Whether every subject belongs to the same expert at two free vectors."""
    here, there = (posterior_probabilities(subject_logliks(model.problem, each)) for each in (theta, other))
    return bool(np.abs(here - there).max() < _SAME_MEMBERSHIP)


def _ordered(model: "Estimation", geometry: Geometry, found: Smoothed, control: Control) -> Smoothed:
    """The estimate with experts by decreasing mean gate probability."""
    names = [f.name for f in model.functions]
    # Penalties of log odds depend on the expert that they are against: from a new order the maximum is sought again,
    # and experts of nearly the same probability may change places once more.
    for _ in range(model.n_experts):
        order = [int(k) for k in np.argsort(-gate_shares(model.problem, found.theta), kind="stable")]
        if order == sorted(order):
            break
        lambdas = found.lambdas.copy()
        for i, f in enumerate(model.functions):
            if f.columns.section == "expert" and f.expert is not None:
                lambdas[i] = found.lambdas[names.index(f"expert{order[f.expert - 1] + 1}.{f.columns.name}")]
        theta = permute(model.problem, found.theta, order)
        found = estimate(model.problem, geometry, theta, model.given_smoothing, SIGMA_FLOOR, control, lambdas)
    return found


def _as_search(model: "Estimation", geometry: Geometry, found: Smoothed) -> Search:
    """An estimate as the record of a search, whose score is that of the marginal likelihood."""
    penalised = replace(model.problem, ridge=geometry.root(found.lambdas))
    e = evaluate(penalised, found.theta[None])
    return Search(
        theta=found.theta,
        loglik=float(e.loglik[0]),
        score=e.score[0] + found.tilt,
        trace=found.trace,
        n_iter=found.n_iter,
        n_evaluations=found.n_evaluations,
        converged=found.converged,
        interrupted=found.interrupted,
        degenerate=False,
        n_starts=1,
        logliks=e.loglik,
        n_replicated=1,
        ends=np.empty(0),
        summits=e.loglik,
    )


def effective(model: "Estimation", geometry: Geometry, lambdas: Array, theta: Array) -> Smoothing:
    """Degrees of freedom at an estimate: traces of ``(H + S)^-1 H`` in the user's coefficients."""
    plain = replace(model.problem, ridge=None, effective=None)
    H = information(plain, theta)
    F = geometry.inverse @ Eliminated.of(geometry, H).inverse_information(lambdas) @ H @ geometry.basis
    own, twice = np.diag(F), np.diag(2 * F - F @ F)
    weights = np.ones(theta.size)
    for f, at in zip(model.functions, geometry.places, strict=True):
        weights[f.where] = twice[at]
    return Smoothing(
        functions=model.functions,
        lambdas=lambdas,
        edf=np.array([own[at].sum() for at in geometry.places]),
        total=float(own.sum()),
        of_experts=np.array([own[beta].sum() for beta in plain.free.beta]),
        weights=weights,
        marginal=marginal_loglik(plain, geometry, lambdas, theta) - model.log_scale,
        of_limits=undersmoothed(geometry, H, lambdas, np.isnan(model.given_smoothing)),
    )


def smoothing_flags(smoothing: Smoothing) -> tuple[Flag, ...]:
    """What a reader must know of the functions: which are lines, which would like a larger basis."""
    lines, crowded = [], []
    for f, edf in zip(smoothing.functions, smoothing.edf, strict=True):
        free = f.columns.penalised.size - f.rank
        if edf - free < _LINE:
            lines.append(f.name)
        elif edf > free + _CROWDED * f.rank:
            crowded.append(f"{f.name} ({edf:.1f} of at most {free + f.rank})")
    flags = []
    if lines:
        flags.append(
            Flag(
                "line",
                f"Nothing but what is not penalised (a line, unless m= or bs= say otherwise) is left of "
                f"{', '.join(lines)}: smoothing parameters have run to their upper end.",
                "A line would do.",
            )
        )
    if crowded:
        flags.append(
            Flag(
                "small_basis",
                f"The degrees of freedom of {', '.join(crowded)} are close to what the basis has: functions may be "
                "rougher than they can be drawn",
                "raise k=.",
            )
        )
    return tuple(flags)


def between_subjects(functions: Sequence[Function], design: Design) -> tuple[Flag, ...]:
    """The flag of functions in experts that have one value per subject, beside random effects."""
    first = design.starts[design.codes]  # row of each row's subject
    names = [
        f.name
        for f in functions
        if f.columns.section == "expert"
        and np.array_equal(design.expert[:, f.columns.columns], design.expert[np.ix_(first, f.columns.columns)])
    ]
    if not names or not design.random.shape[1] or design.n_units == design.n:
        return ()
    return (
        Flag(
            "between_subjects",
            f"The index of {', '.join(names)} does not vary within subjects: only differences between subjects tell "
            "these functions, about which random effects vary, and experts may part subjects by them.",
            "Each needs many subjects; where the index is to say who belongs to an expert, write s(...) in gate:.",
        ),
    )
