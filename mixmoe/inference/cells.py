"""Cells of units between which the labels of the experts are not determined.

Notes
-----
Exchange the labels of the experts for some of the units only, and the likelihood stays as it is. If the exchanged
predictors are again predictors of the model, there are several equally good answers. A set A of units allows that where
the columns C of every linear predictor that the experts do not share (coefficients, gate) span a space that holds
``1_A c`` with every c in it, that is, where the projection H onto it commutes with the diagonal matrix of A. Then
``H_ij = 0`` for all i in A and j outside. The smallest such sets are the connected components of the graph whose edges
are the pairs with ``H_ij != 0`` for one of the predictors. With C components there are ``K!^(C - 1)`` answers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

import numpy as np
import pandas as pd

from mixmoe._typing import Array, BoolArray, IntArray
from mixmoe.design.design import Design, column_terms, continuous_columns, levels_in_use, used_columns
from mixmoe.mixture.estimate import Flag

_LINKED = 1e-9  # squared cosine of two rows, in orthonormal columns, from which on they are not orthogonal
_RANK = 1e-10  # eigenvalue over the largest that counts
_UNDECIDED = 1.92  # drop of the log-likelihood to which 95 % limits reach: a smaller one decides nothing
EXACT = 1e-6  # drop of the log-likelihood that is rounding
_LISTED = 4  # levels that a text names
_NAMED = 6  # coefficients that a text names
_FEW = 10  # values of a number up to which a text names them one by one


@dataclass(frozen=True, slots=True)
class Predictor:
    """Columns of a linear predictor of which each expert has coefficients of its own.

    Attributes
    ----------
    columns : ndarray, shape (n, p)
    unit : ndarray of int, shape (n,)
        Unit of each row.
    """

    columns: Array
    unit: IntArray


def linked_cells(predictors: Sequence[Predictor], n_units: int) -> IntArray:
    """Smallest sets of units whose labels could be exchanged without the others, as codes, shape (N,).

    Parameters
    ----------
    predictors : sequence of Predictor
        At least one; cells are numbered in the order of its rows.
    n_units : int

    Returns
    -------
    ndarray of int, shape (N,)
        All zero where every unit is linked with every other.
    """
    # Orthonormal columns of the same span.
    bases = []
    for one in predictors:
        size = np.sqrt((one.columns**2).sum(axis=0))
        bases.append(Predictor(np.linalg.qr(one.columns / np.where(size > 0.0, size, 1.0))[0], one.unit))
    # Units in the order of their rows, so that reference levels, whose dummies are zero, come first.
    row = np.zeros(n_units, dtype=np.intp)
    row[predictors[0].unit[::-1]] = np.arange(len(predictors[0].unit))[::-1]
    columns = predictors[0].columns[row]
    order = np.lexsort(columns.T[::-1]) if columns.shape[1] else np.arange(n_units)
    cell = np.full(n_units, -1, dtype=np.intp)
    for code in range(n_units):
        left = order[cell[order] < 0]
        if not left.size:
            break
        # A cell grows from one unit: any row not orthogonal to the span of its rows shares a parameter with it.
        inside = np.zeros(n_units, dtype=bool)
        inside[left[0]] = True
        before = 0
        while inside.sum() > before:
            before = int(inside.sum())
            for one in bases:
                inside[one.unit[_reached(one.columns, inside[one.unit])]] = True
        cell[inside] = code
    return cell


def _reached(Q: Array, inside: BoolArray) -> BoolArray:
    """Rows that are not orthogonal to all rows inside, shape (n,)."""
    if not Q.shape[1]:
        return np.zeros(len(Q), dtype=bool)
    # The span of the rows inside, by the eigenvectors of their cross-products that are not rounding alone.
    values, vectors = np.linalg.eigh(Q[inside].T @ Q[inside])
    basis = vectors[:, values > _RANK * max(values[-1], np.finfo(float).tiny)]
    return np.asarray(((Q @ basis) ** 2).sum(axis=1) > _LINKED * (Q**2).sum(axis=1))


@dataclass(frozen=True, slots=True)
class Exchange:
    """The exchange of two experts in one cell that costs least.

    Attributes
    ----------
    cell : int
    experts : tuple of int
        From 0.
    drop : float
        Of the log-likelihood.
    """

    cell: int
    experts: tuple[int, int]
    drop: float


def cheapest_exchange(cells: IntArray, here: Array, exchanged: dict[tuple[int, int], Array]) -> Exchange:
    """The exchange within a cell by which the log-likelihood falls least.

    Parameters
    ----------
    cells : ndarray of int, shape (N,)
    here : ndarray, shape (N,)
        Log-likelihood of each unit.
    exchanged : mapping of (int, int) to ndarray, shape (N,)
        The same with two experts exchanged in what is not part of the cells' predictors.
    """
    found = []
    for pair, there in exchanged.items():
        # Cells share no parameter, so that an exchange in one costs what its own units lose.
        drops = np.bincount(cells, weights=here - there)
        found += [Exchange(cell, pair, float(drops[cell])) for cell in reversed(range(len(drops)))]
    return min(found, key=lambda one: max(one.drop, EXACT))  # of equal ones the last cell, seldom the reference


def exchanged_labels(n_experts: int, pair: tuple[int, int]) -> IntArray:
    """Experts, from 0, two of them in the place of one another, shape (K,)."""
    out = np.arange(n_experts)
    out[list(pair)] = pair[::-1]
    return out


def pairs_of(n_experts: int) -> list[tuple[int, int]]:
    """Pairs of experts, from 0."""
    return list(combinations(range(n_experts), 2))


def ambiguity_flag(design: Design, cells: IntArray, n_experts: int, found: Exchange, remedy: str) -> Flag | None:
    """What a reader must know of labels that could be exchanged within cells, None if the exchange costs something.

    Parameters
    ----------
    design : Design
    cells : ndarray of int, shape (N,)
        Of the units, in the order of the design.
    n_experts : int
    found : Exchange
    remedy : str
        How the formula marks an effect that keeps the labels apart, with ``{}`` for the effect; empty if it cannot.
    """
    if found.drop > _UNDECIDED:
        return None
    # Columns of the gate that have one value in each cell; all of them if there is none.
    every = used_columns(design, "gate")
    frame = _frame_of(design, every, len(cells))
    columns = [name for name in every if (frame[name].groupby(cells).nunique() == 1).all()] or every
    names, first, second = ", ".join(columns), found.experts[0] + 1, found.experts[1] + 1
    where = described(design, cells == found.cell, columns)
    n_cells = int(cells.max()) + 1
    marked = f"{' and '.join(remedy.format(name) for name in columns)}, or " if remedy else ""
    if abs(found.drop) <= EXACT:
        answers = factorial(n_experts) ** (n_cells - 1)
        number = f"{answers}" if answers < 1000 else f"{factorial(n_experts)}^{n_cells - 1}"
        what = f"not determined: exchanging experts {first} and {second} {where} gives other coefficients and the same "
        what += f"log-likelihood, so that this is one of {number} equally good answers"
    else:
        what = f"hardly determined: exchanging experts {first} and {second} {where} gives other coefficients and a "
        what += f"log-likelihood {f'only {found.drop:.2g} lower' if found.drop > 0 else f'{-found.drop:.2g} higher'}"
    return Flag(
        "ambiguous_labels",
        f"Experts and gate are both saturated in {names}; which expert of one cell is which of another is {what}. "
        f"Means and probabilities within each cell stand, coefficients of {names} do not.",
        f"Identified are models with {marked}a gate or experts without {names}.",
    )


def _frame_of(design: Design, columns: Sequence[str], n: int) -> pd.DataFrame:
    """Columns of the data, one row per unit if there are `n` units, else per row."""
    frame = design.frame[list(columns)]
    return (frame if n == design.n else frame.iloc[design.starts]).reset_index(drop=True)


def infinite_words(names: list[str]) -> str:
    """In words: these coefficients are infinite."""
    listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return f"{listed} {'are' if len(names) > 1 else 'is'} infinite"


def columns_of(design: Design, section: str, chosen: BoolArray) -> list[str]:
    """Columns of the data in the terms of some of the columns of gate or experts, shape (m,)."""
    terms = {term for term, used in zip(column_terms(design, section), chosen, strict=True) if used}
    return [
        name
        for name in used_columns(design, section)
        if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", term) for term in terms)
    ]


def described(design: Design, inside: BoolArray, columns: Sequence[str]) -> str:
    """In words: where some units lie, as ``"where treat = 1"``.

    Parameters
    ----------
    design : Design
    inside : ndarray of bool, shape (N,) or (n,)
        Units, or rows.
    columns : sequence of str
        Columns of the data.
    """
    if inside.all():
        return f"for all {_counted(design, inside)}"
    frame, numeric = _frame_of(design, columns, len(inside)), continuous_columns(design)
    words, like = [], np.ones(len(inside), dtype=bool)
    ranged = [name for name in columns if name in numeric and frame[name].nunique() > _FEW]
    for name in [name for name in columns if name not in ranged]:
        here = levels_in_use(frame[name][inside])
        if len(here) < len(levels_in_use(frame[name])):
            more = f" and {len(here) - _LISTED} more" if len(here) > _LISTED else ""
            listed = ", ".join(_value(v) for v in here[:_LISTED])
            words.append(f"{name} = {listed}" if len(here) == 1 else f"{name} is one of {listed}{more}")
            like &= frame[name].isin(here).to_numpy()
    for name in ranged:
        low, high = frame[name][inside].min(), frame[name][inside].max()
        others = frame[name][like & ~inside]
        if others.size and not ((others >= low) & (others <= high)).any():
            words.append(f"{name} is {_value(low)} to {_value(high)}")
            like[:] = inside
    words_of_all = " and ".join(words)
    if words and (like == inside).all():
        return f"where {words_of_all}"
    # The words alone would name others too: what tells these apart are several columns at a time.
    spans = {name: (frame[name][inside].min(), frame[name][inside].max()) for name in ranged}
    named = [f"{n} from {_value(spans[n][0])} to {_value(spans[n][1])}" if n in spans else n for n in columns]
    together = f" with a combination of {' and '.join(named)}" if len(columns) > 1 else ""
    more = f" ({words_of_all})" if words else ""
    return f"for {int(inside.sum())} of {len(inside)} {_counted(design, inside)}{together}{more}"


def _counted(design: Design, inside: BoolArray) -> str:
    """What is counted: subjects, or rows."""
    return "rows" if len(inside) == design.n else "subjects"


def _value(value: object) -> str:
    """A value of a column as a text shows it, a text with blanks at its ends in quotation marks."""
    if isinstance(value, str) and value != value.strip():
        return repr(value)
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
