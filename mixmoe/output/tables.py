"""A table as a record: what to print, not how."""

from dataclasses import dataclass

Cell = float | int | str | None


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
        Format specification per column, applied to numbers only, e.g. ``".4g"``, ``".3f"``, ``"p"`` for p-values.
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
