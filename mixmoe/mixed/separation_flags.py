"""Flags that say which coefficients of gate and experts are infinite, and in which cells."""

import re

import numpy as np
from numpy.typing import NDArray

from mixmoe.design import Design, column_terms, continuous_columns, used_columns
from mixmoe.em import Flag
from mixmoe.gate import gate_log_probabilities
from mixmoe.inference.cells import described
from mixmoe.mixed.coordinates import Coordinates, apply_inverse
from mixmoe.mixed.covariance import gate_directions
from mixmoe.mixed.likelihood import Problem
from mixmoe.mixed.separation import expert_directions
from mixmoe.mixed.structure import expand

Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_NONE = 1e-3  # a probability below this is zero in the limit, where a direction to infinity moves it
_MOVED = 1e-6  # of the largest, a change along a direction to infinity
_LISTED = 6  # coefficients that the message names


def separation_flags(design: Design, problem: Problem, coordinates: Coordinates, theta: Array) -> tuple[Flag, ...]:
    """Flags of infinite coefficients at a solution, theta, shape (P,)."""
    return (
        *gate_separation(design, problem, coordinates, theta),
        *expert_separation(design, problem, coordinates, theta),
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
    gamma = expand(s, problem.free, theta[None]).gamma
    prior = np.exp(gate_log_probabilities(problem.W, gamma))[0]  # (K, N)
    none = _without(prior, problem.W, working)
    columns = _columns_of(design, "gate", infinite.any(axis=0))
    places = [f"expert {k + 1} {described(design, where, columns)}" for k, where in enumerate(none) if where.any()]
    names = [f"gate{k + 2}.{design.names.gate[j]}" for k, j in np.argwhere(infinite)]
    cause = f"The gate covariate{'s' if len(columns) > 1 else ''} {', '.join(columns)}" if columns else "The gate"
    return (
        Flag(
            "separated_gate",
            f"{cause} leave{'' if len(columns) > 1 else 's'} no subjects to {'; to '.join(places)}: the probability "
            f"there is zero, and {_infinite(names)}; the printed values only say so "
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


def expert_separation(design: Design, problem: Problem, coordinates: Coordinates, theta: Array) -> tuple[Flag, ...]:
    """A flag that says which expert coefficients are infinite and where responses do not vary, if there are any.

    Parameters
    ----------
    design : Design
    problem : Problem
    coordinates : Coordinates
    theta : ndarray, shape (P,)
    """
    found = expert_directions(problem, theta)
    if found is None or not found.infinite.any():
        return ()
    directions = np.zeros((theta.size, int(found.infinite.sum())))
    directions[found.where] = found.vectors[:, found.infinite]
    scale = np.abs(np.linalg.inv(coordinates.expert)).max(axis=1)
    X = apply_inverse(design.expert, coordinates.expert)
    names: dict[str, None] = {}
    places, used = [], np.zeros(len(scale), dtype=bool)
    for k, at in enumerate(problem.free.beta):
        infinite = np.abs(np.linalg.solve(coordinates.expert, directions[at])).max(axis=1) > _MOVED * scale
        moves = np.abs(X @ directions[at]).max(axis=1)
        if not infinite.any():
            continue
        used |= infinite
        for j in np.flatnonzero(infinite):
            owner = "common" if problem.structure.common[j] else f"expert{k + 1}"
            names[f"{owner}.{design.names.expert[j]}"] = None
        columns = _columns_of(design, "expert", infinite)
        places.append(f"expert {k + 1} {described(design, moves > _MOVED * moves.max(), columns)}")
    columns = _columns_of(design, "expert", used)
    ways = [f"leave out {' or '.join(columns)} or merge levels"] if columns else []
    ways += ["share coefficients with common(...)", "use fewer experts"] if problem.structure.n_experts > 1 else []
    return (
        Flag(
            "separated_expert",
            f"Fitted responses of {'; of '.join(places)} have no variance left (all are of one kind, or all zero, or "
            f"their covariates tell the kinds apart without error): {_infinite(list(names))}; the printed values only "
            f"say so and have no standard errors. Finite are all other coefficients. Ways out: {', '.join(ways)}.",
        ),
    )


def _infinite(names: list[str]) -> str:
    """In words: these coefficients are infinite."""
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    return f"{listed} {'are' if len(names) > 1 else 'is'} infinite"


def _columns_of(design: Design, section: str, chosen: BoolArray) -> list[str]:
    """Columns of the data in the terms of some of the columns of gate or experts, shape (m,)."""
    terms = {term for term, used in zip(column_terms(design, section), chosen, strict=True) if used}
    return [
        name
        for name in used_columns(design, section)
        if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", term) for term in terms)
    ]
