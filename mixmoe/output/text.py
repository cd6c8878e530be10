"""Tables as plain text in the manner of statsmodels, as Markdown and as HTML."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape

from mixmoe.output.records import Table, body

GAP = 2  # places between columns
WIDTH = 78  # places of a line: the usual terminal of 80 without its last two
_LABEL, _WORDS = 20, 16  # places that row labels and columns of words keep when a table is too wide
_WORD = re.compile(r"(?<=\s)")  # where a text goes on in the next line
_BREAKS = re.compile(r"(?<=[,:;=|)_/-])(?![,;)])|(?<=\.)(?!\d)|(?=[(\[])")  # and where a word that is too long does


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
    fitting = [part for table in tables for part in _narrow(table, tables)]
    widths = _widths(fitting)
    parts = [_centred(title, WIDTH)] if title else []
    for table in fitting:
        of_header = table.key == "header"
        head, *rows = _header_lines(table) if of_header else _lines(table, widths[table.columns])
        parts += ["=" * WIDTH, *([] if of_header else [_centred(table.title, WIDTH), "-" * WIDTH]), *head]
        parts += [*([] if of_header else ["-" * WIDTH]), *(line for row in rows for line in row)]
    parts.append("=" * WIDTH)
    parts += [line for table in tables for note in table.notes for line in _wrapped(note, "")]
    parts += [line for i, note in enumerate(notes, 1) for line in _wrapped(note, f"[{i}] ")]
    return "\n".join(parts)


def _narrow(table: Table, tables: Sequence[Table]) -> Iterator[Table]:
    """The table, or its columns in several tables below one another where they do not fit beside one another."""
    if table.key == "header":
        yield table
        return
    widths = [w + GAP for w in _natural(tables)[table.columns]]
    floors = [
        min(w, _LABEL + GAP if spec == "label" else _WORDS + GAP) if spec in ("label", "text") else w
        for w, spec in zip(widths, ("label", *table.formats), strict=True)
    ]
    yield from side_by_side(table, floors, WIDTH + GAP)


def side_by_side(table: Table, widths: Sequence[float], room: float) -> Iterator[Table]:
    """The table cut into tables of as many columns as fit into the room; row labels are repeated.

    Parameters
    ----------
    table : Table
    widths : sequence of float
        Least width of the row labels and of each column, gaps included.
    room : float
        In the unit of the widths.
    """
    cuts, used = [0], widths[0]
    for i, end in _together(table.columns):
        width = sum(widths[1:][i:end])
        if used + width > room and i > cuts[-1]:
            cuts.append(i)
            used = widths[0]
        used += width
    for first, last in zip(cuts, [*cuts[1:], len(table.columns)], strict=True):
        yield replace(
            table,
            title=table.title + (" (continued)" if first and table.title else ""),
            columns=table.columns[first:last],
            cells=tuple(row[first:last] for row in table.cells),
            formats=table.formats[first:last],
            notes=table.notes if last == len(table.columns) else (),
        )


def _together(heads: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Runs of columns that are not parted, as first and one behind the last: a lower limit and its upper one."""
    i = 0
    while i < len(heads):
        end = i + 1 + (heads[i].startswith("[") and heads[i + 1 : i + 2] != () and heads[i + 1].endswith("]"))
        yield i, end
        i = end


def shown_rows(table: Table) -> list[tuple[str, ...]]:
    """Head and rows of a table as texts of one line; a label keeps the blanks that indent it."""
    rows = [("", *table.columns), *((name, *row) for name, row in zip(table.index, body(table), strict=True))]
    return [(indentation(name) * "  " + _one_line(name), *(_one_line(cell) for cell in cells)) for name, *cells in rows]


def indentation(label: str) -> int:
    """Whether a row label stands below another: it begins with a blank then."""
    return int(label.startswith(" "))


def _natural(tables: Sequence[Table]) -> dict[tuple[str, ...], list[int]]:
    """Widths that nothing is broken for, shared by tables with the same heads."""
    widths: dict[tuple[str, ...], list[int]] = {}
    for table in tables:
        for row in shown_rows(table):
            known = widths.setdefault(table.columns, [0] * len(row))
            widths[table.columns] = [max(w, _columns(cell)) for w, cell in zip(known, row, strict=True)]
    return widths


def _widths(tables: Sequence[Table]) -> dict[tuple[str, ...], list[int]]:
    """Widths that fit into a line: columns of words, then row labels, give way; a column by itself is broken."""
    shared = _natural(tables)
    for table in tables:
        widths = shared[table.columns]
        yielding = [i for i, spec in enumerate(table.formats, 1) if spec == "text"]
        for i, floor in (*((i, _WORDS) for i in yielding), (0, _LABEL), *((i, 1) for i in range(1, len(widths)))):
            excess = sum(widths) + GAP * (len(widths) - 1) - WIDTH
            widths[i] -= max(min(excess, widths[i] - floor), 0)
    return shared


def _lines(table: Table, widths: list[int]) -> list[list[str]]:
    """Lines of the head and of each row, labels to the left and cells to the right."""
    sides = [False, *(spec != "text" for spec in table.formats)]
    lines = []
    for row in shown_rows(table):
        broken = [broken_lines(cell, width) for cell, width in zip(row, widths, strict=True)]
        lines.append(
            [
                (" " * GAP)
                .join(
                    _padded(cell[i] if i < len(cell) else "", width, right)
                    for cell, width, right in zip(broken, widths, sides, strict=True)
                )
                .rstrip()
                for i in range(max(map(len, broken)))
            ]
        )
    return lines


