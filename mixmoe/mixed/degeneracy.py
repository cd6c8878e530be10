"""What a reader must know about a fitted MEMoE."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array, BoolArray, IntArray
from mixmoe.design.design import Design, DesignNames, continuous_columns
from mixmoe.errors import ApproximationWarning, BoundaryWarning, ConvergenceWarning, DegeneracyWarning, MixmoeWarning
from mixmoe.inference.cells import (
    EXACT,
    Exchange,
    Predictor,
    ambiguity_flag,
    cheapest_exchange,
    columns_of,
    described,
    exchanged_labels,
    infinite_words,
    linked_cells,
    pairs_of,
)
from mixmoe.inference.uncertainty import ParamCov, wald_limits
from mixmoe.mixed.ascents import Search, permute_params
from mixmoe.mixed.boundary import Boundary, expert_directions, gate_directions
from mixmoe.mixed.end_points import residual_deviations
from mixmoe.mixed.likelihood.observed import Problem, evaluate, subject_logliks
from mixmoe.mixed.parameters import Coordinates, Params, Structure, free_to_working, working_to_free
from mixmoe.mixed.search import search_from
from mixmoe.mixture.estimate import SAME, EMFit, Flag, ParamLayout
from mixmoe.mixture.gate import MOVED, NONE, gate_log_probabilities, posterior_probabilities, units_without
from mixmoe.numerics.linalg import apply_inverse, logsumexp
from mixmoe.numerics.optimise import Control

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
    "weak_identification": DegeneracyWarning,
    "laplace_bias": ApproximationWarning,
    "quadrature_bias": ApproximationWarning,
    "line": BoundaryWarning,
    "small_basis": ApproximationWarning,
    "between_subjects": DegeneracyWarning,
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
    terms = [p.term for p, v in zip(layout.parameters, vague, strict=True) if v and p.scale == "atanh"]
    terms = [term for term in dict.fromkeys(terms) if term.startswith("corr")]
    if not terms:
        return ()
    return (
        Flag(
            "vague_correlation",
            f"The data do not determine the random-effects correlation {', '.join(terms)} of an expert: its 95 % "
            "limits reach from -1 to 1, as they do where a standard deviation is small beside its error.",
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
            f"(log-likelihood {lost:.3g} lower), and standard errors would be wrong.",
            f"Subtract a constant from {names.random[at]!r}, such as its mean.",
        ),
    )


def _convergence(found: Search, problem: Problem) -> Flag | None:
    largest = float(np.abs(found.score).max(initial=0.0)) / problem.n_subjects
    if found.interrupted:
        return Flag(
            "interrupted",
            f"The fit was interrupted (largest score {largest:.2g} per subject): these are the best values so far, not "
            "the maximum",
            "pass the results as start= to go on.",
        )
    if not found.converged:
        return Flag(
            "not_converged",
            f"The optimiser stopped before it converged (largest score {largest:.2g} per subject after {found.n_iter} "
            "iterations)",
            "raise max_iter, or simplify the model.",
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
            f"log-likelihood; the others ended {below} below it: there may be a higher one",
            more,
        )
    if found.n_replicated > 1:
        return None
    return Flag(
        "not_replicated",
        f"Only one of {found.n_starts} starts reached the best log-likelihood: there may be a higher one",
        more,
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
                "be zero.",
                "Consider fewer or uncorrelated random effects.",
            )
        )
    if boundary.meanings:
        flags.append(
            Flag(
                "edge",
                f"A parameter of the errors has run into the end of its space ({'; '.join(boundary.meanings)}): it has "
                "no standard error, and the others are estimated as if it were known.",
                "Consider the simpler model that it leads to.",
            )
        )
    if boundary.empty:
        flags.append(
            Flag(
                "empty_category",
                f"An expert has no responses in an ordered category ({'; '.join(boundary.empty)}): thresholds beside "
                "it are infinite, or two of them meet, and those at infinity have no standard errors.",
                "Merge levels, share the steps between thresholds with residual='common', or use fewer experts.",
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
        "likelihood and standard errors mean nothing.",
        "If these responses have no noise, leave these subjects out or "
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
        "it may describe outliers, not a group.",
        "Use fewer experts, or share coefficients with common(...).",
    )


def separation_flags(
    design: Design,
    problem: Problem,
    coordinates: Coordinates,
    at: Boundary,
    units: "IntArray | slice" = slice(None),
) -> tuple[Flag, ...]:
    """Flags of infinite coefficients at a solution; `units` as in `gate_separation`."""
    return (
        *gate_separation(design, problem, coordinates, at.theta, units),
        *expert_separation(design, problem, coordinates, at),
    )


def gate_separation(
    design: Design,
    problem: Problem,
    coordinates: Coordinates,
    theta: Array,
    units: "IntArray | slice" = slice(None),
) -> tuple[Flag, ...]:
    """A flag that says which gate coefficients are infinite and in which cells experts have no units, if there are any.

    Parameters
    ----------
    design : Design
        By whose rows it is said where.
    problem : Problem
    coordinates : Coordinates
    theta : ndarray, shape (P,)
    units : ndarray of int, or slice
        Places of the units of the design among those of the problem, if they are some of these.
    """
    found = gate_directions(problem, theta)
    if not found.infinite.any():
        return ()
    s = problem.structure
    shape = (s.n_experts - 1, s.n_gate, int(found.infinite.sum()))
    working = found.vectors[:, found.infinite].reshape(shape)
    user = np.abs(np.linalg.solve(coordinates.gate, working)).max(axis=2)  # (K - 1, m)
    scale = np.abs(np.linalg.inv(coordinates.gate)).max(axis=1)
    infinite = user > MOVED * scale
    gamma = free_to_working(s, theta[None]).gamma
    prior = np.exp(gate_log_probabilities(problem.W, gamma))[0]  # (K, N)
    none = units_without(prior, problem.W, working)
    columns = columns_of(design, "gate", infinite.any(axis=0))
    places = []
    for k, where in enumerate(none):
        if where[units].any():
            places.append(f"expert {k + 1} {described(design, where[units], columns)}")
        elif where.any():
            places.append(f"expert {k + 1} for {where.sum()} of {where.size} subjects")
    names = [f"gate{k + 2}.{design.names.gate[j]}" for k, j in np.argwhere(infinite)]
    cause = f"The gate covariate{'s' if len(columns) > 1 else ''} {', '.join(columns)}" if columns else "The gate"
    return (
        Flag(
            "separated_gate",
            f"{cause} leave{'' if len(columns) > 1 else 's'} no subjects to {'; to '.join(places)}: the probability "
            f"there is zero, and {infinite_words(names)}; the printed values only say so "
            f"and have no standard errors. {_what_stands(prior, none)}",
            _remedy(design, columns),
        ),
    )


def _what_stands(prior: Array, none: BoolArray) -> str:
    """In words: what is finite, and the probabilities of these experts among the other units."""
    parts = []
    for k, where in enumerate(none):
        left = prior[k, ~where]
        if where.any() and left.size and left.min() < 1 - NONE:
            ends = dict.fromkeys((f"{left.min():.2g}", f"{left.max():.2g}"))
            parts.append(f"{' to '.join(ends)} for expert {k + 1}")
    if not parts:
        return "Finite are all other coefficients."
    certain = [f"expert {k + 1}" for k, row in enumerate(prior) if ((row < NONE) | (row > 1 - NONE)).all()]
    but = f", but for {', '.join(certain)}, of which every probability is zero or one" if certain else ""
    return (
        f"Elsewhere it is {', '.join(parts)}. Finite are all other coefficients, proportions and average differences, "
        f"with their standard errors{but}."
    )


def _remedy(design: Design, columns: list[str]) -> str:
    """What to do about it."""
    names = " or ".join(columns)
    merge = " (or merge its levels)" if not set(columns) & continuous_columns(design) else ""
    leave = f"leave out {names}{merge}, or " if columns else ""
    return f"Use gate_penalty='firth' (or a number such as 1) for finite coefficients, {leave}use fewer experts."


def expert_separation(design: Design, problem: Problem, coordinates: Coordinates, at: Boundary) -> tuple[Flag, ...]:
    """A flag that says which expert coefficients are infinite and where responses do not vary, if there are any.

    Parameters
    ----------
    design : Design
    problem : Problem
    coordinates : Coordinates
    at : Boundary
        Of a solution.
    """
    found = expert_directions(problem, at.theta, at.responsibilities)
    if found is None or not found.infinite.any():
        return ()
    directions = np.zeros((problem.free.size, int(found.infinite.sum())))
    directions[found.where] = found.vectors[:, found.infinite]
    scale = np.abs(np.linalg.inv(coordinates.expert)).max(axis=1)
    X = apply_inverse(design.expert, coordinates.expert)
    names: dict[str, None] = {}
    places, used = [], np.zeros(len(scale), dtype=bool)
    for k, beta in enumerate(problem.free.beta):
        infinite = np.abs(np.linalg.solve(coordinates.expert, directions[beta])).max(axis=1) > MOVED * scale
        moves = np.abs(X @ directions[beta]).max(axis=1)
        if not infinite.any():
            continue
        used |= infinite
        for j in np.flatnonzero(infinite):
            owner = "common" if problem.structure.common[j] else f"expert{k + 1}"
            names[f"{owner}.{design.names.expert[j]}"] = None
        columns = columns_of(design, "expert", infinite)
        places.append(f"expert {k + 1} {described(design, moves > MOVED * moves.max(), columns)}")
    columns = columns_of(design, "expert", used)
    ways = [f"leave out {' or '.join(columns)} or merge levels"] if columns else []
    ways += ["share coefficients with common(...)", "use fewer experts"] if problem.structure.n_experts > 1 else []
    return (
        Flag(
            "separated_expert",
            f"Fitted responses of {'; of '.join(places)} have no variance left (all are of one kind, or all zero, or "
            f"their covariates tell the kinds apart without error): {infinite_words(list(names))}; the printed values "
            f"only say so and have no standard errors. Finite are all other coefficients.",
            f"Ways out: {', '.join(ways)}.",
        ),
    )


_MOST_DROP = 100.0  # of which an ascent may take back nearly all
_REFIT = Control(max_iter=200, tol=1e-6)


def with_label_flag(fit: EMFit, design: Design, problem: Problem, theta: Array, coordinates: Coordinates) -> EMFit:
    """The fit, with a flag if labels could be exchanged within cells at hardly any cost.

    Parameters
    ----------
    fit : EMFit
    design : Design
    problem : Problem
    theta : ndarray, shape (P,)
        Its estimates in working coordinates.
    coordinates : Coordinates

    Returns
    -------
    EMFit

    Notes
    -----
    What experts have beside coefficients and gate (residual deviations, covariances, dispersions) is exchanged with
    them where it is made of cells too. What is not must stay as it is: units of the cell have the parameters of the
    other expert there. That costs some log-likelihood, of which an ascent of all parameters takes back what it can.
    """
    s = problem.structure
    if s.n_experts == 1:
        return fit
    cells = _cells(design, s)
    if not cells.any():
        return fit
    here = logsumexp(subject_logliks(problem, theta), axis=1)
    params = free_to_working(s, theta[None])
    # Columns of the random effects, together where they are correlated; columns of the log standard deviation of which
    # each expert has a coefficient.
    groups = [list(range(s.n_random))] if s.correlated else [[j] for j in range(s.n_random)]
    random = [Predictor(design.random[:, group], design.codes) for group in groups if group]
    level = np.ones((design.n, int(s.residual == "expert")))
    sigma = Predictor(np.hstack([level, design.sigma[:, ~design.sigma_common]]), design.codes)
    keeps_random = s.cov_re != "proportional" and _of_cells(cells, random)
    keeps_sigma = _of_cells(cells, [sigma])
    n_sigma = coordinates.log_sigma.size  # coefficients of the log standard deviation among the further parameters
    exchanged = {}
    for first, second in pairs_of(s.n_experts):
        order = exchanged_labels(s.n_experts, (first, second)).tolist()
        # What is not made of the cells goes with the experts: exchanged is what is.
        other, extra = permute_params(params, order), params.extra.copy()
        extra[..., n_sigma:] = other.extra[..., n_sigma:]
        if not keeps_sigma:
            extra[..., :n_sigma] = other.extra[..., :n_sigma]
        factor, kept = params.factor if keeps_random else other.factor, params.sigma if keeps_sigma else other.sigma
        moved = working_to_free(s, replace(params, factor=factor, sigma=kept, extra=extra))[0]
        exchanged[first, second] = logsumexp(subject_logliks(problem, moved), axis=1)
    found = cheapest_exchange(cells, here, exchanged)
    if EXACT < found.drop < _MOST_DROP:
        found = replace(found, drop=_drop_at_rest(design, problem, params, coordinates, cells, found))
    flag = ambiguity_flag(design, cells, s.n_experts, found, "common({})")
    return fit if flag is None else replace(fit, flags=(*fit.flags, flag))


def _drop_at_rest(
    design: Design, problem: Problem, params: Params, coordinates: Coordinates, cells: IntArray, found: Exchange
) -> float:
    """By how much the log-likelihood falls if labels are exchanged in a cell and all parameters follow.

    Infinite if the ascent leads back to the labels that there were.
    """
    inside = cells == found.cell
    swapped = exchanged_labels(problem.structure.n_experts, found.experts)
    theta = working_to_free(problem.structure, params)[0]
    end = search_from(problem, _with_exchange(design, problem, params, coordinates, inside, swapped), _REFIT)
    before, after = (posterior_probabilities(subject_logliks(problem, at).T, axis=0) for at in (theta, end.theta))
    exchanged = np.where(inside, after[swapped], after)
    if np.abs(exchanged - before).sum() > np.abs(after - before).sum():
        return np.inf
    return evaluate(problem, theta[None]).loglik[0] - end.loglik


def _with_exchange(
    design: Design, problem: Problem, params: Params, coordinates: Coordinates, inside: BoolArray, swapped: IntArray
) -> Array:
    """Free vector, shape (1, P), whose predictors of experts are exchanged for the units inside a cell."""
    X, W = apply_inverse(design.expert, coordinates.expert), problem.W
    means = X @ params.beta[0].T  # (n, K)
    odds = np.column_stack([np.zeros(len(W)), W @ params.gamma[0].T])  # (N, K)
    means = np.where(inside[design.codes, None], means[:, swapped], means)
    odds = np.where(inside[:, None], odds[:, swapped], odds)
    beta = np.linalg.lstsq(X, means, rcond=None)[0].T
    gamma = np.linalg.lstsq(W, odds[:, 1:] - odds[:, :1], rcond=None)[0].T
    return working_to_free(problem.structure, replace(params, beta=beta[None], gamma=gamma[None]))


def _cells(design: Design, s: Structure) -> NDArray[np.intp]:
    """Cells of the subjects by gate and own coefficients of the experts, shape (N,)."""
    units = np.arange(design.n_units)
    gate = Predictor(design.gate, units)
    if not linked_cells([gate], design.n_units).any():  # the usual case, at the least cost
        return np.zeros(design.n_units, dtype=np.intp)
    return linked_cells([gate, Predictor(design.expert[:, ~s.common], design.codes)], design.n_units)


def _of_cells(cells: NDArray[np.intp], predictors: Sequence[Predictor]) -> bool:
    """Whether predictors link no unit of one cell with a unit of another."""
    if not predictors:
        return True
    n_cells = int(cells.max()) + 1
    members = Predictor(np.eye(n_cells)[cells], np.arange(len(cells)))
    return all(linked_cells([members, one], len(cells)).max() + 1 == n_cells for one in predictors)
