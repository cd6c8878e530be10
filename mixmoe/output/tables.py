"""A table as a record: what to print, not how."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mixmoe.errors import ArgumentError

Cell = float | int | str | None

_ALL_DIGITS = 17  # significant digits that tell any two numbers apart
_LONGEST = 1e15  # numbers from here on have an exponent


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a report.

    Attributes
    ----------
    key : str
        Handle by which a user selects it: ``"header"``, ``"expert1"``, ``"gate"``, ``"random"`` ...
    title : str
    columns : tuple of str
        Column heads, without the one above the row labels.
    index : tuple of str
        Row labels.
    cells : tuple of tuple of (float, int, str or None)
        One tuple per row; None prints blank.
    formats : tuple of str
        Format specification per column, applied to numbers only, e.g. ``".4g"``, ``".3f"``; ``"num"`` for four decimals
        unless the number is very large or small, ``"p"`` for p-values, ``"text"`` for columns of words, which stand to
        the left.
    notes : tuple of str
        Lines printed under the table.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    index: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    formats: tuple[str, ...]
    notes: tuple[str, ...] = ()


def format_cell(cell: Cell, spec: str = "num") -> str:
    """Text of one cell; None and NaN are blank, whole numbers keep no decimals.

    Parameters
    ----------
    cell : float, int, str or None
    spec : str
        As in `Table.formats`.

    Returns
    -------
    str
    """
    if cell is None:
        return ""
    if isinstance(cell, str | bool | int) or spec == "text":
        return str(cell)
    value = float(cell)
    if math.isnan(value):
        return ""
    if spec == "p":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    if spec == "num":
        spec = ".4f" if value == 0 or 1e-3 <= abs(value) < 1e5 else ".4g"
    text = format(value, spec)
    return text.lstrip("-") if not text.strip("-0.") else text  # no sign where all digits are zeros


def told_apart(values: Sequence[float], digits: int) -> tuple[str, ...]:
    """Numbers in the fewest significant digits, but at least so many, in which different ones look different.

    Parameters
    ----------
    values : sequence of float
    digits : int

    Returns
    -------
    tuple of str
        Large numbers keep all digits before the point: ``18421``, not ``1.842e+04``.
    """
    distinct = len(set(values))
    for more in range(digits, _ALL_DIGITS):
        texts = tuple(_significant(value, more) for value in values)
        if len(set(texts)) == distinct:
            return texts
    return tuple(repr(float(value)) for value in values)


def _significant(value: float, digits: int) -> str:
    """A number in so many significant digits, large ones without an exponent."""
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text and 1.0 <= abs(value) < _LONGEST else text


def body(table: Table) -> tuple[tuple[str, ...], ...]:
    """Texts of the cells of a table, one tuple per row."""
    return tuple(
        tuple(format_cell(cell, spec) for cell, spec in zip(row, table.formats, strict=True)) for row in table.cells
    )


def choose(tables: Sequence[Table], keys: Sequence[str] | str | None) -> tuple[Table, ...]:
    """The tables with the given keys, in the order of the keys; all of them if None.

    Raises
    ------
    ArgumentError
        If there is no table with one of the keys.
    """
    if keys is None:
        return tuple(tables)
    known = {table.key: table for table in tables}
    if not isinstance(keys, str | Iterable):
        raise ArgumentError(f"tables must be names such as {', '.join(map(repr, known))}, got {keys!r}")
    wanted = (keys,) if isinstance(keys, str) else tuple(keys)
    for key in wanted:
        if key not in known:
            raise ArgumentError(f"there is no table {key!r}; tables are {', '.join(map(repr, known))}")
    if not wanted:
        raise ArgumentError(f"tables must name at least one of {', '.join(map(repr, known))}, got {keys!r}")
    return tuple(known[key] for key in wanted)
