"""What a reader must know about a fitted MEMoE."""

from collections.abc import Mapping

import numpy as np

from mixmoe._typing import Array
from mixmoe.design.design import DesignNames
from mixmoe.errors import ApproximationWarning, BoundaryWarning, ConvergenceWarning, DegeneracyWarning, MixmoeWarning
from mixmoe.inference.uncertainty import ParamCov, scale_of, wald_limits
from mixmoe.mixed.end_points import residual_deviations
from mixmoe.mixed.information import Boundary
from mixmoe.mixed.likelihood.observed import Problem, evaluate
from mixmoe.mixed.parameters import Coordinates, free_to_working
from mixmoe.mixed.search import Search
from mixmoe.mixture.estimate import SAME, Flag, ParamLayout

_FAR = 1e4  # standard deviations between the data and the origin of a random-effects column
_CERTAIN = 0.99  # 95 % limits of a correlation beyond both ends of this say nothing about it
CATEGORIES: Mapping[str, type[MixmoeWarning]] = {
    "interrupted": ConvergenceWarning,
    "not_converged": ConvergenceWarning,
    "not_replicated": ConvergenceWarning,
    "boundary": BoundaryWarning,
    "edge": BoundaryWarning,
    "empty_category": BoundaryWarning,
    "vague_correlation": BoundaryWarning,
    "separated_gate": BoundaryWarning,
    "separated_expert": BoundaryWarning,
    "ambiguous_labels": DegeneracyWarning,
    "degenerate": DegeneracyWarning,
    "small_expert": DegeneracyWarning,
    "far_origin": ApproximationWarning,
    "few_subjects": DegeneracyWarning,
    "flat_likelihood": DegeneracyWarning,
    "laplace_bias": ApproximationWarning,
    "quadrature_bias": ApproximationWarning,
    "line": BoundaryWarning,
    "small_basis": ApproximationWarning,
}


def find_flags(problem: Problem, found: Search, theta: Array, boundary: Boundary) -> tuple[Flag, ...]:
    """Flags of a search whose ordered solution is `theta`."""
    candidates = (
        _convergence(found, problem),
        _replication(found),
        *_boundary(boundary),
        _degenerate(found, problem, theta, boundary.responsibilities),
        _small(boundary.responsibilities, problem),
    )
    return tuple(flag for flag in candidates if flag is not None)


def uncertainty_flags(layout: ParamLayout, params: Array, cov: ParamCov) -> tuple[Flag, ...]:
    """Flags that rest on the standard errors of the estimates."""
    limits = wald_limits(params, np.sqrt(np.maximum(np.diag(cov.matrix), 0.0)), layout)
    # Limits on the scale of Fisher's z: those of the correlation itself would leave (-1, 1).
    vague = (limits.lower < -_CERTAIN) & (limits.upper > _CERTAIN)
    terms = [p.term for p, v in zip(layout.parameters, vague, strict=True) if v and scale_of(p) == "atanh"]
    terms = [term for term in dict.fromkeys(terms) if term.startswith("corr")]
    if not terms:
        return ()
    return (
        Flag(
            "vague_correlation",
            f"The data do not determine the random-effects correlation {', '.join(terms)} of an expert: its 95 % "
            "limits reach from -1 to 1, as they do where a standard deviation is small beside its error. "
            "Do not interpret it; consider uncorrelated random effects, (... || ...).",
        ),
    )


def far_origin(
    problem: Problem, coordinates: Coordinates, found: Search, reported: Array, names: DesignNames
) -> tuple[Flag, ...]:
    """A flag if the reported parameters do not hold the fit, `reported` being the free vector that they give.

    Random effects are reported where their covariates are zero. Far from the data their correlations come so close to
    one that no digit of what the data say is left.
    """
    # The reported parameters are put back into the likelihood: that they hold the fit is measured, not assumed.
    with np.errstate(all="ignore"):
        lost = found.loglik - float(evaluate(problem, reported[None]).loglik[0])
    if np.isfinite(lost) and lost <= SAME + 1e-9 * abs(found.loglik):
        return ()
    # Working over user coordinates: distance of the origin in standard deviations of the column.
    spread = np.abs(np.diag(coordinates.random))
    far = np.abs(coordinates.random).max(axis=0, initial=0.0) / np.maximum(spread, np.finfo(float).tiny)
    at = int(far.argmax()) if far.size else 0
    if not far.size or far[at] < _FAR:
        return ()
    return (
        Flag(
            "far_origin",
            f"The origin of {names.random[at]!r} lies {far[at]:.2g} standard deviations from the data, where the "
            "correlations of the random effects are one to all digits: the reported parameters have lost the fit "
            f"(log-likelihood {lost:.3g} lower), and standard errors would be wrong. Subtract a constant from "
            f"{names.random[at]!r}, such as its mean.",
        ),
    )


