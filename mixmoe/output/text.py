"""Tables as plain text, in the manner of statsmodels."""

import unicodedata
from collections.abc import Sequence

from mixmoe.output.tables import Table, body

_GAP = 2
_WIDTH = 78


def text(tables: Sequence[Table], title: str = "", notes: Sequence[str] = ()) -> str:
    """All tables below one another, at one width.

    Parameters
    ----------
    tables : sequence of Table
        The one with key ``"header"`` is printed as two columns of label and value.
    title : str
    notes : sequence of str
        Printed at the end, numbered.

    Returns
    -------
    str
    """
    widths = _widths(tables)
    blocks = [(t, _header_lines(t) if t.key == "header" else _lines(t, widths[t.columns])) for t in tables]
    width = max([_WIDTH, *(_columns(line) for _, lines in blocks for line in lines)])
    parts = [_centred(title, width)] if title else []
    for table, lines in blocks:
        parts += _framed(table, lines, width)
    parts.append("=" * width)
    parts += [line for table in tables for note in table.notes for line in _wrapped(note, "", width)]
    parts += [line for i, note in enumerate(notes, 1) for line in _wrapped(note, f"[{i}] ", width)]
    return "\n".join(parts)


def _framed(table: Table, lines: list[str], width: int) -> list[str]:
    """Lines of one table with its title and rules."""
    if table.key == "header":
        return ["=" * width, *lines]
    return ["=" * width, _centred(table.title, width), "-" * width, lines[0], "-" * width, *lines[1:]]


def _rows(table: Table) -> list[tuple[str, ...]]:
    """Head and rows of a table as texts of one line."""
    rows = [("", *table.columns), *((name, *row) for name, row in zip(table.index, body(table), strict=True))]
    return [tuple(_one_line(cell) for cell in row) for row in rows]


def _widths(tables: Sequence[Table]) -> dict[tuple[str, ...], list[int]]:
    """Widths of the columns, shared by tables with the same heads."""
    widths: dict[tuple[str, ...], list[int]] = {}
    for table in tables:
        for row in _rows(table):
            known = widths.setdefault(table.columns, [0] * len(row))
            widths[table.columns] = [max(w, _columns(cell)) for w, cell in zip(known, row, strict=True)]
    return widths


def _lines(table: Table, widths: list[int]) -> list[str]:
    """Head and rows of a table, labels to the left and cells to the right."""
    lines = []
    for name, *cells in _rows(table):
        padded = [
            " " * _GAP + _padded(cell, width, right=spec != "text")
            for cell, width, spec in zip(cells, widths[1:], table.formats, strict=True)
        ]
        lines.append((_padded(name, widths[0]) + "".join(padded)).rstrip())
    return lines


def _header_lines(table: Table) -> list[str]:
    """Label and value twice per line; the formula and values too long for half a line get their own."""
    half = _WIDTH // 2 - 1
    pairs = [(_one_line(f"{label}:"), _one_line(row[0])) for label, row in zip(table.index, body(table), strict=True)]
    long = [(a, b) for a, b in pairs if a == "Formula:" or _columns(a) + _columns(b) + _GAP > half]
    short = [pair for pair in pairs if pair not in long]
    indent = max([_columns(a) for a, _ in long], default=0) + _GAP
    lines = [_padded(a, indent) + b for a, b in long]
    left, right = short[: (len(short) + 1) // 2], short[(len(short) + 1) // 2 :]
    for i, (a, b) in enumerate(left):
        line = a + _padded(b, half - _columns(a), right=True)
        if i < len(right):
            line += "  " + right[i][0] + _padded(right[i][1], half - _columns(right[i][0]), right=True)
        lines.append(line)
    return lines


def _one_line(value: str) -> str:
    """The value without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _columns(value: str) -> int:
    """Places that a text takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in value)


def _padded(value: str, width: int, right: bool = False) -> str:
    fill = " " * max(width - _columns(value), 0)
    return fill + value if right else value + fill


def _centred(value: str, width: int) -> str:
    return (" " * max((width - _columns(_one_line(value))) // 2, 0)) + _one_line(value)


def _wrapped(note: str, mark: str, width: int) -> list[str]:
    """A note broken at blanks, later lines indented below the first."""
    lines, line = [], mark
    for word in _one_line(note).split(" "):
        if _columns(line) + _columns(word) + 1 > width and line.strip():
            lines.append(line.rstrip())
            line = " " * len(mark)
        line += word + " "
    return [*lines, line.rstrip()]
