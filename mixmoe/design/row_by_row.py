"""Terms whose value in a row depends on the other rows: told apart from those that can be computed for new data."""

from collections.abc import Collection, Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.design.formulaic_engine import Materialized
from mixmoe.design.frame import is_numeric
from mixmoe.design.recipe import ENGINES, WHERE, Recipe
from mixmoe.errors import DesignError

_LOOKED_AT = 2000  # rows at most; what depends on others does so almost everywhere
_ROUNDING = 1e-8  # part of a column's largest value by which products of another length may differ


def check_row_by_row(built: Materialized, recipe: Recipe, table: pd.DataFrame) -> None:
    """Refuse terms such as ``x.shift(1)``, ``np.cumsum(x)`` and ``x - x.mean()``.

    A shift that knows no subjects goes from one to the next and skips the rows that are left out; a mean is another one
    in the data of a prediction. Functions with a memory, such as scale, bs and those made with formulaic's
    ``stateful_transform``, give a row the same value whatever stands around it.

    Parameters
    ----------
    built : Materialized
    recipe : Recipe
        Before the fit: without state.
    table : DataFrame
        What `built` was computed from.

    Raises
    ------
    DesignError
        Names the term.

    Notes
    -----
    Halves of the rows are computed again by themselves and in another order, with the state of the transforms. What
    looks at neighbours, at the order, or at all rows has other values then. Sections that call nothing but functions
    known to work row by row, or with a memory, are not computed again.
    """
    sections = {name: recipe.sections[name] for name in recipe.foreign}
    if not sections:
        return
    complete = table.drop(index=pd.Index(built.bad_rows))
    for half in _halves(complete, {used.name for section in sections for used in recipe.names[section]}):
        alone = complete.iloc[half].reset_index(drop=True)
        try:
            again = ENGINES[recipe.engine].rematerialize(alone, built.specs, sections, recipe.context)
        except DesignError as error:
            section, names = next(iter(recipe.foreign.items()))
            raise _mixing(section, names[0]) from error
        _compare(built, again, half, recipe)


def _halves(table: pd.DataFrame, names: Collection[str]) -> Iterator[NDArray[np.intp]]:
    """Places of the first and the last rows, and of those with the smallest values of each column, backwards."""
    places = np.unique(np.linspace(0, len(table) - 1, min(len(table), _LOOKED_AT)).astype(np.intp))
    middle = len(places) // 2
    orders = [places, places[::-1]]
    # Halves by place may have the same median; those by value have another one, and another mean and largest value.
    orders += [
        places[np.argsort(values.to_numpy()[places], kind="stable")]
        for name, values in table.items()
        if name in names and is_numeric(values)
    ]
    return (order[:middle][::-1] for order in orders if middle)


def _compare(built: Materialized, again: Materialized, half: NDArray[np.intp], recipe: Recipe) -> None:
    """Raise for a column that is not the same in the rows `half` alone."""
    for section, names in recipe.foreign.items():
        # A row that is missing now was none among all.
        missing = [name for name, _ in again.bad_terms if name in names]
        if missing:
            raise _mixing(section, missing[0])
        if again.bad_rows.size:
            continue
        values, expected = again.matrices[section], built.matrices[section][half]
        size = np.abs(expected).max(axis=0, initial=0.0)
        with np.errstate(invalid="ignore"):  # infinite in both, which is told as such
            same = (values == expected) | (np.abs(values - expected) <= _ROUNDING * size)
        differing = np.flatnonzero(~same.all(axis=0))
        if differing.size:
            term = recipe.sections[section][built.owners[section][differing[0]]]
            raise _mixing(section, ENGINES[recipe.engine].name_of(term))


def _mixing(section: str, name: str) -> DesignError:
    return DesignError(
        f"the term {name!r} of {WHERE[section]} has other values in a row where other rows are left out or stand in "
        "another order, as shifts, sums so far and means of the column have; terms are computed row by row, so that "
        "they mean the same for new data: write lag(x), center(x) or scale(x), or make a column of it beforehand, by "
        "subject with data.groupby(...)"
    )
