"""Gates that are not determined.

Separated experts, and labels that could be exchanged between cells of its factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array, BoolArray
from mixmoe.design.design import Design, continuous_columns
from mixmoe.inference.cells import (
    Predictor,
    ambiguity_flag,
    cheapest_exchange,
    columns_of,
    described,
    infinite_words,
    linked_cells,
    pairs_of,
)
from mixmoe.mixed.information import Boundary
from mixmoe.mixed.likelihood.observed import Problem, subject_logliks
from mixmoe.mixed.parameters import Coordinates, Params, Structure, free_to_working, working_to_free
from mixmoe.mixed.search import permute_params
from mixmoe.mixed.separation import expert_directions, gate_directions
from mixmoe.mixture.estimate import EMFit, Flag
from mixmoe.mixture.gate import gate_log_probabilities
from mixmoe.numerics.linalg import apply_inverse, logsumexp

_NONE = 1e-3  # a probability below this is zero in the limit, where a direction to infinity moves it
_MOVED = 1e-6  # of the largest, a change along a direction to infinity


def separation_flags(design: Design, problem: Problem, coordinates: Coordinates, at: Boundary) -> tuple[Flag, ...]:
    """Flags of infinite coefficients at a solution."""
    return (
        *gate_separation(design, problem, coordinates, at.theta),
        *expert_separation(design, problem, coordinates, at),
    )


def gate_separation(design: Design, problem: Problem, coordinates: Coordinates, theta: Array) -> tuple[Flag, ...]:
    """A flag that says which gate coefficients are infinite and in which cells experts have no units, if there are any.

    Parameters
    ----------
    design : Design
    problem : Problem
    coordinates : Coordinates
    theta : ndarray, shape (P,)
    """
    found = gate_directions(problem, theta)
    if not found.infinite.any():
        return ()
    s = problem.structure
    shape = (s.n_experts - 1, s.n_gate, int(found.infinite.sum()))
    working = found.vectors[:, found.infinite].reshape(shape)
    user = np.abs(np.linalg.solve(coordinates.gate, working)).max(axis=2)  # (K - 1, m)
    scale = np.abs(np.linalg.inv(coordinates.gate)).max(axis=1)
    infinite = user > _MOVED * scale
    gamma = free_to_working(s, theta[None]).gamma
    prior = np.exp(gate_log_probabilities(problem.W, gamma))[0]  # (K, N)
    none = _without(prior, problem.W, working)
    columns = columns_of(design, "gate", infinite.any(axis=0))
    places = [f"expert {k + 1} {described(design, where, columns)}" for k, where in enumerate(none) if where.any()]
    names = [f"gate{k + 2}.{design.names.gate[j]}" for k, j in np.argwhere(infinite)]
    cause = f"The gate covariate{'s' if len(columns) > 1 else ''} {', '.join(columns)}" if columns else "The gate"
    return (
        Flag(
            "separated_gate",
            f"{cause} leave{'' if len(columns) > 1 else 's'} no subjects to {'; to '.join(places)}: the probability "
            f"there is zero, and {infinite_words(names)}; the printed values only say so "
            f"and have no standard errors. {_what_stands(prior, none)} {_remedy(design, columns)}",
        ),
    )


def _what_stands(prior: Array, none: BoolArray) -> str:
    """In words: what is finite, and the probabilities of these experts among the other units."""
    parts = []
    for k, where in enumerate(none):
        left = prior[k, ~where]
        if where.any() and left.size and left.min() < 1 - _NONE:
            ends = dict.fromkeys((f"{left.min():.2g}", f"{left.max():.2g}"))
            parts.append(f"{' to '.join(ends)} for expert {k + 1}")
    if not parts:
        return "Finite are all other coefficients."
    return (
        f"Elsewhere it is {', '.join(parts)}. Finite are all other coefficients, proportions and average differences, "
        "with their standard errors."
    )


def _remedy(design: Design, columns: list[str]) -> str:
    """What to do about it."""
    names = " or ".join(columns)
    merge = " (or merge its levels)" if not set(columns) & continuous_columns(design) else ""
    leave = f"leave out {names}{merge}, or " if columns else ""
    return f"Use gate_penalty='firth' (or a number such as 1) for finite coefficients, {leave}use fewer experts."


def _without(prior: Array, W: Array, directions: Array) -> BoolArray:
    """Which experts have no part in which units because coefficients are infinite, shape (K, N)."""
    moves = np.einsum("nm,jmr->jnr", W, directions)  # of the log odds against expert 1
    moves = np.concatenate([np.zeros_like(moves[:1]), moves])
    top = moves[prior.argmax(axis=0), np.arange(W.shape[0])]  # of the expert that is the likeliest there
    apart = np.abs(moves - top).max(axis=2)
    return np.asarray((prior < _NONE) & (apart > _MOVED * np.abs(moves).max()))


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
        infinite = np.abs(np.linalg.solve(coordinates.expert, directions[beta])).max(axis=1) > _MOVED * scale
        moves = np.abs(X @ directions[beta]).max(axis=1)
        if not infinite.any():
            continue
        used |= infinite
        for j in np.flatnonzero(infinite):
            owner = "common" if problem.structure.common[j] else f"expert{k + 1}"
            names[f"{owner}.{design.names.expert[j]}"] = None
        columns = columns_of(design, "expert", infinite)
        places.append(f"expert {k + 1} {described(design, moves > _MOVED * moves.max(), columns)}")
    columns = columns_of(design, "expert", used)
    ways = [f"leave out {' or '.join(columns)} or merge levels"] if columns else []
    ways += ["share coefficients with common(...)", "use fewer experts"] if problem.structure.n_experts > 1 else []
    return (
        Flag(
            "separated_expert",
            f"Fitted responses of {'; of '.join(places)} have no variance left (all are of one kind, or all zero, or "
            f"their covariates tell the kinds apart without error): {infinite_words(list(names))}; the printed values "
            f"only say so and have no standard errors. Finite are all other coefficients. Ways out: {', '.join(ways)}.",
        ),
    )


def with_label_flag(fit: EMFit, design: Design, problem: Problem, theta: Array, n_sigma: int) -> EMFit:
    """The fit, with a flag if labels could be exchanged within cells at hardly any cost.

    Parameters
    ----------
    fit : EMFit
    design : Design
    problem : Problem
    theta : ndarray, shape (P,)
        Its estimates in working coordinates.
    n_sigma : int
        How many of the further parameters are coefficients of the log standard deviation, v; they come first.

    Returns
    -------
    EMFit

    Notes
    -----
    What experts have beside coefficients and gate (residual deviations, covariances, dispersions) is exchanged with
    them where it is made of cells too. What is not must stay as it is, and the log-likelihood falls by what that costs:
    units of the cell have the parameters of the other expert there.
    """
    s = problem.structure
    if s.n_experts == 1:
        return fit
    cells = _cells(design, s)
    if not cells.any():
        return fit
    here = logsumexp(subject_logliks(problem, theta), axis=1)
    params = free_to_working(s, theta[None])
    made_of_cells = _Rest(
        s.cov_re != "proportional" and _of_cells(cells, _random_predictors(design, s)),
        _of_cells(cells, [_sigma_predictor(design, s)]),
        n_sigma,
    )
    exchanged = {}
    for first, second in pairs_of(s.n_experts):
        order = list(range(s.n_experts))
        order[first], order[second] = second, first
        moved = working_to_free(s, _rest_permuted(params, order, made_of_cells))[0]
        exchanged[first, second] = logsumexp(subject_logliks(problem, moved), axis=1)
    found = cheapest_exchange(cells, here, exchanged)
    flag = ambiguity_flag(design, cells, s.n_experts, found, "common({})")
    return fit if flag is None else replace(fit, flags=(*fit.flags, flag))


@dataclass(frozen=True, slots=True)
class _Rest:
    """Whether what experts have beside coefficients and gate can be exchanged within the cells too.

    Attributes
    ----------
    random, sigma : bool
        Covariances of the random effects; residual deviations with their coefficients.
    n_sigma : int
        Coefficients of the log standard deviation among the further parameters.
    """

    random: bool
    sigma: bool
    n_sigma: int


def _cells(design: Design, s: Structure) -> NDArray[np.intp]:
    """Cells of the subjects by gate and own coefficients of the experts, shape (N,)."""
    units = np.arange(design.n_units)
    gate = Predictor(design.gate, units)
    if not linked_cells([gate], design.n_units).any():  # the usual case, at the least cost
        return np.zeros(design.n_units, dtype=np.intp)
    return linked_cells([gate, Predictor(design.expert[:, ~s.common], design.codes)], design.n_units)


def _rest_permuted(params: Params, order: Sequence[int], rest: _Rest) -> Params:
    """Parameters with what is not made of the cells in another order of the experts."""
    other, extra, v = permute_params(params, order), params.extra.copy(), rest.n_sigma
    extra[..., v:] = other.extra[..., v:]
    if not rest.sigma:
        extra[..., :v] = other.extra[..., :v]
    factor = params.factor if rest.random else other.factor
    return replace(params, factor=factor, sigma=params.sigma if rest.sigma else other.sigma, extra=extra)


def _of_cells(cells: NDArray[np.intp], predictors: Sequence[Predictor]) -> bool:
    """Whether predictors link no unit of one cell with a unit of another."""
    if not predictors:
        return True
    n_cells = int(cells.max()) + 1
    members = Predictor(np.eye(n_cells)[cells], np.arange(len(cells)))
    return all(linked_cells([members, one], len(cells)).max() + 1 == n_cells for one in predictors)


def _random_predictors(design: Design, s: Structure) -> list[Predictor]:
    """Columns of the random effects, together where they are correlated."""
    q = s.n_random
    groups = [list(range(q))] if s.correlated else [[j] for j in range(q)]
    return [Predictor(design.random[:, group], design.codes) for group in groups if group]


def _sigma_predictor(design: Design, s: Structure) -> Predictor:
    """Columns of the log standard deviation of which each expert has a coefficient."""
    own = design.sigma[:, ~design.sigma_common]
    level = np.ones((design.n, int(s.residual == "expert")))
    return Predictor(np.hstack([level, own]), design.codes)
