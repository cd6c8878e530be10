"""Tables as plain text in the manner of statsmodels, as Markdown, HTML and LaTeX."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape

from mixmoe.errors import ArgumentError
from mixmoe.output.records import Table, body

_GAP = 2
_WIDTH = 78  # places of a line: the usual terminal of 80 without its last two
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
    parts = [_centred(title, _WIDTH)] if title else []
    for table in fitting:
        parts += _framed(table, _header_lines(table) if table.key == "header" else _lines(table, widths[table.columns]))
    parts.append("=" * _WIDTH)
    parts += [line for table in tables for note in table.notes for line in _wrapped(note, "")]
    parts += [line for i, note in enumerate(notes, 1) for line in _wrapped(note, f"[{i}] ")]
    return "\n".join(parts)


def _narrow(table: Table, tables: Sequence[Table]) -> Iterator[Table]:
    """The table, or its columns in several tables below one another where they do not fit beside one another."""
    if table.key == "header":
        yield table
        return
    widths = [w + _GAP for w in _natural(tables)[table.columns]]
    floors = [
        min(w, _LABEL + _GAP if spec == "label" else _WORDS + _GAP) if spec in ("label", "text") else w
        for w, spec in zip(widths, ("label", *table.formats), strict=True)
    ]
    yield from side_by_side(table, floors, _WIDTH + _GAP)


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
    for i, width in enumerate(widths[1:]):
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


def _framed(table: Table, lines: list[list[str]]) -> list[str]:
    """Lines of one table with its title and rules."""
    head, *rows = lines
    below = [line for row in rows for line in row]
    if table.key == "header":
        return ["=" * _WIDTH, *head, *below]
    return ["=" * _WIDTH, _centred(table.title, _WIDTH), "-" * _WIDTH, *head, "-" * _WIDTH, *below]


def _rows(table: Table) -> list[tuple[str, ...]]:
    """Head and rows of a table as texts of one line; a label keeps the blanks that indent it."""
    rows = [("", *table.columns), *((name, *row) for name, row in zip(table.index, body(table), strict=True))]
    return [(_indent(name) * "  " + _one_line(name), *(_one_line(cell) for cell in cells)) for name, *cells in rows]


def _indent(label: str) -> int:
    """Whether a row label stands below another: it begins with a blank then."""
    return int(label.startswith(" "))


def _natural(tables: Sequence[Table]) -> dict[tuple[str, ...], list[int]]:
    """Widths that nothing is broken for, shared by tables with the same heads."""
    widths: dict[tuple[str, ...], list[int]] = {}
    for table in tables:
        for row in _rows(table):
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
            excess = sum(widths) + _GAP * (len(widths) - 1) - _WIDTH
            widths[i] -= max(min(excess, widths[i] - floor), 0)
    return shared


def _lines(table: Table, widths: list[int]) -> list[list[str]]:
    """Lines of the head and of each row, labels to the left and cells to the right."""
    sides = [False, *(spec != "text" for spec in table.formats)]
    lines = []
    for row in _rows(table):
        broken = [_broken(cell, width) for cell, width in zip(row, widths, strict=True)]
        lines.append(
            [
                (" " * _GAP)
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
    half = _WIDTH // 2 - 1
    pairs = [(_one_line(f"{label}:"), _one_line(row[0])) for label, row in zip(table.index, body(table), strict=True)]
    long = [(a, b) for a, b in pairs if a == "Formula:" or _columns(a) + _columns(b) + _GAP > half]
    short = [pair for pair in pairs if pair not in long]
    indent = max([_columns(a) for a, _ in long], default=0) + _GAP
    lines = [
        _padded(a if i == 0 else "", indent) + part
        for a, b in long
        for i, part in enumerate(_broken(b, max(_WIDTH - indent, 1)))
    ]
    left, right = short[: (len(short) + 1) // 2], short[(len(short) + 1) // 2 :]
    for i, (a, b) in enumerate(left):
        line = a + _padded(b, half - _columns(a), right=True)
        if i < len(right):
            line += "  " + right[i][0] + _padded(right[i][1], half - _columns(right[i][0]), right=True)
        lines.append(line)
    return [lines]


def _broken(value: str, width: float, measure: Callable[[str], float] | None = None) -> list[str]:
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
        for piece in _broken(word, _WIDTH - len(mark)):
            if _columns(line) + _columns(piece) > _WIDTH and line.strip():
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
        [_indent(label) * "&emsp;" + _escaped(label), *(_escaped(cell) for cell in cells)]
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
    rows = "".join(_row(label, cells, sides) for label, cells in zip(table.index, body(table), strict=True))
    notes = "".join(f"<p><small>{escape(note)}</small></p>\n" for note in table.notes)
    return f"<table>\n{caption}{head}<tbody>\n{rows}</tbody>\n</table>\n{notes}"


def _row(label: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    values = "".join(
        f'<td style="text-align:{side}">{escape(cell)}</td>' for cell, side in zip(cells, sides, strict=True)
    )
    head = _indent(label) * "&emsp;" + escape(label.strip())
    return f'<tr><th scope="row" style="text-align:left">{head}</th>{values}</tr>\n'


_ROWS_PER_FLOAT = 40
_TEXT_POINTS = 343.0  # of the 345 of an article at 10 pt
_LABEL_POINTS = 90.0  # that row labels and columns of words keep when a table is too wide
_LEAST_POINTS = 10.0  # that a column by itself keeps
_COLUMN_SEP = 4
# Points of characters at 9 pt; a character that the fonts lack is printed as [U+4E2D].
_POINTS = (
    ("0123456789aceovyz*?", 4.8),
    ("bdhknpqux", 5.3),
    ("ijlfrst.,:;|'!()[]/` -", 3.8),
    ("mw@%&=+<>~^−ABCDEFGHIJKLNOPQRSTUVXYZ", 7.9),
    ("MW", 9.7),
    ("_", 5.0),
)
_OTHER_POINTS = 40.0
_PREAMBLE = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"{''}",
    "'": r"{'}",
    "-": r"{-}",
    "[": r"{[}",
    "]": r"{]}",
    "*": r"{*}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
    "−": r"$-$",
    "–": r"--",
    "—": r"---",
    "‘": r"{`}",
    "’": r"{'}",
    "“": r"{``}",
    "”": r"{''}",
    "…": r"\dots{}",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "→": r"$\rightarrow$",
    "°": r"$^{\circ}$",
    "²": r"$^2$",
    "³": r"$^3$",
    "¹": r"$^1$",
    "µ": r"$\mu$",
    "ς": r"$\varsigma$",
    "√": r"$\surd$",
    "§": r"\S{}",
    "£": r"\pounds{}",
    "©": r"\copyright{}",
}
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}
_GREEK_AS_LATIN = {"omicron": "o", "Alpha": "A", "Beta": "B", "Epsilon": "E", "Zeta": "Z", "Eta": "H", "Iota": "I"}
_GREEK_AS_LATIN |= {"Kappa": "K", "Mu": "M", "Nu": "N", "Omicron": "O", "Rho": "P", "Tau": "T", "Chi": "X"}


def latex(
    tables: Sequence[Table],
    caption: str | None = None,
    label: str | None = None,
    notes: Sequence[str] = (),
    standalone: bool = False,
) -> str:
    """A ``table`` environment that needs only the package booktabs; every text is escaped.

    Parameters
    ----------
    tables : sequence of Table
        Consecutive tables with the same columns become panels of one tabular. More rows than fit on a page continue in
        further ``table`` environments.
    caption : str, optional
    label : str, optional
        For cross-references; letters, digits and ``: _ . / + -``.
    notes : sequence of str
        Printed below the last tabular.
    standalone : bool
        A whole document instead of a fragment.

    Returns
    -------
    str

    Raises
    ------
    ArgumentError
        If the label has other characters or the caption is no text.
    """
    if caption is not None and not isinstance(caption, str):
        raise ArgumentError(f"caption must be text, got {caption!r}")
    if label is not None and not (isinstance(label, str) and re.fullmatch(r"[A-Za-z0-9:_./+-]+", label)):
        raise ArgumentError(f"label may have letters, digits and any of : _ . / + -, got {label!r}")
    floats = _floats(tables)
    text = "\n".join(
        _float(
            part,
            latex_escape(caption or "") + (" (continued)" if i and caption else ""),
            label if i == 0 else None,
            notes if i == len(floats) - 1 else (),
        )
        for i, part in enumerate(floats)
    )
    return f"{_PREAMBLE}{text}\\end{{document}}\n" if standalone else text


def latex_escape(value: str) -> str:
    """The text in ASCII that LaTeX prints literally.

    Parameters
    ----------
    value : str

    Returns
    -------
    str
        Characters that LaTeX's own fonts lack are printed as ``[U+4E2D]``.
    """
    return "".join(_character(c) for c in " ".join(unicodedata.normalize("NFC", value).split()))


def _character(c: str) -> str:
    if c in _CHARACTERS:
        return _CHARACTERS[c]
    if " " <= c <= "~":
        return c
    if unicodedata.category(c)[0] == "C":
        return " "
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(c, ""))
    if greek:
        return _greek(greek[2].lower() if greek[1] == "SMALL" else greek[2].capitalize())
    base, *marks = list(unicodedata.normalize("NFD", c))
    if len(marks) == 1 and marks[0] in _ACCENTS and base.isascii():
        letter = rf"\{base}" if base in "ij" else base
        return rf"\{_ACCENTS[marks[0]]}{{{letter}}}"
    return f"{{[}}U+{ord(c):04X}{{]}}"


def _greek(name: str) -> str:
    name = {"lamda": "lambda", "Lamda": "Lambda", "Upsilon": "Upsilon"}.get(name, name)
    return f"${_GREEK_AS_LATIN[name]}$" if name in _GREEK_AS_LATIN else f"$\\{name}$"


def _floats(tables: Sequence[Table]) -> list[list[Table]]:
    """Tables gathered into floats of at most `_ROWS_PER_FLOAT` rows, wide and long tables cut."""
    floats: list[list[Table]] = [[]]
    room = _ROWS_PER_FLOAT
    for table in tables:
        points = _points([t for t in tables if t.columns == table.columns])
        least = [min(points[0], _LABEL_POINTS), *(min(w, _TEXT_POINTS) for w in points[1:])]
        for part in side_by_side(table, least, _TEXT_POINTS):
            for piece in _pieces(part):
                if len(piece.index) > room and floats[-1]:
                    floats.append([])
                    room = _ROWS_PER_FLOAT
                floats[-1].append(piece)
                room -= len(piece.index) + 2
    return floats


def _points(tables: Sequence[Table]) -> list[float]:
    """Widths of row labels and columns of tables with the same heads, space between columns included."""
    rows = [row for table in tables for row in _rows(table)]
    return [max(map(_typeset, column)) + 2 * _COLUMN_SEP for column in zip(*rows, strict=True)]


def _typeset(value: str) -> float:
    """Width of a text in points in Computer Modern at 9 pt, rather too much than too little."""
    return sum(next((points for those, points in _POINTS if c in those), _OTHER_POINTS) for c in value)


def _pieces(table: Table) -> list[Table]:
    """The table cut into parts that fit on a page."""
    cuts = range(0, max(len(table.index), 1), _ROWS_PER_FLOAT)
    last = cuts[-1]
    return [
        replace(
            table,
            title=table.title + (" (continued)" if i else ""),
            index=table.index[i : i + _ROWS_PER_FLOAT],
            cells=table.cells[i : i + _ROWS_PER_FLOAT],
            notes=table.notes if i == last else (),
        )
        for i in cuts
    ]


def _float(tables: Sequence[Table], caption: str, label: str | None, notes: Sequence[str]) -> str:
    groups: list[list[Table]] = []
    for table in tables:
        if groups and groups[-1][-1].columns == table.columns:
            groups[-1].append(table)
        else:
            groups.append([table])
    lines = [r"\begin{table}[htbp]", r"\centering"]
    lines += [rf"\caption{{{caption}}}", r"\medskip"] if caption else []
    lines += [rf"\label{{{label}}}"] if label else []
    lines += [r"\small", rf"\setlength{{\tabcolsep}}{{{_COLUMN_SEP}pt}}"]
    lines += ["\n\\medskip\n\n".join(_tabular(group) for group in groups)]
    remarks = [latex_escape(note) for table in tables for note in table.notes] + [latex_escape(note) for note in notes]
    if remarks:
        lines += [
            "",
            r"\medskip",
            r"\begin{minipage}{\linewidth}\footnotesize\sloppy",
            " \\par\n".join(remarks),
            r"\end{minipage}",
        ]
    return "\n".join([*lines, r"\end{table}", ""])


def _tabular(tables: Sequence[Table]) -> str:
    """One tabular whose panels are the tables."""
    width = len(tables[0].columns) + 1
    sides = "".join("l" if spec == "text" else "r" for spec in tables[0].formats)
    room = _room(tables)
    lines = [rf"\begin{{tabular}}{{l{sides}}}", r"\toprule"]
    if any(tables[0].columns):
        heads = [
            _boxed(c, w, lambda head: latex_escape(_with_minus(head)))
            for c, w in zip(tables[0].columns, room[1:], strict=True)
        ]
        lines += [" & ".join(["", *heads]) + r" \\", r"\midrule"]
    for i, table in enumerate(tables):
        lines += [r"\addlinespace"] if i else []
        lines += [rf"\multicolumn{{{width}}}{{l}}{{\textit{{{latex_escape(table.title)}}}}} \\"] if table.title else []
        lines += [_latex_row(name, cells, room) for name, cells in zip(table.index, body(table), strict=True)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _room(tables: Sequence[Table]) -> list[float]:
    """Points for the texts of row labels and columns: words, then labels, then anything gives way to fit the page."""
    widths = _points(tables)
    specs = ("label", *tables[0].formats)
    order = sorted(range(len(widths)), key=lambda i: (specs[i] != "text", specs[i] != "label", -widths[i]))
    for i in order:
        excess = sum(widths) - _TEXT_POINTS
        floor = _LABEL_POINTS if specs[i] in ("text", "label") else 2 * _COLUMN_SEP + _LEAST_POINTS
        widths[i] -= max(min(excess, widths[i] - floor), 0.0)
    return [w - 2 * _COLUMN_SEP for w in widths]


def _boxed(value: str, room: float, show: Callable[[str], str]) -> str:
    """A text as LaTeX, in lines below one another where it is wider than the room."""
    if _typeset(value) <= room + 1e-6:  # the sum of the same widths in another order
        return show(value)
    lines = _broken(value, room, _typeset)
    shown = r"\newline ".join(_indent(line) * r"\quad " + show(line) for line in lines)
    return rf"\parbox[t]{{{room:.1f}pt}}{{\raggedright {shown}\strut}}"


def _latex_row(name: str, cells: Sequence[str], room: Sequence[float]) -> str:
    label = _indent(name) * r"\quad " + _boxed(name, room[0], latex_escape)
    return " & ".join([label, *(_boxed(c, w, _number) for c, w in zip(cells, room[1:], strict=True))]) + r" \\"


def _number(cell: str) -> str:
    """A cell with true minus signs if it is a number or begins with one, as a range or limits do."""
    return latex_escape(_with_minus(cell) if re.match(r"-?(\d|inf|nan)", cell) else cell)


def _with_minus(text: str) -> str:
    """The text with the sign of negative numbers in place of their hyphens; those of dates and exponents stay."""
    return re.sub(r"(?<![\w.)])-(?=\d|inf)", "−", text)
