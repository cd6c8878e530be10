"""What to print and draw, not how: tables, curves with bands, points, marks with limits, rules."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.errors import ArgumentError

Cell = float | int | str | None
_ALL_DIGITS = 17  # significant digits that tell any two numbers apart
_PLAIN = (0.01, 1e5)  # sizes of functions that are shown without an exponent
DECIMALS = 4  # of numbers, unless their errors ask for fewer
_PLACES = 9  # digits of a number that is shown without an exponent
_LONGEST_DF = 1e4  # from here on t is normal, and decimals of its degrees of freedom say nothing
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
        unless the number is very large or small, ``"num0"`` to ``"num4"`` for so many unless it is very large,
        ``"df"`` for degrees of freedom, ``"p"`` for p-values, ``"text"`` for columns of words, which stand to the left.
    notes : tuple of str
        Lines printed under the table.
    printed : tuple of str, or None
        The same for readers of a paper, who fit nothing: without what can be done about it; None if they are the notes.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    index: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    formats: tuple[str, ...]
    notes: tuple[str, ...] = ()
    printed: tuple[str, ...] | None = None

    @property
    def in_print(self) -> "Table":
        """The table with its notes as a paper has them."""
        return self if self.printed is None else replace(self, notes=self.printed, printed=None)


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
    if spec == "df":
        spec = ".1f" if abs(value) < _LONGEST_DF else ".3g"
    if spec.startswith("num"):
        decimals = int(spec[3:] or DECIMALS)
        least = 0.0 if spec[3:] else 1e-3  # a number of decimals was chosen by errors that drown the rest
        spec = f".{decimals}f" if value == 0 or least <= abs(value) < 10.0 ** (_PLACES - decimals) else ".4g"
    text = format(value, spec)
    return text.lstrip("-") if not text.strip("-0.") else text  # no sign where all digits are zeros


def in_light_of(value: float, error: float) -> float:
    """The value, or zero where it is below a thousandth of its standard error: 5e-11 +- 7e-6 says 0."""
    return 0.0 if math.isfinite(error) and abs(value) < 1e-3 * error else value


def number_format(errors: Iterable[float]) -> str:
    """Format of estimates and errors of one table: the decimals that leave its least standard error four digits.

    Four at most; where these leave it less than two digits, each number has the decimals that itself needs.
    """
    known = [error for error in errors if math.isfinite(error) and error > 0]
    if not known or min(known) < 10.0 ** (1 - DECIMALS):
        return "num"
    return f"num{min(max(3 - math.floor(math.log10(min(known))), 0), DECIMALS)}"


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


def value_format(largest: float) -> Callable[[float], str]:
    """How values of a function are shown: decimals that leave the largest three or four digits."""
    if not _PLAIN[0] <= largest < _PLAIN[1]:
        return "{:.3g}".format
    before = int(np.floor(np.log10(largest)))  # power of ten of the first digit
    decimals = 3 - before if before >= 0 else min(2 - before, 4)
    return f"{{:.{max(decimals, 0)}f}}".format


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


@dataclass(frozen=True, slots=True)
class Curve:
    """One function of one variable with optional bands.

    Attributes
    ----------
    panel : str
        Curves with the same panel share an axes.
    label : str
        Legend entry.
    x, y : ndarray, shape (G,)
    lower, upper : ndarray, shape (G,), or None
        Pointwise limits.
    band_lower, band_upper : ndarray, shape (G,), or None
        Simultaneous limits.
    expert : int or None
        Expert counted from 1, which settles the colour.
    xlabel, ylabel : str
    categories : tuple of str
        Names of the places 0, 1 ... on the horizontal axis, if it has no numbers; the function is then drawn as points.
    levels : tuple of (float, str)
        Places on the vertical axis and their names, if it has no numbers.
    shade : int or None
        Which colour, counted from 1, if not that of the expert.
    thin : bool
        Whether it is one of many that are only to be seen together.
    limits, bands : str
        Legend entries of the two shades.
    log : bool
        Whether the vertical axis is logarithmic, as for positive functions.
    compared : bool
        Whether panels are there to be compared, so that they share the vertical axis.
    """

    panel: str
    label: str
    x: Array
    y: Array
    lower: Array | None = None
    upper: Array | None = None
    band_lower: Array | None = None
    band_upper: Array | None = None
    expert: int | None = None
    xlabel: str = ""
    ylabel: str = ""
    categories: tuple[str, ...] = ()
    levels: tuple[tuple[float, str], ...] = ()
    shade: int | None = None
    thin: bool = False
    limits: str = ""
    bands: str = ""
    log: bool = False
    compared: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """Observed series to be drawn thinly behind curves.

    Attributes
    ----------
    x, y : ndarray, shape (n,)
        Rows sorted by unit.
    codes : ndarray of int, shape (n,)
        Unit of each row, 0..N-1, non-decreasing.
    experts : ndarray of int, shape (N,)
        Most probable expert of each unit, counted from 1.
    """

    x: Array
    y: Array
    codes: NDArray[np.int64]
    experts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Marks:
    """Estimates with limits.

    Attributes
    ----------
    x, y, lower, upper : ndarray, shape (G,)
    expert : int or None
    label : str
    """

    x: Array
    y: Array
    lower: Array
    upper: Array
    expert: int | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Cloud:
    """Points without order.

    Attributes
    ----------
    x, y : ndarray, shape (n,)
    expert : int or None
        Counted from 1, settles the colour.
    label : str
        Legend entry; empty for none.
    """

    x: Array
    y: Array
    expert: int | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight line across a panel.

    Attributes
    ----------
    at : float
    across : {"x", "y"}
        The axis on which `at` lies.
    label : str
        Text beside the line.
    """

    at: float
    across: str = "y"
    label: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """What is drawn on one pair of axes: curves, points, rules, and their words.

    Attributes
    ----------
    title, xlabel, ylabel : str
    clouds : tuple of Cloud
    curves : tuple of Curve
        Their own labels and panels are not used.
    marks : tuple of Marks
    rules : tuple of Rule
    note : str
        Small print above the panel.
    points_first : bool
        Whether points lie under the curves, as data do under a smooth line, and not over them.
    xlim : (float, float) or None
        Ends of the horizontal axis.
    categories : tuple of str
        Names of the places 0, 1 ... on the horizontal axis, if it has no numbers.
    """

    title: str
    xlabel: str
    ylabel: str
    clouds: tuple[Cloud, ...] = ()
    curves: tuple[Curve, ...] = ()
    marks: tuple[Marks, ...] = ()
    rules: tuple[Rule, ...] = ()
    note: str = ""
    points_first: bool = True
    xlim: tuple[float, float] | None = None
    categories: tuple[str, ...] = ()
