"""Tables as plain text in the manner of statsmodels, as Markdown and as HTML."""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

from mixmoe.output.records import DECIMALS, Table, body

GAP = 2  # places between columns, one where a table would not fit otherwise
WIDTH = 78  # places of a line: the usual terminal of 80 without its last two
# Places that row labels and columns of words keep when a table is too wide, and where it would still be cut.
_ROOMY, _TIGHT = (20, 16), (12, 12)
_INDENTED = 16  # places from which on later lines of a text are indented
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
    fitting, layouts = _laid_out(tables)
    parts = [_centred(title, WIDTH)] if title else []
    for table in fitting:
        of_header = table.key == "header"
        head, *rows = _header_lines(table) if of_header else _lines(table, layouts[table.columns])
        parts += ["=" * WIDTH, *([] if of_header else [_centred(table.title, WIDTH), "-" * WIDTH]), *head]
        parts += [*([] if of_header else ["-" * WIDTH]), *(line for row in rows for line in row)]
    parts.append("=" * WIDTH)
    parts += [line for table in tables for note in table.notes for line in _wrapped(note, "")]
    parts += [line for i, note in enumerate(notes, 1) for line in _wrapped(note, f"[{i}] ")]
    return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Places of the row labels and of each column, and between them."""

    widths: tuple[int, ...]
    gap: int


def _laid_out(tables: Sequence[Table]) -> tuple[list[Table], dict[tuple[str, ...], _Layout]]:
    """The tables as they fit into a line, and the layout that those with the same heads share.

    What gives way, in this order, and only as far as it must: headings are broken at blanks, columns move together,
    words and row labels are broken, numbers lose decimals. Only then is a table cut into several, of equal widths.
    """
    layouts: dict[tuple[str, ...], _Layout] = {}
    fitting: dict[int, list[Table]] = {i: [table] for i, table in enumerate(tables) if table.key == "header"}
    for heads in dict.fromkeys(table.columns for table in tables if table.key != "header"):
        places = [i for i, table in enumerate(tables) if table.columns == heads and table.key != "header"]
        alike, layout = _one_layout([tables[i] for i in places])
        if layout is not None:
            layouts[heads] = layout
            fitting |= {i: [table] for i, table in zip(places, alike, strict=True)}
            continue
        least = [w + GAP for w in least_widths(alike, _columns, *_ROOMY)]
        cut = [side_by_side(table, least, WIDTH + GAP) for table in alike]
        parts = [_one_layout(part) for part in zip(*cut, strict=True)]
        for those, found in parts:
            layouts[those[0].columns] = found or _layout(those, _widest(those), [1] * (len(those[0].columns) + 1), GAP)
        fitting |= {i: [those[j] for those, _ in parts] for j, i in enumerate(places)}
    return [part for i in range(len(tables)) for part in fitting[i]], layouts


def _one_layout(tables: Sequence[Table]) -> tuple[Sequence[Table], _Layout | None]:
    """Tables with the same heads, with fewer decimals where they must, and their layout; none if they are too wide."""
    widest = _widest(tables)
    room = (max(widest),) * 2
    for gap, places in ((GAP, room), (1, room), (1, _ROOMY), (1, _TIGHT)):
        least = least_widths(tables, _columns, *places)
        if sum(least) + gap * (len(least) - 1) <= WIDTH:
            return tables, _layout(tables, widest, least, gap)
    fewer = [_with_fewer_decimals(table) for table in tables]
    shorter, layout = (tables, None) if fewer == list(tables) else _one_layout(fewer)
    return (tables, None) if layout is None else (shorter, layout)


def _with_fewer_decimals(table: Table) -> Table:
    """One decimal less, but two at least, in columns of numbers that keep two digits."""
    formats = list(table.formats)
    for i, spec in enumerate(table.formats):
        numbers = [abs(cell) for cell in (row[i] for row in table.cells) if isinstance(cell, float)]
        decimals = int(spec[3:] or DECIMALS) - 1 if spec.startswith("num") else 0
        if decimals > 1 and not any(0 < number < 10.0 ** (1 - decimals) for number in numbers):
            formats[i] = f"num{decimals}"
    return replace(table, formats=tuple(formats))


def least_widths(tables: Sequence[Table], measure: Callable[[str], float], label: float, words: float) -> list[float]:
    """Widths that row labels and columns of tables with the same heads keep: of their cells, and of a word of a head.

    Parameters
    ----------
    tables : sequence of Table
    measure : callable
        Width of a text.
    label, words : float
        What row labels and columns of words keep, if they are as wide.
    """
    rows = [shown_rows(table) for table in tables]
    heads = [max(map(measure, head.split()), default=0) for head in rows[0][0]]
    below = [row for each in rows for row in each[1:]]
    least = [max([head, *(measure(row[i]) for row in below)]) for i, head in enumerate(heads)]
    worded = [any(table.formats[i] == "text" for table in tables) for i in range(len(heads) - 1)]
    floors = [label, *(words if of_words else math.inf for of_words in worded)]
    return [min(pair) for pair in zip(least, floors, strict=True)]


def _widest(tables: Sequence[Table]) -> list[int]:
    """Widths that nothing is broken for."""
    rows = [row for table in tables for row in shown_rows(table)]
    return [max(map(_columns, column)) for column in zip(*rows, strict=True)]


def _layout(tables: Sequence[Table], widest: Sequence[int], least: Sequence[float], gap: int) -> _Layout:
    """Places that row labels and columns get in a line."""
    widths = given_way(widest, least, tables[0].formats, WIDTH - gap * (len(least) - 1))
    return _Layout(tuple(map(int, widths)), gap)


def given_way(widths: Sequence[float], least: Sequence[float], formats: Sequence[str], room: float) -> list[float]:
    """Widths whose sum fits into the room if the least ones do: headings give way first, then words, then row labels.

    Parameters
    ----------
    widths, least : sequence of float
        Of the row labels and of each column: what they would take, and what they keep.
    formats : sequence of str
        Of the columns.
    room : float

    Returns
    -------
    list of float
    """
    given = [float(width) for width in widths]
    columns = range(1, len(given))
    words = [i for i in columns if formats[i - 1] == "text"]
    for yielding in ([i for i in columns if i not in words], words, [0]):
        # One place after the other of what can give most, so that columns that are alike stay so.
        while (excess := sum(given) - room) > 0 and yielding:
            most = max(yielding, key=lambda i: given[i] - least[i])
            step = min(1.0, excess, given[most] - least[most])
            if step <= 0:
                break
            given[most] -= step
    return given


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
    cuts = _cuts(table.columns, widths, room)
    for first, last in zip(cuts, [*cuts[1:], len(table.columns)], strict=True):
        yield replace(
            table,
            title=table.title + (" (continued)" if first and table.title else ""),
            columns=table.columns[first:last],
            cells=tuple(row[first:last] for row in table.cells),
            formats=table.formats[first:last],
            notes=table.notes if last == len(table.columns) else (),
        )


def _cuts(heads: Sequence[str], widths: Sequence[float], room: float) -> list[int]:
    """The first column of each of the tables that a table is cut into.

    As few as fit into the room, and of these the most even ones, by their squared widths: a last table with a single
    column is hard to read.
    """
    runs, columns = list(_together(heads)), widths[1:]
    # The best tables of the columns before each run, with one table more in each round.
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    while len(runs) not in best:
        longer: dict[int, tuple[float, list[int]]] = {}
        for i, (squares, cuts) in best.items():
            for j in range(i + 1, len(runs) + 1):
                width = widths[0] + sum(columns[runs[i][0] : runs[j - 1][1]])
                if width > room and j > i + 1:
                    break
                found = (squares + width**2, [*cuts, runs[i][0]])
                longer[j] = min(longer.get(j, found), found)
        best = longer
    return best[len(runs)][1]


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


def _lines(table: Table, layout: _Layout) -> list[list[str]]:
    """Lines of the head and of each row, labels and words to the left, the others to the right."""
    sides = [False, *(spec != "text" for spec in table.formats)]
    lines = []
    for at, row in enumerate(shown_rows(table)):
        broken = [broken_lines(c, w, indent=at > 0) for c, w in zip(row, layout.widths, strict=True)]
        height = max(map(len, broken))
        # A heading stands on its column, a cell begins in the line of its row.
        filled = [[""] * (height - len(c)) + c if at == 0 else c + [""] * (height - len(c)) for c in broken]
        lines.append(
            [
                (" " * layout.gap)
                .join(_padded(cell[i], w, right) for cell, w, right in zip(filled, layout.widths, sides, strict=True))
                .rstrip()
                for i in range(height)
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


def broken_lines(
    value: str, width: float, measure: Callable[[str], float] | None = None, indent: bool = True
) -> list[str]:
    """A text in lines of at most a width, broken after blanks and punctuation, inside a word only where it must be.

    Later lines are indented where there is room for that, unless `indent` is False.
    """
    size = measure or _columns
    hanging = "  " if indent and width > _INDENTED else ""
    # A word that would not fit behind the indent may be broken at its punctuation too.
    room = width - size(hanging)
    lines, line = [], ""
    for piece in (
        part for word in _WORD.split(value) for part in (_BREAKS.split(word) if size(word.rstrip()) > room else [word])
    ):
        if size((line + piece).rstrip()) > width and line:
            lines.append(line)
            line = hanging
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
    if value.isascii():
        return len(value)
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