def _convergence(found: Search, problem: Problem) -> Flag | None:
    largest = float(np.abs(found.score).max(initial=0.0)) / problem.n_subjects
    if found.interrupted:
        return Flag(
            "interrupted",
            f"The fit was interrupted (largest score {largest:.2g} per subject): these are the best values so far, not "
            "the maximum; pass the results as start= to go on.",
        )
    if not found.converged:
        return Flag(
            "not_converged",
            f"The optimiser stopped before it converged (largest score {largest:.2g} per subject after {found.n_iter} "
            "iterations); raise max_iter, or simplify the model.",
        )
    return None


def _replication(found: Search) -> Flag | None:
    if found.interrupted or found.degenerate or found.n_starts < 2:
        return None
    summits = found.summits[np.isfinite(found.summits)]
    more = f"raise starts= (for instance to {4 * found.n_starts}) or use fewer experts."
    if len(summits) > 1:
        behind = summits[0] - summits[1:]
        if behind[0] <= SAME:
            return None
        below = ", ".join(f"{fall:.3g}" for fall in behind)
        return Flag(
            "not_replicated",
            f"Only one of {len(found.summits)} independent searches ({found.n_starts} starts in all) reached the best "
            f"log-likelihood; the others ended {below} below it: there may be a higher one; {more}",
        )
    if found.n_replicated > 1:
        return None
    return Flag(
        "not_replicated",
        f"Only one of {found.n_starts} starts reached the best log-likelihood: there may be a higher one; {more}",
    )


def _boundary(boundary: Boundary) -> list[Flag]:
    """What has run into an end of the parameter space."""
    flags = []
    if boundary.singular:
        flags.append(
            Flag(
                "boundary",
                "The random-effects covariance is singular (a variance of zero or a correlation of +-1): these "
                "parameters have no Wald standard errors; the others are estimated as if the direction were known to "
                "be zero. Consider fewer or uncorrelated random effects.",
            )
        )
    if boundary.meanings:
        flags.append(
            Flag(
                "edge",
                f"A parameter of the errors has run into the end of its space ({'; '.join(boundary.meanings)}): it has "
                "no standard error, and the others are estimated as if it were known. "
                "Consider the simpler model that it leads to.",
            )
        )
    if boundary.empty:
        flags.append(
            Flag(
                "empty_category",
                f"An expert has no responses in an ordered category ({'; '.join(boundary.empty)}): thresholds beside "
                "it are infinite, or two of them meet, and those at infinity have no standard errors. Merge levels, "
                "share the steps between thresholds with residual='common', or use fewer experts.",
            )
        )
    return flags


def _degenerate(found: Search, problem: Problem, theta: Array, responsibilities: Array) -> Flag | None:
    if not found.degenerate:
        return None
    noise = residual_deviations(problem.structure, free_to_working(problem.structure, theta[None]))[0]
    k = int(noise.argmin())
    size, N = float(responsibilities[:, k].sum()), problem.n_subjects
    return Flag(
        "degenerate",
        f"The residual variance (or dispersion) of expert {k + 1} has collapsed on the {size:.1f} subjects "
        f"({size / N:.1%}) that it carries: it fits them all but exactly, where the likelihood is unbounded, so that "
        "likelihood and standard errors mean nothing. If these responses have no noise, leave these subjects out or "
        "model them apart; if they are few, use residual='common', fewer experts or more starts.",
    )


def _small(responsibilities: Array, problem: Problem) -> Flag | None:
    s = problem.structure
    if s.n_experts == 1:
        return None
    size = responsibilities.sum(axis=0)
    own = problem.n_coefficients - int(s.common.sum()) if problem.effective is None else problem.effective
    k = int((size - own).argmin())
    if size[k] > own[k] + 1:
        return None
    return Flag(
        "small_expert",
        f"Expert {k + 1} is carried by {size[k]:.1f} subjects for {own[k]:.3g} coefficients of its own: "
        "it may describe outliers, not a group. Use fewer experts, or share coefficients with common(...).",
    )
