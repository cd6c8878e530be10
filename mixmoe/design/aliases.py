"""Columns that others make superfluous, terms without any, and effects that cannot be told apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.formulaic_engine import Materialized
from mixmoe.design.recipe import ENGINES, WHERE, Recipe
from mixmoe.errors import CollinearityWarning, DesignError, warn

EXPLAINED = 5
"""Superfluous columns of which it is worked out what makes them: each takes a fit, and nobody reads more."""
TOLERANCE = 1e-7
"""Part of a column's length that must be left after projection on the columns before it, as in R's `lm`."""
_ROUNDING = 1e-12  # part of a column's length that rounding may leave of one that is constant
_SCREEN = 1e-3
_BLOCK = 65_536


@dataclass(frozen=True, slots=True)
class Alias:
    """A column that others make superfluous.

    Attributes
    ----------
    column : int
        Its position.
    others : tuple of int, or None
        Positions of the columns that it is a combination of; empty for a column of zeros. None for all but the first
        `EXPLAINED`.
    """

    column: int
    others: tuple[int, ...] | None


def aliases(x: Array) -> tuple[Alias, ...]:
    """Columns that are linear combinations of those before them, in order.

    Parameters
    ----------
    x : ndarray, shape (n, p)
        Finite values.
    """
    p = x.shape[1]
    if p == 0 or x.shape[0] == 0:
        return ()
    scale = np.abs(x).max(axis=0)
    scale[scale == 0] = 1.0
    if _clearly_independent(x, scale):
        return ()
    return dependent(_triangle(_near_zero(x), scale), _triangle(x, scale))


def _near_zero(x: Array) -> Array:
    """Columns behind a constant one less their first values.

    With the constant they span what they did, but times far from their origin, such as seconds since 1970, keep the
    digits in which they differ.
    """
    constant = np.flatnonzero((x == x[0]).all(axis=0) & (x[0] != 0))
    if not constant.size:
        return x
    behind = np.arange(x.shape[1]) > constant[0]
    return x - np.where(behind, x[0], 0.0)


def _clearly_independent(x: Array, scale: Array) -> bool:
    """Whether cross-products alone settle that no column is superfluous; they lose half of the digits."""
    with np.errstate(over="ignore", invalid="ignore"):  # squares of huge values; the factorisation has them scaled
        # The common case, n p^2 operations in one product; only what it cannot settle goes through the decomposition.
        gram = x.T @ x / np.outer(scale, scale)
    length = np.sqrt(np.diag(gram))
    if not (np.isfinite(length).all() and (length > 0).all()):
        return False
    correlation = gram / np.outer(length, length)
    try:
        return bool(np.diag(np.linalg.cholesky(correlation)).min() > _SCREEN)
    except np.linalg.LinAlgError:
        return False


def _triangle(x: Array, scale: Array) -> Array:
    """R of the QR decomposition of the scaled columns, built up block by block."""
    # Stacking each block under the triangle so far keeps memory at one block, whatever the number of rows.
    r = np.zeros((0, x.shape[1]))
    for start in range(0, x.shape[0], _BLOCK):
        r = np.asarray(np.linalg.qr(np.vstack([r, x[start : start + _BLOCK] / scale]), mode="r"))
    return r


def dependent(r: Array, written: Array) -> tuple[Alias, ...]:
    """Superfluous columns by the triangle of the columns near zero; `written` is that of the columns as they are.

    Both are factors R of QR decompositions, shape (., p); see `aliases`.
    """
    whole = np.zeros((r.shape[0], min(r.shape)), order="F")
    kept: list[int] = []
    found: list[Alias] = []
    for j in range(r.shape[1]):
        column, basis = r[:, j], whole[:, : len(kept)]
        length = np.linalg.norm(column)
        rest = column - basis @ (basis.T @ column)
        # Projected twice: once leaves rounding of the size of the column, twice of the size of what is left (Kahan).
        rest = rest - basis @ (basis.T @ rest)
        left = np.linalg.norm(rest)
        if left <= max(TOLERANCE * length, _ROUNDING * np.linalg.norm(written[:, j])):
            found.append(Alias(j, _makers(written, kept, j) if len(found) < EXPLAINED else None))
        else:
            whole[:, len(kept)] = rest / left
            kept.append(j)
    return tuple(found)


def _makers(r: Array, kept: list[int], j: int) -> tuple[int, ...]:
    length = np.linalg.norm(r[:, j])
    if not kept or length == 0:
        return ()
    weights = np.linalg.lstsq(r[:, kept], r[:, j], rcond=None)[0]
    share = np.abs(weights) * np.linalg.norm(r[:, kept], axis=0) / length
    return tuple(k for k, s in zip(kept, share, strict=True) if s > 1e-6)


def warn_empty_terms(recipe: Recipe, built: Materialized) -> None:
    """Say which terms have no column."""
    for section in ("expert", "gate", "sigma"):
        for i, term in enumerate(recipe.sections[section]):
            if i not in built.owners[section]:
                name = ENGINES[recipe.engine].name_of(term)
                warn(
                    f"the term {name!r} of {WHERE[section]} was left out: it adds no column, "
                    "as a category with one level does; remove it from the formula",
                    CollinearityWarning,
                )


def independent(section: str, superfluous: Sequence[Alias], names: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which columns of a section are kept, shape (p,), with warnings for those that are superfluous."""
    kept = np.ones(len(names), dtype=bool)
    kept[[alias.column for alias in superfluous]] = False
    for alias in superfluous:
        if alias.others is not None:
            warn(
                f"column {names[alias.column]!r} of {WHERE[section]} was left out: {_reason(alias.others, names)}; "
                "remove it from the formula",
                CollinearityWarning,
            )
    further = [names[alias.column] for alias in superfluous if alias.others is None]
    if further:
        shown_names = ", ".join(map(repr, further[:EXPLAINED])) + (", ..." if len(further) > EXPLAINED else "")
        warn(
            f"{len(further)} further columns of {WHERE[section]} were left out, which are zero or combinations of "
            f"others as well: {shown_names}; write out the terms that the data can tell apart",
            CollinearityWarning,
        )
    return kept


