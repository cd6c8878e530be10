"""Levels of a categorical or ordinal response: which there are, in which order, and what they count as."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._checks import label_of
from mixmoe._frame import FrameView, is_numeric, missing, shown
from mixmoe._recipe import Recipe, response_column
from mixmoe._rows import Rows, earliest
from mixmoe.errors import CollinearityWarning, DesignError, warn

Array = NDArray[np.float64]

_MOST_LEVELS = 50
_SHOWN = 6


def response_levels(recipe: Recipe, rows: Rows, frame: FrameView) -> tuple[Any, ...] | None:
    """Levels of the response that occur, in their order; None if it is numeric.

    Raises
    ------
    DesignError
        If there is one level only, or an ordinal response does not say how its levels are ordered.

    Warns
    -----
    CollinearityWarning
        If levels of an ordinal response have no rows.
    """
    if recipe.response_kind == "numeric":
        return None
    column = str(response_column(recipe.formula))
    values = rows.columns[column]
    if recipe.response_kind == "ordinal":
        levels = _ordered_levels(values, column)
        _warn_empty(frame.column(column), levels, column)
    else:
        levels = tuple(pd.factorize(values, sort=True)[1])
    if not levels:
        raise DesignError(f"the response {column!r} is missing in every row; it needs two levels")
    if len(levels) < 2:
        raise DesignError(f"the response {column!r} is {shown(levels[0])} in every row; it needs two levels")
    return levels


def level_codes(recipe: Recipe, rows: Rows, frame: FrameView) -> NDArray[np.intp] | None:
    """Place of each response among the levels of the fit, shape (n,), -1 where it is missing.

    None if the data have no response.

    Raises
    ------
    DesignError
        For a level that the fit has not seen.
    """
    column, levels = str(response_column(recipe.formula)), list(recipe.levels or ())
    if column not in rows.columns:
        return None
    codes = pd.Index(levels).get_indexer(pd.Index(np.asarray(rows.columns[column])))
    unseen = (codes < 0) & ~missing(rows.columns[column])
    if unseen.any():
        i = earliest(unseen, rows)
        raise DesignError(
            f"the response {column!r} is {shown(rows.columns[column].iloc[i])} in row {label_of(rows, frame, i)}, "
            f"which the fit has not seen; known are {', '.join(map(shown, levels))}"
        )
    return codes.astype(np.intp)


def level_scores(levels: Sequence[Any]) -> Array:
    """What ordinal levels count as: themselves if they are increasing numbers, else 1, 2, 3 ..., shape (C,)."""
    counted = np.arange(1.0, len(levels) + 1)
    if not all(isinstance(level, int | float | np.number | np.bool_) for level in levels):
        return counted
    values = np.array(levels, dtype=float)
    return values if (np.diff(values) > 0).all() else counted


def level_labels(levels: Sequence[Any]) -> tuple[str, ...]:
    """Levels as parameter names show them; whole numbers without a decimal point."""
    return tuple(f"{level:g}" if isinstance(level, float | np.floating) else str(level) for level in levels)


def _ordered_levels(values: pd.Series, column: str) -> tuple[Any, ...]:
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = values.cat.categories
        if not values.cat.ordered and not pd.api.types.is_numeric_dtype(levels):
            raise _unordered(column, tuple(levels))
        found = tuple(levels if values.cat.ordered else sorted(levels))
    elif is_numeric(values):
        found = tuple(np.unique(values).tolist())
    else:
        raise _unordered(column, tuple(pd.unique(values)))
    if len(found) > _MOST_LEVELS:
        raise DesignError(
            f"the response {column!r} has {len(found)} different values; family='ordinal' is for at most "
            f"{_MOST_LEVELS} ordered levels; group them, for example with pd.cut, or choose another family"
        )
    return found


def _unordered(column: str, levels: tuple[Any, ...]) -> DesignError:
    names = ", ".join(map(shown, levels[:_SHOWN])) + (", ..." if len(levels) > _SHOWN else "")
    return DesignError(
        f"the response {column!r} of family='ordinal' has the levels {names}, whose order is not known; put them in "
        f"order, lowest first: data[{column!r}] = pd.Categorical(data[{column!r}], [{names}], ordered=True), with this "
        "list rearranged; or use numbers"
    )


def _warn_empty(raw: pd.Series, levels: tuple[Any, ...], column: str) -> None:
    if not isinstance(raw.dtype, pd.CategoricalDtype):
        return
    empty = [level for level in raw.cat.categories if level not in levels]
    if empty:
        warn(
            f"the response {column!r} has no rows at {', '.join(map(shown, empty))}, which was left out: the data say "
            "nothing about its thresholds",
            CollinearityWarning,
        )
