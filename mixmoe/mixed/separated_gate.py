"""Where gate covariates separate the experts, so that coefficients of the gate are infinite."""

import re

import numpy as np
from numpy.typing import NDArray

from mixmoe.design import Design, column_terms, continuous_columns, used_columns
from mixmoe.em import Flag
from mixmoe.gate import gate_log_probabilities
from mixmoe.inference.cells import described
from mixmoe.mixed.coordinates import Coordinates
from mixmoe.mixed.covariance import gate_directions
from mixmoe.mixed.likelihood import Problem
from mixmoe.mixed.structure import expand

Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_NONE = 1e-3  # a probability below this is zero in the limit, where a direction to infinity moves it
_MOVED = 1e-6  # of the largest, a change along a direction to infinity
_LISTED = 6  # coefficients that the message names


def separation_flags(design: Design, problem: Problem, coordinates: Coordinates, theta: Array) -> tuple[Flag, ...]:
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
    columns = _columns_of(design, infinite.any(axis=0))
    places = [f"expert {k + 1} {described(design, where, columns)}" for k, where in enumerate(none) if where.any()]
    names = [f"gate{k + 2}.{design.names.gate[j]}" for k, j in np.argwhere(infinite)]
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    cause = f"The gate covariate{'s' if len(columns) > 1 else ''} {', '.join(columns)}" if columns else "The gate"
    return (
        Flag(
            "separated_gate",
            f"{cause} leave{'' if len(columns) > 1 else 's'} no subjects to {'; to '.join(places)}: the probability "
            f"there is zero, and {listed} {'are' if len(names) > 1 else 'is'} infinite; the printed values only say so "
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


def _columns_of(design: Design, infinite: BoolArray) -> list[str]:
    """Columns of the data in the terms of some of the gate's columns, shape (m,)."""
    terms = {term for term, chosen in zip(column_terms(design, "gate"), infinite, strict=True) if chosen}
    return [
        name
        for name in used_columns(design, "gate")
        if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", term) for term in terms)
    ]