def _reason(others: tuple[int, ...], names: tuple[str, ...]) -> str:
    if not others:
        return "it is zero everywhere"
    if [names[k] for k in others] == ["Intercept"]:
        return "it is constant, as 'Intercept' is"
    if len(others) == 1:
        return f"it is a multiple of {names[others[0]]!r}"
    return f"it is a linear combination of {', '.join(repr(names[k]) for k in others)}"


def refuse_overlaps(recipe: Recipe, built: Materialized, kept: Mapping[str, NDArray[np.bool_]]) -> None:
    """Refuse functions ``s(...)`` whose penalised columns are combinations of others: each needs all of its own."""
    for section, terms in built.smooths.items():
        owners = np.array(built.owners[section], dtype=int)
        for i, term in terms.items():
            of = np.arange((owners == i).sum()) % term.width
            if (~kept[section][owners == i] & (of >= term.n_free)).any():
                raise DesignError(
                    f"the function {ENGINES[recipe.engine].name_of(recipe.sections[section][i])!r} of {WHERE[section]} "
                    "overlaps with other terms, which are functions of the same index already, as s(x) is beside "
                    "s(x, by=g) with a function for each category; leave one of them out"
                )


def check_effects(names: tuple[str, ...], superfluous: Sequence[Alias], most: int) -> None:
    """Refuse random effects that cannot be told from one another.

    Parameters
    ----------
    names : tuple of str
    superfluous : sequence of Alias
    most : int
        Rows of the subject with the most.
    """
    for alias in superfluous:
        raise DesignError(
            f"the random effect {names[alias.column]!r} of re: cannot be told from the others: "
            f"{_reason(alias.others or (), names)}; remove it from re:"
        )
    if len(names) > most:
        raise DesignError(
            f"re: has {len(names)} random effects per subject ({', '.join(names)}), but no subject has more than "
            f"{most} rows; remove random effects until there are at most {most}"
        )