def _header_lines(table: Table) -> list[list[str]]:
    """Label and value twice per line; the formula and values too long for half a line get their own."""
    half = WIDTH // 2 - 1
    pairs = [(_one_line(f"{label}:"), _one_line(row[0])) for label, row in zip(table.index, body(table), strict=True)]
    long = [(a, b) for a, b in pairs if a == "Formula:" or _columns(a) + _columns(b) + GAP > half]
    short = [pair for pair in pairs if pair not in long]
    indent = max([_columns(a) for a, _ in long], default=0) + GAP
    lines = [
        _padded(a if i == 0 else "", indent) + part
        for a, b in long
        for i, part in enumerate(broken_lines(b, max(WIDTH - indent, 1)))
    ]
    left, right = short[: (len(short) + 1) // 2], short[(len(short) + 1) // 2 :]
    for i, (a, b) in enumerate(left):
        line = a + _padded(b, half - _columns(a), right=True)
        if i < len(right):
            line += "  " + right[i][0] + _padded(right[i][1], half - _columns(right[i][0]), right=True)
        lines.append(line)
    return [lines]


def broken_lines(value: str, width: float, measure: Callable[[str], float] | None = None) -> list[str]:
    """A text in lines of at most a width, broken after blanks and punctuation, inside a word only where it must be."""
    size = measure or _columns
    lines, line = [], ""
    for piece in (
        part for word in _WORD.split(value) for part in (_BREAKS.split(word) if size(word.rstrip()) > width else [word])
    ):
        if size((line + piece).rstrip()) > width and line:
            lines.append(line)
            line = "  " if width > _WORDS else ""  # a hanging indent, where there is room for one
        line += piece
        while size(line.rstrip()) > width:
            fitting = next(i for i in range(len(line), 0, -1) if size(line[:i]) <= width or i == 1)
            lines.append(line[:fitting])
            line = line[fitting:]
    return [part.rstrip() for part in [*lines, line]]


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


def _wrapped(note: str, mark: str) -> list[str]:
    """A note broken at blanks, later lines indented below the first."""
    lines, line = [], mark
    for word in _one_line(note).split(" "):
        for piece in broken_lines(word, WIDTH - len(mark)):
            if _columns(line) + _columns(piece) > WIDTH and line.strip():
                lines.append(line.rstrip())
                line = " " * len(mark)
            line += piece
        line += " "
    return [*lines, line.rstrip()]


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#&$])")


def markdown(tables: Sequence[Table], title: str = "", notes: Sequence[str] = ()) -> str:
    """Pipe tables below one another; every text is escaped.

    Parameters
    ----------
    tables : sequence of Table
    title : str
    notes : sequence of str

    Returns
    -------
    str
    """
    head = [f"**{_escaped(title)}**"] if title else []
    foot = ["\n".join(f"- {_escaped(note)}" for note in notes)] if notes else []
    return "\n\n".join([*head, *(_markdown_table(t) for t in tables), *foot]) + "\n"


def _markdown_table(table: Table) -> str:
    head = ["", *(_escaped(c) for c in table.columns)]
    rule = [":---", *(":---" if spec == "text" else "---:" for spec in table.formats)]
    rows = [
        [indentation(label) * "&emsp;" + _escaped(label), *(_escaped(cell) for cell in cells)]
        for label, cells in zip(table.index, body(table), strict=True)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]
    title = [f"**{_escaped(table.title)}**", ""] if table.title else []
    notes = ["", *(_escaped(note) for note in table.notes)] if table.notes else []
    return "\n".join([*title, *lines, *notes])


def _escaped(value: str) -> str:
    """The text with a backslash before each character that Markdown reads."""
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))


def html(tables: Sequence[Table], title: str = "", notes: Sequence[str] = ()) -> str:
    """A fragment with one ``<table>`` per table; every text is escaped.

    Parameters
    ----------
    tables : sequence of Table
    title : str
    notes : sequence of str

    Returns
    -------
    str
    """
    head = f"<h4>{escape(title)}</h4>\n" if title else ""
    lines = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    foot = f'<ul class="mixmoe-notes">\n{lines}</ul>\n' if notes else ""
    return f'<div class="mixmoe">\n{head}{"".join(_html_table(t) for t in tables)}{foot}</div>'


def _html_table(table: Table) -> str:
    caption = f"<caption>{escape(table.title)}</caption>\n" if table.title else ""
    sides = ["left" if spec == "text" else "right" for spec in table.formats]
    heads = "".join(
        f'<th scope="col" style="text-align:{side}">{escape(c)}</th>'
        for c, side in zip(table.columns, sides, strict=True)
    )
    head = f"<thead><tr><td></td>{heads}</tr></thead>\n" if any(table.columns) else ""
    rows = ""
    for label, cells in zip(table.index, body(table), strict=True):
        values = "".join(
            f'<td style="text-align:{side}">{escape(cell)}</td>' for cell, side in zip(cells, sides, strict=True)
        )
        name = indentation(label) * "&emsp;" + escape(label.strip())
        rows += f'<tr><th scope="row" style="text-align:left">{name}</th>{values}</tr>\n'
    notes = "".join(f"<p><small>{escape(note)}</small></p>\n" for note in table.notes)
    return f"<table>\n{caption}{head}<tbody>\n{rows}</tbody>\n</table>\n{notes}"
