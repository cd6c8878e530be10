"""What a reader must know about a fitted MEMoE."""

import numpy as np
from numpy.typing import NDArray

from mixmoe.em import Flag
from mixmoe.errors import ApproximationWarning, BoundaryWarning, ConvergenceWarning, DegeneracyWarning, warn
from mixmoe.inference.covariance import ParamCov
from mixmoe.inference.intervals import scale_of, wald_limits
from mixmoe.layout import ParamLayout
from mixmoe.mixed.covariance import Boundary
from mixmoe.mixed.estimate import Search
from mixmoe.mixed.likelihood import Problem

Array = NDArray[np.float64]

_CERTAIN = 0.99  # 95 % limits of a correlation beyond both ends of this say nothing about it

_CATEGORIES = {
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
    "laplace_bias": ApproximationWarning,
    "quadrature_bias": ApproximationWarning,
}


def find_flags(
    problem: Problem, found: Search, theta: Array, responsibilities: Array, boundary: Boundary
) -> tuple[Flag, ...]:
    """Flags of a search whose ordered solution is `theta`."""
    candidates = (
        _convergence(found, problem),
        _replication(found),
        _boundary(boundary),
        _edges(boundary),
        _empty_categories(boundary),
        _degenerate(found),
        _small(responsibilities, problem),
    )
    return tuple(flag for flag in candidates if flag is not None)


def warn_flags(flags: tuple[Flag, ...]) -> None:
    """Give each flag as a warning of its category."""
    for flag in flags:
        warn(flag.message, _CATEGORIES[flag.code])


def uncertainty_flags(layout: ParamLayout, params: Array, cov: ParamCov) -> tuple[Flag, ...]:
    """Flags that rest on the standard errors of the estimates."""
    limits = wald_limits(params, np.sqrt(np.maximum(np.diag(cov.matrix), 0.0)), layout)
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
    if found.n_starts < 2 or found.n_replicated > 1 or found.interrupted:
        return None
    return Flag(
        "not_replicated",
        f"Only one of {found.n_starts} starts reached the best log-likelihood: there may be a higher one; "
        f"raise starts= (for instance to {4 * found.n_starts}) or use fewer experts.",
    )


def _boundary(boundary: Boundary) -> Flag | None:
    if not boundary.singular:
        return None
    return Flag(
        "boundary",
        "The random-effects covariance is singular (a variance of zero or a correlation of +-1): these parameters have "
        "no Wald standard errors; the others are estimated as if the direction were known to be zero. "
        "Consider fewer or uncorrelated random effects.",
    )


def _edges(boundary: Boundary) -> Flag | None:
    if not boundary.meanings:
        return None
    return Flag(
        "edge",
        f"A parameter of the errors has run into the end of its space ({'; '.join(boundary.meanings)}): it has no "
        "standard error, and the others are estimated as if it were known. "
        "Consider the simpler model that it leads to.",
    )


def _empty_categories(boundary: Boundary) -> Flag | None:
    if not boundary.empty:
        return None
    return Flag(
        "empty_category",
        f"An expert has no responses in an ordered category ({'; '.join(boundary.empty)}): thresholds beside it are "
        "infinite, or two of them meet, and those at infinity have no standard errors. Merge levels, share the steps "
        "between thresholds with residual='common', or use fewer experts.",
    )


def _degenerate(found: Search) -> Flag | None:
    if not found.degenerate:
        return None
    return Flag(
        "degenerate",
        "The residual variance (or dispersion) of an expert has collapsed on a few subjects, where the likelihood is "
        "unbounded: these estimates are spurious. Use residual='common', fewer experts or more starts.",
    )


def _small(responsibilities: Array, problem: Problem) -> Flag | None:
    s = problem.structure
    if s.n_experts == 1:
        return None
    size = responsibilities.sum(axis=0)
    own = int((~s.common).sum())
    if size.min() > own + 1:
        return None
    return Flag(
        "small_expert",
        f"Expert {int(size.argmin()) + 1} is carried by {size.min():.1f} subjects for {own} coefficients of its own: "
        "it may describe outliers, not a group. Use fewer experts, or share coefficients with common(...).",
    )
